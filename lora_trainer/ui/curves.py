"""The curve of each training, read from its events bit by bit, so that a tick costs the same however long the run is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_trainer.events import TrainEvent
from lora_trainer.jobs.queue import JobQueue

MOST_POINTS = 600
MOST_CURVES = 20


@dataclass
class Curve:
    """Loss, learning rate and validation loss by step; when there are too many points, every second one goes."""

    losses: list[tuple[float, float]] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    validations: list[tuple[float, float]] = field(default_factory=list)
    stride: int = 1
    num_read: int = 0

    def take(self, events: Sequence[TrainEvent]) -> None:
        """Adds the next events."""
        self.num_read += len(events)
        for event in events:
            if event.kind == "resumed":
                self._forget_after(event.data["step"])
            elif event.kind == "step" and event.data["loss"] is not None and event.data["step"] % self.stride == 0:
                self._add(event.data["step"], event.data["loss"], event.data["learning_rate"])
            elif event.kind == "validated":
                self.validations.append((event.data["step"], event.data["loss"]))

    def _add(self, step: int, loss: float, rate: float) -> None:
        self.losses.append((step, loss))
        self.rates.append((step, rate))
        if len(self.losses) > MOST_POINTS:
            self.stride *= 2
            self.losses = [point for point in self.losses if point[0] % self.stride == 0]
            self.rates = [point for point in self.rates if point[0] % self.stride == 0]

    def _forget_after(self, step: int) -> None:
        for points in (self.losses, self.rates, self.validations):
            points[:] = [point for point in points if point[0] <= step]


class CurveReader:
    """Keeps the curves of the jobs that were looked at last."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._curves: dict[str, Curve] = {}
        self._lock = threading.Lock()

    def read(self, id: str) -> Curve:
        """Returns the curve of a job as of now.

        Raises:
            JobError: there is no such job.
        """
        with self._lock:
            curve = self._curves.pop(id, None) or Curve()
            curve.take(self._queue.events(id, curve.num_read))
            self._curves[id] = curve
            while len(self._curves) > MOST_CURVES:
                del self._curves[next(iter(self._curves))]
            return curve
