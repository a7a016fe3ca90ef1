"""The kind "retouch": crops, resizes, trims or grades pictures of a set in place; the set keeps what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.dataset.retouch import Retouch, apply_table, crop, read_cube, resize, trim_borders
from lora_trainer.errors import ConfigError, DatasetError, Problem
from lora_trainer.host.base import Host
from lora_trainer.host.places import judge_places
from lora_trainer.jobs.context import JobContext
from lora_trainer.jobs.kinds.pictures import StoppedError, progress, read_folder

_KNOWN = ("input_dir", "names", "tool", "ratio", "focus", "side", "table", "strength")
_MOST_WARNINGS = 20


def _crop(settings: Mapping[str, Any]) -> Retouch:
    left, top = settings.get("focus") or (0.5, 0.5)
    return crop(float(settings.get("ratio") or 1.0), (float(left), float(top)))


TOOLS: dict[str, Callable[[Mapping[str, Any]], Retouch]] = {
    "crop": _crop,
    "resize": lambda settings: resize(int(settings.get("side") or 0)),
    "trim": lambda settings: trim_borders,
    "table": lambda settings: apply_table(
        read_cube(Path(str(settings.get("table") or ""))), float(settings.get("strength", 1.0))
    ),
}


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings: `input_dir`; `names`, of the pictures; `tool`, one of `TOOLS`, and what it needs.

    Of "crop" that is `ratio` (width / height) and `focus` (shares from left and top), of "resize" `side` (pixels of the shorter),
    of "table" `table` (path of a .cube file) and `strength` (0 to 1).

    Raises:
        ConfigError: with every problem found.
    """
    read(settings, host)


def read(settings: Mapping[str, Any], host: Host) -> tuple[Path, list[str], Retouch]:
    """Returns folder, pictures and tool.

    Raises:
        ConfigError: they cannot be used.
    """
    folder, tool = read_folder(settings, _KNOWN, host), str(settings.get("tool") or "")
    names = settings.get("names")
    if not isinstance(names, list) or not names:
        raise ConfigError([Problem("names", "names no picture.", hint="Choose some.")])
    if outside := judge_places(host, [("table", settings.get("table"))]):
        raise ConfigError(outside)
    if tool not in TOOLS:
        raise ConfigError([Problem("tool", f"({tool!r}) must be one of {', '.join(TOOLS)}.")])
    try:
        return folder, [str(name) for name in names], TOOLS[tool](settings)
    except (DatasetError, ValueError, TypeError) as error:
        raise ConfigError([Problem("tool", f"({tool}): {error}")]) from error


def run(settings: Mapping[str, Any], context: JobContext) -> None:
    """Changes the pictures; when it is stopped, those that were done stay so, and one undo takes them back."""
    folder, names, edit = read(settings, context.host)
    try:
        result = PictureStore(folder).retouch(
            names, edit, title=context.title, on_progress=progress(context, "changing the pictures")
        )
    except StoppedError:
        return
    for reason in list(result.refused.values())[:_MOST_WARNINGS]:
        context.emit("warning", message=reason)
    untouched = len(names) - len(result.changed) - len(result.refused)
    message = f"{len(result.changed)} pictures changed, {untouched} were so already, {len(result.refused)} could not be changed."
    context.emit("notice", message=message)
