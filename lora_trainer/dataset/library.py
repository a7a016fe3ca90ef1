"""Named data sets below one folder: made, filled with whatever people drop, and pictures taken out and put back.

Nothing is deleted for good: removed pictures lie in a hidden folder of the set that no scan reads, and the captions that an
upload replaces are in the set's journal.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.captions import SIDECAR_SUFFIXES
from lora_trainer.dataset.intake import Intake
from lora_trainer.dataset.journal import KEPT_FOLDER
from lora_trainer.dataset.places import REMOVED, move_picture
from lora_trainer.dataset.scan import list_files, picture_names
from lora_trainer.dataset.tables import normal
from lora_trainer.dataset.uploads import AddResult, Upload, unpack
from lora_trainer.errors import DatasetError, examples
from lora_trainer.files import write_bytes
from lora_trainer.names import check_part

__all__ = ["AddResult", "DatasetLibrary", "Upload"]

_INCOMING = f"{KEPT_FOLDER}/incoming"


class DatasetLibrary:
    """The sets below a folder. Safe to be used from several threads.

    Args:
        root: holds a folder for each set; made when the first one is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    def names(self) -> list[str]:
        """Returns the names of all sets, in alphabetical order."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if path.is_dir() and not check_part(path.name)]
        return sorted(names, key=lambda name: (normal(name).casefold(), name))

    def create(self, name: str) -> Path:
        """Makes an empty set and returns its folder.

        Raises:
            DatasetError: the name cannot be a folder's on every system, or is taken.
        """
        name = normal(name.strip())
        problem = check_part(name)
        if problem:
            raise DatasetError(f"the name of a data set ({name!r}) {problem}. Use letters, digits, spaces, '-' and '_'.")
        taken = next((known for known in self.names() if known.casefold() == name.casefold()), None)
        if taken is not None:
            raise DatasetError(f"there is a data set {taken} already. Choose it, or another name.")
        folder = self.root / name
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise DatasetError(f"{folder} cannot be made: {error.strerror or error}.") from error
        return folder

    def path(self, name: str) -> Path:
        """Returns the folder of a set.

        Raises:
            DatasetError: there is none of that name, or it is a link that leads out of the library.
        """
        folder = self.root / name
        if check_part(name) or not folder.is_dir():
            raise DatasetError(f"there is no data set {name!r}. Known: {', '.join(self.names()) or 'none yet'}.")
        if folder.resolve().parent != self.root.resolve():
            raise DatasetError(f"the data set {name} is a link to another place. Give its folder itself instead.")
        return folder

    def add(self, name: str, uploads: Iterable[Upload]) -> list[AddResult]:
        """Takes up pictures, captions, caption tables and ZIP files of them, in any mix and order.

        Pictures of a known content are skipped; one whose name is taken by another picture gets the next free name, and
        what was dropped with it follows. A caption is of the picture beside it, in the same drop or ZIP file, else of the set's
        picture of that name. A table's rows for pictures that are not there yet are kept for when they come.

        Returns:
            One result for every file, those in ZIP files included, in the order given.

        Raises:
            DatasetError: there is no such set, or its folder cannot be read or written.
        """
        with self._open(name) as folder:
            try:
                with _room_for_unpacking(folder) as room:
                    return Intake(folder).take([unpack(upload, room / str(at)) for at, upload in enumerate(uploads)])
            except OSError as error:
                raise DatasetError(f"{error.filename or folder} cannot be written: {error.strerror or error}.") from error

    def remove(self, name: str, pictures: Sequence[str]) -> None:
        """Takes pictures out of a set, with their captions. `restore` brings them back.

        Args:
            name: of the set.
            pictures: names relative to it, with "/" between parts.

        Raises:
            DatasetError: no such set, or no such picture in it; then none was removed.
        """
        with self._open(name) as folder:
            captions = CaptionStore(folder).read().captions
            _check_known(pictures, captions, f"the data set {name}")
            for picture in pictures:
                target = move_picture(folder, picture, folder / REMOVED)
                sidecar = (folder / REMOVED / target).with_suffix(SIDECAR_SUFFIXES[0])
                if captions[picture] and not sidecar.exists():  # from a table, or shared with another picture
                    write_bytes(sidecar, f"{captions[picture]}\n".encode())

    def restore(self, name: str, pictures: Sequence[str]) -> list[str]:
        """Puts removed pictures back and returns their names now: another one where it was taken meanwhile.

        Raises:
            DatasetError: no such set, or no such removed picture; then none was restored.
        """
        with self._open(name) as folder:
            _check_known(pictures, self.removed(name), f"what was removed from {name}")
            return [move_picture(folder / REMOVED, picture, folder) for picture in pictures]

    def removed(self, name: str) -> list[str]:
        """Returns the names of the pictures that were removed from a set."""
        folder = self.path(name) / REMOVED
        return picture_names(list_files(folder)) if folder.is_dir() else []

    def removed_path(self, name: str, picture: str) -> Path:
        """Returns where a removed picture lies.

        Raises:
            DatasetError: none of that name was removed.
        """
        _check_known([picture], self.removed(name), f"what was removed from {name}")
        return self.path(name) / REMOVED / picture

    @contextmanager
    def _open(self, name: str) -> Iterator[Path]:
        folder = self.path(name)
        with self._locks[normal(name).casefold()]:
            yield folder


@contextmanager
def _room_for_unpacking(folder: Path) -> Iterator[Path]:
    """Gives a new hidden folder inside the set, on the same disk, and clears what a killed process left of an earlier one."""
    parent = folder / _INCOMING
    shutil.rmtree(parent, ignore_errors=True)
    room = parent / str(time.time_ns())
    try:
        yield room
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _check_known(pictures: Iterable[str], known: Iterable[str], where: str) -> None:
    known = set(known)
    unknown = [picture for picture in pictures if picture not in known]
    if unknown:
        raise DatasetError(f"{where} has no picture {examples(unknown)}. Look at the list again: it may have changed.")
