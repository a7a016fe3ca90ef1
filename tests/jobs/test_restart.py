"""A process that is killed while it trains: the next one finds the queue as it was, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.jobs import JobQueue
from tests.jobs.conftest import wait_status
from tests.jobs.host import FolderHost
from tests.training.conftest import pictures, toy_family, toy_values  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_and_started_again(tmp_path, toy_values):  # noqa: F811
    settings = {name: value for name, value in toy_values.items() if name not in ("output_dir", "cache_dir")}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "tests.jobs.restart_child", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        child.kill()
    queue = JobQueue(FolderHost(tmp_path))
    assert [(view.title, view.status) for view in queue.list()] == [
        ("three", "queued"),
        ("two", "interrupted"),
        ("one", "finished"),
    ]
    three, two, one = queue.list()
    assert (two.step, two.total_steps, one.step) == (12, 24, 24)
    assert one.result is not None and one.result.exists()
    queue.command(two.id, "continue")
    assert wait_status(queue, two.id, "finished").step == 24
    assert [event.data["step"] for event in queue.events(two.id) if event.kind == "resumed"] == [10]
    assert wait_status(queue, three.id, "finished").step == 24
    queue.close()
