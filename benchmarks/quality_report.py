"""Measures the quality report of a large data set.

    python -m benchmarks.quality_report [--pictures 1000] [--side 1024]

Pictures are JPEG files of about a megapixel with structure at every scale, so that decoding takes what a photo's does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Row, format_section
from lora_trainer.dataset.report import QualityReport, report_quality

MAX_SECONDS = 60.0  # for 1,000 pictures on two cores
NUM_DISTINCT = 40  # pictures that are drawn; the others are these in other brightness and another crop


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Writes pictures that look different from each other."""
    rng = np.random.default_rng(0)
    bases = [_draw(rng, side + 64) for _ in range(min(count, NUM_DISTINCT))]
    for number in range(count):
        left, top = (int(value) for value in rng.integers(0, 64, 2))
        image = bases[number % len(bases)].crop((left, top, left + side, top + side))
        turned = image.transpose(list(Image.Transpose)[number // len(bases) % len(Image.Transpose)])
        turned.save(folder / f"{number:05}.jpg", quality=90)


def _draw(rng: np.random.Generator, side: int) -> Image.Image:
    total = np.zeros((side, side, 3), np.float32)
    for scale in (4, 16, 64, 256, side):
        grain = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), np.uint8))
        total += np.asarray(grain.resize((side, side), Image.Resampling.BICUBIC), np.float32) / scale**0.4
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def measure(folder: Path) -> tuple[QualityReport, float, float]:
    """Returns the report, and the seconds that it took by the clock and of all processors together."""
    clock, processors = time.perf_counter(), time.process_time()
    report = report_quality(folder)
    return report, time.perf_counter() - clock, time.process_time() - processors


def make_rows(num_pictures: int, clock: float, processors: float) -> list[Row]:
    per_thousand, target = clock * 1000 / num_pictures, f"at most {MAX_SECONDS:.0f} s"
    return [
        Row(f"report of {num_pictures} pictures, clock", f"{clock:.1f} s"),
        Row(f"report of {num_pictures} pictures, processor time", f"{processors:.1f} s"),
        Row("processor time of a picture", f"{1000 * processors / num_pictures:.1f} ms"),
        Row("report of 1,000 pictures, clock", f"{per_thousand:.1f} s", target, per_thousand <= MAX_SECONDS),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="in pixels")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), options.pictures, options.side)
        report, clock, processors = measure(Path(folder))
    conditions = f"{report.num_pictures} JPEG files of {options.side} x {options.side} pixels."
    print(format_section("Quality report", conditions, make_rows(report.num_pictures, clock, processors)))


if __name__ == "__main__":
    main()
