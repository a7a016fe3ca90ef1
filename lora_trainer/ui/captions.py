"""The part Captions: every picture with its caption to be edited in place, changes of many, and the check of the pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.dataset.advice import Adviser
from lora_trainer.dataset.bulk import Preview, preview
from lora_trainer.dataset.caption_store import CaptionStore, SaveResult
from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.dataset.table_writing import format_table, pack_sidecars
from lora_trainer.dataset.thumbnails import prepare
from lora_trainer.errors import DatasetError
from lora_trainer.run_folder import RunFolder
from lora_trainer.ui import caption_cards as cards
from lora_trainer.ui import markup
from lora_trainer.ui.caption_pictures import PicturesBox
from lora_trainer.ui.caption_typing import TypedCaptions
from lora_trainer.ui.caption_view import EDITS, FILTERS, ORDERS, Looked, look, page_of, runs_of
from lora_trainer.ui.compat import listen, unsaved
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

PAGE_SIZES = (12, 24, 48)
EXPORTS = {"csv": "Save as metadata.csv", "jsonl": "Save as metadata.jsonl", "zip": "Save as .txt (ZIP)"}
DOWNLOAD = """(told) => {
    if (!told) return;
    const file = JSON.parse(told);
    window.loraTrainer.download(file.name, Uint8Array.from(atob(file.data), (letter) => letter.charCodeAt(0)));
}"""


class CaptionsPart:
    """See the module and `page.Part`. Its script redraws it whenever it comes into view and when a job has ended."""

    id = "captions"
    title = "Captions"

    def __init__(self, services: Services) -> None:
        self.services = services
        self.live: dict[str, Any] = {}
        self.pictures = PicturesBox(services)
        self._stores: dict[Path, CaptionStore] = {}
        self._advisers: dict[Path, Adviser] = {}
        self._typed = TypedCaptions(self._store_of)

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=3):
                self._build_filter()
                self.cards = gr.HTML("", elem_id="lora_trainer_captions_cards")
            with gr.Column(scale=2, elem_classes=["lora_trainer_panel", "lora_trainer_sticky"]):
                self.totals = gr.HTML("", elem_id="lora_trainer_captions_totals")
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.undo = gr.Button("Undo", size="sm", min_width=90, elem_id="lora_trainer_captions_undo")
                    self.redo = gr.Button("Redo", size="sm", min_width=90, elem_id="lora_trainer_captions_redo")
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.exports = {
                        kind: gr.Button(title, size="sm", min_width=110, elem_id=f"lora_trainer_captions_export_{kind}")
                        for kind, title in EXPORTS.items()
                    }
                with gr.Accordion("Change many captions", open=False):
                    self._build_bulk()
                with gr.Accordion("Frequent tags and words", open=False):
                    self.frequency = gr.HTML("", elem_id="lora_trainer_captions_frequency")
                with gr.Accordion("Check and retouch the pictures", open=False):
                    self.pictures.build()
                with gr.Accordion("History of the captions", open=False):
                    self._build_history()
                gr.HTML(_KEYS, elem_id="lora_trainer_captions_keys")
        self._build_hidden()
        self.shown = {
            "cards": self.cards,
            "totals": self.totals,
            "undo": self.undo,
            "redo": self.redo,
            "frequency": self.frequency,
            "report": self.pictures.report,
            "undo_pictures": self.pictures.undo_pictures,
            "history": self.history,
            "runs": self.runs,
            "page_number": self.page_number,
        }

    def _build_filter(self) -> None:
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.shows = unsaved(
                gr.Dropdown(list(FILTERS), value="All", label="Show captions", elem_id="lora_trainer_captions_shows")
            )
            self.contains = unsaved(
                gr.Textbox(
                    label="Containing",
                    placeholder="a text, or /a pattern/",
                    max_lines=1,
                    elem_id="lora_trainer_captions_contains",
                )
            )
            self.order = unsaved(gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="lora_trainer_captions_order"))
            sizes = [str(size) for size in PAGE_SIZES]
            self.size = unsaved(gr.Radio(sizes, value=sizes[0], label="On a page", elem_id="lora_trainer_captions_size"))

    def _build_bulk(self) -> None:
        self.edit = unsaved(
            gr.Dropdown(list(EDITS), value=next(iter(EDITS)), label="Change", elem_id="lora_trainer_captions_edit_kind")
        )
        self.find = unsaved(
            gr.Textbox(label="Find, or what is added or removed", lines=1, max_lines=8, elem_id="lora_trainer_captions_find")
        )
        self.other = unsaved(gr.Textbox(label="Replace with", lines=1, max_lines=8, elem_id="lora_trainer_captions_other"))
        with gr.Row():
            self.ignore_case = unsaved(gr.Checkbox(label="Ignore case", elem_id="lora_trainer_captions_ignore_case"))
            self.whole_words = unsaved(gr.Checkbox(label="Whole words", elem_id="lora_trainer_captions_whole_words"))
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.preview = gr.Button("Preview", size="sm", min_width=110, elem_id="lora_trainer_captions_preview")
            self.apply = gr.Button(
                "Change them", size="sm", variant="primary", min_width=110, elem_id="lora_trainer_captions_apply"
            )
        self.previewed = gr.HTML("", elem_id="lora_trainer_captions_previewed")
        self.pending = gr.State(None)  # folder, title, before and after of what is previewed: exactly that is done

    def _build_history(self) -> None:
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.runs = unsaved(
                gr.Dropdown([], label="Captions of a past run", allow_custom_value=True, elem_id="lora_trainer_captions_runs")
            )
            self.take = gr.Button("Bring them back", size="sm", min_width=130, elem_id="lora_trainer_captions_take")
        self.history = gr.HTML("", elem_id="lora_trainer_captions_history")

    def _build_hidden(self) -> None:
        hidden: dict[str, Any] = {"show_label": False, "elem_classes": "lora_trainer_hidden"}
        self.back = gr.Button("back", elem_id="lora_trainer_captions_back", elem_classes="lora_trainer_hidden")
        self.forward = gr.Button("forward", elem_id="lora_trainer_captions_forward", elem_classes="lora_trainer_hidden")
        self.redraw = gr.Button("refresh", elem_id="lora_trainer_captions_redraw", elem_classes="lora_trainer_hidden")
        self.edits = unsaved(gr.Textbox("", elem_id="lora_trainer_captions_edits", **hidden))
        # What the script has to say stands in a field; a button is pressed after it.
        self.save, self.revert, self.enlarge = (
            gr.Button("refresh", elem_id=f"lora_trainer_captions_{name}", elem_classes="lora_trainer_hidden")
            for name in ("save", "revert", "enlarge")
        )
        self.answer = gr.HTML("", elem_id="lora_trainer_captions_answer", elem_classes="lora_trainer_hidden")
        self.reverted = unsaved(gr.Textbox("", elem_id="lora_trainer_captions_reverted", **hidden))
        self.wanted = unsaved(gr.Textbox("", elem_id="lora_trainer_captions_wanted", **hidden))
        self.large = gr.HTML("", elem_id="lora_trainer_captions_large", elem_classes="lora_trainer_hidden")
        self.exported = unsaved(gr.Textbox("", elem_id="lora_trainer_captions_exported", **hidden))
        self.page_number = gr.State(0)

    def bind(self, page: Page) -> None:
        form = page.parts["train"].form
        self.looks = looks = {
            "source": page.parts["dataset"].source,
            "trigger": form["trigger_words"],
            "resolution": form["resolution"],
            "shows": self.shows,
            "contains": self.contains,
            "order": self.order,
            "size": self.size,
            "page_number": self.page_number,
            "edits": self.edits,
        }
        on = partial(self._on, page)
        on(self.redraw.click, self.show, looks, self.shown, quiet=True)
        for trigger in (self.shows.input, self.contains.submit, self.order.input, self.size.input):
            on(trigger, lambda values: self.show({**values, "page_number": 0}), looks, self.shown)
        turned = {"cards": self.cards, "page_number": self.page_number}
        for button, step in ((self.back, -1), (self.forward, 1)):
            on(button.click, partial(self._turn, step=step), looks, turned)
        saved = {"answer": self.answer, "undo": self.undo, "redo": self.redo, "history": self.history}
        page.on(self.save.click, self._save, looks, saved, quiet=True)
        on(self.undo.click, lambda values: self._undo(values, "undo"), looks, self.shown)
        on(self.redo.click, lambda values: self._undo(values, "redo"), looks, self.shown)
        on(self.revert.click, self._revert, {**looks, "reverted": self.reverted}, self.shown)
        on(self.take.click, self._take, {**looks, "run": self.runs}, self.shown)
        on(self.enlarge.click, self._enlarge, {**looks, "wanted": self.wanted}, {"large": self.large}, quiet=True)
        for kind, button in self.exports.items():
            exported = on(button.click, partial(self._export, kind=kind), looks, {"exported": self.exported})
            listen(exported.then, None, inputs=[self.exported], outputs=[], js=DOWNLOAD)
        bulk = {"find": self.find, "other": self.other, "ignore_case": self.ignore_case, "whole_words": self.whole_words}
        pending = {"pending": self.pending, "previewed": self.previewed}
        on(self.preview.click, self._preview, {**looks, **bulk, "edit": self.edit}, pending)
        on(self.apply.click, self._apply, {**looks, "pending": self.pending}, {**self.shown, **pending})
        self.pictures.bind(self, on)

    def _on(
        self,
        page: Page,
        trigger: Callable[..., Any],
        handler: Callable[[dict[str, Any]], Mapping[str, Any]],
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        *,
        quiet: bool = False,
    ) -> Any:
        """Binds a handler that finds saved what was typed before; what could not be saved is told by `_save`, which follows."""

        def run(values: dict[str, Any]) -> Mapping[str, Any]:
            return handler({**values, "after": self._typed.take(values["edits"]).id})

        return page.on(trigger, run, inputs, outputs, quiet=quiet)

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns everything of the chosen set through the filter."""
        folder = self.services.folder_of(values["source"])
        if folder is None:
            return {"cards": markup.box(word("Choose a data set in the part Dataset first."), "empty"), "totals": ""}
        looked = self.look(values)
        store, pictures = self._store(folder), PictureStore(folder)
        jobs = [f"{job.title} ({job.id})" for job in runs_of(self.services.queue, folder)]
        jobs += [cards.name_run(run) for run in store.runs()]
        return {
            **self._page(looked, values),
            "totals": cards.draw_totals(looked),
            "frequency": cards.draw_frequency(list(looked.captions.values())),
            "report": cards.draw_report(looked),
            "undo_pictures": gr.update(interactive=pictures.undoable() is not None),
            "runs": gr.update(choices=jobs, value=jobs[0] if jobs else None),
            **self._history(store),
        }

    def _page(self, looked: Looked, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the pictures of one page."""
        size = int(values["size"] or PAGE_SIZES[0])
        _, number, _ = page_of(looked.shown, int(values["page_number"] or 0), size)
        cache_dir = self.services.host.folders().cache
        store, after = self._store(looked.folder), int(values.get("after") or 0)
        drawn = cards.draw_cards(looked, number, size, cache_dir, store, after=after)
        following = looked.shown[(number + 1) * size : (number + 2) * size]
        prepare([looked.folder / name for name in following], cache_dir, cards.SIDE)
        return {"cards": drawn, "page_number": number}

    def _store(self, folder: Path) -> CaptionStore:
        return self._stores.setdefault(folder, CaptionStore(folder))

    def _store_of(self, folder: str) -> CaptionStore | None:
        """Returns the captions of a folder that the script names, if it is one that the page has shown or could show."""
        library = self.services.library
        known = (*self._stores, *(library.path(name) for name in library.names()))
        return next((self._store(path) for path in known if str(path) == folder and path.is_dir()), None)

    def chosen_store(self, values: Mapping[str, Any]) -> CaptionStore:
        """Returns the captions of the chosen set.

        Raises:
            DatasetError: none is chosen.
        """
        folder = self.services.folder_of(values["source"])
        if folder is None:
            raise DatasetError("There is no data set yet. Choose one in the part Dataset.")
        return self._store(folder)

    def look(self, values: Mapping[str, Any]) -> Looked:
        """Returns the chosen set through the filter.

        Raises:
            DatasetError: as `chosen_store`; it cannot be read, or the pattern is wrong.
        """
        store = self.chosen_store(values)
        return look(
            store,
            self.services.queue,
            adviser=self._adviser(store.folder),
            shows=values["shows"] or "All",
            contains=values["contains"] or "",
            trigger=_trigger(values),
            order=values["order"] or ORDERS[0],
        )

    def _adviser(self, folder: Path) -> Adviser:
        return self._advisers.setdefault(folder, Adviser())

    def _history(self, store: CaptionStore) -> dict[str, Any]:
        return {
            "undo": gr.update(interactive=store.undoable() is not None),
            "redo": gr.update(interactive=store.redoable() is not None),
            "history": cards.draw_history(store.history()),
        }

    def _turn(self, values: dict[str, Any], step: int) -> dict[str, Any]:
        """Turns the page; only its pictures are drawn anew."""
        return self._page(self.look(values), {**values, "page_number": int(values["page_number"] or 0) + step})

    def _save(self, values: dict[str, Any]) -> dict[str, Any]:
        """Saves what was typed, see `caption_typing`, and answers the script."""
        typed, store = self._typed.take(values["edits"]), self.chosen_store(values)
        advice = self._adviser(store.folder).advise(store.read().captions, trigger=_trigger(values))
        failed = {"message": markup.error_message(" ".join(typed.failures.values()))} if typed.failures else {}
        return {"answer": cards.draw_answer(typed, {str(store.folder): advice}), **self._history(store), **failed}

    def _undo(self, values: dict[str, Any], which: str) -> dict[str, Any]:
        store = self.chosen_store(values)
        result = store.undo() if which == "undo" else store.redo()
        return {**self.show(values), "message": _describe(result)}

    def _revert(self, values: dict[str, Any]) -> dict[str, Any]:
        result = self.chosen_store(values).revert(int(values["reverted"]))
        return {**self.show(values), "message": _describe(result)}

    def _take(self, values: dict[str, Any]) -> dict[str, Any]:
        store = self.chosen_store(values)
        run = next((run for run in store.runs() if cards.name_run(run) == values["run"]), None)
        if run is not None:
            said = _describe(store.restore(run.id))
            return {**self.show(values), "message": said}
        job = next(
            (job for job in runs_of(self.services.queue, store.folder) if str(values["run"] or "").endswith(f"({job.id})")), None
        )
        if job is None:
            raise DatasetError("No training of this set has kept its captions yet. Each one does from now on.")
        result = store.take_table(RunFolder(job.folder).captions_path, title=f"captions of {job.title}")
        return {**self.show(values), "message": _describe(result)}

    def _enlarge(self, values: dict[str, Any]) -> dict[str, Any]:
        store, name = self.chosen_store(values), json.loads(values["wanted"])[0]
        if name not in store.read().captions:  # a name from outside is no path
            return {"large": ""}
        return {"large": cards.draw_large(store.folder, name, self.services.host.folders().cache)}

    def _export(self, values: dict[str, Any], kind: str = "csv") -> dict[str, Any]:
        """Returns all captions as a file: its name, and its bytes in base64."""
        captions = self.chosen_store(values).read().captions
        data = pack_sidecars(captions) if kind == "zip" else format_table(captions, f".{kind}")
        name = "captions.zip" if kind == "zip" else f"metadata.{kind}"
        return {"exported": json.dumps({"name": name, "data": base64.b64encode(data).decode("ascii")})}

    def _preview(self, values: dict[str, Any]) -> dict[str, Any]:
        looked = self.look(values)
        edit = EDITS[values["edit"]](values["find"] or "", values["other"] or "", {**values, "trigger": _trigger(values)})
        found = preview({name: looked.captions[name] for name in looked.shown}, edit)
        title = " ".join(part for part in (str(values["edit"]).lower(), values["find"], values["other"]) if part)[:120]
        pending = {"folder": str(looked.folder), "title": title, "changes": found.changes, "num": found.num_captions}
        return {"pending": pending if found.changes else None, "previewed": cards.draw_preview(found)}

    def _apply(self, values: dict[str, Any]) -> dict[str, Any]:
        pending, store = values["pending"], self.chosen_store(values)
        if not pending or pending["folder"] != str(store.folder):
            return {"message": markup.notice(word("Press Preview first: it shows what will change."))}
        found = Preview({name: (before, after) for name, (before, after) in pending["changes"].items()}, pending["num"])
        result = store.save_all(found.wanted, found.seen, title=pending["title"])
        return {**self.show(values), "pending": None, "previewed": "", "message": _describe(result)}


def _trigger(values: Mapping[str, Any]) -> str:
    return str(values.get("trigger") or "").split(",")[0].strip()


def _describe(result: SaveResult) -> str:
    """Returns what a change did, for the top of the page."""
    said = f"{markup.count_captions(len(result.saved))} {word('changed.')}"
    if not result.conflicts:
        return markup.notice(said)
    names = ", ".join(escape(conflict.name) for conflict in result.conflicts[:3])
    left = f"{markup.count_captions(len(result.conflicts))} {word('left alone, since somebody else wrote them:')} {names}"
    return markup.notice(f"{said} {left}")


_KEYS = markup.box(
    f"<small>{word('Saved on leaving the field.')} Alt+↓ Alt+↑ {word('next and previous')} · Ctrl+S {word('save')} · "
    f"Alt+C {word('copy from the one before')} · Alt+L {word('large view')}</small>",
    "keys",
)
