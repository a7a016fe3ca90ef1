"""What a job is handed: its folder, the host, requests from outside, where its events go, and the device to borrow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lora_trainer.control import TrainControl
from lora_trainer.errors import free_frames
from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.host.base import Host, Lease

_LINES = {
    "started": "{num_items} pictures, {total_steps} steps, family {family}",
    "resumed": "continues from step {step}",
    "state_saved": "step {step}: state saved",
    "exported": "step {step}: wrote {path}",
    "sampled": "step {step}: drew {path}",
    "validated": "step {step}: loss {loss:.4f} on watched pictures, {base_loss:.4f} with the base alone",
    "recommended": "recommended is step {step}: {reason}",
    "notice": "{message}",
    "paused": "paused at step {step}",
    "stopped": "stopped at step {step}",
    "finished": "finished at step {step}",
}


class JobContext:
    """Lives as long as a job runs. Use it as a context manager.

    Args:
        folder: of the job's events.
        log_path: the log, for people; it is appended to.
        title: of the job.
        host, control: see their types.
        tell_waiting: is called with True when the job begins to wait for the device, and with False when it has it.

    Attributes:
        log: takes lines for people to read.
    """

    def __init__(
        self,
        folder: Path,
        log_path: Path,
        *,
        title: str,
        host: Host,
        control: TrainControl,
        tell_waiting: Callable[[bool], None],
    ) -> None:
        self.folder, self.title, self.host, self.control = folder, title, host, control
        self._tell_waiting = tell_waiting
        self._writer: EventWriter | None = None
        self._phase = ""
        self._handler = logging.FileHandler(log_path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.log = logging.Logger("lora_trainer.job")  # of its own: the host's handlers shall not repeat every line
        self.log.addHandler(self._handler)

    def __enter__(self) -> JobContext:
        logging.getLogger("lora_trainer").addHandler(self._handler)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("lora_trainer").removeHandler(self._handler)
        self._handler.close()
        if self._writer is not None:
            self._writer.close()

    def emit(self, kind: str, **data: Any) -> None:
        """Writes an event of the job into its folder. For jobs that write none themselves; a training does."""
        if self._writer is None:
            self._writer = EventWriter(self.folder / "events.jsonl")
        event = TrainEvent(kind, data)
        self._writer.write(event)
        self.watch(event)

    def watch(self, event: TrainEvent) -> None:
        """Takes an event that the job has written itself: tells of it in the log."""
        if event.kind == "phase" and event.data.get("name") != self._phase:
            self._phase = str(event.data.get("name"))
            self.log.info("%s", self._phase)
        if event.kind in ("warning", "failed"):
            self.log.warning("%s", event.data.get("message"))
        if event.kind in _LINES:
            self.log.info("%s", _LINES[event.kind].format_map(event.data))

    @contextmanager
    def borrow(self) -> Iterator[Lease]:
        """Borrows the device. What an exception left in the frames that it came through is freed before it is given back."""
        self._tell_waiting(True)
        try:
            with self.host.borrow_device(self.title) as lease:
                self._tell_waiting(False)
                try:
                    yield ToldLease(lease, self._tell_waiting)
                except BaseException as error:
                    free_frames(error)
                    raise
        finally:
            self._tell_waiting(False)


class ToldLease:
    """A lease that tells when the job stands back: between `away` and `back`."""

    def __init__(self, lease: Lease, tell_waiting: Callable[[bool], None]) -> None:
        self._lease, self._tell_waiting = lease, tell_waiting

    def building(self) -> AbstractContextManager[None]:
        return self._lease.building()

    def is_waited_for(self) -> bool:
        return self._lease.is_waited_for()

    def claim(self) -> bool:
        self._tell_waiting(True)
        try:
            return self._lease.claim()
        finally:
            self._tell_waiting(False)

    def show(self, done: int, total: int) -> None:
        self._lease.show(done, total)

    def give_way(self, away: Callable[[], None], back: Callable[[], None], *, is_paused: Callable[[], bool]) -> None:
        def tell_away() -> None:
            self._tell_waiting(True)
            away()

        def tell_back() -> None:
            back()
            self._tell_waiting(False)

        self._lease.give_way(tell_away, tell_back, is_paused=is_paused)
