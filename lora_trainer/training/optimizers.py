"""Optimizers: functions from parameter groups to a `torch.optim.Optimizer`. The table is in `table.py`.

`averaged_weights` is for whoever shows or writes the weights while training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_trainer.errors import MissingPackageError
from lora_trainer.training.table import OPTIMIZERS

Groups = list[dict[str, Any]]


def build_optimizer(name: str, groups: Groups, *, weight_decay: float) -> torch.optim.Optimizer:
    """Builds an optimizer of the table.

    Args:
        name: an entry of `OPTIMIZERS`.
        groups: parameter groups, each with "params" and "lr".
        weight_decay: decoupled decay, as AdamW counts it.

    Raises:
        MissingPackageError: its package is not installed; names the pip command.
    """
    entry = OPTIMIZERS.get(name)
    try:
        optimizer: torch.optim.Optimizer = entry.load()(groups, weight_decay)
    except ImportError as error:
        raise MissingPackageError(entry.package, f"optimizer: {name}") from error
    return optimizer


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it the parameters are the weights to use, for exports, samples and validation.

    Only schedule-free training has others than those that it trains: their running average. Afterwards the parameters have
    their very bits again (the package's own way back rounds), so that looking at the weights changes nothing in the run.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for parameter, bits in zip(parameters, kept, strict=True):
                parameter.copy_(bits)


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the rate of the first group's next step: its learning rate, times the step size that Prodigy found ("d")."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def build_adamw(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), in one fused kernel where this torch has one for the device."""
    try:
        # Copies: torch writes "fused" into the groups before it refuses, and there it would hold for the second try, too.
        return torch.optim.AdamW([dict(group) for group in groups], weight_decay=weight_decay, fused=True)
    except RuntimeError:  # torch before 2.4 has it for CUDA alone
        return torch.optim.AdamW(groups, weight_decay=weight_decay)


def build_adamw8bit(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with its state in blocks of 8-bit numbers (arXiv 2110.02861); tensors below 4096 numbers keep theirs in fp32."""
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=weight_decay)
    return optimizer


def build_adafactor(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Adafactor (arXiv 1804.04235) with the rate as given: neither scaled by the weights' size nor by the step.

    Both would start near zero, since half of a LoRA's weights are zero at first. transformers' version, because torch before 2.5
    has none.
    """
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(
        groups, lr=groups[0]["lr"], scale_parameter=False, relative_step=False, weight_decay=weight_decay
    )
    return optimizer


def build_lion(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Lion with the paper's momenta."""
    return Lion(groups, weight_decay=weight_decay)


def build_prodigy(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Prodigy (arXiv 2306.06101), with bias correction, and warm-up kept out of the step size that it finds."""
    from prodigyopt import Prodigy

    # In the groups and not as an argument, which would print a line about it.
    groups = [{**group, "weight_decay": weight_decay} for group in groups]
    optimizer: torch.optim.Optimizer = Prodigy(groups, use_bias_correction=True, safeguard_warmup=True)
    return optimizer


def build_schedule_free(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Schedule-free AdamW (arXiv 2405.15682), in training mode; see `averaged_weights`."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, weight_decay=weight_decay)
    optimizer.train()
    return optimizer


class Lion(torch.optim.Optimizer):
    """Steps by the sign of the momentum: every weight moves by the learning rate (arXiv 2302.06675, algorithm 2).

    Args:
        groups: parameter groups, each with "params" and "lr".
        weight_decay: decoupled decay.
        betas: how much of the momentum counts in the step, and how much of it stays.
    """

    def __init__(self, groups: Groups, *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(groups, {"lr": 1e-4, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Takes one step; parameters without a gradient stay."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._momentum(parameter) for parameter in parameters]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_lerp(gradients, momenta, beta1)
            for update in updates:  # torch 2.1 has no sign for lists
                update.sign_()
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["exp_avg"]
        return momentum
