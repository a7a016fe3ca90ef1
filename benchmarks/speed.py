"""Measures training at real shapes, switch by switch: steps and pictures a second, share of the peak, memory, time outside.

    python -m benchmarks.speed [--device cuda] [--shape sd1 sdxl] [--steps 20] [--only WORD]

Each case is a run of the trainer on a base of random weights in the shape of SD1.5 or SDXL, kept for the next case. On a CPU
the shape is a small one unless it is named. "Share of the peak" is the step's arithmetic, counted operation by operation and with
what checkpointing does again, against a large matrix product on the same device in the same precision. "Outside" is what a step
takes beside the denoiser's forward and the backward pass. Memory is the allocator's peak; on a CPU, where each case runs in a
process of its own, that process's, with Python and the libraries in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic import count_flops, measure_peak
from benchmarks.memory import peak_bytes
from benchmarks.report import Row, describe_spread, format_section
from benchmarks.workload import FULL, SD1, SDXL, TINY, Size, denoiser_wrapped, make_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.events import TrainEvent
from lora_trainer.forecast import GIB, forecast
from lora_trainer.models.detect import detect
from lora_trainer.models.tape import Use
from lora_trainer.training.precision import choose_precision
from lora_trainer.training.run import train

WARM_UP_STEPS = 4
SHAPES = {"tiny": TINY, "small": FULL, "sd1": SD1, "sdxl": SDXL}
LABELS = {"tiny": "tiny", "small": "142 million", "sd1": "SD1.5", "sdxl": "SDXL"}
MAX_FORECAST_ERROR = 0.1

# What is switched, beside a plain run at batch 1.
SWITCHES: dict[str, dict[str, str]] = {
    "plain": {},
    "batch 4": {"batch_size": "4"},
    "checkpointing": {"gradient_checkpointing": "true"},
    "batch 4, checkpointing": {"batch_size": "4", "gradient_checkpointing": "true"},
    "4 accumulated": {"gradient_accumulation_steps": "4"},
    "fp32": {"precision": "fp32"},
    "attention and feed-forward": {"target_modules": "attention_ff"},
    "rank 64": {"lora_rank": "64"},
    "dropout": {"lora_dropout": "0.1"},
    "text encoder trained": {"text_encoder_lr": "0.00001"},
    "captions shuffled": {"shuffle_tags": "true"},
    "adafactor": {"optimizer": "adafactor"},
    "deterministic": {"deterministic": "true"},
}


class DenoiserClock:
    """Notes when the denoiser's forward and the backward pass begin and end, without making the device wait.

    On a GPU these are marks in its own queue, read when the step's loss has come back, which waits for all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def take(self) -> float:
        """Returns the seconds of all spans since the last call."""
        spans, self._spans = self._spans, []
        if self._is_cuda:
            return sum(float(begin.elapsed_time(end)) for begin, end in spans) / 1000
        return sum(end - begin for begin, end in spans)

    def watching(self) -> AbstractContextManager[None]:
        """Within it, the denoiser's class and `Tensor.backward` report here."""
        return denoiser_wrapped(self._timed)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self._mark()
            try:
                return function(*args, **kwargs)
            finally:
                self._spans.append((begin, self._mark()))

        return timed

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Speed:
    """What a case came to.

    Attributes:
        seconds: of each step that counts.
        outside: of each, beside the denoiser.
        num_pictures: of a step.
        flops: of a step.
        peak: operations a second that the device can do.
        memory: bytes, while training.
        forecast: bytes that had been forecast for it.
    """

    seconds: list[float]
    outside: list[float]
    num_pictures: int
    flops: float
    peak: float
    memory: int
    forecast: int

    @property
    def steps_a_second(self) -> float:
        return 1 / statistics.median(self.seconds)

    @property
    def share(self) -> float:
        return self.flops * self.steps_a_second / self.peak


