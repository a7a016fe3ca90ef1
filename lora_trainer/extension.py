"""The composition root inside a WebUI: finds the host, builds the services, and gives the WebUI our tab, settings and routes.

Host and queue outlive "Reload UI", which runs our script anew: the queue goes on working, and the new page shows it. Nothing here
imports diffusers, peft or transformers, or anything of ours that is not needed to show the tab.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_trainer import __version__
from lora_trainer.host.base import Host
from lora_trainer.host.table import find_host

if TYPE_CHECKING:
    from lora_trainer.ui.services import Services

TITLE = "LoRA Trainer"
ELEM_ID = "lora_trainer"
PACKAGES = ("torch", "gradio", "transformers", "diffusers", "peft", "accelerate", "safetensors", "huggingface_hub", "pydantic")
# Not the browser's clipboard object, which exists only on https and localhost.
COPY_REPORT = """() => {
    const root = window.gradioApp ? window.gradioApp() : document;
    root.querySelector("#lora_trainer_report textarea").select();
    document.execCommand("copy");
}"""


def register() -> None:
    """Registers our callbacks with the WebUI."""
    from modules import script_callbacks

    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_ui_tabs(build_tab)
    script_callbacks.on_app_started(add_routes)


@functools.cache
def host() -> Host:
    """Returns the WebUI that we live in; one object for the life of the process, since it knows who of us holds the lock."""
    return find_host()


def services() -> Services:
    """Returns what the page and the API work with. A new data folder, chosen on the settings page, takes effect here."""
    from lora_trainer.dataset.library import DatasetLibrary
    from lora_trainer.jobs import open_queue
    from lora_trainer.ui.services import Services

    return Services(host=host(), queue=open_queue(host()), library=DatasetLibrary(host().folders().datasets))


def add_settings() -> None:
    """Adds our section to the WebUI's settings page."""
    from lora_trainer.captioning.table import CAPTIONERS
    from lora_trainer.host import settings

    settings.add_settings(CAPTIONERS.names())


def build_tab() -> list[tuple[Any, str, str]]:
    """Returns our tab; where it cannot be built, a tab that says why."""
    try:
        from lora_trainer.ui.page import build_page

        blocks = build_page(services())
    except Exception:
        blocks = build_failure(traceback.format_exc())
    return [(blocks, TITLE, ELEM_ID)]


def add_routes(_: Any, app: Any) -> None:
    """Adds our HTTP routes where the WebUI was started with --api, behind its login."""
    from modules import shared

    if not shared.cmd_opts.api:
        return
    from lora_trainer.api.routes import add_routes as add_our_routes
    from lora_trainer.host.login import make_login

    add_our_routes(app, services(), make_login(shared.cmd_opts))


def build_failure(error: str) -> Any:
    """Returns a page with a report that can be copied.

    Args:
        error: the traceback.
    """
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"### {TITLE} could not be started\nThe rest of the WebUI works as usual. Copy the report below into an issue; "
            "it holds versions and the error, and no file names other than those of programs."
        )
        gradio.Textbox(make_report(error), label="Report", lines=20, interactive=False, elem_id="lora_trainer_report")
        button: Any = gradio.Button("Copy report", elem_id="lora_trainer_copy_report")
        button.click(None, **{"_js" if gradio.__version__.startswith("3.") else "js": COPY_REPORT})
    return blocks


def make_report(error: str) -> str:
    """Returns the versions of all that takes part, and the error."""
    lines = [
        f"LoRA Trainer {__version__}",
        f"host: {_try(lambda: host().title)}",
        f"system: {platform.platform()}, Python {platform.python_version()}",
        *(f"{name}: {_try(lambda name=name: importlib.metadata.version(name))}" for name in PACKAGES),  # type: ignore[misc]
        f"started with: {' '.join(word for word in sys.argv[1:] if word.startswith('--'))}",
    ]
    return "\n".join([*lines, "", error])


def _try(read: Callable[[], str]) -> str:
    """Returns what is read, or why it cannot be: a report must come whatever is broken."""
    try:
        return read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
