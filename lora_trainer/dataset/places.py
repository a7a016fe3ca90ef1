"""Where files of a set go: free names, and the hidden folder of what was taken out. A picture's captions move with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.captions import SIDECAR_SUFFIXES
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.dataset.tables import normal
from lora_trainer.files import replace_file

REMOVED = f"{KEPT_FOLDER}/removed"


def folded_stem(name: str) -> str:
    """Returns what pictures and captions of one stem have in common, on systems too that take capitals for small letters."""
    return normal(normal(str(PurePosixPath(name).with_suffix(""))).casefold())


def free_name(folder: Path, name: str, pictures: Iterable[str] | None = None) -> str:
    """Returns a name whose stem no other picture has, "a-2.png" say, so that their captions are told apart.

    Args:
        pictures: of the folder; None looks there.
    """
    if pictures is None:
        pictures = picture_names(list_files(folder)) if folder.is_dir() else []
    taken = {folded_stem(known) for known in pictures}
    path, number, free = PurePosixPath(name), 1, name
    while folded_stem(free) in taken or (number > 1 and _has_sidecar(folder / free)):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    return free


def move_picture(source: Path, name: str, target: Path) -> str:
    """Moves a picture, and the caption files that are its alone, to another folder; returns its name there."""
    stem, files = folded_stem(name), list_files(source)
    is_alone = sum(folded_stem(other) == stem for other in picture_names(files)) == 1
    sidecars = [file for file in files if folded_stem(file) == stem and file.lower().endswith(SIDECAR_SUFFIXES)]
    new_name = free_name(target, name)
    (target / new_name).parent.mkdir(parents=True, exist_ok=True)
    replace_file(source / name, target / new_name)
    for sidecar in sidecars if is_alone else ():
        replace_file(source / sidecar, (target / new_name).with_suffix(PurePosixPath(sidecar).suffix))
    return new_name


def move_aside(folder: Path, name: str) -> None:
    """Puts a caption file of a set to what was taken out, under a free name."""
    path, number = PurePosixPath(name), 1
    target = folder / REMOVED / name
    target.parent.mkdir(parents=True, exist_ok=True)
    while target.exists():
        number += 1
        target = target.with_name(f"{path.stem}-{number}{path.suffix}")
    replace_file(folder / name, target)


def _has_sidecar(picture: Path) -> bool:
    return any(picture.with_suffix(suffix).exists() for suffix in SIDECAR_SUFFIXES)