def measure(folder: Path, size: Size, changes: dict[str, str], *, device: str, num_steps: int) -> Speed:
    """Runs a case and returns what it came to, on a CPU in one thread."""
    if not device.startswith("cuda"):
        torch.set_num_threads(1)
    size = replace(size, batch_size=int(changes.get("batch_size", size.batch_size)))
    precision = changes.get("precision") or choose_precision("auto", torch.device(device))
    accumulated = int(changes.get("gradient_accumulation_steps", 1))
    values = {**changes, "batch_size": str(size.batch_size), "precision": precision, "device": device}
    config = make_config(
        folder, size, num_pictures=4 * size.batch_size * accumulated, num_steps=num_steps + WARM_UP_STEPS, **values
    )
    laps, memory = _run(config, torch.device(device))
    use = _use_of(config, size)
    found = forecast(config, detect(config.base_model), (size.picture_side, size.picture_side))
    seconds, outside = zip(*laps[WARM_UP_STEPS:], strict=True)
    return Speed(
        seconds=list(seconds),
        outside=list(outside),
        num_pictures=size.batch_size * accumulated,
        flops=accumulated * count_flops(size.unet, use),
        peak=measure_peak(device, use.num_bytes),
        memory=memory,
        forecast=found.training,
    )


def in_its_own_process(*arguments: Any, **options: Any) -> Speed:
    """Returns `measure` of a case, from a process that has run no other, whose memory would be counted too."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments, **options).result()


def _run(config: TrainConfig, device: torch.device) -> tuple[list[tuple[float, float]], int]:
    """Returns seconds of each step with those outside the denoiser, and the peak of memory after the first step."""
    clock = DenoiserClock(device)
    laps: list[tuple[float, float]] = []

    def watch(event: TrainEvent) -> None:
        if event.kind != "step":
            return
        seconds = float(event.data["seconds"])
        laps.append((seconds, seconds - clock.take()))
        if len(laps) == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # that of encoding is not of training

    with clock.watching():
        train(config, control=TrainControl(), watch=watch, fresh=True)
    return laps, peak_bytes(device.type)


def _use_of(config: TrainConfig, size: Size) -> Use:
    return Use(
        width=size.picture_side,
        height=size.picture_side,
        batch_size=config.batch_size,
        num_bytes=4 if config.precision == "fp32" else 2,
        rank=config.lora_rank,
        selection=config.target_modules,
        checkpoints=config.gradient_checkpointing,
    )


def make_row(name: str, speed: Speed, *, is_cuda: bool) -> Row:
    """Returns a case as one row; its verdict is on the forecast of memory, which a CPU cannot judge."""
    pictures = speed.num_pictures * speed.steps_a_second
    parts = [
        describe_spread([1000 * each for each in speed.seconds], 1, " ms"),
        f"{speed.steps_a_second:.3g} steps, {pictures:.3g} pictures a second",
        f"{100 * speed.share:.1f} % of {speed.peak / 1e12:.3g} TFLOP/s",
        f"{1000 * statistics.median(speed.outside):.1f} ms outside",
        f"{speed.memory / GIB:.2f} GiB, forecast {speed.forecast / GIB:.2f}",
    ]
    if not is_cuda:  # the process's memory holds Python and the libraries, too
        return Row(name, "; ".join(parts))
    error = abs(speed.forecast / speed.memory - 1)
    return Row(name, "; ".join(parts), f"forecast within {100 * MAX_FORECAST_ERROR:.0f} %", error <= MAX_FORECAST_ERROR)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", nargs="+", choices=tuple(SHAPES), help="default: sd1 sdxl on a GPU, small on a CPU")
    parser.add_argument("--steps", type=int, default=20, help="of each case that count")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name holds this word")
    options = parser.parse_args(arguments)
    is_cuda = options.device.startswith("cuda")
    run = measure if is_cuda else in_its_own_process
    rows: list[Row] = []
    for shape in options.shape or (["sd1", "sdxl"] if is_cuda else ["small"]):
        size = replace(SHAPES[shape], batch_size=1)
        with tempfile.TemporaryDirectory() as folder:
            for name, changes in SWITCHES.items():
                if options.only in name:
                    speed = run(Path(folder), size, changes, device=options.device, num_steps=options.steps)
                    rows.append(make_row(f"{LABELS[shape]} {size.picture_side} px, {name}", speed, is_cuda=is_cuda))
    where = torch.cuda.get_device_name(options.device) if is_cuda else "one thread of a CPU"
    conditions = f"Rank 16 on attention, batch 1 unless said, {options.steps} steps of each, on {where}."
    print(format_section("Speed", conditions, rows))


if __name__ == "__main__":
    main()
