"""The pictures of a data set, to be retouched in place: what is replaced is kept, and any change can be taken back.

The bytes of a picture before and after a change lie in the set's hidden folder, named by their hash. The journal says which
picture had which. Each picture is replaced whole; after a kill, those that were done are done, and one undo takes them back.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_trainer.dataset.images import decode_for_editing, flatten, open_header, read_bytes
from lora_trainer.dataset.journal import KEPT_FOLDER, Change, Journal, next_to_redo, next_to_undo
from lora_trainer.dataset.retouch import Retouch
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.errors import DatasetError
from lora_trainer.files import write_bytes

# How a picture is written again, by the suffix of its file. JPEG without colour subsampling: it blurs red strokes.
_WRITING: dict[str, tuple[str, dict[str, object]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".gif": ("GIF", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".avif": ("AVIF", {"quality": 90}),
}
_WITHOUT_ALPHA = ("JPEG", "BMP")


@dataclass(frozen=True)
class RetouchResult:
    """What became of a change of pictures.

    Attributes:
        change: its number in the journal, None when no picture became another.
        changed: the pictures that are others now.
        refused: those that were left as they are, with the reason.
    """

    change: int | None
    changed: tuple[str, ...]
    refused: dict[str, str]


class PictureStore:
    """The pictures of one folder. Building it touches nothing. Safe to be used by several threads and processes.

    Args:
        folder: the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / KEPT_FOLDER / "pictures"
        self._journal = Journal(folder / KEPT_FOLDER / "pictures.jsonl")

    def retouch(
        self,
        names: Sequence[str],
        *edits: Retouch,
        title: str,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> RetouchResult:
        """Changes pictures, each by all edits in turn.

        Args:
            names: relative to the folder, with "/" between parts.
            edits: see `retouch`; a picture that they return as it is stays untouched.
            title: for the journal.
            on_progress: is called with the number of pictures done and of all. What it raises ends the work; what was done so far
                stays done, and is taken back by `undo`.

        Raises:
            DatasetError: the folder may not be written, or the disk is full.
        """

        def change(name: str, data: bytes) -> bytes:
            return retouch_bytes(data, self.folder / name, edits)

        return self._replace_all(names, change, title, None, on_progress)

    def undo(self) -> RetouchResult:
        """Takes back the latest change that counts; pictures changed since by other programs stay."""
        return self._revert(next_to_undo(self._journal.changes()), "undo: {}")

    def redo(self) -> RetouchResult:
        """Takes back the latest undo."""
        return self._revert(next_to_redo(self._journal.changes()), "redo: {}")

    def restore(self, names: Sequence[str]) -> RetouchResult:
        """Brings pictures back as they were before their first change, whatever was done since."""
        first: dict[str, str] = {}
        for change in self._journal.changes():
            for name, (before, _) in change.values.items():
                first.setdefault(name, before)
        known = [name for name in names if name in first]
        return self._replace_all(known, lambda name, _: self._read_kept(first[name]), "restore the originals", None, None)

    def history(self) -> list[Change]:
        """Returns all changes, the latest first; their values are hashes of files."""
        return self._journal.changes()[::-1]

    def undoable(self) -> Change | None:
        """Returns the change that `undo` would take back."""
        return next_to_undo(self._journal.changes())

    def redoable(self) -> Change | None:
        """Returns the undo that `redo` would take back."""
        return next_to_redo(self._journal.changes())

    def _revert(self, change: Change | None, title: str) -> RetouchResult:
        if change is None:
            return RetouchResult(None, (), {})
        inverse = change.inverse()

        def bring_back(name: str, data: bytes) -> bytes:
            before, after = inverse[name]
            current = _hash(data)
            if current == after:  # it was killed before this one
                return data
            if current != before:
                raise DatasetError(
                    f"{self.folder / name} was changed by another program since. Restore it by itself if you want to."
                )
            return self._read_kept(after)

        bare = change.title.removeprefix("undo: ").removeprefix("redo: ")
        return self._replace_all(list(inverse), bring_back, title.format(bare), change.id, None)

    def _replace_all(
        self,
        names: Sequence[str],
        change: Callable[[str, bytes], bytes],
        title: str,
        reverts: int | None,
        on_progress: Callable[[int, int], object] | None,
    ) -> RetouchResult:
        number: int | None = None
        changed: list[str] = []
        refused: dict[str, str] = {}
        known = set(picture_names(list_files(self.folder)))  # also keeps out names with ".."
        for done, name in enumerate(names, 1):
            path = self.folder / name
            try:
                if name not in known:
                    raise DatasetError(f"{name} is not in the set any more.")
                with self._journal.locked():
                    before = read_bytes(path)
                    after = change(name, before)
                    if after != before:
                        self._keep(before)
                        self._keep(after)
                        values = {name: (_hash(before), _hash(after))}
                        number = self._journal.begin(title, values, change=number, reverts=reverts)
                        if write_bytes(path, after) != path:
                            raise DatasetError(f"{path} is in use by another program. Close it there.")
                        changed.append(name)
            except DatasetError as error:
                refused[name] = str(error)
            except OSError as error:
                raise DatasetError(
                    f"{path} cannot be written: {error.strerror or error}. It is as it was; free space."
                ) from error
            if on_progress:
                on_progress(done, len(names))
        return RetouchResult(number, tuple(changed), refused)

    def _keep(self, data: bytes) -> None:
        path = self._kept / _hash(data)
        if not path.exists():
            write_bytes(path, data)

    def _read_kept(self, key: str) -> bytes:
        data = read_bytes(self._kept / key)
        if _hash(data) != key:
            raise DatasetError(f"{self._kept / key} is damaged, so the picture cannot be brought back from it.")
        return data


def retouch_bytes(data: bytes, path: Path, edits: Sequence[Retouch]) -> bytes:
    """Returns a picture's file after edits, in its own format; the same bytes where they changed nothing.

    Args:
        data: of the file.
        path: its suffix names the format; it also names the file in errors.
        edits: applied in turn.

    Raises:
        DatasetError: it cannot be read, is animated, or its format cannot be written.
    """
    image = original = decode_for_editing(data, path)
    for edit in edits:
        image = edit(image)
    if image is original:
        return data
    header = open_header(data, path)
    if header.format not in ("JPEG", "MPO") and getattr(header, "n_frames", 1) > 1:  # a phone's JPEG has a preview as second
        raise DatasetError(f"{path} has more than one frame, and only the first would be left. Save it as PNG first.")
    format_name, options = _WRITING[path.suffix.lower()]
    if format_name not in Image.SAVE:
        raise DatasetError(f"{path} cannot be written: this Pillow has no {format_name}. Save it as PNG.")
    if format_name in _WITHOUT_ALPHA:
        image = flatten(image)
    profile = header.info.get("icc_profile") if header.mode in ("RGB", "RGBA", "P") else None
    file = io.BytesIO()
    image.save(file, format_name, icc_profile=profile, **options)
    return file.getvalue()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
