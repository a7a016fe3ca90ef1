"""The LoRA folder as a library: find by name, rename, edit the card, throw away, bring back or delete for good.

What stands beside a LoRA under its name (card, preview, description) goes with it. The WebUI lists files by their ending, in all
folders below; a file in the trash bears another ending, so it is neither listed nor found by a prompt.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.folder import LORA_SUFFIXES, Card, choose_name, read_alias, walk
from lora_trainer.adapters.names import check_output_name
from lora_trainer.adapters.repair import complete_metadata
from lora_trainer.adapters.writing import copy_lora
from lora_trainer.errors import AdapterError
from lora_trainer.files import write_text, write_whole
from lora_trainer.registry import did_you_mean

TRASH_FOLDER = ".lora_trainer_trash"
TRASHED = ".trashed"
PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
COMPANION_SUFFIXES = (
    ".json",
    *PREVIEW_SUFFIXES,
    *(f".preview{suffix}" for suffix in PREVIEW_SUFFIXES),
    ".txt",
    ".description.txt",
    ".civitai.info",
)
CARD_KEYS = {
    "description": "description",
    "activation text": "activation_text",
    "negative text": "negative_text",
    "preferred weight": "preferred_weight",
    "notes": "notes",
}


@dataclass(frozen=True)
class Trashed:
    """A LoRA in the trash.

    Attributes:
        id: what `restore` takes.
        path: where it was, relative to the LoRA folder.
        deleted_at: seconds since 1970.
        num_bytes: of the file and what stood beside it.
    """

    id: str
    path: Path
    deleted_at: float
    num_bytes: int


def find_lora(lora_dir: Path, name: str) -> Path:
    """Returns the file that the WebUI means by a name in a tag: by its stem, else by its alias (`ss_output_name`).

    Raises:
        AdapterError: there is none, or more than one; the message names them.
    """
    paths = [path for path in sorted(walk(lora_dir)) if path.suffix.lower() in LORA_SUFFIXES]
    by_stem = [path for path in paths if path.stem == name]
    found = by_stem or [path for path in paths if name in read_alias(path)]
    if len(found) > 1:
        places = " and ".join(str(path.relative_to(lora_dir)) for path in found)
        raise AdapterError(f"<lora:{name}> may mean {places}, and the WebUI takes one or none of them. Rename one.")
    if not found:
        near = did_you_mean(name, tuple(path.stem for path in paths))
        raise AdapterError(f"no LoRA in {lora_dir} is called {name!r}{near} Put the file there, or correct the tag.")
    return found[0]


def rename(path: Path, name: str, lora_dir: Path) -> Path:
    """Gives a LoRA another name: the file, its alias in the prompt, its card and its preview. Returns where it is now.

    The new file is whole before the old one goes. The WebUI keeps the old name in its list until that is refreshed.

    Args:
        path: in the LoRA folder or below; it stays in its folder.
        name: without ".safetensors".
        lora_dir: in which no other LoRA may bear the name.

    Raises:
        AdapterError: the name cannot be used or is taken, or the file cannot be read or moved.
        LoraInUseError: only its alias was to be changed, and a program holds the file; it stays as it was.
    """
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path} cannot be renamed here: only a .safetensors file says inside how it is called.")
    if problem := check_output_name(name):
        why = f"{problem.message} {problem.hint}"
        raise AdapterError(f"{name!r} cannot be the name: {why}")
    if name == path.stem and read_header(path).metadata.get("ss_output_name") == name:
        return path
    if name.casefold() == path.stem.casefold() and name != path.stem:
        raise AdapterError(
            f"{name!r} differs from {path.stem!r} by capitals only; on Windows and macOS they are one file. Take another name."
        )
    target = path.with_name(f"{name}.safetensors")
    is_taken = choose_name(lora_dir, name, _relative([path, *companions(path)], lora_dir)) != name
    if is_taken or (target != path and companions(target)):
        raise AdapterError(f"the name {name!r} is taken in {lora_dir}, by a file or by an alias inside one. Choose another.")
    written = copy_lora(path, target, complete_metadata(path))
    if target == path:
        return written
    for companion in companions(path):
        _move(companion, path.with_name(name + companion.name[len(path.stem) :]))
    _remove(path)
    return written


def companions(path: Path) -> list[Path]:
    """Returns what stands beside a LoRA under its name: card, previews, descriptions."""
    beside = (path.with_name(path.stem + suffix) for suffix in COMPANION_SUFFIXES)
    return [companion for companion in beside if companion.is_file()]


def read_card(path: Path) -> Card:
    """Returns the card of a LoRA file; an empty one where it has none.

    Raises:
        AdapterError: the card's file is damaged.
    """
    values = _read_card_file(path)
    texts = {field: str(values[key]) for key, field in CARD_KEYS.items() if key in values and field != "preferred_weight"}
    weight = values.get("preferred weight", 0.0)
    return Card(**texts, preferred_weight=float(weight) if isinstance(weight, int | float) else 0.0)


def edit_card(path: Path, card: Card) -> Path:
    """Writes the card of a LoRA file. Other keys that are in it, the WebUI's or foreign ones, stay. Returns where it is.

    Raises:
        AdapterError: the card that is there is damaged.
    """
    own = {key: getattr(card, field) for key, field in CARD_KEYS.items()}
    values = {**_read_card_file(path), **own}
    return write_text(path.with_suffix(".json"), json.dumps(values, ensure_ascii=False, indent=4) + "\n")


def throw_away(path: Path, lora_dir: Path) -> str:
    """Moves a LoRA and what stands beside it to the trash of its folder. Returns the id by which `restore` finds it.

    Raises:
        AdapterError: it is not in the folder, or cannot be moved.
    """
    if not path.is_file() or lora_dir not in path.parents:
        raise AdapterError(f"{path} is not a file in {lora_dir}. Choose one of the list.")
    trash = lora_dir / TRASH_FOLDER
    identifier = _free_identifier(trash, time.strftime("%Y%m%d-%H%M%S"))
    folder = trash / identifier / path.parent.relative_to(lora_dir)
    beside = companions(path)
    # The LoRA goes first and comes back last: interrupted between two files, nothing is listed that is not whole.
    _move(path, folder / f"{path.name}{TRASHED}")
    for companion in beside:
        _move(companion, folder / companion.name)
    return identifier


def put_aside(path: Path, lora_dir: Path) -> str:
    """Keeps a LoRA in the trash of its folder before another comes in its place. Returns the id by which `restore` finds it.

    The file itself stays until it is replaced, and so does what stands beside it.

    Raises:
        AdapterError: it cannot be copied.
    """
    trash = lora_dir / TRASH_FOLDER
    identifier = _free_identifier(trash, time.strftime("%Y%m%d-%H%M%S"))
    folder = trash / identifier / path.parent.relative_to(lora_dir)
    for companion in companions(path):
        _copy(companion, folder / companion.name)
    _copy(path, folder / f"{path.name}{TRASHED}")
    return identifier


def list_trash(lora_dir: Path) -> list[Trashed]:
    """Returns what is in the trash of a folder, the last thrown away first."""
    trash = lora_dir / TRASH_FOLDER
    found = [
        Trashed(file.relative_to(trash).parts[0], _origin(file, trash), file.parent.stat().st_mtime, _num_bytes(file.parent))
        for file in trash.rglob(f"*{TRASHED}")
    ]
    return sorted(found, key=lambda item: (item.id, str(item.path)), reverse=True)


def restore(identifier: str, lora_dir: Path) -> Path:
    """Moves a LoRA and what stood beside it out of the trash to where it was. Returns its path.

    Raises:
        AdapterError: it is not in the trash, or a file of its name is there now.
    """
    trash = lora_dir / TRASH_FOLDER
    file = _find_trashed(identifier, lora_dir)
    origin = _origin(file, trash)
    target = lora_dir / origin
    beside = sorted(other for other in file.parent.iterdir() if other != file and other.is_file())
    in_the_way = [name for name in (target.name, *(other.name for other in beside)) if target.with_name(name).exists()]
    if in_the_way or choose_name(lora_dir, target.stem, _relative(companions(target), lora_dir)) != target.stem:
        what = " and ".join(in_the_way) or f"another LoRA named {target.stem!r}"
        raise AdapterError(f"{what} stands in {lora_dir} now, and nothing is written over it. Rename that first, then restore.")
    for companion in beside:
        _move(companion, target.with_name(companion.name))
    _move(file, target)
    shutil.rmtree(trash / identifier, ignore_errors=True)
    return target


def delete_for_good(identifier: str, lora_dir: Path) -> None:
    """Deletes a LoRA of the trash and what stood beside it. Nothing brings it back.

    Raises:
        AdapterError: it is not in the trash, or another program holds one of its files.
    """
    file = _find_trashed(identifier, lora_dir)
    # What `list_trash` knows it by goes last: interrupted in between, it is listed still and can be deleted again.
    for each in sorted(file.parent.iterdir(), key=lambda each: each == file):
        _remove(each, "it stays in the trash")
    shutil.rmtree(lora_dir / TRASH_FOLDER / identifier, ignore_errors=True)


def _find_trashed(identifier: str, lora_dir: Path) -> Path:
    """Returns the LoRA file of the trash that an id stands for.

    Raises:
        AdapterError: there is none.
    """
    trash = lora_dir / TRASH_FOLDER
    for file in trash.rglob(f"*{TRASHED}"):
        if file.relative_to(trash).parts[0] == identifier:
            return file
    known = ", ".join(item.id for item in list_trash(lora_dir)) or "it is empty"
    raise AdapterError(f"{identifier!r} is not in the trash of {lora_dir} ({known}).")


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _origin(file: Path, trash: Path) -> Path:
    """Returns where a file of the trash was, relative to the LoRA folder."""
    inside = file.relative_to(trash / file.relative_to(trash).parts[0])
    return inside.with_name(inside.name[: -len(TRASHED)])


def _free_identifier(trash: Path, wanted: str) -> str:
    identifier, number = wanted, 1
    while (trash / identifier).exists():
        number += 1
        identifier = f"{wanted}-{number}"
    return identifier


def _read_card_file(path: Path) -> Mapping[str, object]:
    card = path.with_suffix(".json")
    if not card.exists():
        return {}
    try:
        values = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"the card {card} cannot be read ({error}). Correct the file, or delete it.") from error
    if not isinstance(values, dict):
        raise AdapterError(f"the card {card} holds {type(values).__name__}, not a table of values. Delete it.")
    return values


def _move(source: Path, target: Path) -> None:
    """Moves a file, on another drive by way of a whole copy.

    Raises:
        AdapterError: another program holds it, or the folder may not be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise AdapterError(
                f"{source} cannot be moved to {target.parent} ({error.strerror}). Close what uses it, or check the rights."
            ) from error
        write_whole(target, lambda temporary: shutil.copyfile(source, temporary))
        _remove(source)


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda temporary: shutil.copyfile(source, temporary))
    except OSError as error:
        raise AdapterError(
            f"{source} cannot be kept in {target.parent} ({error.strerror}); nothing is written over it. Check space and rights."
        ) from error


def _remove(path: Path, meanwhile: str = "its copy is whole") -> None:
    try:
        path.unlink()
    except OSError as error:
        raise AdapterError(
            f"{path} cannot be deleted ({error.strerror}); {meanwhile}. Close the program that uses it, and delete it."
        ) from error


def _relative(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths if folder in path.parents]
