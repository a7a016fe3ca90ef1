"""The box "Check and retouch the pictures" of the part Captions: the quality report, and tools for those that are shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.errors import DatasetError
from lora_trainer.ui import markup
from lora_trainer.ui.compat import unsaved, uploaded
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.captions import CaptionsPart

TOOLS = {"Crop": "crop", "Resize": "resize", "Trim borders": "trim", "Colour table (.cube)": "table"}


class PicturesBox:
    """Built by the part Captions inside itself; the filter of that part says which pictures are meant."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def build(self) -> None:
        self.check = gr.Button("Check the pictures", size="sm", elem_id="lora_trainer_captions_check")
        self.report = gr.HTML("", elem_id="lora_trainer_captions_report")
        self.tool = unsaved(
            gr.Dropdown(list(TOOLS), value="Crop", label="Change the pictures shown", elem_id="lora_trainer_captions_tool")
        )
        with gr.Row(elem_classes="lora_trainer_fields"):
            self.ratio = unsaved(
                gr.Number(value=1, label="Shape (width / height, 1 is a square)", elem_id="lora_trainer_captions_ratio")
            )
            self.side = unsaved(
                gr.Number(value=1024, label="Shorter side after resizing (pixels)", elem_id="lora_trainer_captions_side")
            )
        with gr.Row(elem_classes="lora_trainer_fields"):
            percent = {"minimum": 0, "maximum": 100, "step": 1}
            self.left = unsaved(
                gr.Slider(value=50, label="Focus from the left (%)", elem_id="lora_trainer_captions_left", **percent)
            )
            self.top = unsaved(
                gr.Slider(value=50, label="Focus from the top (%)", elem_id="lora_trainer_captions_top", **percent)
            )
            self.strength = unsaved(
                gr.Slider(
                    value=100, label="Strength of the colour table (%)", elem_id="lora_trainer_captions_strength", **percent
                )
            )
        self.table = unsaved(gr.File(label="Colour table (.cube)", elem_id="lora_trainer_captions_table"))
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.retouch = gr.Button("Change the pictures", size="sm", min_width=150, elem_id="lora_trainer_captions_retouch")
            self.undo_pictures = gr.Button(
                "Undo on pictures", size="sm", min_width=150, elem_id="lora_trainer_captions_undo_pictures"
            )
            self.leave_out = gr.Button("Remove those shown", size="sm", min_width=150, elem_id="lora_trainer_captions_leave_out")

    def bind(self, part: CaptionsPart, on: Callable[..., Any]) -> None:
        """Wires the buttons.

        Args:
            part: that this is in.
            on: binds a handler, as `page.Page.on` does.
        """
        self._part = part
        looks = part.looks
        on(self.check.click, self._check, looks, {})
        tools = {"tool": self.tool, "ratio": self.ratio, "side": self.side, "left": self.left, "top": self.top}
        tools |= {"strength": self.strength, "table": self.table}
        on(self.retouch.click, self._retouch, {**looks, **tools}, {})
        on(self.undo_pictures.click, self._undo_pictures, looks, part.shown)
        on(self.leave_out.click, self._leave_out, looks, part.shown)

    def _check(self, values: dict[str, Any]) -> dict[str, Any]:
        folder = self._part.chosen_store(values).folder
        first = str(values["resolution"] or "").split(",")[0].strip()
        resolution = int(first) if first.isdigit() and 64 <= int(first) <= 4096 else 512
        settings = {"input_dir": str(folder), "resolution": resolution}
        self.services.queue.submit("report", settings, title=f"Pictures of {folder.name}")
        return {"message": markup.notice(word("The pictures are being checked; what is found appears here."))}

    def _retouch(self, values: dict[str, Any]) -> dict[str, Any]:
        looked = self._part.look(values)
        tool = TOOLS[values["tool"]]
        settings: dict[str, Any] = {"input_dir": str(looked.folder), "names": list(looked.shown), "tool": tool}
        if tool == "crop":
            settings |= {"ratio": values["ratio"], "focus": [values["left"] / 100, values["top"] / 100]}
        elif tool == "resize":
            settings["side"] = int(values["side"] or 0)
        elif tool == "table":
            settings |= {"table": self._keep_table(looked.folder, values["table"]), "strength": values["strength"] / 100}
        self.services.queue.submit("retouch", settings, title=f"{values['tool']}: {looked.folder.name}")
        return {"message": markup.notice(word("The pictures are being changed; “Undo on pictures” takes it back."))}

    def _keep_table(self, folder: Path, value: Any) -> str:
        """Copies an uploaded colour table into the set, where the job finds it."""
        files = uploaded(value)
        if not files or not files[0][0].lower().endswith(".cube"):
            raise DatasetError("There is no colour table. Drop a .cube file into the field.")
        kept = folder / KEPT_FOLDER / "table.cube"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(files[0][1], kept)
        return str(kept)

    def _undo_pictures(self, values: dict[str, Any]) -> dict[str, Any]:
        result = PictureStore(self._part.chosen_store(values).folder).undo()
        refused = "".join(f"<br>{escape(reason)}" for reason in list(result.refused.values())[:3])
        said = f"{markup.count_pictures(len(result.changed))} {word('are as they were.')}{refused}"
        return {**self._part.show(values), "message": markup.notice(said)}

    def _leave_out(self, values: dict[str, Any]) -> dict[str, Any]:
        library, looked = self.services.library, self._part.look(values)
        if values["source"] not in library.names():
            raise DatasetError(
                "Pictures can only be removed from a named data set. Make one in the part Dataset and drop them there."
            )
        if len(looked.shown) == len(looked.captions):
            raise DatasetError("That would remove every picture. Choose a filter first, such as the blurred ones.")
        library.remove(values["source"], list(looked.shown))
        said = word("Moved out of the set; the part Dataset brings them back:")
        return {
            **self._part.show({**values, "page_number": 0}),
            "message": markup.notice(f"{said} {markup.count_pictures(len(looked.shown))}."),
        }
