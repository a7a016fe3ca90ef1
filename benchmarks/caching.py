"""Measures what caching costs beyond encoding, and what a second start costs.

    python -m benchmarks.caching [--tiny]

"Caching" is the CPU time of all that a run does for its pictures: read, decode, crop, encode, write. "Encoding" is the part
of the same run that the VAE takes, so that a busy machine slows both. Before that, a start scans every picture once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.report import Row, format_section
from benchmarks.workload import SD1_VAE, TINY, Size, load_base, make_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.cache import TensorStore, cache_pictures
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import Tensors
from lora_trainer.plan import TrainPlan, make_plan

T = TypeVar("T")
MAX_EXTRA_SECONDS = 3.0  # for 200 pictures, beyond encoding
MAX_RATIO = 1.05  # with a VAE of usual size


@dataclass(frozen=True)
class Costs:
    """CPU seconds of the parts of a start."""

    num_pictures: int
    plan: float
    encoding: float
    first: float
    second: float


def measure(folder: Path, size: Size, num_pictures: int) -> Costs:
    """Returns the costs of caching pictures at their own size, one at a time as runs do."""
    config = make_config(folder, size, num_pictures=num_pictures, num_steps=1)
    model = load_base(config)
    plan, plan_seconds = _timed(lambda: make_plan(config))
    encoder = TimedEncoder(model)
    encoder(torch.zeros(1, 3, size.picture_side, size.picture_side))
    encoder.seconds = 0.0
    _, first = _timed(lambda: _cache(config, plan, encoder))
    encoding = encoder.seconds
    _, second = _timed(lambda: _cache(config, plan, encoder))
    return Costs(num_pictures, plan_seconds, encoding, first, second)


class TimedEncoder:
    """A model's `encode_pictures` that adds up the CPU time of the thread that calls it."""

    def __init__(self, model: DiffusionModel) -> None:
        self.model, self.seconds = model, 0.0

    def __call__(self, pixels: Tensor) -> Tensors:
        started = time.thread_time()
        encoded = self.model.encode_pictures(pixels)
        self.seconds += time.thread_time() - started
        return encoded


def _cache(config: TrainConfig, plan: TrainPlan, encoder: TimedEncoder) -> None:
    cache_pictures(
        plan.scan.items,
        plan.buckets,
        encoder,
        store=TensorStore(config.cache_folder),
        encoder_key=encoder.model.picture_key,
        batch_size=config.encode_batch_size,
    )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def make_rows(small: Costs, usual: Costs) -> list[Row]:
    extra = (small.first - small.encoding) * 200 / small.num_pictures
    ratio = usual.first / usual.encoding
    return [
        *_describe(small, "small VAE"),
        Row(
            "caching beyond encoding, for 200", f"{extra:.2f} s", f"at most {MAX_EXTRA_SECONDS:.0f} s", extra <= MAX_EXTRA_SECONDS
        ),
        *_describe(usual, "SD1's VAE"),
        Row("caching / encoding, SD1's VAE", f"{ratio:.3f}", f"at most {MAX_RATIO}", ratio <= MAX_RATIO),
    ]


def _describe(costs: Costs, vae: str) -> list[Row]:
    num = costs.num_pictures
    return [
        Row(f"scan of {num} pictures", f"{costs.plan:.2f} s"),
        Row(f"encoding {num}, {vae}", f"{costs.encoding:.2f} s"),
        Row(f"caching {num}, {vae}", f"{costs.first:.2f} s"),
        Row(f"second start, {num} cached", f"{costs.second:.2f} s"),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few pictures and no large VAE, to see that the script works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    small = replace(TINY, picture_side=64 if options.tiny else 128)
    usual = small if options.tiny else replace(TINY, vae=SD1_VAE, picture_side=256)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        small_costs = measure(Path(folder), small, 4 if options.tiny else 200)
        usual_costs = measure(Path(other), usual, 4 if options.tiny else 6)
    conditions = f"Pictures of {small.picture_side} px for the small VAE, {usual.picture_side} px for SD1's; fp32, CPU time."
    print(format_section("Caching", conditions, make_rows(small_costs, usual_costs)))


if __name__ == "__main__":
    main()
