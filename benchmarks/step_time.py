"""Measures what the trainer adds to a step: its own time, and the step against a bare loop's.

    python -m benchmarks.step_time [--pairs 30] [--tiny]

A real run trains; after each of its steps the same step is taken by two bare loops, one with PEFT's LoRA layers and one with
layers written by hand. CPU time of one thread, since the machine may be doing other things; medians of the pairs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Row, describe_spread, format_section
from benchmarks.workload import (
    FULL,
    TINY,
    BareLoop,
    Size,
    count_parameters,
    denoiser_wrapped,
    inject_by_hand,
    inject_by_peft,
    load_base,
    make_batches,
    make_config,
)
from lora_trainer.control import TrainControl
from lora_trainer.events import TrainEvent
from lora_trainer.training.run import train

WARM_UP_STEPS = 2
NUM_PICTURES = 16
MAX_RATIO = 1.05
MAX_OUTSIDE = 0.02


@dataclass(frozen=True)
class Lap:
    """CPU seconds of one step: in all, and within the denoiser's forward and the backward pass."""

    total: float
    denoiser: float

    @property
    def outside(self) -> float:
        """The share of the step that is neither."""
        return (self.total - self.denoiser) / self.total


class Stopwatch:
    """Adds up CPU time, and that of forward and backward of the denoiser apart, whoever calls them."""

    def __init__(self) -> None:
        self._started, self._denoiser = time.process_time(), 0.0

    def lap(self) -> Lap:
        """Returns the times since the last lap."""
        now = time.process_time()
        lap = Lap(now - self._started, self._denoiser)
        self._started, self._denoiser = time.process_time(), 0.0
        return lap

    def watching(self) -> AbstractContextManager[None]:
        """Within it, the denoiser's class and `Tensor.backward` report their time here."""
        return denoiser_wrapped(self._timed)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._denoiser += time.process_time() - started

        return timed


def measure(folder: Path, size: Size, num_pairs: int) -> dict[str, list[Lap]]:
    """Returns the laps of "trainer", "peft" and "written", the nth of each taken one after the other."""
    config = make_config(folder, size, num_pictures=NUM_PICTURES, num_steps=num_pairs + WARM_UP_STEPS)
    loops = {}
    for name, inject in (("peft", inject_by_peft), ("written", inject_by_hand)):
        model = load_base(config)
        loops[name] = BareLoop(model.unet, inject(model.unet), make_batches(model, NUM_PICTURES // size.batch_size, size))
    laps: dict[str, list[Lap]] = {"trainer": [], "peft": [], "written": []}
    stopwatch = Stopwatch()

    def watch(event: TrainEvent) -> None:
        if event.kind != "step":
            return
        laps["trainer"].append(stopwatch.lap())
        for name, loop in loops.items():
            loop.step()
            laps[name].append(stopwatch.lap())

    with stopwatch.watching():
        train(config, control=TrainControl(), watch=watch, fresh=True)
    return {name: values[WARM_UP_STEPS:] for name, values in laps.items()}


def make_rows(laps: dict[str, list[Lap]]) -> list[Row]:
    """Returns the figures: seconds, ratios of steps taken one after the other, shares outside the denoiser."""
    rows = [
        Row(f"step, {what}", describe_spread([lap.total for lap in laps[name]], unit=" s"))
        for name, what in (
            ("trainer", "trainer"),
            ("peft", "bare loop, PEFT's layers"),
            ("written", "bare loop, written by hand"),
        )
    ]
    for name, what in (("peft", "bare loop"), ("written", "bare loop with LoRA written by hand")):
        ratios = _ratios(laps["trainer"], laps[name])
        rows.append(
            Row(
                f"trainer / {what}",
                describe_spread(ratios),
                f"at most {MAX_RATIO}" if name == "peft" else "",
                statistics.median(ratios) <= MAX_RATIO if name == "peft" else None,
            )
        )
    rows.append(Row("bare loop / LoRA written by hand", describe_spread(_ratios(laps["peft"], laps["written"]))))
    for name, what in (("trainer", "trainer"), ("peft", "bare loop")):
        shares = [100 * lap.outside for lap in laps[name]]
        is_ours = name == "trainer"
        rows.append(
            Row(
                f"outside the denoiser, {what}",
                describe_spread(shares, 2, " %"),
                f"at most {100 * MAX_OUTSIDE:.0f} %" if is_ours else "",
                statistics.median(shares) <= 100 * MAX_OUTSIDE if is_ours else None,
            )
        )
    outside = [1000 * (lap.total - lap.denoiser) for lap in laps["trainer"]]
    return [*rows, Row("the same in time", describe_spread(outside, 1, " ms"))]


def _ratios(laps: list[Lap], others: list[Lap]) -> list[float]:
    return [lap.total / other.total for lap, other in zip(laps, others, strict=True)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="steps of each that count")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that the script works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = TINY if options.tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        laps = measure(Path(folder), size, options.pairs)
    conditions = (
        f"UNet of {count_parameters(size) / 1e6:.0f} million parameters in SD1's shape, {size.picture_side} px, "
        f"batch {size.batch_size}, fp32, clipping on, one thread, CPU time, median of {options.pairs} (middle half)."
    )
    print(format_section("Time of a step", conditions, make_rows(laps)))


if __name__ == "__main__":
    main()
