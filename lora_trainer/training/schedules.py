"""Learning-rate schedules: pure functions of the step, so that resuming needs no state of theirs."""

from __future__ import annotations

import math

from lora_trainer.registry import Entry, Registry

SCHEDULES = Registry(
    "schedule",
    (
        Entry("constant", "Constant", "The same rate throughout; choose among the step files.", f"{__name__}:constant"),
        Entry("cosine", "Cosine", "Falls to zero along a half cosine; the last steps settle fine tones.", f"{__name__}:cosine"),
    ),
)


def rate_factor(name: str, step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Returns what the learning rate is multiplied with at a step.

    Args:
        name: an entry of `SCHEDULES`.
        step: steps done before, from 0.
        total_steps: of the whole run, warm-up included.
        warmup_steps: steps of linear rise; the first step has 1 / warmup_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    factor: float = SCHEDULES.get(name).load()(min(1.0, progress))
    return factor


def constant(progress: float) -> float:
    """Returns 1 at every share `progress` of the run."""
    return 1.0


def cosine(progress: float) -> float:
    """Falls from 1 to 0 along a half cosine (SGDR without restarts, arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
