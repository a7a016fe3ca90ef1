"""The library in the part Runs: the LoRAs of the folder, the card of one, new files from it, and its way out and back."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.adapters.folder import choose_name
from lora_trainer.adapters.library import (
    Trashed,
    delete_for_good,
    edit_card,
    list_trash,
    read_card,
    rename,
    restore,
    throw_away,
)
from lora_trainer.adapters.repair import BASE_FACTS, repair
from lora_trainer.adapters.shelf import ShelfItem, list_shelf
from lora_trainer.dataset.thumbnails import thumbnail, thumbnails
from lora_trainer.errors import AdapterError, ConfigError, Problem
from lora_trainer.ui import markup
from lora_trainer.ui.compat import unsaved
from lora_trainer.ui.form import NONE
from lora_trainer.ui.markup import escape, word
from lora_trainer.ui.services import Services

if TYPE_CHECKING:
    from lora_trainer.ui.page import Page

SIDE, LARGE_SIDE = 192, 384
PRECISIONS = ("fp16", "bf16", "fp32")
TOOLS = {
    "Lower the rank": "resize",
    "Merge several": "merge",
    "Split UNet and text encoder": "split",
    "Change precision": "convert",
}
TEXTS = ("activation_text", "negative_text", "description", "notes")


class LibraryShelf:
    """Built by the part Runs inside itself; `live` are the components that `show` changes."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.live: dict[str, Any] = {}

    def build(self) -> None:
        with gr.Row():
            with gr.Column(scale=3):
                self.items = gr.HTML("", elem_id="lora_trainer_library_items")
                with gr.Row(elem_classes="lora_trainer_tools"):
                    self.trash = unsaved(
                        gr.Dropdown(
                            [],
                            label="In the trash",
                            visible=False,
                            interactive=True,
                            min_width=380,
                            elem_id="lora_trainer_library_trash",
                        )
                    )
                    self.restore = gr.Button("Bring it back", visible=False, size="sm", elem_id="lora_trainer_library_restore")
                    self.empty = gr.Button("Delete for good", visible=False, size="sm", elem_id="lora_trainer_library_empty")
            with gr.Column(scale=2, elem_classes=["lora_trainer_panel", "lora_trainer_upright"]):
                self.detail = gr.HTML(_NOTHING, elem_id="lora_trainer_library_detail")
                with gr.Column(elem_id="lora_trainer_library_form"):
                    self._build_card()
                    self._build_tools()
        hidden: dict[str, Any] = {"show_label": False, "elem_classes": "lora_trainer_hidden"}
        self.chosen = unsaved(gr.Textbox("", elem_id="lora_trainer_library_chosen", **hidden))
        self.choose = gr.Button("refresh", elem_id="lora_trainer_library_choose", elem_classes="lora_trainer_hidden")
        # Whose card the fields hold and what was put into them. It travels with the fields, so that a button pressed between two
        # cards never takes the texts of one for the other, as a state on the server would.
        self.loaded = unsaved(gr.Textbox("", elem_id="lora_trainer_library_loaded", **hidden))
        # What the button has been pressed for once: nothing brings a deleted file back.
        self.doomed = unsaved(gr.Textbox("", elem_id="lora_trainer_library_doomed", **hidden))
        self.live = {
            "items": self.items,
            "detail": self.detail,
            "chosen": self.chosen,
            "loaded": self.loaded,
            "trash": self.trash,
            "restore": self.restore,
            "empty": self.empty,
            "doomed": self.doomed,
            "name": self.name,
            "new_name": self.new_name,
            "stack": self.stack,
            **self.card,
        }

    def _build_card(self) -> None:
        def text(name: str, label: str, lines: int = 1) -> Any:
            elem_id = f"lora_trainer_library_{name}"
            return unsaved(gr.Textbox(label=label, lines=lines, max_lines=max(lines, 4), interactive=True, elem_id=elem_id))

        self.card = {
            "activation_text": text("activation_text", "Trigger words"),
            "negative_text": text("negative_text", "Negative prompt"),
        }
        self.card["preferred_weight"] = unsaved(
            gr.Number(value=0, label="Preferred weight (0: the WebUI's)", interactive=True, elem_id="lora_trainer_library_weight")
        )
        self.card |= {"description": text("description", "Description", 2), "notes": text("notes", "Notes", 2)}
        with gr.Row(elem_classes="lora_trainer_tools"):
            self.save = gr.Button("Save the card", variant="primary", size="sm", elem_id="lora_trainer_library_save")
            self.test = gr.Button("Test it", size="sm", elem_id="lora_trainer_library_test")

    def _build_tools(self) -> None:
        with gr.Accordion("Rename, repair, delete", open=False):
            self.name = unsaved(gr.Textbox(label="Name", max_lines=1, interactive=True, elem_id="lora_trainer_library_name"))
            self.base = unsaved(
                gr.Dropdown(
                    [NONE, *BASE_FACTS],
                    value=NONE,
                    label="It is for",
                    info="Only for a file that does not tell it.",
                    interactive=True,
                    elem_id="lora_trainer_library_base",
                )
            )
            with gr.Row(elem_classes="lora_trainer_tools"):
                self.rename = gr.Button("Rename", size="sm", min_width=90, elem_id="lora_trainer_library_rename")
                self.repair = gr.Button("Repair its metadata", size="sm", min_width=150, elem_id="lora_trainer_library_repair")
                self.delete = gr.Button("Move to the trash", size="sm", min_width=150, elem_id="lora_trainer_library_delete")
        with gr.Accordion("A new file from it", open=False):
            self.tool = unsaved(
                gr.Dropdown(
                    list(TOOLS), value=next(iter(TOOLS)), label="How", interactive=True, elem_id="lora_trainer_library_tool"
                )
            )
            self.new_name = unsaved(
                gr.Textbox(label="Name of the new file", max_lines=1, interactive=True, elem_id="lora_trainer_library_new_name")
            )
            self.rank = unsaved(
                gr.Textbox(label="Highest rank", value="8", max_lines=1, interactive=True, elem_id="lora_trainer_library_rank")
            )
            self.precision = unsaved(
                gr.Dropdown(
                    [NONE, *PRECISIONS], value=NONE, label="Precision", interactive=True, elem_id="lora_trainer_library_precision"
                )
            )
            info = "For a merge: each with its weight, <lora:ink:0.7> <lora:seal:0.5:0.8>."
            self.stack = unsaved(
                gr.Textbox(label="Tags", info=info, max_lines=3, interactive=True, elem_id="lora_trainer_library_stack")
            )
            self.make = gr.Button("Make it", size="sm", elem_id="lora_trainer_library_make")

    def bind(self, page: Page) -> None:
        self._test = page.parts["test"]
        page.on(self.choose.click, self.show, self.live, self.live, quiet=True)
        page.on(page.openers["runs"].select, self.show, self.live, self.live, quiet=True)
        page.on(self.save.click, self._save, self.live, self.live)
        page.on(self.rename.click, self._rename, self.live, self.live)
        page.on(self.repair.click, self._repair, {**self.live, "base": self.base}, self.live)
        page.on(self.delete.click, self._delete, self.live, self.live)
        page.on(self.restore.click, self._restore, self.live, self.live)
        page.on(self.empty.click, self._delete_for_good, self.live, self.live)
        page.on(self.trash.input, self.show, self.live, self.live, quiet=True)
        tools = {"tool": self.tool, "rank": self.rank, "precision": self.precision}
        page.on(self.make.click, self._make, {**self.live, **tools}, {})
        form = self._test.fields
        fields = {**form.widgets, "filled": form.filled}
        page.on(self.test.click, self._go_test, {"chosen": self.chosen, "loaded": self.loaded, **fields}, fields)

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the folder's LoRAs and the chosen one's card.

        What the user has typed into a card stays while it is the same LoRA's; a field that was not touched follows the file.
        """
        host = self.services.host
        folder, cache = host.folders().lora_dir, host.folders().cache
        shelf = list_shelf(folder)
        keys = name_items(shelf, folder)
        key = str(values.get("chosen") or "")
        key = key if key in keys else ""
        item = keys.get(key)
        trashed = [_name_trashed(entry) for entry in list_trash(folder)]
        marked = values.get("trash") if values.get("trash") in trashed else next(iter(trashed), None)
        doomed = marked if marked and values.get("doomed") == marked else ""
        updates: dict[str, Any] = {
            "items": draw_shelf(keys, item, cache),
            "trash": gr.update(choices=trashed, value=marked, visible=bool(trashed)),
            "restore": gr.update(visible=bool(trashed)),
            "empty": gr.update(value="Really delete: press again" if doomed else "Delete for good", visible=bool(trashed)),
            "doomed": doomed,
            "detail": draw_item(item, cache) if item else _NOTHING,
        }
        if key != values.get("chosen"):  # else left alone: the user may choose another while this is on its way
            updates["chosen"] = key
        before = _read_loaded(values)
        if key != before.key:
            fields = self._fields_of(item, folder) if item else self._no_fields()
            return {**updates, **fields, "loaded": Loaded(key, fields).to_text()}
        if item is None:
            return updates
        fields = self._fields_of(item, folder)
        fresh = {
            name: value
            for name, value in fields.items()
            if value != before.fields.get(name) and not before.is_typed(name, values)
        }
        loaded = Loaded(key, fields)
        return {**updates, **fresh, **({"loaded": loaded.to_text()} if loaded != before else {})}

    def _fields_of(self, item: ShelfItem, folder: Path) -> dict[str, Any]:
        """Returns what stands in the fields while the user has typed nothing."""
        card = {name: getattr(item.card, name) for name in self.card}
        return {**card, "name": item.name, "new_name": choose_name(folder, item.name), "stack": f"<lora:{item.name}:1>"}

    def _no_fields(self) -> dict[str, Any]:
        return {**dict.fromkeys((*TEXTS, "name", "new_name", "stack"), ""), "preferred_weight": 0.0}

    def _path(self, values: Mapping[str, Any]) -> Path:
        """Returns the chosen LoRA, of which the fields are.

        Raises:
            AdapterError: none is chosen, its card has not arrived yet, or it is gone.
        """
        key, folder = values.get("chosen"), self.services.host.folders().lora_dir
        if not key:
            raise AdapterError("No LoRA is chosen. Click one of the library first.")
        if _read_loaded(values).key != key:
            raise AdapterError(f"The card of {key} is just being loaded, so nothing was done. Press again.")
        item = name_items(list_shelf(folder), folder).get(str(key))
        if item is None:
            raise AdapterError(f"{key} is not in {folder} any more. Choose another.")
        return item.path

    def _save(self, values: dict[str, Any]) -> dict[str, Any]:
        path, loaded = self._path(values), _read_loaded(values)
        given: dict[str, Any] = {name: str(values[name] or "") for name in TEXTS}
        given["preferred_weight"] = float(values["preferred_weight"] or 0)
        edit_card(
            path, replace(read_card(path), **{name: value for name, value in given.items() if loaded.is_typed(name, values)})
        )
        return {
            **self.show(values),
            "message": markup.notice(word("The card is saved; the WebUI shows it after a refresh of its list.")),
        }

    def _rename(self, values: dict[str, Any]) -> dict[str, Any]:
        path, folder = self._path(values), self.services.host.folders().lora_dir
        self.services.host.lora_changed(path)  # before, so that it lets go of the file
        new = rename(path, str(values["name"] or "").strip(), folder)
        self.services.host.lora_changed(new)
        said = f"{word('It is called')} <strong>{escape(new.stem)}</strong>; {word('write that in the tag, too.')}"
        key = next((key for key, item in name_items(list_shelf(folder), folder).items() if item.path == new), "")
        loaded = replace(_read_loaded(values), key=key)  # the same card, so what is typed stays
        shown = self.show({**values, "chosen": key, "loaded": loaded.to_text()})
        return {"loaded": loaded.to_text(), **shown, "chosen": key, "message": markup.notice(said)}

    def _repair(self, values: dict[str, Any]) -> dict[str, Any]:
        path = self._path(values)
        self.services.host.lora_changed(path)  # before, so that it lets go of the file
        done = repair(path, base=None if values["base"] in (None, NONE) else values["base"])
        self.services.host.lora_changed(path)
        rows = "".join(f"<li>{escape(change)}</li>" for change in done.changes)
        said = f"{word('Filled in or corrected:')}<ul>{rows}</ul>" if rows else word("Nothing was missing or wrong.")
        return {**self.show(values), "message": markup.notice(said)}

    def _delete(self, values: dict[str, Any]) -> dict[str, Any]:
        path = self._path(values)
        throw_away(path, self.services.host.folders().lora_dir)
        self.services.host.lora_changed(path)
        said = f"<strong>{escape(path.stem)}</strong> {word('is in the trash of the LoRA folder; “Bring it back” restores it.')}"
        return {**self.show({**values, "chosen": ""}), "chosen": "", "message": markup.notice(said)}

    def _restore(self, values: dict[str, Any]) -> dict[str, Any]:
        path = restore(_read_trashed(values["trash"]), self.services.host.folders().lora_dir)
        self.services.host.lora_changed(path)
        return {**self.show(values), "message": markup.notice(f"<strong>{escape(path.stem)}</strong> {word('is back.')}")}

    def _delete_for_good(self, values: dict[str, Any]) -> dict[str, Any]:
        """Deletes at the second press; the first arms the button for what is marked now."""
        if values["doomed"] != values["trash"]:
            return self.show({**values, "doomed": values["trash"]})
        delete_for_good(_read_trashed(values["trash"]), self.services.host.folders().lora_dir)
        return {**self.show(values), "message": markup.notice(f"{escape(values['trash'])}: {word('deleted for good.')}")}

    def _make(self, values: dict[str, Any]) -> dict[str, Any]:
        tool, rank = TOOLS[values["tool"]], str(values["rank"] or "").strip()
        if rank and not rank.isdecimal():
            raise ConfigError([Problem("Highest rank", f"({rank}) must be a whole number from 1, or empty.")])
        settings: dict[str, Any] = {"tool": tool, "name": str(values["new_name"] or "").strip()}
        if tool == "merge":
            settings["stack"] = values["stack"]
        else:
            settings["lora"] = self._path(values).stem
        if tool in ("resize", "merge") and rank:
            settings["rank"] = int(rank)
        if tool != "split" and values["precision"] not in (None, NONE):
            settings["precision"] = values["precision"]
        fields = {"name": self.new_name, "rank": self.rank, "precision": self.precision, "stack": self.stack}
        with markup.labelled({name: field.label for name, field in fields.items()}):
            self.services.queue.submit("lora_files", settings, title=f"{values['tool']}: {settings['name']}")
        return {"message": markup.notice(word("The file is being made; it appears here when it is finished."))}

    def _go_test(self, values: dict[str, Any]) -> dict[str, Any]:
        name = self._path(values).stem
        return {**self._test.test(values, name), "tabs": gr.update(selected="test")}


@dataclass(frozen=True)
class Loaded:
    """What was put into the card's fields.

    Attributes:
        key: of the LoRA, see `name_items`; "" for none.
        fields: their values by name.
    """

    key: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def is_typed(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether the user has changed a field since."""
        before, now = self.fields.get(name), values.get(name)
        return (now or "") != (before or "") if name in values else False

    def to_text(self) -> str:
        return json.dumps({"key": self.key, "fields": dict(self.fields)})


