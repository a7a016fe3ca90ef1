"""Reads a growing `events.jsonl` piece by piece, so that looking at it once a second costs what is new in it."""

from __future__ import annotations

import io
from array import array
from pathlib import Path

from lora_trainer.events import TrainEvent, parse_line


class EventReader:
    """Remembers how far it has read, and where each event begins.

    Args:
        path: the file; it need not exist yet.

    Attributes:
        bytes_read: so far, of all files opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self._starts = array("Q")
        self._end = 0

    def __len__(self) -> int:
        """Returns how many events were seen so far."""
        return len(self._starts)

    def read_new(self) -> list[TrainEvent]:
        """Returns the events that were added since the last call. An unfinished last line is left for the next one."""
        events = []
        for line in io.BytesIO(self._read_from(self._end)):
            if not line.endswith(b"\n"):
                break
            event = parse_line(line)
            if event is not None:
                events.append(event)
                self._starts.append(self._end)
            self._end += len(line)
        return events

    def read_from(self, index: int) -> list[TrainEvent]:
        """Returns the events that were seen, from the one with this index (the first is 0) on."""
        if index >= len(self._starts):
            return []
        lines = io.BytesIO(self._read_from(self._starts[max(0, index)], self._end))
        return [event for line in lines if (event := parse_line(line)) is not None]

    def _read_from(self, start: int, end: int | None = None) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                data = file.read() if end is None else file.read(end - start)
        except FileNotFoundError:
            return b""
        self.bytes_read += len(data)
        return data
