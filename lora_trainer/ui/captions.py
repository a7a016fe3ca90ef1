"""The part Captions: every picture with its caption to be edited in place, changes of many, and the check of the pictures."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.dataset.bulk import Preview, preview
from lora_trainer.dataset.caption_store import CaptionStore, SaveResult
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.dataset.table_writing import format_table, pack_sidecars
from lora_trainer.dataset.thumbnails import prepare
from lora_trainer.errors import DatasetError
from lora_trainer.run_folder import RunFolder
from lora_trainer.ui import caption_cards as cards
from lora_trainer.ui import markup
from lora_trainer.ui.caption_view import EDITS, FILTERS, ORDERS, Looked, look, page_of, runs_of
from lora_trainer.ui.compat import listen, unsaved, uploaded
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

PAGE_SIZES = (12, 24, 48)
TOOLS = {"Crop": "crop", "Resize": "resize", "Trim borders": "trim", "Colour table (.cube)": "table"}
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
        self._stores: dict[Path, CaptionStore] = {}

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
                    self._build_pictures()
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
            "report": self.report,
            "undo_pictures": self.undo_pictures,
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
        self.other = unsaved(gr.Textbox(label="Replace by", lines=1, max_lines=8, elem_id="lora_trainer_captions_other"))
        with gr.Row():
            self.ignore_case = unsaved(gr.Checkbox(label="In any case", elem_id="lora_trainer_captions_ignore_case"))
            self.whole_words = unsaved(gr.Checkbox(label="Whole words", elem_id="lora_trainer_captions_whole_words"))
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.preview = gr.Button("Preview", size="sm", min_width=110, elem_id="lora_trainer_captions_preview")
            self.apply = gr.Button(
                "Change them", size="sm", variant="primary", min_width=110, elem_id="lora_trainer_captions_apply"
            )
        self.previewed = gr.HTML("", elem_id="lora_trainer_captions_previewed")
        self.pending = gr.State(None)  # folder, title, before and after of what is previewed: exactly that is done

    def _build_pictures(self) -> None:
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
        self._folder_of = page.parts["dataset"].folder_of
        looks = {
            "source": page.parts["dataset"].source,
            "trigger": form["trigger_words"],
            "resolution": form["resolution"],
            "shows": self.shows,
            "contains": self.contains,
            "order": self.order,
            "size": self.size,
            "page_number": self.page_number,
        }
        page.on(self.redraw.click, self.show, looks, self.shown, quiet=True)
        for trigger in (self.shows.input, self.contains.submit, self.order.input, self.size.input):
            page.on(trigger, lambda values: self.show({**values, "page_number": 0}), looks, self.shown)
        for button, step in ((self.back, -1), (self.forward, 1)):
            page.on(button.click, partial(self._turn, step=step), looks, self.shown)
        page.on(
            self.save.click,
            self._save,
            {**looks, "edits": self.edits},
            {"answer": self.answer, "undo": self.undo, "redo": self.redo, "history": self.history},
            quiet=True,
        )
        page.on(self.undo.click, lambda values: self._undo(values, "undo"), looks, self.shown)
        page.on(self.redo.click, lambda values: self._undo(values, "redo"), looks, self.shown)
        page.on(self.revert.click, self._revert, {**looks, "reverted": self.reverted}, self.shown)
        page.on(self.take.click, self._take, {**looks, "run": self.runs}, self.shown)
        page.on(self.enlarge.click, self._enlarge, {**looks, "wanted": self.wanted}, {"large": self.large}, quiet=True)
        for kind, button in self.exports.items():
            exported = page.on(button.click, partial(self._export, kind=kind), looks, {"exported": self.exported})
            listen(exported.then, None, inputs=[self.exported], outputs=[], js=DOWNLOAD)
        bulk = {"find": self.find, "other": self.other, "ignore_case": self.ignore_case, "whole_words": self.whole_words}
        pending = {"pending": self.pending, "previewed": self.previewed}
        page.on(self.preview.click, self._preview, {**looks, **bulk, "edit": self.edit}, pending)
        page.on(self.apply.click, self._apply, {**looks, "pending": self.pending}, {**self.shown, **pending})
        page.on(self.check.click, self._check, looks, {})
        tools = {"tool": self.tool, "ratio": self.ratio, "side": self.side, "left": self.left, "top": self.top}
        tools |= {"strength": self.strength, "table": self.table}
        page.on(self.retouch.click, self._retouch, {**looks, **tools}, {})
        page.on(self.undo_pictures.click, self._undo_pictures, looks, self.shown)
        page.on(self.leave_out.click, self._leave_out, looks, self.shown)

    def refresh(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def tick(self, values: dict[str, Any]) -> Mapping[str, Any]:
        return {}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns everything of the chosen set through the filter."""
        folder = self._folder_of(values["source"])
        if folder is None:
            return {"cards": markup.box(word("Choose a data set in the part Dataset first."), "empty"), "totals": ""}
        looked = self._look(values)
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
        drawn = cards.draw_cards(looked, number, size, cache_dir, self._store(looked.folder))
        following = looked.shown[(number + 1) * size : (number + 2) * size]
        prepare([looked.folder / name for name in following], cache_dir, cards.SIDE)
        return {"cards": drawn, "page_number": number}

    def _store(self, folder: Path) -> CaptionStore:
        return self._stores.setdefault(folder, CaptionStore(folder))

    def _open(self, values: Mapping[str, Any]) -> CaptionStore:
        folder = self._folder_of(values["source"])
        if folder is None:
            raise DatasetError("There is no data set yet. Choose one in the part Dataset.")
        return self._store(folder)

    def _look(self, values: Mapping[str, Any]) -> Looked:
        return look(
            self._open(values),
            self.services.queue,
            shows=values["shows"] or "All",
            contains=values["contains"] or "",
            trigger=_trigger(values),
            order=values["order"] or ORDERS[0],
        )

    def _history(self, store: CaptionStore) -> dict[str, Any]:
        return {
            "undo": gr.update(interactive=store.undoable() is not None),
            "redo": gr.update(interactive=store.redoable() is not None),
            "history": cards.draw_history(store.history()),
        }

    def _turn(self, values: dict[str, Any], step: int) -> dict[str, Any]:
        """Turns the page; only its pictures are drawn anew."""
        return self._page(self._look(values), {**values, "page_number": int(values["page_number"] or 0) + step})

    def _save(self, values: dict[str, Any]) -> dict[str, Any]:
        """Saves what was typed: `{"id": n, "folder": ..., "edits": {name: [text, seen]}}`."""
        asked = json.loads(values["edits"] or "{}")
        wanted = {str(name): str(text) for name, (text, _) in asked["edits"].items()}
        seen = {str(name): str(text) for name, (_, text) in asked["edits"].items()}
        store = self._open(values)
        if asked["folder"] != str(store.folder):
            raise DatasetError(
                "Another data set was chosen before these captions were saved. Choose theirs again, and edit them there."
            )
        result = store.save_all(wanted, seen, title=f"edited {', '.join(wanted)}" if len(wanted) < 4 else "edited")
        advice = self._look({**values, "shows": "All", "contains": ""}).advice
        return {"answer": cards.draw_answer(int(asked["id"]), result, wanted, advice), **self._history(store)}

    def _undo(self, values: dict[str, Any], which: str) -> dict[str, Any]:
        store = self._open(values)
        result = store.undo() if which == "undo" else store.redo()
        return {**self.show(values), "message": _describe(result)}

    def _revert(self, values: dict[str, Any]) -> dict[str, Any]:
        result = self._open(values).revert(int(values["reverted"]))
        return {**self.show(values), "message": _describe(result)}

    def _take(self, values: dict[str, Any]) -> dict[str, Any]:
        store = self._open(values)
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
        store, name = self._open(values), json.loads(values["wanted"])[0]
        if name not in store.read().captions:  # a name from outside is no path
            return {"large": ""}
        return {"large": cards.draw_large(store.folder, name, self.services.host.folders().cache)}

    def _export(self, values: dict[str, Any], kind: str = "csv") -> dict[str, Any]:
        """Returns all captions as a file: its name, and its bytes in base64."""
        captions = self._open(values).read().captions
        data = pack_sidecars(captions) if kind == "zip" else format_table(captions, f".{kind}")
        name = "captions.zip" if kind == "zip" else f"metadata.{kind}"
        return {"exported": json.dumps({"name": name, "data": base64.b64encode(data).decode("ascii")})}

    def _preview(self, values: dict[str, Any]) -> dict[str, Any]:
        looked = self._look(values)
        edit = EDITS[values["edit"]](values["find"] or "", values["other"] or "", {**values, "trigger": _trigger(values)})
        found = preview({name: looked.captions[name] for name in looked.shown}, edit)
        title = " ".join(part for part in (str(values["edit"]).lower(), values["find"], values["other"]) if part)[:120]
        pending = {"folder": str(looked.folder), "title": title, "changes": found.changes, "num": found.num_captions}
        return {"pending": pending if found.changes else None, "previewed": cards.draw_preview(found)}

    def _apply(self, values: dict[str, Any]) -> dict[str, Any]:
        pending, store = values["pending"], self._open(values)
        if not pending or pending["folder"] != str(store.folder):
            return {"message": markup.notice(word("Press Preview first: it shows what will change."))}
        found = Preview({name: (before, after) for name, (before, after) in pending["changes"].items()}, pending["num"])
        result = store.save_all(found.wanted, found.seen, title=pending["title"])
        return {**self.show(values), "pending": None, "previewed": "", "message": _describe(result)}

    def _check(self, values: dict[str, Any]) -> dict[str, Any]:
        folder = self._open(values).folder
        first = str(values["resolution"] or "").split(",")[0].strip()
        resolution = int(first) if first.isdigit() and 64 <= int(first) <= 4096 else 512
        settings = {"input_dir": str(folder), "resolution": resolution}
        self.services.queue.submit("report", settings, title=f"Pictures of {folder.name}")
        return {"message": markup.notice(word("The pictures are being checked; what is found appears here."))}

    def _retouch(self, values: dict[str, Any]) -> dict[str, Any]:
        looked = self._look(values)
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
        result = PictureStore(self._open(values).folder).undo()
        refused = "".join(f"<br>{escape(reason)}" for reason in list(result.refused.values())[:3])
        said = f"{markup.count(len(result.changed), 'picture')} {word('are as they were.')}{refused}"
        return {**self.show(values), "message": markup.notice(said)}

    def _leave_out(self, values: dict[str, Any]) -> dict[str, Any]:
        library, looked = self.services.library, self._look(values)
        if values["source"] not in library.names():
            raise DatasetError(
                "Pictures can only be removed from a named data set. Make one in the part Dataset and drop them there."
            )
        if len(looked.shown) == len(looked.captions):
            raise DatasetError("That would remove every picture. Choose a filter first, such as the blurred ones.")
        library.remove(values["source"], list(looked.shown))
        said = word("Moved out of the set; the part Dataset brings them back:")
        return {
            **self.show({**values, "page_number": 0}),
            "message": markup.notice(f"{said} {markup.count(len(looked.shown), 'picture')}."),
        }


def _trigger(values: Mapping[str, Any]) -> str:
    return str(values.get("trigger") or "").split(",")[0].strip()


def _describe(result: SaveResult) -> str:
    """Returns what a change did, for the top of the page."""
    said = f"{markup.count(len(result.saved), 'caption')} {word('changed.')}"
    if not result.conflicts:
        return markup.notice(said)
    names = ", ".join(escape(conflict.name) for conflict in result.conflicts[:3])
    left = f"{markup.count(len(result.conflicts), 'caption')} {word('left alone, since somebody else wrote them:')} {names}"
    return markup.notice(f"{said} {left}")


_KEYS = markup.box(
    f"<small>{word('Saved on leaving the field.')} Alt+↓ Alt+↑ {word('next and previous')} · Ctrl+S {word('save')} · "
    f"Alt+C {word('copy from the one before')} · Alt+L {word('large view')}</small>",
    "keys",
)
