"""Measures what `install.py` costs each start of a WebUI, once it knows that the packages work together.

    python -m benchmarks.install_time [--starts 15]

Run it with a WebUI's Python, where nothing is missing: a copy of the script is run, with a stamp file of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Row, describe_spread, format_section

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 0.3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures what install.py costs each start.")
    parser.add_argument("--starts", type=int, default=15)
    starts = parser.parse_args(arguments).starts
    with tempfile.TemporaryDirectory() as folder:
        script = shutil.copy(ROOT / "install.py", folder)
        trial = processor_seconds([script])
        if not Path(folder, ".installed.json").exists():
            sys.exit(
                "Packages are missing here, or do not fit together, so nothing can be measured. Run it with a WebUI's Python."
            )
        times = [processor_seconds([script]) for _ in range(starts)]
    bare = [processor_seconds(["-c", "pass"]) for _ in range(starts)]
    rows = [
        Row("start with a stamp", describe_spread(times, unit=" s"), f"under {MOST_SECONDS} s", max(times) < MOST_SECONDS),
        Row("of it, Python alone", describe_spread(bare, unit=" s")),
        Row("slowest start with a stamp", f"{max(times):.3f} s"),
        Row("start without a stamp, which tries the packages", f"{trial:.1f} s"),
    ]
    print(format_section("install.py at each start", f"Processor time of {starts} starts, median (middle half).", rows))


def processor_seconds(arguments: Sequence[str]) -> float:
    """Returns the processor time of a child process of this Python, which a busy machine hardly changes."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


if __name__ == "__main__":
    main()
