"""The one place for what differs between gradio 3.41.2, 4.40.0 and 6: events, files, styles, and what a host would keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

MAJOR = int(gr.__version__.partition(".")[0])
_JS = "_js" if MAJOR < 4 else "js"
_PRIVATE: dict[str, Any] = {"api_visibility": "private"} if MAJOR >= 6 else {"api_name": False}
# gradio 6 tells every component that ever was an output of every event's progress, and looks for each in the whole page: a
# third of a second an event on ours. A list of none is told to nobody.
_UNTOLD: dict[str, Any] = {"show_progress_on": []} if MAJOR >= 6 else {}

C = TypeVar("C")


def unsaved(component: C) -> C:
    """Returns the component, marked so that a WebUI does not write its value to `ui-config.json` and back over our default."""
    component.do_not_save_to_config = True  # type: ignore[attr-defined]
    return component


def listen(
    trigger: Callable[..., Any],
    handler: Callable[..., Any] | None,
    *,
    inputs: Any = None,
    outputs: Any = None,
    js: str | None = None,
) -> Any:
    """Binds a handler to an event such as `button.click`.

    Past the queue, so that it answers while a WebUI generates; with no spinner over what it redraws; not in the API.
    """
    scripts = {} if js is None else {_JS: js}
    return trigger(handler, inputs=inputs, outputs=outputs, queue=False, show_progress="hidden", **scripts, **_UNTOLD, **_PRIVATE)


def uploaded(value: Any) -> list[tuple[str, Path]]:
    """Returns the names that the user gave and where the files lie now, of what a File or UploadButton hands over."""
    if not value:
        return []
    files = value if isinstance(value, list) else [value]
    # gradio 3 hands over objects, later ones paths. The last part of the path is the user's name, as far as gradio lets it be.
    paths = [Path(str(getattr(file, "name", file))) for file in files]
    return [(path.name, path) for path in paths]


def new_blocks(title: str) -> gr.Blocks:
    """Returns an empty page. Its fonts are the system's: gradio's own theme would ask a font service for others."""
    options: dict[str, Any] = {} if MAJOR >= 6 else {"theme": _theme()}
    return gr.Blocks(title=title, analytics_enabled=False, **options)


def launch(blocks: gr.Blocks, **options: Any) -> Any:
    """Starts a server for the page and returns at once what gradio does: application, local and shared address."""
    own: dict[str, Any] = {"footer_links": [], "ssr_mode": False, "theme": _theme()} if MAJOR >= 6 else {"show_api": False}
    own["_frontend"] = False  # else gradio asks its own page for an answer within three seconds, or gives up
    return blocks.launch(share=False, quiet=True, prevent_thread_lock=True, **own, **options)


def _theme() -> gr.themes.Base:
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
