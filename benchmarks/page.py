"""Measures how long a large data set takes to open on the page, and what the page adds to a WebUI's start.

    python -m benchmarks.page [--pictures 500] [--side 1024]

"Opened for the first time" makes the thumbnails of the first page; later they are kept. The time that a browser needs to show it
comes on top.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import Row, format_section

OPEN_SECONDS = 2.0
START_SECONDS = 0.3
BUILD = """
import sys, tempfile, time
import gradio, torch, numpy, PIL.Image, yaml  # what a WebUI has loaded before it comes to us
begin = time.process_time()
from pathlib import Path
from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.host.standalone import Standalone
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.ui.page import build_page
from lora_trainer.ui.services import Services
host = Standalone(Path(tempfile.mkdtemp()))
build_page(Services(host, JobQueue(host), DatasetLibrary(host.folders().datasets)))
print(time.process_time() - begin, *(name for name in ("diffusers", "peft", "transformers") if name in sys.modules))
"""


def paint(folder: Path, num_pictures: int, side: int) -> None:
    """Writes captioned JPEGs of noise over a gradient, about as hard to decode as photographs."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side, dtype=np.float32)[:, None, None] + np.zeros((1, side, 3), np.float32)
    for number in range(num_pictures):
        pixels = ramp + rng.integers(0, 55, (side, side, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)
        (folder / f"{number:04}.txt").write_text(f"picture {number}", encoding="utf-8")


def measure_opening(num_pictures: int, side: int) -> tuple[float, float]:
    """Returns the seconds of showing a set for the first time and again."""
    import gradio

    from lora_trainer.dataset.library import DatasetLibrary
    from lora_trainer.host.standalone import Standalone
    from lora_trainer.jobs.queue import JobQueue
    from lora_trainer.ui.page import Page
    from lora_trainer.ui.services import Services

    with tempfile.TemporaryDirectory() as folder:
        host = Standalone(Path(folder))
        library = DatasetLibrary(host.folders().datasets)
        paint(library.create("large"), num_pictures, side)
        queue = JobQueue(host)
        with gradio.Blocks():
            page = Page(Services(host, queue, library))
            page.build()
        values: dict[str, Any] = {"source": "large", "kept": "All", "page_number": 0, "resolution": "1024"}
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            page.parts["dataset"].show(values)
            seconds.append(time.perf_counter() - begin)
        queue.close()
    return seconds[0], seconds[1]


def measure_start(starts: int = 7) -> tuple[float, list[str]]:
    """Returns the processor time that importing and building the page take in a process that has gradio, and what it loads
    but should not.

    The median of several starts after one that writes Python's bytecode, which is there from a WebUI's second start on.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", BUILD]
    seconds, loaded = [], []
    for _ in range(starts + 1):
        result = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=variables)
        taken, *loaded = result.stdout.split()
        seconds.append(float(taken))
    return statistics.median(seconds[1:]), loaded


def make_rows(first: float, again: float, start: float, loaded: list[str]) -> list[Row]:
    """Returns the figures with their targets."""
    return [
        Row("opened for the first time", f"{first:.2f} s", f"under {OPEN_SECONDS:g} s", first < OPEN_SECONDS),
        Row("opened again", f"{again:.2f} s", f"under {OPEN_SECONDS:g} s", again < OPEN_SECONDS),
        Row(
            "importing and building the page, processor time",
            f"{start:.2f} s",
            f"under {START_SECONDS:g} s",
            start < START_SECONDS,
        ),
        Row("model libraries loaded by that", ", ".join(loaded) or "none", "none", not loaded),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--side", type=int, default=1024, help="of the square pictures, in pixels")
    options = parser.parse_args(arguments)
    first, again = measure_opening(options.pictures, options.side)
    start, loaded = measure_start()
    title = f"The page: {options.pictures} pictures of {options.side} pixels"
    print(format_section(title, "`python -m benchmarks.page`.", make_rows(first, again, start, loaded)))


if __name__ == "__main__":
    main()
