"""Room on the disk: judged before the start, and waited for when it runs out in the middle."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_trainer.control import TrainControl
from lora_trainer.errors import TrainingError
from lora_trainer.events import Emit

T = TypeVar("T")
POLL_SECONDS = 0.5
FULL = (errno.ENOSPC, errno.EDQUOT)
# Freed space of less than this is not worth another try.
WORTHWHILE_BYTES = 1 << 20


class StopRequestedError(Exception):
    """A stop was asked for while waiting."""


class DiskGuard:
    """Runs writes; a full disk pauses them until there is room again, "continue" asks for another try, or a stop comes.

    Args:
        control, poll: requests from outside; `poll` fetches those from the run folder.
        emit: takes the events that tell of the pause.
    """

    def __init__(self, control: TrainControl, poll: Callable[[], None], emit: Emit) -> None:
        self._control, self._poll, self._emit = control, poll, emit

    def run(self, folder: Path, what: str, write: Callable[[], T]) -> T:
        """Returns what `write` returns. It is called again after a pause, so it must be safe to repeat.

        Args:
            folder: on the disk that is written to.
            what: is written, for the message.

        Raises:
            StopRequestedError: a stop was asked for while the disk was full.
            OSError: any other than a full disk.
        """
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._wait(folder, what)

    def _wait(self, folder: Path, what: str) -> None:
        free = _free_bytes(folder)
        self._emit(
            "warning",
            message=f"the disk of {folder} is full ({describe_bytes(free)} free); {what} could not be written. Nothing saved "
            "before is lost. Free some space and the run goes on by itself; Ctrl-C ends it at its last save.",
        )
        self._control.request("pause")
        while self._control.is_requested("pause") and _free_bytes(folder) < free + WORTHWHILE_BYTES:
            time.sleep(POLL_SECONDS)
            self._poll()
            if self._control.is_requested("stop"):
                raise StopRequestedError
        self._control.request("continue")


def check_space(needs: list[tuple[Path, int, str]]) -> None:
    """Checks that what a run will write finds room.

    Args:
        needs: folder, bytes, and what they are for.

    Raises:
        TrainingError: with the numbers of the disk that is too small.
    """
    by_disk: dict[int, list[tuple[Path, int, str]]] = {}
    for need in needs:
        by_disk.setdefault(_existing(need[0]).stat().st_dev, []).append(need)
    for group in by_disk.values():
        wanted, free = sum(size for _, size, _ in group), _free_bytes(group[0][0])
        if wanted > free:
            parts = ", ".join(f"{describe_bytes(size)} for {purpose}" for _, size, purpose in group)
            raise TrainingError(
                f"the disk of {group[0][0]} has {describe_bytes(free)} free; this run writes {describe_bytes(wanted)}: {parts}. "
                "Free some space, raise save_steps, or choose another output_dir and cache_dir."
            )


def describe_bytes(size: int) -> str:
    """Returns a size in the unit that suits it, such as "1.5 GiB"."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
