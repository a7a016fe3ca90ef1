"""Holds the forecast of memory against the operations themselves, at real shapes, without the memory.

    python -m benchmarks.forecast [--tiny]

A step of the real UNet with real LoRA layers runs on fake tensors: PyTorch's own operations on shapes alone, with autograd as it
is. What they hold at once is counted, and compared with what the forecast counted from the sizes. Kernels' own workspaces are in
neither; on a GPU, `benchmarks.speed` compares with the allocator's peak.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.allocations import Allocations
from benchmarks.report import Row, format_section
from benchmarks.workload import SD1_UNET, SDXL_UNET, TINY
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.models.family import TrainableModel
from lora_trainer.models.layers import unet_layers
from lora_trainer.models.parts import list_layers, recompute_blocks
from lora_trainer.models.sizes import UNetSizes
from lora_trainer.models.tape import TOKENS, Tape, Use, walk_unet
from lora_trainer.models.targets import select_layers

MIB = 2**20
MAX_ERROR = 0.1
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Held:
    """Bytes beside the weights: held at the end of the forward pass, and the most in the whole of forward and backward."""

    forward: int
    peak: int


def count_by_tape(sizes: UNetSizes, use: Use, *, text_needs_grad: bool = False) -> Held:
    """Returns what the forecast counts."""
    layers = unet_layers(sizes)
    kinds = {"unet": {name: layer.kind for name, layer in layers.items()}}
    targets = frozenset(select_layers("unet", kinds, use.selection))
    tape = Tape(use, targets, layers)
    walk_unet(sizes, tape, tape.make(TOKENS, sizes.context_width, needs_grad=text_needs_grad))
    return Held(tape.held, tape.peak)


def count_by_running(sizes: UNetSizes, use: Use, *, is_fake: bool = True, text_needs_grad: bool = False) -> Held:
    """Returns what a step's operations hold, on fake tensors or on real ones."""
    unet = build_unet(sizes, use)
    with FakeTensorMode() if is_fake else _nothing():
        materialise(unet)
        counted = Allocations()
        counted.leave_out(*unet.parameters())
        held = run_step(unet, sizes, use, counted, text_needs_grad=text_needs_grad)
    return Held(held, counted.peak)


def run_step(unet: Any, sizes: UNetSizes, use: Use, counted: Allocations | None = None, *, text_needs_grad: bool = False) -> int:
    """Runs forward and backward of a batch of noise. Returns what was held between them, 0 where nothing counts."""
    dtype, batch = DTYPES[use.num_bytes], use.batch_size
    latents = torch.randn(batch, sizes.in_channels, use.height // 8, use.width // 8, dtype=dtype)
    text = torch.randn(batch, TOKENS, sizes.context_width, dtype=dtype, requires_grad=text_needs_grad)
    timesteps = torch.zeros(batch, dtype=torch.long)
    added = None
    if sizes.condition_width is not None:
        pooled = torch.randn(batch, sizes.condition_width - 6 * 256, dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6)}
    if counted is not None:
        counted.leave_out(latents, text, timesteps)
    with counted or _nothing():
        prediction = unet(latents, timesteps, encoder_hidden_states=text, added_cond_kwargs=added).sample
        held = counted.held if counted is not None else 0
        prediction.float().square().mean().backward()
    return held


def build_unet(sizes: UNetSizes, use: Use) -> Any:
    """Returns a UNet with LoRA layers, without memory for any weight, in training mode."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**sizes.diffusers_config())
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(DTYPES[use.num_bytes])
    targets = select_layers("unet", {"unet": list_layers("unet", unet)}, use.selection)
    model = cast(TrainableModel, SimpleNamespace(parts={"unet": unet}))
    LoraAdapter.inject(model, {"unet": targets}, rank=use.rank, alpha=use.rank, dropout=0.5 if use.drops else 0.0, seed=0)
    if use.checkpoints:
        recompute_blocks(unet, True)
    return unet.train()


def materialise(module: nn.Module) -> None:
    """Gives parameters without memory such of the mode's kind: fake ones, or random numbers."""
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            values = torch.randn(parameter.shape, dtype=parameter.dtype) * 0.02
            setattr(owner, name, nn.Parameter(values, requires_grad=parameter.requires_grad))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def make_rows(cases: dict[str, tuple[UNetSizes, Use]]) -> list[Row]:
    rows = []
    for name, (sizes, use) in cases.items():
        forecast, counted = count_by_tape(sizes, use), count_by_running(sizes, use)
        for what in ("forward", "peak"):
            first, second = getattr(forecast, what), getattr(counted, what)
            error = first / second - 1
            value = f"{first / MIB:.0f} MiB forecast, {second / MIB:.0f} counted, {100 * error:+.1f} %"
            rows.append(Row(f"{name}: {what}", value, f"within {100 * MAX_ERROR:.0f} %", abs(error) <= MAX_ERROR))
    return rows


def list_cases(*, is_tiny: bool) -> dict[str, tuple[UNetSizes, Use]]:
    """Returns the cases of a run by what they are called."""
    if is_tiny:
        return {"tiny": (TINY.unet, Use(256, 256))}
    sd1, sdxl = Use(512, 512), Use(1024, 1024)
    return {
        "SD1.5, 512 px, batch 1": (SD1_UNET, sd1),
        "SD1.5, batch 4": (SD1_UNET, replace(sd1, batch_size=4)),
        "SD1.5, batch 4, checkpointing": (SD1_UNET, replace(sd1, batch_size=4, checkpoints=True)),
        "SD1.5, 768 x 512 px, fp32": (SD1_UNET, replace(sd1, width=768, num_bytes=4)),
        "SD1.5, attention and feed-forward": (SD1_UNET, replace(sd1, selection=("attention_ff",))),
        "SD1.5, dropout": (SD1_UNET, replace(sd1, drops=True)),
        "SDXL, 1024 px, batch 1": (SDXL_UNET, sdxl),
        "SDXL, checkpointing": (SDXL_UNET, replace(sdxl, checkpoints=True)),
        "SDXL, batch 4, checkpointing": (SDXL_UNET, replace(sdxl, batch_size=4, checkpoints=True)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that the script works")
    options = parser.parse_args(arguments)
    conditions = "bf16, rank 16 on attention unless said; bytes beside the weights, of tensors on shapes alone."
    print(format_section("Forecast of memory", conditions, make_rows(list_cases(is_tiny=options.tiny))))


if __name__ == "__main__":
    main()
