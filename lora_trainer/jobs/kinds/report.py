"""The kind "report": looks at every picture of a set for what spoils a training, and keeps what it found in the set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.dataset.report import report_path, report_quality
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host
from lora_trainer.jobs.context import JobContext
from lora_trainer.jobs.kinds.pictures import StoppedError, progress, read_folder

MOST_RESOLUTION = 4096
USUAL_RESOLUTION = 512


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings: `input_dir`, the folder, and `resolution`, that it will be trained at, in pixels.

    Raises:
        ConfigError: with every problem found.
    """
    read(settings, host)


def read(settings: Mapping[str, Any], host: Host) -> tuple[Path, int]:
    """Returns folder and resolution.

    Raises:
        ConfigError: they cannot be used.
    """
    folder = read_folder(settings, ("input_dir", "resolution"), host)
    resolution = settings.get("resolution", USUAL_RESOLUTION)
    if isinstance(resolution, bool) or not isinstance(resolution, int) or not 64 <= resolution <= MOST_RESOLUTION:
        raise ConfigError([Problem("resolution", f"({resolution}) must be a whole number from 64 to {MOST_RESOLUTION}.")])
    return folder, resolution


def run(settings: Mapping[str, Any], context: JobContext) -> None:
    """Writes the report; when it is stopped, the old one stays."""
    folder, resolution = read(settings, context.host)
    try:
        report = report_quality(folder, resolution=resolution, on_progress=progress(context, "looking at the pictures"))
    except StoppedError:
        return
    report.save(report_path(folder))
    found = ", ".join(f"{count} {kind}" for kind, count in report.counts().items())
    context.emit("notice", message=f"{report.num_pictures} pictures: {found or 'nothing to complain about'}.")
