"""Files that stand in the LoRA folder only while a WebUI draws with them: the saved steps of a run, as hard links or copies.

A WebUI finds a LoRA by the stem of a file in its folder, so each stands there under a stem that no other has. Several WebUIs may
share the folder: each drawing has a folder of its own in ours, locked as long as it lasts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from lora_trainer.adapters.folder import LORA_SUFFIXES, choose_name, walk
from lora_trainer.errors import AdapterError
from lora_trainer.files import lock_byte

FOLDER = "lora_trainer_steps"
LOCK = "lock"


@contextmanager
def lent(paths: Iterable[Path], lora_dir: Path) -> Iterator[dict[Path, Path]]:
    """Within it every file stands in the LoRA folder; afterwards what was put there is gone.

    Yields where each is: itself where it is in the folder and no other file there has its stem.

    Raises:
        AdapterError: the folder cannot be written.
    """
    remove_lent(lora_dir)
    paths = list(dict.fromkeys(paths))
    found = {path for path in paths if _is_found(path, lora_dir)}
    try:
        with _room(lora_dir) if len(found) < len(paths) else nullcontext(lora_dir) as room:
            yield {path: path if path in found else _lend(path, room, lora_dir) for path in paths}
    finally:
        remove_lent(lora_dir)


def remove_lent(lora_dir: Path) -> None:
    """Removes what stands there for no drawing that goes on, in whichever process: also what a killed one left."""
    with suppress(OSError):
        for path in (lora_dir / FOLDER).iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)
            elif not _is_locked(path):
                shutil.rmtree(path, ignore_errors=True)
        (lora_dir / FOLDER).rmdir()


@contextmanager
def _room(lora_dir: Path) -> Iterator[Path]:
    """Makes a folder for a drawing and keeps others from removing it."""
    folder = lora_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(dir=folder))
        file = open(room / LOCK, "wb")  # noqa: SIM115 - held as long as the drawing
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be written for the drawing ({error.strerror}). Check space and rights there."
        ) from error
    with file:
        lock_byte(file)
        yield room


def _is_locked(room: Path) -> bool:
    try:
        with open(room / LOCK, "rb+") as file:
            lock_byte(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _is_found(path: Path, lora_dir: Path) -> bool:
    namesakes = [other for other in walk(lora_dir) if other.stem == path.stem and other.suffix.lower() in LORA_SUFFIXES]
    return len(namesakes) == 1 and namesakes[0].samefile(path)


def _lend(path: Path, room: Path, lora_dir: Path) -> Path:
    target = room / f"{choose_name(lora_dir, path.stem)}{path.suffix}"
    try:
        try:
            os.link(path, target)
        except OSError:  # another drive, or a file system without hard links
            shutil.copyfile(path, target)
    except OSError as error:
        raise AdapterError(
            f"{path.name} cannot be put into {target.parent} for the drawing ({error.strerror}). Check space and rights there."
        ) from error
    return target
