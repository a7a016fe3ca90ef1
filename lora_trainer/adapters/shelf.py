"""The LoRAs of a folder as people look at them, from headers and cards alone; and one of them made ready with a chosen weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.folder import LORA_SUFFIXES, Card, walk
from lora_trainer.adapters.inspect import webui_class
from lora_trainer.adapters.lent import FOLDER
from lora_trainer.adapters.library import PREVIEW_SUFFIXES, TRASH_FOLDER, edit_card, read_card
from lora_trainer.adapters.names import split_step_name
from lora_trainer.adapters.owned import publish_for
from lora_trainer.adapters.repair import decide_bases
from lora_trainer.errors import AdapterError
from lora_trainer.files import write_bytes
from lora_trainer.run_folder import RunFolder

OLD_PREVIEWS = "previews"
MOST_TAGS = 8


@dataclass(frozen=True)
class ShelfItem:
    """One LoRA of a folder.

    Attributes:
        path: the file.
        card: what the WebUI shows of it; an empty one where it cannot be read.
        preview: its picture, None for none.
        bases: "SD1", "SD2", "SDXL": those that its layers allow.
        stated: the base that its metadata say, or "Unknown".
        rank: the usual one of its layers, "" where the file does not say.
        file_bytes, changed_at: of the file; seconds since 1970.
        num_pictures: that it was trained on; 0 where the file does not say.
        tags: the most frequent of their captions.
        error: why it cannot be read, "" otherwise.
    """

    path: Path
    card: Card = field(default_factory=Card)
    preview: Path | None = None
    bases: tuple[str, ...] = ()
    stated: str = "Unknown"
    rank: str = ""
    file_bytes: int = 0
    changed_at: float = 0.0
    num_pictures: int = 0
    tags: tuple[str, ...] = ()
    error: str = ""

    @property
    def name(self) -> str:
        return self.path.stem


def list_shelf(lora_dir: Path) -> list[ShelfItem]:
    """Returns the LoRAs of a folder and those below it, the newest first."""
    ours = (TRASH_FOLDER, FOLDER)
    paths = [path for path in walk(lora_dir) if path.suffix.lower() in LORA_SUFFIXES and path.is_file()]
    items = [look_at(path) for path in paths if not set(path.relative_to(lora_dir).parts) & set(ours)]
    return sorted(items, key=lambda item: (-item.changed_at, item.name))


def look_at(path: Path) -> ShelfItem:
    """Returns what header and card of a LoRA tell."""
    state = path.stat()
    item = ShelfItem(path, preview=find_preview(path), file_bytes=state.st_size, changed_at=state.st_mtime)
    try:
        item = replace(item, card=read_card(path))
        header = read_header(path)
    except AdapterError as error:
        return replace(item, error=str(error))
    metadata = header.metadata
    frequency = _read_json(metadata.get("ss_tag_frequency", ""))
    counts: dict[str, int] = {}
    for folder in frequency.values():
        for tag, number in folder.items() if isinstance(folder, Mapping) else ():
            counts[str(tag).strip()] = counts.get(str(tag).strip(), 0) + (number if isinstance(number, int) else 1)
    images = metadata.get("ss_num_train_images", "")
    return replace(
        item,
        bases=decide_bases(header),
        stated=webui_class(metadata),
        rank=metadata.get("ss_network_dim", ""),
        num_pictures=int(images) if images.isdecimal() else 0,
        tags=tuple(sorted(counts, key=lambda tag: -counts[tag])[:MOST_TAGS]),
    )


def find_preview(path: Path) -> Path | None:
    """Returns the picture beside a LoRA that the WebUI shows."""
    suffixes = (form for suffix in PREVIEW_SUFFIXES for form in (suffix, f".preview{suffix}"))
    return next((found for suffix in suffixes if (found := path.with_name(path.stem + suffix)).is_file()), None)


def pick(source: Path, weight: float, preview: bytes, lora_dir: Path) -> Path:
    """Makes a LoRA ready to be used at a weight: file, preferred weight and preview. Returns where it is in the LoRA folder.

    A saved step of a run is put there under the run's own name, in place of the file that the run put there; the run's folder
    keeps all of its files. Other previews under its name go to the trash, because a WebUI shows any of them.

    Args:
        preview: a PNG.

    Raises:
        AdapterError: the file is not there or cannot be read, or the preview is not a PNG.
        LoraInUseError: a program holds the file whose place it would take; nothing was changed.
    """
    if not source.is_file():
        raise AdapterError(f"{source} is not there any more: it was renamed or deleted since. Draw with the file of now.")
    _check_preview(preview)
    path = source if lora_dir.resolve() in source.resolve().parents else _publish_step(source, weight, lora_dir)
    edit_card(path, replace(read_card(path), preferred_weight=weight))
    set_preview(path, preview, lora_dir)
    return path


def set_preview(path: Path, preview: bytes, lora_dir: Path) -> Path:
    """Writes the preview of a LoRA. What stood there goes to the trash of the folder.

    Raises:
        AdapterError: it is not a PNG.
    """
    _check_preview(preview)
    while (old := find_preview(path)) is not None:
        if old.suffix == ".png" and old.stem == path.stem and old.read_bytes() == preview:
            return old
        kept, number = lora_dir / TRASH_FOLDER / OLD_PREVIEWS / old.name, 1
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{old.stem}-{number}{old.suffix}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, kept)
    return write_bytes(path.with_suffix(".png"), preview)


def _check_preview(preview: bytes) -> None:
    if not preview.startswith(b"\x89PNG"):
        raise AdapterError("the preview picture is not a PNG. Save it as PNG; the WebUI finds it by that ending.")


def _publish_step(source: Path, weight: float, lora_dir: Path) -> Path:
    trigger = read_header(source).metadata.get("modelspec.trigger_phrase", "")
    card = Card(activation_text=trigger, preferred_weight=weight)
    return publish_for(RunFolder(source.parent), source, lora_dir, split_step_name(source.stem)[0], card=card)


def _read_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
