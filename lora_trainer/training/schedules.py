"""Learning-rate schedules: pure functions of the step, so that resuming needs no state of theirs. The table is in `table.py`.

A shape takes `progress`, the share of the run after warm-up that is done, in [0, 1), and `restarts`, which only
`cosine_with_restarts` looks at; it returns a share of the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_trainer.training.table import SCHEDULES


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves over a run.

    Attributes:
        name: an entry of `SCHEDULES`.
        total_steps: of the whole run, warm-up included.
        warmup_steps: steps of linear rise; the first step has 1 / warmup_steps.
        restarts: cycles of `cosine_with_restarts`, 1 or more.
        min_ratio: share of the learning rate below which it does not fall after warm-up, 0 to 1.
    """

    name: str
    total_steps: int
    warmup_steps: int = 0
    restarts: int = 3
    min_ratio: float = 0.0

    def factor(self, step: int) -> float:
        """Returns what the learning rate is multiplied with at a step; `step` counts those done before, from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        shape: float = SCHEDULES.get(self.name).load()(min(1.0, progress), self.restarts)
        return self.min_ratio + (1.0 - self.min_ratio) * shape


def constant(progress: float, restarts: int) -> float:
    """Stays 1."""
    return 1.0


def cosine(progress: float, restarts: int) -> float:
    """Falls from 1 to 0 along a half cosine (SGDR without restarts, arXiv 1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float, restarts: int) -> float:
    """Falls from 1 to 0 evenly."""
    return 1.0 - progress


def polynomial(progress: float, restarts: int) -> float:
    """Falls from 1 to 0 with the square of what is left."""
    return (1.0 - progress) ** 2


def cosine_with_restarts(progress: float, restarts: int) -> float:
    """Falls `restarts` times from 1 to 0 along half cosines of equal length (SGDR, arXiv 1608.03983)."""
    return cosine(progress * restarts % 1.0, restarts)


def rex(progress: float, restarts: int) -> float:
    """Falls from 1 to 0, slowly at first and steeply at the end (REX, arXiv 2107.04197, section 4)."""
    return (1.0 - progress) / (1.0 - progress / 2.0)
