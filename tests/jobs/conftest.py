from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_trainer.jobs import JobQueue, JobView
from lora_trainer.jobs import queue as queue_module
from lora_trainer.registry import Registry
from tests.jobs import scripted
from tests.jobs.host import FolderHost

GIVE_UP_SECONDS = 600  # a job that hangs would hang the tests


@pytest.fixture(autouse=True)
def scripted_kind(monkeypatch) -> None:
    """Adds the scripted kind by its one table line."""
    scripted.WORDS.clear()
    monkeypatch.setattr(queue_module, "JOBS", Registry("kind of job", (scripted.ENTRY, *queue_module.JOBS)))


@pytest.fixture
def host(tmp_path: Path) -> FolderHost:
    return FolderHost(tmp_path)


@pytest.fixture
def queue(host: FolderHost) -> Iterator[JobQueue]:
    queue = JobQueue(host)
    yield queue
    queue.close()


def wait_for(queue: JobQueue, id: str, is_so: Callable[[JobView], object]) -> JobView:
    """Returns the job when something is so of it."""
    end = time.monotonic() + GIVE_UP_SECONDS
    while not is_so(view := queue.view(id)):
        assert time.monotonic() < end, f"it never came: {view}\n{queue.log_tail(id)}"
        time.sleep(0.005)
    return view


def wait_status(queue: JobQueue, id: str, *statuses: str) -> JobView:
    return wait_for(queue, id, lambda view: view.status in statuses)
