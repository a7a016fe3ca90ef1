"""The page: its parts from left to right in the order of work, the message at the top, and the line of what runs.

Another part is one file with a class that has `id`, `title`, `build` and `bind`, and one line in `PARTS`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from lora_trainer.errors import ConfigError, LoraTrainerError
from lora_trainer.ui import markup
from lora_trainer.ui.activity import describe_activity
from lora_trainer.ui.captions import CaptionsPart
from lora_trainer.ui.compat import listen, new_blocks
from lora_trainer.ui.dataset import DatasetPart
from lora_trainer.ui.runs import RunsPart
from lora_trainer.ui.services import Services
from lora_trainer.ui.test import TestPart
from lora_trainer.ui.train import TrainPart

log = logging.getLogger(__name__)

_SHOWN_ONLY = (gr.HTML, gr.Button)
ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = tuple(ROOT / "javascript" / f"lora_trainer{name}.js" for name in ("", "_captions", "_test", "_words"))
STYLE = ROOT / "style.css"
LANGUAGES = {"zh": ROOT / "localizations" / "zh_CN.json"}

Values = dict[str, Any]
Handler = Callable[[Values], Mapping[str, Any]]


class Part(Protocol):
    """One tab of the page.

    Attributes:
        id: of the tab, for elements "lora_trainer_<id>_...".
        title: on the tab.
        live: the components that `refresh` and `tick` read and change, by name; there after `build`.
    """

    id: str
    title: str
    live: dict[str, Any]

    def build(self) -> None:
        """Makes the widgets, inside the tab."""

    def bind(self, page: Page) -> None:
        """Wires them, when those of all parts exist."""

    def refresh(self, values: Values) -> Mapping[str, Any]:
        """Returns updates that bring the part up to date, after a reload of the page or when a job ended."""

    def tick(self, values: Values) -> Mapping[str, Any]:
        """Returns updates for once a second while a job is active."""


PARTS: tuple[Callable[[Services], Part], ...] = (DatasetPart, CaptionsPart, TrainPart, TestPart, RunsPart)


class Page:
    """What the parts share.

    Attributes:
        services: that handlers call.
        parts: by id.
        openers: their tabs, by id; `select` of one is when its part is opened.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.parts: dict[str, Any] = {part.id: part for part in (make(services) for make in PARTS)}
        self.openers: dict[str, Any] = {}

    def build(self) -> None:
        """Makes all widgets and wires them."""
        with gr.Column(elem_id="lora_trainer"):
            if self.services.is_standalone:
                gr.HTML("<h1>LoRA Trainer</h1>")
            self.message = gr.HTML("", elem_id="lora_trainer_message")
            self.strip = gr.HTML(self._strip(), elem_id="lora_trainer_strip")
            with gr.Tabs(elem_id="lora_trainer_parts") as self.tabs:
                for part in self.parts.values():
                    with gr.Tab(part.title, id=part.id, elem_id=f"lora_trainer_tab_{part.id}") as self.openers[part.id]:
                        part.build()
            self._refresh = gr.Button("refresh", elem_id="lora_trainer_refresh", elem_classes="lora_trainer_hidden")
            self._tick = gr.Button("tick", elem_id="lora_trainer_tick", elem_classes="lora_trainer_hidden")
        for part in self.parts.values():
            part.bind(self)
        self._bind_whole(self._refresh, "refresh")
        self._bind_whole(self._tick, "tick")

    def on(
        self,
        trigger: Callable[..., Any],
        handler: Handler,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        *,
        js: str | None = None,
        quiet: bool = False,
    ) -> Any:
        """Binds a handler that takes values by name and returns updates by name.

        Every handler may also return "message" (HTML for the top of the page), "tabs" and "strip". What it raises is shown there.

        Args:
            trigger: an event, such as `button.click`.
            inputs, outputs: components by the names that the handler uses.
            js: a script to run before it.
            quiet: leaves a message that is shown alone.
        """
        inputs, outputs = dict(inputs or {}), dict(outputs or {})
        targets = {**outputs, "message": self.message, "tabs": self.tabs, "strip": self.strip}

        def run(data: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
            values = {name: (data or {}).get(component) for name, component in inputs.items()}
            updates = {"strip": self._strip()} if quiet else {"message": ""}
            try:
                updates |= handler(values)
                if not quiet:  # else that of before it: a line newer than what is drawn would say that nothing is left to draw
                    updates["strip"] = self._strip()
            except ConfigError as error:
                updates = {"message": markup.box(markup.problem_list(error.problems), "message", "is_error", role="alert")}
            except LoraTrainerError as error:
                updates = {"message": markup.error_message(str(error))}
            except Exception as error:
                log.exception("A handler of the LoRA Trainer page failed.")
                text = f"{type(error).__name__}: {error}. The program's log tells more."
                updates = {"message": markup.error_message(text)}
            return {targets[name]: update for name, update in updates.items()}

        # What only shows something would send it back: a gallery is half a megabyte, each second while a job runs.
        asked = {component for component in inputs.values() if not isinstance(component, _SHOWN_ONLY)}
        return listen(trigger, run, inputs=asked, outputs=list(targets.values()), js=js)

    def _bind_whole(self, button: Any, name: str) -> None:
        """Has a hidden button call the method of that name of every part."""
        components = {f"{part.id}.{key}": component for part in self.parts.values() for key, component in part.live.items()}

        def collect(values: Values) -> Mapping[str, Any]:
            updates: dict[str, Any] = {}
            for part in self.parts.values():
                own = {key: values[f"{part.id}.{key}"] for key in part.live}
                updates |= {f"{part.id}.{key}": update for key, update in getattr(part, name)(own).items()}
            return updates

        self.on(button.click, collect, components, components, quiet=True)

    def _strip(self) -> str:
        return describe_activity(self.services.queue.list())


def build_page(services: Services) -> gr.Blocks:
    """Returns the whole page: for a WebUI's tab, or to be started by itself."""
    with _no_garbage_collection(), new_blocks("LoRA Trainer") as blocks:
        if services.is_standalone:  # a WebUI takes these files from the extension's folder by itself
            gr.HTML(f"<style>{STYLE.read_text(encoding='utf-8')}</style>", elem_classes="lora_trainer_hidden")
        Page(services).build()
        if services.is_standalone:
            listen(blocks.load, None, js=_script())
    return blocks


def _script() -> str:
    """Returns our scripts as one function, and the words of the browser's language, which a WebUI has from its settings."""
    words = ", ".join(f"{language}: {path.read_text(encoding='utf-8')}" for language, path in LANGUAGES.items())
    chosen = f"window.localization = {{{words}}}[navigator.language.slice(0, 2)] || {{}};"
    return "() => {" + chosen + "".join(path.read_text(encoding="utf-8") for path in SCRIPTS) + "}"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking through all objects of the host for garbage while we make thousands that stay.

    That search took as long as the building itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
