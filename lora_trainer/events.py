"""What a training tells the outside: events, and their append-only file `events.jsonl`.

One event is one JSON object on one line: `kind`, `time` (seconds since 1970), and the fields of that kind, listed in `KINDS`.
The worker is the only writer. Readers ignore an unfinished last line; a "resumed" event makes them forget the steps beyond it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

KINDS: dict[str, tuple[str, ...]] = {
    "started": ("total_steps", "num_items", "family"),
    "resumed": ("step",),
    "phase": ("name", "done", "total"),
    "step": ("step", "epoch", "loss", "learning_rate", "grad_norm", "seconds", "memory_gib"),
    "state_saved": ("step",),
    "exported": ("step", "path"),
    "sampled": ("step", "path"),
    "validated": ("step", "loss", "held_out", "base_loss"),
    "recommended": ("step", "path", "reason"),
    "grid": ("rows", "weights", "base", "pipeline"),
    "cell": ("row", "column", "path", "parameters"),
    "advice": ("figures", "best", "reason", "nearest", "by"),
    "findings": ("problems",),
    "notice": ("message",),
    "warning": ("message",),
    "paused": ("step",),
    "stopped": ("step",),
    "failed": ("message",),
    "finished": ("step", "path"),
}


@dataclass(frozen=True)
class TrainEvent:
    """One thing that happened.

    Attributes:
        kind: one of `KINDS`.
        data: the fields of that kind, JSON values.
        time: seconds since 1970.
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_line(self) -> str:
        return json.dumps({"kind": self.kind, "time": round(self.time, 3), **self.data}, ensure_ascii=False)


class Emit(Protocol):
    """Takes an event apart into its kind and fields: what those are handed who have something to tell."""

    def __call__(self, kind: str, **data: Any) -> None: ...


class EventWriter:
    """Appends events to a file, each in one write, so that a reader sees whole lines.

    Args:
        path: the file; made when missing. An unfinished last line, left by a killed writer, is ended first.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the writer
        self._pending = b"\n" if self._file.tell() and not _ends_with_newline(path) else b""

    def write(self, event: TrainEvent) -> None:
        """Appends an event. On a full disk it is kept and written before the next one: events must not end a run."""
        # Linux hands over a file name that is not UTF-8 with lone surrogates; as "\udcff" they are JSON and come back equal.
        self._pending += (event.to_line() + "\n").encode("utf-8", "backslashreplace")
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        self._file.close()


def read_events(path: Path) -> Iterator[TrainEvent]:
    """Yields the events of a file in order; lines that are unfinished or damaged are passed over."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            event = parse_line(line)
            if event:
                yield event


def parse_line(line: bytes) -> TrainEvent | None:
    """Returns the event of one line, or None when the line is unfinished or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        data = json.loads(line)
        return TrainEvent(kind=data.pop("kind"), time=data.pop("time"), data=data)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def fold_steps(events: Iterator[TrainEvent], kind: str = "step") -> list[TrainEvent]:
    """Returns the events of a kind that has a step as one uninterrupted history: "resumed" forgets what came after its step."""
    steps: list[TrainEvent] = []
    for event in events:
        if event.kind == "resumed":
            steps = [step for step in steps if step.data["step"] <= event.data["step"]]
        elif event.kind == kind:
            steps.append(event)
    return steps


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
