"""Room on the disk: judged before the start, and waited for when it runs out in the middle."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from torch import nn

from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.errors import TrainingError
from lora_trainer.events import Emit
from lora_trainer.files import nearest_existing
from lora_trainer.models.family import TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.training.state import KEPT_STATES

T = TypeVar("T")
Need = tuple[Path, int, str]
TEXT_BYTES = 77 * 2048 * 4  # a caption of one chunk, for SDXL
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


def disk_needs(config: TrainConfig, plan: TrainPlan, model: TrainableModel, targets: dict[str, list[str]]) -> list[Need]:
    """Returns what a run writes, for `check_space`: generous where it can only be guessed."""
    lora = 4 * sum(_num_weights(model.parts[part], names, config.lora_rank) for part, names in targets.items())
    num_files = 1 + (plan.total_steps // config.save_steps if config.save_steps else 0)
    num_files = max(1, num_files - len(list(config.output_dir.glob("*-step*.safetensors"))))  # a continued run has some
    states = 3 * lora * (KEPT_STATES + 1)  # weights and two moments; a new state stands beside the kept ones
    # Two fp32 tensors of 4 channels at an eighth of the resolution, mirrored ones too, and the text.
    num_versions = 2 if config.flip else 1
    cache = sum(num_versions * bucket.width * bucket.height // 2 + TEXT_BYTES for bucket in plan.buckets)
    return [
        (config.output_dir, max(0, states - _size_of(config.output_dir / "state")), "states to continue from"),
        (config.output_dir, num_files * lora, f"{num_files} LoRA files"),
        (config.cache_folder, max(0, cache - _size_of(config.cache_folder)), "the cache"),
    ]


def check_space(needs: list[Need]) -> None:
    """Checks that what a run will write finds room.

    Args:
        needs: folder, bytes, and what they are for.

    Raises:
        TrainingError: with the numbers of the disk that is too small.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(nearest_existing(need[0].absolute()).stat().st_dev, []).append(need)
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


def _num_weights(part: nn.Module, names: list[str], rank: int) -> int:
    shapes = [part.get_submodule(name).weight.shape for name in names]
    return sum(rank * (shape[0] + shape[1:].numel()) for shape in shapes)


def _size_of(folder: Path) -> int:
    """Returns the bytes of the files in a folder. Other runs may write and delete there meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(nearest_existing(folder.absolute())).free