def _read_loaded(values: Mapping[str, Any]) -> Loaded:
    text = values.get("loaded")
    return Loaded(**json.loads(text)) if text else Loaded()


def _name_trashed(entry: Trashed) -> str:
    return f"{entry.path.as_posix()}, {entry.num_bytes / 2**20:.1f} MiB ({entry.id})"


def _read_trashed(choice: object) -> str:
    """Returns the id in what `_name_trashed` returned."""
    return str(choice or "").rpartition("(")[2].rstrip(")")


def name_items(shelf: Sequence[ShelfItem], folder: Path) -> dict[str, ShelfItem]:
    """Returns LoRAs by what tells them apart: the name, or the path in the folder where another has the same name."""
    counts = Counter(item.name for item in shelf)
    return {item.name if counts[item.name] == 1 else item.path.relative_to(folder).as_posix(): item for item in shelf}


def draw_shelf(shelf: Mapping[str, ShelfItem], chosen: ShelfItem | None, cache_dir: Any) -> str:
    """Returns the LoRAs as cards, which the script chooses by."""
    if not shelf:
        return markup.box(word("No LoRA in the folder yet. Train one, or put a file there."), "empty")
    found = [item.preview for item in shelf.values() if item.preview]
    small = dict(zip(found, thumbnails(found, cache_dir, SIDE), strict=True))
    cards = "".join(
        _draw_card(key, item, small.get(item.preview) if item.preview else None, is_chosen=item == chosen)
        for key, item in shelf.items()
    )
    return markup.box(cards, "gallery", role="group")


