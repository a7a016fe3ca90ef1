"""The part Dataset: make a named set, drop files into it, look at what is there, have captions written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.dataset.library import AddResult, Upload
from lora_trainer.dataset.overview import Overview, Picture, read_overview
from lora_trainer.errors import DatasetError
from lora_trainer.ui import gallery, markup
from lora_trainer.ui.caption_run import CaptionRunForm
from lora_trainer.ui.compat import unsaved, uploaded
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

FIRST_NAME = "my_pictures"
USUAL_RESOLUTION = 512
MOST_RESULTS = 200


class DatasetPart:
    """See the module and `page.Part`."""

    id = "dataset"
    title = "Dataset"

    def __init__(self, services: Services) -> None:
        self.services = services
        self.live: dict[str, Any] = {}
        self.run = CaptionRunForm(services)

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.source = unsaved(
                        gr.Dropdown(
                            choices=[],
                            value=None,
                            label="Data set",
                            info="One of yours, or the path of a folder on this computer.",
                            allow_custom_value=True,
                            interactive=True,
                            scale=3,
                            elem_id="lora_trainer_dataset_source",
                        )
                    )
                    self.name = unsaved(
                        gr.Textbox(
                            label="New data set",
                            info="Its name; files dropped below make it, too.",
                            max_lines=1,
                            placeholder=FIRST_NAME,
                            scale=2,
                            elem_id="lora_trainer_dataset_name",
                        )
                    )
                    self.create = gr.Button("Create", scale=0, min_width=90, elem_id="lora_trainer_dataset_create")
                self.files = unsaved(
                    gr.File(
                        label="Drop pictures, ZIP files, captions (.txt) or metadata.csv here",
                        file_count="multiple",
                        elem_id="lora_trainer_dataset_files",
                    )
                )
                self.results = gr.HTML("", elem_id="lora_trainer_dataset_results")
            with gr.Column(scale=2, elem_classes="lora_trainer_panel"):
                self.totals = gr.HTML(_EMPTY_TOTALS, elem_id="lora_trainer_dataset_totals")
                self.caption = gr.Button("Caption", variant="primary", elem_id="lora_trainer_dataset_caption")
                self.run.build()
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.kept = unsaved(
                gr.Radio(
                    list(gallery.FILTERS),
                    value="All",
                    label="Show",
                    show_label=False,
                    container=False,
                    interactive=True,
                    scale=3,
                    elem_id="lora_trainer_dataset_kept",
                )
            )
            self.select_all = gr.Button("Select all here", size="sm", min_width=150, elem_id="lora_trainer_dataset_select_all")
            self.remove = gr.Button("Remove selected", size="sm", min_width=150, elem_id="lora_trainer_dataset_remove")
        self.gallery = gr.HTML("", elem_id="lora_trainer_dataset_gallery")
        # Pressed by the script, for the buttons below the cards.
        self.back = gr.Button("back", elem_id="lora_trainer_dataset_back", elem_classes="lora_trainer_hidden")
        self.forward = gr.Button("forward", elem_id="lora_trainer_dataset_forward", elem_classes="lora_trainer_hidden")
        self.page_number = gr.State(0)
        self.selection = unsaved(
            gr.Textbox("[]", show_label=False, elem_id="lora_trainer_dataset_selection", elem_classes="lora_trainer_hidden")
        )
        self.live = {
            "source": self.source,
            "kept": self.kept,
            "page_number": self.page_number,
            "selection": self.selection,
            "gallery": self.gallery,
            "totals": self.totals,
            "remove": self.remove,
        }

    def bind(self, page: Page) -> None:
        train = page.parts["train"]
        # The training follows: whoever looks at a set is about to train it.
        look = {**self.live, "resolution": train.form["resolution"]}
        shown = {**self.live, **train.followers}

        def redraw(values: dict[str, Any]) -> dict[str, Any]:
            return self.show(values) | train.follow(values)

        page.on(self.create.click, self._create, {**look, **train.look_at, "name": self.name}, {**shown, "name": self.name})
        page.on(self.source.input, lambda values: redraw({**values, "page_number": 0}), {**look, **train.look_at}, shown)
        page.on(self.kept.input, lambda values: self.show({**values, "page_number": 0}), look, self.live)
        upload = {"files": self.files, "name": self.name}
        page.on(
            self.files.upload,
            self._add,
            {**look, **upload, **train.look_at},
            {**shown, **upload, "results": self.results},
        )
        for button, step in ((self.back, -1), (self.forward, 1)):
            page.on(button.click, partial(self._turn, step=step), look, self.live)
        page.on(self.remove.click, self._remove_or_restore, look, self.live)
        asked = {**look, **self.run.fields, "trigger_words": train.form["trigger_words"]}
        page.on(self.caption.click, self._caption, asked, {**self.live, **self.run.consent})
        agreed = {"asked": self.run.consent["asked"]}
        page.on(self.run.consent["agree"].click, self._agree, agreed, self.run.consent)
        self._train = train

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the lists anew; the set that changed last is shown when none was chosen yet."""
        names = self.services.library.names()
        source = values["source"] or self._newest(names)
        return {**self.show({**values, "source": source}), "source": gr.update(choices=names, value=source)}

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def overview(self, source: str | None) -> Overview | None:
        """Returns what is in a set; None where nothing is chosen.

        Raises:
            DatasetError: it cannot be read, or not from this page.
        """
        folder = self.services.folder_of(source)
        return None if folder is None else read_overview(folder)

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns gallery and totals of the chosen set."""
        source = values.get("source")
        overview = self.overview(source)
        if overview is None:
            empty = markup.box(word("Drop pictures above to begin."), "empty")
            return {"gallery": empty, "totals": _EMPTY_TOTALS, "page_number": 0, "selection": "[]"}
        is_removed = values["kept"] == "Removed"
        resolution = _first_number(values.get("resolution"))
        pictures = self._removed(source) if is_removed else gallery.choose(overview, values["kept"])
        last = gallery.num_pages(pictures) - 1
        number = min(max(0, int(values["page_number"] or 0)), last)
        buckets = {} if is_removed else overview.buckets(resolution)
        return {
            "gallery": gallery.draw_gallery(pictures, buckets, number, self.services.host.folders().cache),
            "totals": gallery.draw_totals(overview, resolution),
            "page_number": number,
            "selection": "[]",
            "remove": gr.update(
                value="Restore selected" if is_removed else "Remove selected", interactive=source in self.services.library.names()
            ),
        }

    def _newest(self, names: Iterable[str]) -> str | None:
        return max(names, key=lambda name: self.services.library.path(name).stat().st_mtime, default=None)

    def _create(self, values: dict[str, Any]) -> dict[str, Any]:
        name = (values["name"] or "").strip() or self._free_name()
        self.services.library.create(name)
        return {
            **self._choose(values, name),
            "name": "",
            "message": markup.notice(f"{word('Made the data set')} {escape(name)}."),
        }

    def _add(self, values: dict[str, Any]) -> dict[str, Any]:
        """Adds dropped files to the chosen set; without one, to a new one."""
        library, source = self.services.library, values["source"]
        if source not in library.names():
            source = (values["name"] or "").strip() or self._free_name()
            library.create(source)
        results = library.add(source, [Upload(name, path) for name, path in uploaded(values["files"])])
        shown = self._choose({**values, "page_number": 0, "kept": "All"}, source)
        return {**shown, "files": None, "name": "", "kept": "All", "results": draw_results(source, results)}

    def _choose(self, values: dict[str, Any], source: str) -> dict[str, Any]:
        """Returns everything for another set."""
        values = {**values, "source": source}
        choice = gr.update(choices=self.services.library.names(), value=source)
        return {**self.show(values), **self._train.follow(values), "source": choice}

    def _free_name(self) -> str:
        names, number = set(self.services.library.names()), 1
        while (name := FIRST_NAME if number == 1 else f"{FIRST_NAME}_{number}") in names:
            number += 1
        return name

    def _turn(self, values: dict[str, Any], step: int) -> dict[str, Any]:
        return self.show({**values, "page_number": (values["page_number"] or 0) + step})

    def _remove_or_restore(self, values: dict[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in json.loads(values["selection"] or "[]")]
        if not names:
            return {"message": markup.notice(word("Select pictures first: click them."))}
        if values["kept"] == "Removed":
            self.services.library.restore(values["source"], names)
            said = word("Put back into the set:")
        else:
            self.services.library.remove(values["source"], names)
            said = word("Moved out of the set, to be found under “Removed”:")
        return {**self.show(values), "message": markup.notice(f"{said} {markup.count_pictures(len(names))}.")}

    def _removed(self, source: str | None) -> list[Picture]:
        library = self.services.library
        if source is None or source not in library.names():
            return []
        return [Picture(name, library.removed_path(source, name), 0, 0, "", 1) for name in library.removed(source)]

    def _caption(self, values: dict[str, Any]) -> Mapping[str, Any]:
        overview = self.overview(values["source"])
        if overview is None or not overview.pictures:
            raise DatasetError("There are no pictures yet. Drop some above, or choose a data set.")
        settings = self.run.settings(values, str(overview.folder))
        if settings["mode"] == "missing" and not overview.num_without_caption:
            said = word("Every picture has a caption. To write others, choose so in “How captions are written”.")
            return {"message": markup.notice(said)}
        return self.run.start(settings, f"Captions of {overview.folder.name}")

    def _agree(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return self.run.agree(values["asked"])


_EMPTY_TOTALS = markup.box(word("Totals and training sizes appear here."), "empty")


def draw_results(name: str, results: list[AddResult]) -> str:
    """Returns what became of each dropped file, the refused ones first."""
    counts = {
        word("added"): sum(result.status == "added" for result in results),
        word("replaced"): sum(result.status == "replaced" for result in results),
        word("skipped"): sum(result.status == "skipped" for result in results),
        word("refused"): sum(result.status == "refused" for result in results),
    }
    said = ", ".join(f"<strong>{number}</strong> {label}" for label, number in counts.items() if number)
    order = {"refused": 0, "skipped": 1, "replaced": 2, "added": 3}
    rows = []
    for result in sorted(results, key=lambda result: order[result.status])[:MOST_RESULTS]:
        message = f" {escape(result.message)}" if result.message else ""
        rows.append(f'<li class="is_{result.status}"><strong>{escape(result.file_name)}</strong>{message}</li>')
    is_open = " open" if any(result.status == "refused" for result in results) else ""
    details = f"<details{is_open}><summary>{word('File by file')}</summary><ul>{''.join(rows)}</ul></details>"
    return markup.box(f"{escape(name)}: {said or word('nothing was added')}{details}", "results", role="status")


def _first_number(text: Any) -> int:
    """Returns the first whole number of a field of sizes, which the user may be typing at the moment."""
    first = str(text or "").split(",")[0].strip()
    return int(first) if first.isdigit() and 64 <= int(first) <= 4096 else USUAL_RESOLUTION
