"""Pictures left out of a data set, and brought back: moved to its hidden folder with their captions. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lora_trainer.dataset.captions import SIDECAR_SUFFIXES
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.scan import list_files, picture_names

LEFT_OUT = "left_out"


def left_out(folder: Path) -> list[str]:
    """Returns the names of the pictures that are left out, as they were in the set."""
    hidden = folder / KEPT_FOLDER / LEFT_OUT
    return picture_names(list_files(hidden)) if hidden.is_dir() else []


def leave_out(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Takes pictures out of a set, their caption files with them. Rows of a table stay.

    Args:
        folder: the data set.
        names: of pictures in it.

    Returns:
        The reason for each picture that is still in the set.

    Raises:
        DatasetError: the folder cannot be read.
    """
    return _move_all(folder, folder / KEPT_FOLDER / LEFT_OUT, names)


def bring_back(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Puts pictures that were left out back in their places; arguments and result as those of `leave_out`."""
    hidden = folder / KEPT_FOLDER / LEFT_OUT
    return _move_all(hidden, folder, names) if hidden.is_dir() else dict.fromkeys(names, "is not left out.")


def _move_all(source: Path, target: Path, names: Iterable[str]) -> dict[str, str]:
    files = list_files(source)
    pictures = set(picture_names(files))  # also keeps out names with ".."
    stems: dict[str, set[str]] = {}
    for name in files:
        stems.setdefault(_stem(name), set()).add(name)
    refused = {}
    for name in names:
        if name not in pictures:
            refused[name] = "is not there any more."
            continue
        same_stem = stems[_stem(name)]
        same_stem.discard(name)
        pictures.discard(name)
        is_shared = bool(same_stem & pictures)
        sidecars = [] if is_shared else [other for other in same_stem if PurePosixPath(other).suffix.lower() in SIDECAR_SUFFIXES]
        refusal = _move(source, target, [name, *sidecars])
        if refusal:
            refused[name] = refusal
    return refused


def _move(source: Path, target: Path, names: list[str]) -> str:
    """Moves files, the picture first: a kill between leaves its caption behind, where it does no harm. Returns why not, or ""."""
    occupied = next((name for name in names if (target / name).exists()), None)
    if occupied is not None:
        return f"stays, since another {occupied} is where it should go. Rename that one."
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            Path(source / name).rename(target / name)
    except OSError as error:
        return f"could not be moved: {error.strerror or error}. Close programs that show it."
    return ""


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
