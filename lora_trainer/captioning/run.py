"""Captions a folder of pictures, batch by batch. What is written stays, whatever happens then; a second run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from lora_trainer.control import TrainControl
from lora_trainer.dataset.captions import read_captions
from lora_trainer.dataset.images import open_image
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.dataset.table_writing import HEADERS, edit_table, format_table
from lora_trainer.dataset.tables import NameIndex, read_table
from lora_trainer.errors import DatasetError
from lora_trainer.events import Emit
from lora_trainer.files import write_bytes

if TYPE_CHECKING:
    from lora_trainer.captioning.captioner import Captioner

Mode = Literal["missing", "overwrite"]
Save = Callable[[Mapping[str, str]], None]
PHASE = "writing captions"


@dataclass(frozen=True)
class CaptionResult:
    """How a run ended.

    Attributes:
        num_written: captions written by this run.
        num_kept: pictures that had a caption, which stays.
        unreadable: names of pictures that could not be read.
        was_stopped: it was asked to stop; the same run again goes on.
    """

    num_written: int
    num_kept: int
    unreadable: tuple[str, ...]
    was_stopped: bool


def caption_folder(
    captioner: Captioner,
    folder: Path,
    save: Save,
    *,
    kept: Mapping[str, str],
    batch_size: int = 8,
    control: TrainControl,
    emit: Emit,
) -> CaptionResult:
    """Writes captions for the pictures of a folder and its sub-folders.

    Args:
        captioner: entered.
        folder: the data set.
        save: is given the captions of a batch, by the picture's name relative to the folder; they must be safe when it returns.
        kept: captions that stay as they are, by name, see `captions_to_keep`.
        batch_size: pictures looked at together.
        control: "stop" ends it after the batch.
        emit: is told the phase, and of each picture that cannot be read.

    Raises:
        DatasetError: the folder cannot be read or has no picture, or a caption cannot be saved.
    """
    names = picture_names(list_files(folder))
    if not names:
        raise DatasetError(f"{folder} has no pictures. Give the folder that holds them.")
    wanted = [name for name in names if name not in kept]
    num_written, unreadable = 0, list[str]()
    emit("phase", name=PHASE, done=0, total=len(wanted))
    for start in range(0, len(wanted), batch_size):
        if control.is_requested("stop"):
            return CaptionResult(num_written, len(names) - len(wanted), tuple(unreadable), True)
        pictures: dict[str, Image.Image] = {}
        for name in wanted[start : start + batch_size]:
            try:
                pictures[name] = open_image(folder / name)
            except DatasetError as error:
                unreadable.append(name)
                emit("warning", message=str(error))
        if pictures:
            save(dict(zip(pictures, captioner.caption(list(pictures.values())), strict=True)))
        num_written += len(pictures)
        emit("phase", name=PHASE, done=min(start + batch_size, len(wanted)), total=len(wanted))
    return CaptionResult(num_written, len(names) - len(wanted), tuple(unreadable), False)


def captions_to_keep(folder: Path, mode: Mode, table: Path | None = None) -> dict[str, str]:
    """Returns the captions that a run leaves alone: none when overwriting, else all that the folder or the table has.

    Raises:
        DatasetError: the folder or the table cannot be read.
    """
    if mode == "overwrite":
        return {}
    table = table if table is not None and table.exists() else None
    files = list_files(folder)
    return read_captions(folder, picture_names(files), files, table).by_name


class TableFile:
    """A caption table, `.csv` or `.jsonl`, that captions are written into; rows of other pictures and other columns stay.

    Args:
        path: the file; it need not exist.
        folder: the data set, to which the names in it are relative.

    Raises:
        DatasetError: the name ends otherwise.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        if path.suffix.lower() not in HEADERS:
            raise DatasetError(f"{path} cannot hold captions: its name must end in {' or '.join(HEADERS)}.")
        self.path, self._names = path, picture_names(list_files(folder))

    def save(self, captions: Mapping[str, str]) -> None:
        """Writes captions by the pictures' names, whole or not at all.

        Raises:
            DatasetError: the table is damaged, or cannot be written.
        """
        try:
            data = self._edited(captions) if self.path.exists() else format_table(captions, self.path.suffix.lower())
            write_bytes(self.path, data)
        except OSError as error:
            raise DatasetError(
                f"{self.path} cannot be written: {error.strerror or error}. Close programs that show it, or choose another file."
            ) from error

    def _edited(self, captions: Mapping[str, str]) -> bytes:
        rows = dict(self._rows_of_pictures())
        changed = {rows[name]: caption for name, caption in captions.items() if name in rows}
        return edit_table(self.path, changed, {name: caption for name, caption in captions.items() if name not in rows})

    def _rows_of_pictures(self) -> Iterator[tuple[str, int]]:
        index = NameIndex(self._names)
        for number, row in enumerate(read_table(self.path).rows):
            fits: Sequence[str] = index.find(row.name)[1]
            if len(fits) == 1:
                yield fits[0], number
