"""Optimizers: functions from parameter groups to a `torch.optim.Optimizer`, in a table."""

from __future__ import annotations

from typing import Any

import torch

from lora_trainer.errors import MissingPackageError
from lora_trainer.registry import Entry, Registry

Groups = list[dict[str, Any]]

OPTIMIZERS = Registry(
    "optimizer",
    (Entry("adamw", "AdamW", "Right for almost everything; learning rates of 1e-4 to 2e-4.", f"{__name__}:build_adamw"),),
)


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


def build_adamw(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), in one fused kernel where this torch has one for the device."""
    try:
        return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # torch before 2.4 has it for CUDA alone
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
