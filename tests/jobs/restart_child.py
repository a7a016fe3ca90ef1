"""Run by test_restart.py in a process of its own: queues three trainings of the toy family, and is killed in the second."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from lora_trainer.jobs import JobQueue
from lora_trainer.models import table
from lora_trainer.registry import Registry
from tests.jobs.host import FolderHost
from tests.training import toy


def main(root: Path) -> None:
    table.FAMILIES = Registry("model family", (toy.ENTRY, *table.FAMILIES))
    host = FolderHost(root)
    queue = JobQueue(host)
    settings = json.loads((root / "settings.json").read_text(encoding="utf-8"))
    first = queue.submit("train", settings, title="one")
    while queue.view(first).status != "finished":
        threading.Event().wait(0.01)
    host.on_step[12] = stand_still
    for title in ("two", "three"):
        queue.submit("train", settings, title=title)
    threading.Event().wait()


def stand_still() -> None:
    print("in the middle", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
