"""The queue of jobs and the one background thread that works through it.

Jobs are kept on the disk, so that the queue survives a restart: queued ones stay queued and wait for somebody to start them,
the one that ran is "interrupted" and can be continued. All methods may be called from any thread; none of them trains.
"""

from __future__ import annotations

import builtins
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lora_trainer.control import COMMANDS, TrainControl
from lora_trainer.errors import JobError, LoraTrainerError, RunFolderError
from lora_trainer.events import TrainEvent
from lora_trainer.host.base import Host
from lora_trainer.jobs.context import JobContext
from lora_trainer.jobs.diagnosis import diagnose_error, diagnose_progress
from lora_trainer.jobs.event_reader import EventReader
from lora_trainer.jobs.record import Record, load_records, log_path, new_id
from lora_trainer.jobs.table import JOBS
from lora_trainer.jobs.view import KEPT, JobView, Progress, Status, to_plain
from lora_trainer.run_folder import RunFolder

log = logging.getLogger(__name__)

THREAD_NAME = "lora_trainer-worker"
FOLDER_NAME = "jobs"
LOG_TAIL_BYTES = 1 << 17
AGAIN = ("continue", "retry")
ALLOWED: dict[str, tuple[str, ...]] = {
    "queued": ("continue", "cancel", "up", "down"),
    "active": COMMANDS,
    "stopped": AGAIN,
    "interrupted": AGAIN,
    "failed": AGAIN,
    "finished": (),
}
MEANS_CANCEL = ("stop", "discard")  # of a job that has not begun


@dataclass(eq=False)
class _Job:
    """A job in this process: what is kept of it, and what was read of its events."""

    record: Record
    reader: EventReader
    progress: Progress | None = None
    control: TrainControl = field(default_factory=TrainControl)
    is_waiting: bool = False

    def refresh(self) -> None:
        """Reads what is new."""
        events = self.reader.read_new()
        if self.progress is not None:
            for event in events:
                self.progress.apply(event)


