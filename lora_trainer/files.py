"""Files written whole or not at all, on Windows too.

A temporary file beside the target is written, flushed to the disk and renamed over it. Where a program on Windows holds the
target open, the rename is retried and at last the new file is kept beside it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
LOCK_BYTE = 1 << 30  # far behind the text, so that Windows lets others read who holds the lock


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Has `write` fill a temporary file, then moves it over `path`. After an exception the old file is untouched.

    Args:
        path: the target; its folder is made when missing.
        write: is given the path of the temporary file, in the same folder, and must close it.

    Returns:
        Where the file is now: `path`, or its neighbour when `path` stayed in use (see `replace_file`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        return replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 text with Unix line ends, whole or not at all."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes bytes, whole or not at all."""
    return write_whole(path, lambda temporary: temporary.write_bytes(data))


def temporary_for(path: Path) -> Path:
    """Returns a hidden file beside `path` to be written and renamed over it, another one at each call.

    Its name has 19 characters however long that of `path` is: where the whole path may have 260, as on Windows, or a name 255
    bytes, there is room for it.
    """
    return path.with_name(f"{leftover_mark(path.name)}{os.urandom(3).hex()}{TEMPORARY_SUFFIX}")


def leftover_mark(name: str) -> str:
    """Returns what the names of the temporary files of a target begin with."""
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def nearest_existing(path: Path) -> Path:
    """Returns the path, or the nearest around it that exists; the root where nothing does, such as a drive that is not there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def replace_file(source: Path, target: Path) -> Path:
    """Renames `source` over `target`; on Windows a target that is in use is retried for 1.5 seconds.

    Returns:
        `target`; or, when it stays in use, "<stem>.new-<n><suffix>" beside it with the new content, and a warning is logged.
    """
    for seconds in (0, *RETRY_SECONDS):
        if seconds:  # a sleep of 0 gives the processor away, which a thousand files feel on a busy machine
            time.sleep(seconds)
        try:
            os.replace(source, target)
            return target
        except PermissionError:
            continue
    number = 1
    while (neighbour := target.with_name(f"{target.stem}.new-{number}{target.suffix}")).exists():
        number += 1
    os.replace(source, neighbour)
    log.warning("%s is in use by another program; the new file was kept beside it as %s.", target, neighbour.name)
    return neighbour


if sys.platform == "win32":
    import msvcrt

    def lock_byte(file: BinaryIO) -> None:
        """Locks an open file against other processes until `unlock_byte`, closing, or the end of this process.

        Raises:
            OSError: another process has it.
        """
        file.seek(LOCK_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def unlock_byte(file: BinaryIO) -> None:
        """Lets others in."""
        file.seek(LOCK_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def lock_byte(file: BinaryIO) -> None:
        """Locks an open file against other processes until `unlock_byte`, closing, or the end of this process.

        Raises:
            OSError: another process has it.
        """
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock_byte(file: BinaryIO) -> None:
        """Lets others in."""
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
