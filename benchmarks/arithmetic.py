"""Counts the arithmetic of a step, and measures how much of it a device can do: what a share of the peak is a share of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.forecast import DTYPES, build_unet, materialise, run_step
from lora_trainer.models.sizes import UNetSizes
from lora_trainer.models.tape import Use

TERA = 1e12


def count_flops(sizes: UNetSizes, use: Use) -> float:
    """Returns the floating-point operations of forward and backward, those that checkpointing does again included.

    Counted on shapes alone; a multiplication and an addition are two.
    """
    unet = build_unet(sizes, use)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            attention: _attention_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _back_flops,
        },
    )
    with FakeTensorMode():
        materialise(unet)
        with counter:
            run_step(unet, sizes, use)
    return float(counter.get_total_flops())


def measure_peak(device: str, num_bytes: int, side: int | None = None) -> float:
    """Returns the operations a second of the fastest of some large matrix products, which is the most that a device really does.

    Args:
        num_bytes: of a number: 2 for bf16, 4 for fp32.
        side: of the matrices; None for what suits the device.
    """
    is_cuda = device.startswith("cuda")
    side = side or (8192 if is_cuda else 1024)
    one = torch.randn(side, side, device=device, dtype=DTYPES[num_bytes])
    other = torch.randn(side, side, device=device, dtype=DTYPES[num_bytes])
    seconds = []
    for _ in range(12):
        if is_cuda:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(5 if is_cuda else 1):
            one @ other
        if is_cuda:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - started) / (5 if is_cuda else 1))
    return 2 * side**3 / min(seconds)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[2] * (width + value[3])


def _back_flops(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """Five products, one of them the scores again."""
    return _attention_flops(query, key, value) * 5 // 2
