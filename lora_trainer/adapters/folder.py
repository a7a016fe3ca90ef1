"""The finished file in a LoRA folder of the WebUI: under a free name, with its card and one preview picture.

Nothing there that this run did not write is ever replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.inspect import webui_class
from lora_trainer.adapters.writing import check_place, copy_lora
from lora_trainer.errors import AdapterError
from lora_trainer.files import write_bytes, write_text, write_whole

LORA_SUFFIXES = (".safetensors", ".pt", ".ckpt")


@dataclass(frozen=True)
class Card:
    """What the WebUI shows of a LoRA and does when its card is clicked.

    Attributes:
        description: shown under the name.
        activation_text: added to the prompt.
        negative_text: added to the negative prompt.
        preferred_weight: the weight in the tag; 0 means the WebUI's default.
        notes: shown in the card's editor.
    """

    description: str = ""
    activation_text: str = ""
    negative_text: str = ""
    preferred_weight: float = 0.0
    notes: str = ""


@dataclass(frozen=True)
class Published:
    """What `publish` did: the LoRA's name now, and the names of the files in the folder that this run owns from now on."""

    name: str
    files: tuple[str, ...]


def choose_name(lora_dir: Path, name: str, owned: Collection[str] = ()) -> str:
    """Returns `name`, or the first free of "<name>-2", "<name>-3", ...

    A name is taken by a file beside which ours could not stand, and by any LoRA that the WebUI would mix it up with: one of the
    same stem in a sub-folder (the WebUI keeps one of the two), or one that calls itself so (`ss_output_name` and file
    names share one table there, and a tag in it twice may match the wrong file, or nothing). What stands beside a LoRA that this
    run wrote does not take its name. Capitals count as equal to small letters, as on Windows and macOS.

    Args:
        lora_dir: the LoRA folder; it need not exist.
        owned: files that this run wrote, which it may replace, as paths relative to the folder with "/" between.
    """
    taken = {_fold(taken_name) for taken_name in _taken_names(lora_dir, {_fold(file) for file in owned})}
    chosen, number = name, 1
    while _fold(chosen) in taken:
        number += 1
        chosen = f"{name}-{number}"
    return chosen


def publish(
    source: Path, lora_dir: Path, name: str, *, card: Card, preview: bytes | None = None, owned: Collection[str] = ()
) -> Published:
    """Copies a finished file into a LoRA folder, with its card and preview.

    `name` is what `choose_name` gave before the start; where somebody took it meanwhile, the next free one is used and the
    alias in the file follows. Values that the user has set on the card since stay, and so does a preview that the run did not
    write. The WebUI keeps a file that is replaced under its name applied with the old weights: the caller must make it forget
    them.

    Args:
        source: the file, whose tensors are copied bit for bit.
        name: without ".safetensors".
        preview: a PNG, or None.
        owned: files that this run wrote, as in `choose_name`.

    Raises:
        AdapterError: the source cannot be read, or the preview is not a PNG.
        LoraInUseError: a program holds the file that it would replace; nothing was changed.
    """
    if preview is not None and not preview.startswith(b"\x89PNG"):
        raise AdapterError("the preview picture is not a PNG. Save it as PNG; the WebUI finds it by that ending.")
    name = choose_name(lora_dir, name, [*owned, _relative_name(source.resolve(), lora_dir.resolve())])
    metadata = read_header(source).metadata
    target = lora_dir / f"{name}.safetensors"
    if metadata.get("ss_output_name") == name:
        written = [check_place(write_whole(target, lambda temporary: shutil.copyfile(source, temporary)), target)]
    else:
        written = [copy_lora(source, target, metadata)]
    written.append(_write_card(lora_dir / f"{name}.json", card, webui_class(metadata)))
    picture = lora_dir / f"{name}.png"
    if preview is not None and (picture.name in owned or not picture.exists()):
        written.append(write_bytes(picture, preview))
    return Published(name, tuple(path.name for path in written))


def _taken_names(lora_dir: Path, owned: set[str]) -> Iterator[str]:
    """Yields the stems and aliases of all LoRAs below a folder, and the stems of cards and previews in the folder itself."""
    paths = list(walk(lora_dir))
    ours = {path for path in paths if _fold(_relative_name(path, lora_dir)) in owned}
    for path in paths:
        if path in ours:
            continue
        if path.suffix.lower() in LORA_SUFFIXES:
            yield path.stem
            yield from read_alias(path)
        elif (
            path.parent == lora_dir and path.suffix.lower() in (".json", ".png") and path.with_suffix(".safetensors") not in ours
        ):
            yield path.stem


def walk(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder. Goes through links to other folders, as the WebUI does, and into none twice."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, file) for file in files)


def read_alias(path: Path) -> Iterator[str]:
    """Yields the alias of a file; a damaged one, or an old `.pt`, has none."""
    if path.suffix.lower() == ".safetensors" and path.is_file():
        try:
            alias = read_header(path).metadata.get("ss_output_name")
        except AdapterError:
            return
        if alias:
            yield alias


def _write_card(path: Path, card: Card, sd_version: str) -> Path:
    """Writes a card. What a card that is there already says, filled in by the user or by an editor, stays."""
    values: dict[str, object] = {
        "description": card.description,
        "sd version": sd_version,
        "activation text": card.activation_text,
        "preferred weight": card.preferred_weight,
        "negative text": card.negative_text,
        "notes": card.notes,
    }
    values |= {key: value for key, value in _read_card(path).items() if value or key not in values}
    return write_text(path, json.dumps(values, ensure_ascii=False, indent=4) + "\n")


def _read_card(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _relative_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if folder in path.parents else str(path)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
