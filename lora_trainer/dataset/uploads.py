"""What people drop on a set: pictures, captions, caption tables and ZIP files of them, looked at before anything is kept.

Nothing here trusts a name or a suffix: names are confined, pictures are decoded, ZIP files are read against limits.
"""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from lora_trainer.dataset.captions import SIDECAR_SUFFIXES
from lora_trainer.dataset.images import SUFFIXES, examine, usual_suffix
from lora_trainer.dataset.tables import TABLE_SUFFIXES, Table, parse_table, read_text
from lora_trainer.errors import DatasetError
from lora_trainer.names import check_relative

Kind = Literal["picture", "caption", "table"]

MIB = 1 << 20
MAX_PICTURE_BYTES = 256 * MIB
MAX_CAPTION_BYTES = MIB // 4
MAX_TABLE_BYTES = 64 * MIB
# Of all that one upload unpacks. A bomb is small and unpacks to a lot; a picture hardly shrinks in a ZIP file.
MAX_UNPACKED_BYTES = 16 << 30
MAX_ENTRIES = 20_000
MAX_RATIO = 200
FREE_RATIO_BYTES = 8 * MIB  # a white BMP shrinks a thousandfold and is no bomb
MAX_DEPTH = 2  # a ZIP file in a ZIP file, as download sites make them; no further

_CHUNK = MIB
_SYSTEM_FILES = re.compile(r"__MACOSX|\..*|thumbs\.db|desktop\.ini", re.IGNORECASE)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
_REPEATS = re.compile(r"\d+_.*")
_JPEG_SUFFIXES = (".jfif", ".jpe", ".jif")


@dataclass(frozen=True)
class Upload:
    """A file that was dropped: the name that it had, and where it lies now."""

    file_name: str
    path: Path


@dataclass(frozen=True)
class AddResult:
    """What became of a file. "skipped" means that nothing had to be done, "refused" that it was not taken; `message` says why."""

    file_name: str
    status: Literal["added", "replaced", "skipped", "refused"]
    message: str = ""


@dataclass(frozen=True)
class Found:
    """A file that was dropped, or was in a ZIP file that was.

    Attributes:
        label: what the result calls it.
        name: relative to the set; as somebody wrote it until `judge` has confined it.
        path: where it lies.
        origin: files of one origin belong together: `a.txt` is of the `a.png` beside it, not of another ZIP file's.
        is_ours: lies in our own folder and may be moved away.
        kind: by its content; None until `judge` has looked.
    """

    label: str
    name: str
    path: Path
    origin: str
    is_ours: bool
    kind: Kind | None = None


def unpack(upload: Upload, into: Path) -> Iterator[Found | AddResult]:
    """Yields the upload, or what a ZIP file holds.

    Args:
        upload: the file.
        into: a folder of ours that is not there yet, for what is unpacked.
    """
    if upload.file_name.lower().endswith(".zip"):
        yield from _unpack(upload.path, upload.file_name, "", into, _Budget(), depth=1)
    else:
        yield Found(upload.file_name, upload.file_name, upload.path, "", is_ours=False)


def judge(found: Found) -> Found | AddResult:
    """Returns the file with a confined name and its kind, or why it is refused. Decodes pictures in full."""
    name = unicodedata.normalize("NFC", found.name.replace("\\", "/"))
    problem = check_relative(name)
    if problem:
        return AddResult(found.label, "refused", f"its name {problem}. Rename it.")
    try:
        kind, suffix = _kind_of(name, found.path)
    except DatasetError as error:
        return AddResult(found.label, "refused", str(error).replace(str(found.path), "the file"))
    except OSError as error:
        return AddResult(found.label, "refused", f"it cannot be read: {error.strerror or error}.")
    if suffix:
        stem = str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(_JPEG_SUFFIXES) else name
        name = stem + suffix
    return replace(found, name=name, kind=kind)


def read_caption(path: Path) -> str:
    """Returns the text of a caption file.

    Raises:
        DatasetError: it is too large, holds other things than text, or is in an unknown encoding.
    """
    _check_size(path, MAX_CAPTION_BYTES, "caption")
    text, _ = read_text(path)
    if "\0" in text:
        raise DatasetError("it holds other things than text.")
    return text


def read_rows(path: Path, name: str) -> Table:
    """Returns the rows of a caption table that had this name.

    Raises:
        DatasetError: it is too large, or cannot be read.
    """
    _check_size(path, MAX_TABLE_BYTES, "table")
    text, encoding = read_text(path)
    return parse_table(text, encoding, Path(name))


@dataclass
class _Budget:
    """What one upload may still unpack."""

    num_bytes: int = MAX_UNPACKED_BYTES
    num_entries: int = MAX_ENTRIES


