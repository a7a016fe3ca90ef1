"""A folder of pictures read as a data set, before any model is loaded.

Every picture is decoded in full. What cannot be used is named, counted and left out with the reason; nothing is replaced.
The order of the items is by name and so the same on every system.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import ImageFile

from lora_trainer.dataset.captions import SIDECAR_SUFFIXES, TABLE_NAMES, read_captions
from lora_trainer.dataset.images import SUFFIXES, PictureFacts, examine
from lora_trainer.dataset.tables import normal, split_suffix
from lora_trainer.errors import DatasetError, Problem, examples

REASONS = ("unreadable", "too small", "invisible", "without caption", "without repeats")
MANY_REPEATS = 100  # above it, the number at the start of a folder's name is more likely a year

_UNREADABLE_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".jfif", ".psd", ".svg", ".tga", ".ico", ".raw", ".dng", ".cr2", ".nef")
_IGNORED_FOLDERS = ("__MACOSX", "@eaDir", "__pycache__")  # made by unpackers, file servers and Python
_RUN_FOLDER_MARK = "events.jsonl"
_REPEATS = re.compile(r"(\d+)_(.*)")
_TRUNCATED_ALLOWED = Problem(
    "",
    "another extension has told Pillow to accept truncated pictures (ImageFile.LOAD_TRUNCATED_IMAGES), so they cannot be found.",
    "warning",
    "Look for pictures with a grey part, or check the folder from the command line.",
)
_NUM_THREADS = min(4, os.cpu_count() or 1)  # each holds one decoded picture; Pillow decodes without Python's lock


@dataclass(frozen=True)
class Item:
    """One picture with its caption.

    Attributes:
        path: the file.
        name: its path relative to the data set, with "/" between parts.
        caption: as it is written.
        repeats: how often it is seen in an epoch.
        width: pixels, upright.
        height: pixels, upright.
        folder: the words of a folder `<repeats>_<words>` around it, else its folder relative to the data set, "" at the top.
        has_alpha: it has a transparency channel, which can serve as a mask.
        weight: its loss is multiplied by it, see `weights`.
    """

    path: Path
    name: str
    caption: str
    repeats: int
    width: int
    height: int
    folder: str
    has_alpha: bool
    weight: float = 1.0


@dataclass(frozen=True)
class DatasetScan:
    """What a folder holds.

    Attributes:
        items: the usable pictures, sorted by name.
        problems: one for each picture left out, and what was doubtful.
        num_found: pictures in the folder.
        left_out: how many were left out, by the first of `REASONS` that holds.
    """

    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    num_found: int
    left_out: dict[str, int]


def scan_dataset(
    train_data_dir: Path,
    metadata_path: Path | None = None,
    *,
    min_side: int = 64,
    alpha_mask: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> DatasetScan:
    """Returns the usable pictures of a folder and its sub-folders, and what is wrong with the others.

    A folder `10_name` means that its pictures are seen ten times in an epoch. Hidden files and run folders are passed over.

    Args:
        train_data_dir: the folder.
        metadata_path: a caption table that counts before all other captions.
        min_side: pictures with a shorter side than this, in pixels, are left out.
        alpha_mask: transparency is a mask, so pictures that are transparent all over are left out.
        on_progress: is called with the number of pictures examined and of all. What it raises ends the scan.

    Raises:
        DatasetError: the folder or the table cannot be read, or no picture can be used.
    """
    files = list_files(train_data_dir)
    names = picture_names(files)
    captions = read_captions(train_data_dir, names, files, metadata_path)
    problems = list(captions.problems)
    problems += _foreign_pictures(files)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        problems.append(_TRUNCATED_ALLOWED)
    left_out: Counter[str] = Counter()
    items = []
    for done, (name, facts) in enumerate(zip(names, _examine_all(train_data_dir, names), strict=True), 1):
        if on_progress:
            on_progress(done, len(names))
        path = train_data_dir / name
        caption = captions.by_name.get(name, "")
        repeats, folder = folder_facts(name)
        reason = _reason_to_leave_out(name, facts, caption, repeats, min_side, alpha_mask)
        if reason:
            left_out[reason[0]] += 1
            problems.append(reason[1])
            continue
        assert isinstance(facts, PictureFacts)
        if facts.is_animated:
            problems.append(Problem(name, "is animated; only its first frame is used.", "notice"))
        items.append(Item(path, name, caption, repeats, facts.width, facts.height, folder, facts.has_alpha))
    if not items:
        raise DatasetError(_nothing_left(train_data_dir, len(names), left_out, problems))
    problems += _many_repeats(items)
    return DatasetScan(tuple(items), tuple(problems), len(names), {reason: left_out[reason] for reason in REASONS})


def find_pictures(folder: Path) -> list[Path]:
    """Returns the picture files of a folder and its sub-folders, captioned or not, sorted by name.

    Raises:
        DatasetError: the folder cannot be read.
    """
    return [folder / name for name in picture_names(list_files(folder))]


def picture_names(files: Iterable[str]) -> list[str]:
    """Returns those of the files that are pictures by their names."""
    return [name for name in files if _is_picture(name)]


def list_files(folder: Path) -> list[str]:
    """Returns the names of all files below a folder, relative to it, with "/" between parts, sorted alike on every system.

    Hidden files and folders, run folders and what systems leave behind are passed over.

    Raises:
        DatasetError: the folder, or one below it, cannot be read.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise DatasetError(f"the picture folder ({folder}) {what}. Give the folder that holds the pictures.")
    try:
        return sorted(_walk(folder, "", ()), key=lambda name: (normal(name), name))
    except OSError as error:
        raise DatasetError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}. Check its permissions."
        ) from error