def draw_item(item: ShelfItem, cache_dir: Any) -> str:
    """Returns what is known of one LoRA."""
    if item.error:
        return f"<h3>{escape(item.name)}</h3>{markup.error_message(item.error)}"
    data = thumbnail(item.preview, cache_dir, LARGE_SIDE) if item.preview else None
    image = f'<img class="lora_trainer_preview_picture" src="{markup.data_uri(data)}" alt="">' if data else ""
    figures = {
        word("Base"): escape(" / ".join(item.bases) or item.stated),
        word("Rank"): escape(item.rank),
        word("Size"): f"{item.file_bytes / 2**20:.1f} MiB",
        word("Trained on"): markup.count(item.num_pictures, "picture") if item.num_pictures else "",
        word("Changed"): time.strftime("%Y-%m-%d %H:%M", time.localtime(item.changed_at)),
    }
    tags = f"<p><small>{word('Frequent in its captions:')} {escape(', '.join(item.tags))}</small></p>" if item.tags else ""
    wrong = ""
    if item.bases and item.stated not in (*item.bases, "Unknown"):
        wrong = markup.problem_list(
            [
                Problem(
                    "metadata",
                    f"say {item.stated}, and the layers are those of {' or '.join(item.bases)}.",
                    "warning",
                    "Repair them.",
                )
            ]
        )
    return f"<h3>{escape(item.name)}</h3>{image}{markup.facts(figures)}{tags}{wrong}"


def _draw_card(key: str, item: ShelfItem, data: bytes | None, *, is_chosen: bool) -> str:
    image = f'<img src="{markup.data_uri(data)}" alt="" loading="lazy">' if data else f"<b>{word('no preview')}</b>"
    base = " / ".join(item.bases) or item.stated
    rank = f" · {word('rank')} {escape(item.rank)}" if item.rank else ""
    said = f'<small class="lora_trainer_error">{escape(item.error)}</small>' if item.error else ""
    trigger = f"<q>{escape(item.card.activation_text)}</q>" if item.card.activation_text else ""
    pressed = "true" if is_chosen else "false"
    return (
        f'<button type="button" class="lora_trainer_card" data-lora="{escape(key)}" aria-pressed="{pressed}">'
        f'<span class="lora_trainer_frame">{image}</span><strong>{escape(key)}</strong>'
        f"<small>{escape(base)}{rank} · {item.file_bytes / 2**20:.1f} MiB</small>{trigger}{said}</button>"
    )


_NOTHING = markup.box(word("Click a LoRA to see and edit its card."), "empty")
