"""Number formats: which one a device gets, autocast, and the loss scale of fp16.

The frozen base is held and computed in the chosen format; LoRA weights, gradients and optimizer state are always fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lora_trainer.card import fails_in_fp16
from lora_trainer.errors import ConfigError, Problem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Returns the device of a name, CUDA's with an index; "auto" is the CUDA (or ROCm) GPU in use, else Apple's, else the CPU.

    Raises:
        ConfigError: this machine, or this torch, has no such device.
    """
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            message = f"({name}) cannot be used here: {str(error).splitlines()[0]}"
            hint = "Set it to auto; the command setup shows what the graphics card can do."
            raise ConfigError([Problem("device", message, hint=hint)]) from error
    elif torch.cuda.is_available():
        name = "cuda"
    else:
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":  # without an index, torch before 2.5 does not tell its memory
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Returns "fp32", "bf16" or "fp16"; "auto" is bf16 on a GPU that computes in it, fp16 on CUDA GPUs that can, else fp32."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    if torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16"
    return "fp32" if fails_in_fp16(torch.cuda.get_device_name(device)) else "fp16"


def choose_compute(device: str = "auto", precision: str = "auto") -> tuple[torch.device, torch.dtype]:
    """Returns where frozen models run, and in which dtype. Raises as `choose_device`."""
    chosen = choose_device(device)
    return chosen, DTYPES[choose_precision(precision, chosen)]


class Precision:
    """Autocast and loss scale of one run.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: where the forward runs.
    """

    GROWTH_STEPS = 2000
    FLOOR = 1.0

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = DTYPES[name]
        self.device = device
        self.scale = 65536.0 if name == "fp16" else 1.0
        self.has_scaler = name == "fp16"
        self.good_steps = 0

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context of the forward pass."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divides gradients by the scale, in place."""
        if self.has_scaler:
            torch._foreach_mul_(gradients, 1.0 / self.scale)

    def shrink(self) -> bool:
        """Halves the scale after an overflow. Returns whether it could be halved and the batch is worth repeating."""
        if not self.has_scaler or self.scale <= self.FLOOR:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def count_good_step(self) -> None:
        """Doubles the scale after `GROWTH_STEPS` steps without overflow."""
        self.good_steps += 1
        if self.has_scaler and self.good_steps >= self.GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0
