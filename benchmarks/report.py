"""Figures as Markdown: what `RESULTS.md` is made of. Each script prints one section, ready to be pasted."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "diffusers", "peft", "transformers")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure with its unit, and its spread where it has one.
        target: what it should be; "" where it only informs.
        is_met: whether it is; None where there is no target, or where this machine cannot tell.
    """

    name: str
    value: str
    target: str = ""
    is_met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: ""}[self.is_met]


def format_section(title: str, conditions: str, rows: Sequence[Row]) -> str:
    """Returns a section: heading, what was run on what, table."""
    lines = [f"## {title}", "", f"{datetime.date.today().isoformat()}. {conditions} {describe_machine()}", ""]
    lines += ["| figure | measured | target | verdict |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {row.value} | {row.target} | {row.verdict} |" for row in rows]
    return "\n".join(lines) + "\n"


def describe_machine() -> str:
    """Returns the processor, its cores, and the versions of what the figures depend on."""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    return f"{_processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def describe_spread(values: Sequence[float], digits: int = 3, unit: str = "") -> str:
    """Returns the median with the middle half of the values, such as "1.012 (1.004 to 1.020)"."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
