"""Measures bf16 against fp32, and counts what of a bf16 step really is computed in bf16.

    python -m benchmarks.precision [--device cuda] [--steps 5] [--tiny]

A CPU without instructions for bf16 takes longer in it than in fp32; the ratio is judged only where the device has them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.report import Row, describe_spread, format_section
from benchmarks.workload import FULL, RANK, TINY, Size, count_parameters, load_base, make_batches, make_config
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.events import TrainEvent
from lora_trainer.models.family import Objective
from lora_trainer.training.precision import Precision
from lora_trainer.training.run import train

MIN_RATIO = 1.5
WARM_UP_STEPS = 1
# The operations that a step's time goes to, by the beginnings of their names in torch.
HEAVY = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product", "native_group_norm", "native_layer_norm")


class DtypeCensus(TorchDispatchMode):
    """Counts operations by dtype of their first tensor: `heavy` those of `HEAVY`, `casts` by source and target in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy: Counter[tuple[str, torch.dtype]] = Counter()
        self.casts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [value for value in args if isinstance(value, torch.Tensor) and value.is_floating_point()]
        if tensors and name.startswith(HEAVY):
            self.heavy[name, tensors[0].dtype] += 1
        if tensors and name == "_to_copy" and result.dtype != tensors[0].dtype:
            self.casts[tensors[0].dtype, result.dtype] += result.numel()
        return result


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def count_dtypes(config: TrainConfig, size: Size, precision_name: str) -> DtypeCensus:
    """Returns the census of one forward and backward pass as the loop makes it."""
    precision = Precision(precision_name, torch.device(config.device))
    model = load_base(config, precision.dtype)
    targets = {"unet": model.lora_targets("unet", ("attention",))}
    LoraAdapter.inject(model, targets, rank=RANK, alpha=2.0 * RANK, dropout=0.0, seed=0)
    latents, text = make_batches(model, 1, size)[0]
    batch = {"latent_mean": latents, "latent_std": torch.ones_like(latents), "text": text}
    generator = torch.Generator().manual_seed(0)
    draws = model.make_draws({"latent_mean": latents}, generator, Objective())
    draws = {name: tensor.to(latents.device) for name, tensor in draws.items()}
    draws["timestep"] = draws["timestep"].expand(len(latents))
    with DtypeCensus() as census:
        with precision.autocast():
            losses = model.losses(batch, draws, Objective())
        losses.mean().backward()
    return census


def time_steps(config: TrainConfig) -> list[float]:
    """Returns the seconds of each step of a run after the first: CPU time, on a GPU those on the clock."""
    clock = time.perf_counter if config.device.startswith("cuda") else time.process_time
    moments: list[float] = []

    def watch(event: TrainEvent) -> None:
        if event.kind == "step":
            moments.append(clock())

    train(config, control=TrainControl(), watch=watch, fresh=True)
    return [end - start for start, end in zip(moments[WARM_UP_STEPS - 1 :], moments[WARM_UP_STEPS:], strict=False)]


def make_rows(seconds: dict[str, list[float]], census: DtypeCensus, *, is_judged: bool) -> list[Row]:
    ratio = statistics.median(seconds["fp32"]) / statistics.median(seconds["bf16"])
    total = sum(census.heavy.values())
    in_bf16 = sum(count for (_, dtype), count in census.heavy.items() if dtype is torch.bfloat16)
    widened = census.casts[torch.bfloat16, torch.float32]
    target = f"at least {MIN_RATIO}" + ("" if is_judged else "; not judged, no bf16 instructions here")
    return [
        *(Row(f"step, {name}", describe_spread(values, unit=" s")) for name, values in seconds.items()),
        Row("fp32 / bf16", f"{ratio:.2f}", target, ratio >= MIN_RATIO if is_judged else None),
        Row("matrix products, convolutions and norms in bf16", f"{in_bf16} of {total}", "all", in_bf16 == total),
        Row("numbers widened from bf16 to fp32 in a step", f"{widened / 1e6:.2f} million"),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="of each that count")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that the script works")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = TINY if options.tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for name in ("fp32", "bf16"):
            changes = {"precision": name, "device": options.device}
            config = make_config(Path(folder), size, num_pictures=4, num_steps=options.steps + WARM_UP_STEPS, **changes)
            seconds[name] = time_steps(config)
        census = count_dtypes(config, size, "bf16")
    is_judged = has_bf16(options.device)
    conditions = (
        f"UNet of {count_parameters(size) / 1e6:.0f} million parameters, {size.picture_side} px, batch {size.batch_size}, on "
        f"{options.device}, which has {'' if is_judged else 'no '}instructions for bf16."
    )
    print(format_section("bf16", conditions, make_rows(seconds, census, is_judged=is_judged)))


if __name__ == "__main__":
    main()