def _kind_of(name: str, path: Path) -> tuple[Kind, str]:
    """Returns what a file is, and the suffix of a picture whose name has none that we know.

    Raises:
        DatasetError: it is nothing that belongs into a set.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SIDECAR_SUFFIXES:
        read_caption(path)
        return "caption", ""
    if suffix in TABLE_SUFFIXES:
        table = read_rows(path, name)
        if not table.rows:
            fault = f": {table.faults[0]}" if table.faults else "; it needs a file name and a caption in each"
            raise DatasetError(f"it has no rows that can be used{fault}.")
        return "table", ""
    _check_size(path, MAX_PICTURE_BYTES, "picture")
    examine(path)
    return "picture", "" if suffix in SUFFIXES else usual_suffix(path)


def _check_size(path: Path, most: int, what: str) -> None:
    size = path.stat().st_size
    if size > most:
        raise DatasetError(f"it has {size / MIB:.1f} MiB; a {what} may have {most / MIB:g}.")


def _unpack(path: Path, label: str, origin: str, folder: Path, budget: _Budget, *, depth: int) -> Iterator[Found | AddResult]:
    if depth > MAX_DEPTH:
        yield AddResult(label, "refused", "it is a ZIP file in a ZIP file in a ZIP file. Unpack it first.")
        return
    origin = f"{origin}{label}\n"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [(info, _entry_name(info)) for info in archive.infolist() if not info.is_dir()]
            entries = [(info, name) for info, name in entries if not _is_system_file(name)]
            if not entries:
                yield AddResult(label, "refused", "it holds no files.")
                return
            prefix = _common_folder([name for _, name in entries])
            for number, (info, name) in enumerate(entries):
                budget.num_entries -= 1
                if budget.num_entries < 0:
                    yield AddResult(label, "refused", f"it holds more than {MAX_ENTRIES} files; the others were left out.")
                    return
                target = folder / str(number)  # of our own making: no name of an entry reaches the file system here
                entry_label = f"{label}/{name}"
                problem = _extract(archive, info, target, budget)
                if problem:
                    yield AddResult(entry_label, "refused", problem)
                    target.unlink(missing_ok=True)
                elif name.lower().endswith(".zip"):
                    yield from _unpack(target, entry_label, origin, folder / f"{number}-unpacked", budget, depth=depth + 1)
                    target.unlink(missing_ok=True)
                else:
                    yield Found(entry_label, name.removeprefix(prefix), target, origin, is_ours=True)
    except _ZIP_ERRORS as error:
        yield AddResult(label, "refused", f"it is no ZIP file that can be read ({error}). Pack it anew.")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, budget: _Budget) -> str:
    """Writes an entry; returns why it was not taken, "" when it was. What its header says of its size is not believed."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "it is a link or a device, not a file."
    if info.flag_bits & 1:
        return "it is locked with a password. Unpack it first."
    most = min(MAX_PICTURE_BYTES, budget.num_bytes)
    written = 0
    try:
        with archive.open(info) as source, open(target, "wb") as file:
            for chunk in _chunks(source):
                written += len(chunk)
                budget.num_bytes -= len(chunk)
                if written > most:
                    return f"it unpacks to more than {most / MIB:.0f} MiB, which is the most that is taken."
                if written > FREE_RATIO_BYTES and written > MAX_RATIO * max(1, info.compress_size):
                    return f"it unpacks to more than {MAX_RATIO} times its size, as a decompression bomb does."
                file.write(chunk)
    except _ZIP_ERRORS as error:
        return f"it cannot be unpacked ({error}). Pack it anew."
    return ""


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


def _entry_name(info: zipfile.ZipInfo) -> str:
    """Returns an entry's name with "/" between its parts. Where it is not marked as UTF-8, systems wrote their own encoding."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        try:
            raw = name.encode("cp437")  # what `zipfile` took it for
        except UnicodeEncodeError:
            raw = b""
        for encoding in ("utf-8", "gb2312"):  # the latter by Chinese systems; hardly anything else can be read as it
            try:
                decoded = raw.decode(encoding)
            except UnicodeDecodeError:
                continue
            name = decoded or name
            break
    return name.replace("\\", "/")


def _is_system_file(name: str) -> bool:
    return any(_SYSTEM_FILES.fullmatch(part) and part not in (".", "..") for part in name.split("/"))


def _common_folder(names: list[str]) -> str:
    """Returns the folder around everything, which was only there to be packed; one that says how many repeats stays."""
    first, _, rest = names[0].partition("/")
    is_common = bool(rest) and all(name.startswith(f"{first}/") for name in names)
    return f"{first}/" if is_common and not _REPEATS.fullmatch(first) and first not in (".", "..", "") else ""
