"""Files that stand in the LoRA folder only while a WebUI draws with them: the saved steps of a run, as hard links or copies.

A WebUI finds a LoRA by the stem of a file in its folder, so each stands there under a stem that no other has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_trainer.adapters.folder import LORA_SUFFIXES, choose_name, walk
from lora_trainer.errors import AdapterError

FOLDER = "lora_trainer_steps"


@contextmanager
def lent(paths: Iterable[Path], lora_dir: Path) -> Iterator[dict[Path, Path]]:
    """Within it every file stands in the LoRA folder; afterwards what was put there is gone.

    Yields where each is: itself where it is in the folder and no other file there has its stem.

    Raises:
        AdapterError: the folder cannot be written.
    """
    remove_lent(lora_dir)
    try:
        places: dict[Path, Path] = {}
        for path in dict.fromkeys(paths):
            places[path] = path if _is_found(path, lora_dir) else _lend(path, lora_dir)
        yield places
    finally:
        remove_lent(lora_dir)


def remove_lent(lora_dir: Path) -> None:
    """Removes what stands there for a drawing, also that of a process which was killed meanwhile."""
    shutil.rmtree(lora_dir / FOLDER, ignore_errors=True)


def _is_found(path: Path, lora_dir: Path) -> bool:
    namesakes = [other for other in walk(lora_dir) if other.stem == path.stem and other.suffix.lower() in LORA_SUFFIXES]
    return len(namesakes) == 1 and namesakes[0].samefile(path)


def _lend(path: Path, lora_dir: Path) -> Path:
    target = lora_dir / FOLDER / f"{choose_name(lora_dir, path.stem)}{path.suffix}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another drive, or a file system without hard links
            shutil.copyfile(path, target)
    except OSError as error:
        raise AdapterError(
            f"{path.name} cannot be put into {target.parent} for the drawing ({error.strerror}). Check space and rights there."
        ) from error
    return target
