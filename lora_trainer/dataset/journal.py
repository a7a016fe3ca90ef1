"""A journal of changes: append-only, so that undo survives a restart, and whoever was killed half-way can be finished.

One line is one JSON object. `{"change": 3, "time": ..., "title": ..., "values": {name: [before, after]}}` is written, and on
the disk, before anything is changed; `{"done": true}` after that, with the names of what still waits as `"left"`. Lines with one
number are one change, as of a run that saves caption by caption: they bear its name as `"run"`, and `{"ended": name}` says that
it came to its end. What a value is, a caption or the hash of a picture, only the owner of the journal knows.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_trainer.errors import DatasetError
from lora_trainer.files import lock_byte, unlock_byte

KEPT_FOLDER = ".lora_trainer"
"""Of a data set: journals and what else is kept about it. Hidden, so that no scan reads it."""

LOCK_SECONDS = 30.0  # a bulk change of thousands of captions on a slow disk takes less
_POLL_SECONDS = 0.01


@dataclass
class Change:
    """What one action changed.

    Attributes:
        id: counts from 1.
        title: what was done, in words for the user.
        time: seconds since 1970, of its beginning.
        values: before and after, by name.
        reverts: the change that this one took back, None for most.
        run: the name of the run that did it, "" for what a person did.
    """

    id: int
    title: str
    time: float
    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    reverts: int | None = None
    run: str = ""

    def extend(self, values: Mapping[str, tuple[str, str]]) -> None:
        """Adds later values; what was before the first of a name stays."""
        for name, (before, after) in values.items():
            first = self.values.get(name, (before, after))[0]
            self.values[name] = (first, after)

    def inverse(self) -> dict[str, tuple[str, str]]:
        return {name: (after, before) for name, (before, after) in self.values.items()}


class Journal:
    """The changes of one data set. Building it touches nothing. Several processes may use one file, each through its own object.

    Args:
        path: of the file; its folder is made at the first change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = threading.Lock()
        self._offset = 0
        self._changes: dict[int, Change] = {}
        self._unfinished: dict[str, tuple[str, str]] = {}
        self._ended: set[int] = set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps out all other threads and processes that change this data set. Not to be nested.

        Raises:
            DatasetError: somebody has it for longer than any change takes, or the folder may not be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self._path.with_suffix(".lock"), "a+b")  # noqa: SIM115 - closed below
        except OSError as error:
            raise DatasetError(_refused(self._path, error)) from error
        with file:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    lock_byte(file)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise DatasetError(
                            f"{self._path.parent.parent} is being changed by another program for {LOCK_SECONDS:.0f} seconds. "
                            "Wait until it is done, or end it."
                        ) from error
                    time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                unlock_byte(file)

    def changes(self) -> list[Change]:
        """Returns all changes, the oldest first."""
        with self._reading:
            self._read_on()
            return [replace(change, values=dict(change.values)) for change in self._changes.values()]

    def unfinished(self) -> dict[str, tuple[str, str]]:
        """Returns before and after of what nobody said was done, by name. Only for who holds the lock."""
        with self._reading:
            self._read_on()
            return dict(self._unfinished)

    def unfinished_run(self, run: str) -> Change | None:
        """Returns what a run has changed so far, where it has not ended and was not taken back since; else None."""
        counting = [change for change in _stacks(self.changes())[0] if change.run == run]
        return counting[-1] if counting and counting[-1].id not in self._ended else None

    def begin(
        self,
        title: str,
        values: Mapping[str, tuple[str, str]],
        *,
        change: int | None,
        reverts: int | None = None,
        run: str = "",
    ) -> int:
        """Writes down what is about to be changed, and returns the change's number. Only for who holds the lock.

        Args:
            title, values, reverts, run: see `Change`.
            change: the number of a change that goes on, None for a new one. One that was taken back meanwhile does not: what
                comes now is a change of its own.

        Raises:
            DatasetError: the disk is full, or the file may not be written.
        """
        known = self.changes()
        counting = {one.id for one in _stacks(known)[0]} | {one.id for one in known if one.reverts is not None}
        number = change if change in counting and change is not None else max((one.id for one in known), default=0) + 1
        entry: dict[str, Any] = {"change": number, "time": round(time.time(), 3), "title": title, "values": values}
        if reverts is not None:
            entry["reverts"] = reverts
        if run:
            entry["run"] = run
        self._append(entry, is_urgent=True)
        return number

    def end_run(self, run: str) -> None:
        """Writes down that a run came to its end, so that its name begins a new change from now on."""
        self._append({"ended": run}, is_urgent=False)

    def finish(self, left: Iterable[str] = ()) -> None:
        """Writes down that what `begin` was told has been done, save for the names in `left`."""
        names = sorted(left)
        self._append({"done": True, "left": names} if names else {"done": True}, is_urgent=False)

    def _append(self, entry: dict[str, Any], *, is_urgent: bool) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with open(self._path, "a+b") as file:
                if file.tell() and not _ends_with_newline(file):  # left by one who was killed while writing
                    line = b"\n" + line
                file.write(line)
                file.flush()
                if is_urgent:
                    os.fsync(file.fileno())
        except OSError as error:
            raise DatasetError(_refused(self._path, error)) from error

    def _read_on(self) -> None:
        """Reads the lines that were added since the last time."""
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:  # another file: it was put back from a backup, or deleted
                    self._offset = 0
                    self._forget()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self._offset = 0
            self._forget()
            return
        except OSError as error:
            raise DatasetError(f"{self._path} cannot be read: {error.strerror or error}. Check its permissions.") from error
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n"):
            self._take(line)

    def _forget(self) -> None:
        self._changes.clear()
        self._ended.clear()
        self._unfinished = {}

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if "done" in entry:
                left = set(entry.get("left", ()))
                self._unfinished = {name: value for name, value in self._unfinished.items() if name in left}
                return
            if "ended" in entry:
                self._ended |= {change.id for change in self._changes.values() if change.run == entry["ended"]}
                return
            values = {str(name): (str(before), str(after)) for name, (before, after) in entry["values"].items()}
            change = Change(int(entry["change"]), str(entry["title"]), float(entry["time"]), reverts=entry.get("reverts"))
            change.run = str(entry.get("run", ""))
        except (ValueError, KeyError, TypeError, AttributeError):  # torn by a kill or a full disk: nothing of it was done
            return
        self._changes.setdefault(change.id, change).extend(values)
        self._unfinished |= values


def next_to_undo(changes: list[Change]) -> Change | None:
    """Returns the latest change that counts still, None where all were taken back."""
    return next(iter(_stacks(changes)[0][::-1]), None)


def next_to_redo(changes: list[Change]) -> Change | None:
    """Returns the latest "undo" that nothing but other ones followed, None where there is none."""
    return next(iter(_stacks(changes)[1][::-1]), None)


def _stacks(changes: list[Change]) -> tuple[list[Change], list[Change]]:
    """Returns the changes that count, and the changes by which others were taken back, both in the order of time."""
    done: list[Change] = []
    undone: list[tuple[Change, Change]] = []  # the undo, and what it took back
    for change in changes:
        reverted = next((known for known in done if known.id == change.reverts), None)
        redone = next((pair for pair in undone if pair[0].id == change.reverts), None)
        if reverted is not None:
            done.remove(reverted)
            undone.append((change, reverted))
        elif redone is not None:
            undone.remove(redone)
            done.append(redone[1])
        else:
            done.append(change)
            undone.clear()
    return done, [undo for undo, _ in undone]


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _refused(path: Path, error: OSError) -> str:
    return f"{path} cannot be written: {error.strerror or error}. Nothing was changed; free space, or check the permissions."