class JobQueue:
    """See the module. One process at a time uses the jobs of a data folder.

    Args:
        host: where we live; its data folder of now holds the jobs.

    Raises:
        JobError: another process uses this data folder.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.folder = host.folders().data_dir / FOLDER_NAME
        self._held = _hold(self.folder)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._works = False  # whether queued jobs are begun; not after a restart, until somebody asks
        self._active: _Job | None = None
        self._jobs = {record.id: _Job(record, _reader_of(record)) for record in load_records(self.folder)}
        for job in self._jobs.values():
            if job.record.status == "active":
                self._recover(job)

    def submit(self, kind: str, settings: Mapping[str, Any], *, title: str, start: bool = True) -> str:
        """Queues a job and returns its id at once.

        Args:
            kind: a name in the table of kinds.
            settings: of that kind, JSON values.
            title: for people; "" for the name of its folder.
            start: whether the queue begins to work if it rests. Without it the job waits for a `command(id, "continue")`, or
                for a job before it.

        Raises:
            ConfigError: the settings cannot work; with every problem.
            JobError: the kind is unknown, or a job that has not ended uses the same folder.
        """
        try:
            entry = JOBS.get(kind)
        except KeyError as error:
            raise JobError(str(error.args[0])) from error
        kept: dict[str, Any] = to_plain(dict(settings))
        with self._lock:
            self._check_open()
            folder = replace(entry, target=entry.options["prepare"]).load()(kept, self.host, title)
            id = new_id()
            record = Record(id, kind, title, kept, folder or self.folder / id, time.time(), self._last_order() + 1)
            record.title = title.strip() or record.folder.name
            self._check_folder(record)
            record.save(self.folder)
            self._jobs[id] = _Job(record, _reader_of(record))
            if start:
                self._work_on()
        return id

    def list(self) -> builtins.list[JobView]:
        """Returns all jobs: the queued ones in order, the active one, then the past ones, the newest first."""
        with self._lock:
            queued = self._queued()
            past = [job for job in self._jobs.values() if job.record.status not in ("queued", "active")]
            past.sort(key=lambda job: (job.record.ended or job.record.created, job.record.id), reverse=True)
            active = [] if self._active is None else [self._active]
            return [self._view(job, queued) for job in (*queued, *active, *past)]

    def view(self, id: str) -> JobView:
        """Returns one job.

        Raises:
            JobError: there is none of that id.
        """
        with self._lock:
            return self._view(self._get(id), self._queued())

    def command(self, id: str, command: str) -> None:
        """Asks something of a job.

        Of the active one: "stop" (saves), "discard" (stops at the last save), "pause", "continue", "save", "sample". Of a queued
        one: "cancel", "up", "down", and "continue" to make it the next and have the queue work. Of one that was stopped,
        interrupted or failed: "continue" or "retry" to queue it again, as the next; a training goes on from its last save.

        Raises:
            JobError: there is none of that id, or the command does not fit its status.
        """
        with self._lock:
            self._check_open()
            job = self._get(id)
            status = job.record.status
            if status == "queued" and command in MEANS_CANCEL:
                command = "cancel"
            if status == "active" and command == "cancel":
                command = "stop"
            if command not in ALLOWED[status]:
                allowed = ", ".join(ALLOWED[status]) or "none; queue its settings anew"
                raise JobError(f"{command!r} does not fit {job.record.title}, which is {status}. Allowed: {allowed}.")
            if status == "active":
                job.control.request(command)
            elif command == "cancel":
                self._end(job, "stopped")
            elif command in ("up", "down"):
                self._move(job, -1 if command == "up" else 1)
            else:
                self._put_first(job)
                self._work_on()

    def events(self, id: str, after: int = 0) -> builtins.list[TrainEvent]:
        """Returns the events of a job from the one with index `after` on; the first has index 0.

        Raises:
            JobError: there is none of that id.
        """
        with self._lock:
            job = self._get(id)
            job.refresh()
            return job.reader.read_from(after)

    def settings(self, id: str) -> dict[str, Any]:
        """Returns the settings as they were given, to queue the like again.

        Raises:
            JobError: there is none of that id.
        """
        with self._lock:
            return dict(self._get(id).record.settings)

    def log_tail(self, id: str, lines: int = 200) -> str:
        """Returns the last lines of a job's log, "" when it has none.

        Raises:
            JobError: there is none of that id.
        """
        with self._lock:
            path = log_path(self.folder, self._get(id).record.id)
        try:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

    def close(self) -> None:
        """Stops the active job, which saves and counts as interrupted, waits for the thread, and lets other processes in."""
        with self._lock:
            self._is_closing = True
            if self._active is not None:
                self._active.control.request("stop")
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._held.unlock()

    def _work_on(self) -> None:
        self._works = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._take_next()) is not None:
            try:
                self._run(job)
            except BaseException:  # the thread goes on whatever a job, or the keeping of its result, does
                log.exception("the job %s ended in an unforeseen way", job.record.id)
            finally:
                with self._lock:
                    self._active = None
                    if job.record.status == "active":
                        self._end(job, "failed", error="it ended in an unforeseen way; see the log of the program.")

    def _take_next(self) -> _Job | None:
        """Waits for a job to begin and makes it the active one; returns None when the queue closes."""
        with self._changed:
            while not self._is_closing:
                queued = self._queued()
                if not queued:
                    self._works = False
                if self._works:
                    return self._begin(queued[0])
                self._changed.wait()
            return None

    def _begin(self, job: _Job) -> _Job:
        record = job.record
        record.status, record.started, record.ended = "active", time.time(), None
        record.error, record.diagnosis, record.result = "", [], None
        job.control, job.reader, job.progress = TrainControl(), _reader_of(record), Progress()
        job.refresh()
        job.progress.begin()
        self._active = job
        self._save(record)
        return job

    def _run(self, job: _Job) -> None:
        record = job.record

        def tell_waiting(is_waiting: bool) -> None:
            job.is_waiting = is_waiting

        context = JobContext(
            record.folder,
            log_path(self.folder, record.id),
            title=record.title,
            host=self.host,
            control=job.control,
            tell_waiting=tell_waiting,
        )
        log_path(self.folder, record.id).parent.mkdir(parents=True, exist_ok=True)
        with context:
            context.log.info("%s begins", record.title)
            try:
                result = JOBS.get(record.kind).load()(dict(record.settings), context)
            except BaseException as error:  # whatever it is, the queue goes on with the next job
                context.log.error("%s failed", record.title, exc_info=error)
                with self._lock:
                    record.diagnosis = diagnose_error(error, record.settings)
                    self._end(job, "failed", error=_describe(error))
                return
            was_stopped = result is None and job.control.is_requested("stop")
            context.log.info("%s %s", record.title, "was stopped" if was_stopped else "is finished")
        with self._lock:
            record.result = result
            self._end(job, ("interrupted" if self._is_closing else "stopped") if was_stopped else "finished")

    def _end(self, job: _Job, status: Literal["stopped", "interrupted", "failed", "finished"], *, error: str = "") -> None:
        record = job.record
        if job.progress is not None:
            job.refresh()
            record.summary = job.progress.to_json()
            if status != "failed":
                record.diagnosis = diagnose_progress(job.progress, record.settings)
        record.status, record.ended, record.error = status, time.time(), error
        job.progress, job.is_waiting = None, False
        self._save(record)

    def _recover(self, job: _Job) -> None:
        """Takes up a job whose process is gone: it was interrupted, unless its last event says that it had finished."""
        job.progress = Progress()
        job.refresh()
        is_finished, result = job.progress.is_finished, job.progress.result
        job.record.result = Path(result) if result else None
        self._end(job, "finished" if is_finished else "interrupted")
        entry = JOBS.get(job.record.kind) if job.record.kind in JOBS.names() else None
        if entry is not None and "recover" in entry.options:
            replace(entry, target=entry.options["recover"]).load()(dict(job.record.settings), self.host)

    def _view(self, job: _Job, queued: builtins.list[_Job]) -> JobView:
        record = job.record
        if job.progress is not None:
            job.refresh()
        progress = job.progress or _progress_of(record)
        is_active = job is self._active
        return JobView(
            id=record.id,
            kind=record.kind,
            title=record.title,
            status=_live_status(job) if is_active else record.status,  # type: ignore[arg-type]
            phase=progress.phase,
            done=progress.done,
            total=progress.total,
            step=progress.step,
            total_steps=progress.total_steps,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            seconds_per_step=progress.seconds_per_step,
            seconds_left=progress.seconds_left if is_active else None,
            memory_gib=progress.memory_gib,
            samples=[(step, Path(path)) for step, path in progress.samples],
            warnings=builtins.list(progress.warnings),
            error=record.error,
            diagnosis=diagnose_progress(progress, record.settings) if is_active else builtins.list(record.diagnosis),
            result=record.result,
            recommended=_recommended(progress),
            folder=record.folder,
            created=record.created,
            ended=record.ended,
            position=queued.index(job) + 1 if job in queued else 0,
            num_events=len(job.reader),
        )

    def _queued(self) -> builtins.list[_Job]:
        queued = [job for job in self._jobs.values() if job.record.status == "queued"]
        return sorted(queued, key=lambda job: (job.record.order, job.record.created))

    def _last_order(self) -> float:
        return max((job.record.order for job in self._queued()), default=0.0)

    def _put_first(self, job: _Job) -> None:
        others = [other for other in self._queued() if other is not job]
        if job.record.status != "queued":
            self._check_folder(job.record)
        job.record.order = others[0].record.order - 1 if others else 0.0
        job.record.status = "queued"
        self._save(job.record)

    def _move(self, job: _Job, places: int) -> None:
        queued = self._queued()
        target = queued.index(job) + places
        if 0 <= target < len(queued):
            other = queued[target]
            job.record.order, other.record.order = other.record.order, job.record.order
            self._save(job.record)
            self._save(other.record)

    def _get(self, id: str) -> _Job:
        if id not in self._jobs:
            raise JobError(f"there is no job {id!r}. List the jobs to see which there are.")
        return self._jobs[id]

    def _check_open(self) -> None:
        if self._is_closing:
            raise JobError("the queue of jobs is closed. Start the program again.")

    def _check_folder(self, record: Record) -> None:
        users: Iterable[Record] = (job.record for job in self._jobs.values() if job.record.status in ("queued", "active"))
        for other in users:
            if other.id != record.id and other.folder == record.folder:
                raise JobError(
                    f"{record.folder} is the folder of {other.title}, which is {other.status}. "
                    "Wait for its end, cancel it, or leave output_dir empty."
                )

    def _save(self, record: Record) -> None:
        """Keeps a job on the disk. Where that fails, the disk being full say, the queue goes on with what it knows."""
        try:
            record.save(self.folder)
        except OSError as error:
            log.error("the state of the job %s could not be kept: %s", record.id, error)


_QUEUES: dict[Path, JobQueue] = {}
_QUEUES_LOCK = threading.Lock()


def open_queue(host: Host) -> JobQueue:
    """Returns the process's queue of the host's data folder: the same one, with its thread, after the page was built anew.

    Raises:
        JobError: another process uses this data folder.
    """
    folder = host.folders().data_dir.resolve()
    with _QUEUES_LOCK:
        queue = _QUEUES.get(folder)
        if queue is None or queue._is_closing:
            queue = _QUEUES[folder] = JobQueue(host)
        queue.host = host
        return queue


def _hold(folder: Path) -> RunFolder:
    held = RunFolder(folder)
    try:
        held.lock()
    except RunFolderError as error:
        holder = (folder / "lock").read_text(encoding="utf-8", errors="replace") or "another process"
        raise JobError(
            f"the jobs in {folder} are in use by {holder}. Close that program, or start this one with another --lora-trainer-dir."
        ) from error
    except OSError as error:
        raise JobError(f"{folder} cannot be used: {error.strerror or error}. Choose another data folder.") from error
    return held


def _reader_of(record: Record) -> EventReader:
    return EventReader(record.folder / "events.jsonl")


def _live_status(job: _Job) -> Status:
    if job.control.is_requested("stop"):
        return "stopping"
    if job.control.is_requested("pause"):
        return "paused"
    return "waiting" if job.is_waiting else "running"


def _progress_of(record: Record) -> Progress:
    """Returns what is kept of an ended job's progress."""
    progress = Progress(**{name: record.summary[name] for name in KEPT if name in record.summary})
    average = record.summary.get("seconds_per_step")
    if average is not None:
        progress.seconds.append(average)
    return progress


def _recommended(progress: Progress) -> tuple[int, Path, str] | None:
    if progress.recommended is None:
        return None
    step, path, reason = progress.recommended
    return step, Path(path), reason


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, LoraTrainerError) else f"{type(error).__name__}: {error}"
