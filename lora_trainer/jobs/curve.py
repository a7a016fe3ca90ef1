"""The losses of a run in a few dozen numbers: enough to see whether they fall or swing, however long the run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MOST_BINS = 48


@dataclass
class Bin:
    """The losses of some neighbouring steps: the first of the steps, how many, their sum and that of their squares."""

    first_step: int
    count: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def error(self) -> float:
        """The standard error of the mean, from the spread within the bin."""
        variance = max(0.0, self.squares / self.count - self.mean**2) * self.count / max(1, self.count - 1)
        return math.sqrt(variance / self.count)

    def add(self, other: Bin) -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares


@dataclass
class LossCurve:
    """Losses by step, in at most `MOST_BINS` bins of equal size: when they are full, neighbours are put together."""

    bins: list[Bin] = field(default_factory=list)
    size: int = 1

    @property
    def count(self) -> int:
        return sum(entry.count for entry in self.bins)

    def add(self, step: int, loss: float) -> None:
        """Takes the loss of a step."""
        point = Bin(step, 1, loss, loss * loss)
        if self.bins and self.bins[-1].count < self.size:
            self.bins[-1].add(point)
            return
        if len(self.bins) == MOST_BINS:
            for one, other in zip(self.bins[::2], self.bins[1::2], strict=True):
                one.add(other)
            self.bins = self.bins[::2]
            self.size *= 2
        self.bins.append(point)

    def forget_after(self, step: int) -> None:
        """Drops what came after a step, to the nearest bin."""
        self.bins = [entry for entry in self.bins if entry.first_step <= step]

    def average(self, bins: list[Bin]) -> tuple[float, float]:
        """Returns the mean of some bins and its standard error."""
        whole = Bin(0, 0, 0.0, 0.0)
        for entry in bins:
            whole.add(entry)
        return whole.mean, whole.error
