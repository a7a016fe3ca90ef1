"""What is shown of a job: `Progress` folded from its events, and `JobView`, that together with its place in the queue."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_trainer.errors import Problem
from lora_trainer.events import TrainEvent
from lora_trainer.jobs.curve import LossCurve

Status = Literal[
    "queued", "waiting", "running", "paused", "stopping", "stopped", "interrupted", "failed", "finished"
]  # fmt: skip
ACTIVE = ("waiting", "running", "paused", "stopping")
MOST_WARNINGS = 100
_SMOOTHING = 0.95
_TIMED_STEPS = 20


@dataclass(frozen=True)
class JobView:
    """One job as of now.

    Attributes:
        id: by which the queue knows it.
        kind: a name in the table of kinds.
        title: given by whoever queued it.
        status: "waiting" gave the device to its owner for a moment, or waits for it; "interrupted" ended with its process
            and can be continued, as a "stopped" one can.
        phase: what it does now, in words; `done` of `total` parts of it are done.
        step, total_steps: of a training.
        loss: a running mean over about 20 steps; None before the first.
        learning_rate: of the last step.
        seconds_per_step: of the last steps, on average.
        seconds_left: for the steps that are left; None when not known.
        memory_gib: at its highest.
        samples: step and file of each picture drawn so far.
        warnings: the last of them.
        error: why it failed, "" otherwise.
        diagnosis: what is or went wrong, with the setting to change.
        result: the file that it made.
        recommended: step, file and reason of the step to use instead of the last one, where the validation found one.
        folder: of its events and files.
        created, ended: seconds since 1970.
        position: its place among the queued ones, from 1; 0 for others.
        num_events: how many events it has had; `JobQueue.events` counts from 0.
    """

    id: str
    kind: str
    title: str
    status: Status
    phase: str
    done: int
    total: int
    step: int
    total_steps: int
    loss: float | None
    learning_rate: float | None
    seconds_per_step: float | None
    seconds_left: float | None
    memory_gib: float | None
    samples: list[tuple[int, Path]]
    warnings: list[str]
    error: str
    diagnosis: list[Problem]
    result: Path | None
    recommended: tuple[int, Path, str] | None
    folder: Path
    created: float
    ended: float | None
    position: int
    num_events: int

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON values, paths as text."""
        values: dict[str, Any] = to_plain(dataclasses.asdict(self))
        return values


@dataclass
class Progress:
    """What the events of a job say, kept up to date with `apply`. Times and curve are for this process alone."""

    phase: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    memory_gib: float | None = None
    samples: list[tuple[int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    validations: list[tuple[int, float, float]] = field(default_factory=list)
    recommended: tuple[int, str, str] | None = None
    num_skipped: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMED_STEPS))
    curve: LossCurve = field(default_factory=LossCurve)
    is_finished: bool = False
    result: str | None = None

    @property
    def seconds_per_step(self) -> float | None:
        return sum(self.seconds) / len(self.seconds) if self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        average = self.seconds_per_step
        return None if average is None or not self.total_steps else average * max(0, self.total_steps - self.step)

    def begin(self) -> None:
        """Forgets what only said something of an earlier start of the same run."""
        self.warnings.clear()
        self.seconds.clear()
        self.phase, self.done, self.total = "", 0, 0
        self.is_finished, self.result = False, None

    def apply(self, event: TrainEvent) -> None:
        """Takes the next event; one whose fields are not as expected, from another version say, says nothing."""
        take = getattr(self, f"_take_{event.kind}", None)
        if take is not None:
            try:
                take(event.data)
            except (KeyError, TypeError, ValueError):
                return

    def to_json(self) -> dict[str, Any]:
        """Returns what is worth keeping when the job has ended."""
        kept = {name: getattr(self, name) for name in KEPT}
        return {**kept, "seconds_per_step": self.seconds_per_step}

    def _take_started(self, data: dict[str, Any]) -> None:
        self.total_steps = int(data["total_steps"])

    def _take_resumed(self, data: dict[str, Any]) -> None:
        step = self.step = int(data["step"])
        self.samples = [sample for sample in self.samples if sample[0] <= step]
        self.validations = [entry for entry in self.validations if entry[0] <= step]
        self.curve.forget_after(step)
        self.recommended, self.is_finished, self.result = None, False, None

    def _take_phase(self, data: dict[str, Any]) -> None:
        self.phase, self.done, self.total = str(data["name"]), int(data["done"]), int(data["total"])

    def _take_step(self, data: dict[str, Any]) -> None:
        self.step, loss = int(data["step"]), data["loss"]
        self.phase, self.done, self.total = "training", self.step, self.total_steps
        self.learning_rate, self.memory_gib = data["learning_rate"], data["memory_gib"]
        self.seconds.append(float(data["seconds"]))
        if loss is None:
            self.num_skipped += 1
            return
        self.loss = loss if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self.curve.add(self.step, float(loss))

    def _take_validated(self, data: dict[str, Any]) -> None:
        self.validations.append((int(data["step"]), float(data["loss"]), float(data["base_loss"])))

    def _take_sampled(self, data: dict[str, Any]) -> None:
        self.samples.append((int(data["step"]), str(data["path"])))

    def _take_recommended(self, data: dict[str, Any]) -> None:
        self.recommended = (int(data["step"]), str(data["path"]), str(data["reason"]))

    def _take_warning(self, data: dict[str, Any]) -> None:
        self.warnings = [*self.warnings, str(data["message"])][-MOST_WARNINGS:]

    def _take_finished(self, data: dict[str, Any]) -> None:
        self.is_finished, self.result = True, data.get("path")


# What a record keeps of an ended job, so that the history is shown without reading its events.
KEPT = (
    "phase", "done", "total", "step", "total_steps", "loss", "learning_rate", "memory_gib", "samples", "warnings", "recommended"
)  # fmt: skip


def to_plain(value: Any) -> Any:
    """Returns a value as JSON knows it."""
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
