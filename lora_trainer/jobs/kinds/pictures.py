"""What the kinds that go through the pictures of a folder have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.errors import ConfigError, LoraTrainerError, Problem
from lora_trainer.host.base import Host
from lora_trainer.host.places import judge_places
from lora_trainer.jobs.context import JobContext
from lora_trainer.registry import did_you_mean


class StoppedError(LoraTrainerError):
    """A stop was asked for; what was done so far stays."""


def read_folder(settings: Mapping[str, Any], known: tuple[str, ...], host: Host) -> Path:
    """Returns the folder `input_dir`.

    Raises:
        ConfigError: it is none, the host lets nobody of its page name it, or a setting is not among those known.
    """
    problems = [Problem(name, f"is not a setting{did_you_mean(name, known)}") for name in settings if name not in known]
    folder = str(settings.get("input_dir") or "")
    if outside := judge_places(host, [("input_dir", folder)]):
        problems += outside
    elif not folder or "\0" in folder or not Path(folder).is_dir():
        problems.append(Problem("input_dir", f"({folder!r}) is not a folder.", hint="Give the folder that holds the pictures."))
    if problems:
        raise ConfigError(problems)
    return Path(folder)


def progress(context: JobContext, phase: str) -> Callable[[int, int], None]:
    """Returns what is told of each picture that is done: it tells the job, at most a hundred times, and ends it when asked to.

    What it returns raises `StoppedError` when a stop is asked for.
    """
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        if context.control.is_requested("stop"):
            raise StoppedError("it was asked to stop.")
        percent = 100 * done // max(1, total)
        if percent != told:
            told = percent
            context.emit("phase", name=phase, done=done, total=total)

    return tell