def dataset_metadata(items: Iterable[Item]) -> dict[str, Any]:
    """Returns `ss_dataset_dirs` and `ss_tag_frequency` of an exported file, by the pictures' folders.

    Tags are captions split at commas, in lower case, each counted once for every picture that has it.
    """
    folders: dict[str, dict[str, int]] = {}
    tags: dict[str, Counter[str]] = {}
    for item in items:
        folder = item.name.rpartition("/")[0] or item.path.parent.name
        folders.setdefault(folder, {"n_repeats": item.repeats, "img_count": 0})["img_count"] += 1
        unique = dict.fromkeys(tag.strip().lower() for tag in item.caption.split(",") if tag.strip())
        tags.setdefault(folder, Counter()).update(unique.keys())
    return {"ss_dataset_dirs": folders, "ss_tag_frequency": {folder: dict(counts) for folder, counts in tags.items()}}


def _walk(folder: Path, prefix: str, parents: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder around it
        return
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".") and entry.name not in _IGNORED_FOLDERS]
    if any(entry.name == _RUN_FOLDER_MARK for entry in entries) and prefix:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*parents, real))
        elif entry.is_file() or entry.is_symlink():  # a broken link is told of later; devices and pipes are nothing to read
            yield prefix + entry.name


def _examine_all(folder: Path, names: list[str]) -> Iterator[PictureFacts | DatasetError]:
    def examine_one(name: str) -> PictureFacts | DatasetError:
        try:
            return examine(folder / name)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        yield from pool.map(examine_one, names)


def _reason_to_leave_out(
    name: str, facts: PictureFacts | DatasetError, caption: str, repeats: int, min_side: int, alpha_mask: bool
) -> tuple[str, Problem] | None:
    if isinstance(facts, DatasetError):
        return "unreadable", Problem(name, f"was left out: {facts}", "warning")
    if min(facts.width, facts.height) < min_side:
        size = f"{facts.width} x {facts.height}"
        return "too small", Problem(
            name,
            f"was left out: it has {size} pixels; the shorter side must have at least {min_side}.",
            "warning",
            "Use a larger one.",
        )
    if alpha_mask and facts.is_invisible:
        message = "was left out: it is transparent all over, so with alpha_mask there is nothing to learn."
        return "invisible", Problem(name, message, "warning", "Make the parts opaque that should be learned.")
    if not caption:
        hint = f"Write the caption to {PurePosixPath(name).stem}.txt beside it."
        return "without caption", Problem(name, "was left out: it has no caption.", "warning", hint)
    if repeats == 0:
        return "without repeats", Problem(name, "was left out: its folder's name starts with 0_, no repeats.", "warning")
    return None


def folder_facts(name: str) -> tuple[int, str]:
    """Returns repeats and label of a picture's name, from the innermost folder `<repeats>_<words>`, else 1 and the folder."""
    parent = PurePosixPath(name).parent
    for part in reversed(parent.parts):
        match = _REPEATS.fullmatch(part)
        if match:
            return int(match[1]), match[2]
    return 1, "" if parent == PurePosixPath() else str(parent)


def _many_repeats(items: list[Item]) -> list[Problem]:
    folders = {item.name.rpartition("/")[0]: item.repeats for item in items if item.repeats > MANY_REPEATS}
    return [
        Problem(
            folder,
            f"starts with a number, so each picture in it is seen {repeats} times in an epoch.",
            "warning",
            "Rename the folder if the number means something else.",
        )
        for folder, repeats in folders.items()
    ]


def _foreign_pictures(files: list[str]) -> list[Problem]:
    foreign = [name for name in files if _suffix(name) in _UNREADABLE_SUFFIXES]
    nameless = [ascii(name) for name in files if _suffix(name) in SUFFIXES and not _is_text(name)]
    problems = []
    if foreign:
        message = f"{len(foreign)} files of kinds that are not read were passed over: {examples(foreign)}."
        problems.append(Problem("", message, "warning", f"Save them as PNG or JPEG; read are {', '.join(SUFFIXES)}."))
    if nameless:
        message = f"{len(nameless)} pictures were passed over, since their names are not Unicode: {examples(nameless)}."
        problems.append(Problem("", message, "warning", "Rename them."))
    return problems


def _nothing_left(folder: Path, num_found: int, left_out: Counter[str], problems: list[Problem]) -> str:
    if not num_found:
        others = "".join(f" {problem}" for problem in problems if not problem.field)
        return f"{folder} holds no pictures; read are {', '.join(SUFFIXES)}.{others} Check the path."
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    first = next(problem for problem in problems if problem.message.startswith("was left out"))
    captions = (
        f" Captions are read from {', '.join('<name>' + suffix for suffix in SIDECAR_SUFFIXES)}, {' and '.join(TABLE_NAMES)};"
        " the caption command writes them."
        if left_out["without caption"]
        else ""
    )
    return f"None of the {num_found} pictures in {folder} can be used: {reasons}. The first: {first}{captions}"


def _is_picture(name: str) -> bool:
    return _suffix(name) in SUFFIXES and _is_text(name)


def _is_text(name: str) -> bool:
    """Whether a file's name is Unicode; on Linux it can be any bytes, which no message could show and no record keep."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _suffix(name: str) -> str:
    return split_suffix(name)[1].lower()
