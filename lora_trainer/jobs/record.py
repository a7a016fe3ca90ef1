"""What is kept of a job on the disk: one folder each, `<data folder>/jobs/<id>/`, with `job.json`, `log.txt` and, for kinds
without a folder of their own, `events.jsonl`. The queue is the only writer."""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_trainer.errors import Problem
from lora_trainer.files import write_text
from lora_trainer.jobs.view import to_plain

log = logging.getLogger(__name__)

# "active" in a file whose process is gone means that the job was interrupted.
Kept = Literal["queued", "active", "stopped", "interrupted", "failed", "finished"]


@dataclass
class Record:
    """One job.

    Attributes:
        settings: as they were given.
        folder: of the job's events and files.
        order: the queued job with the lowest is next.
        status, error, diagnosis, result, summary: how it stands; `summary` is what `Progress` knew at its end.
    """

    id: str
    kind: str
    title: str
    settings: dict[str, Any]
    folder: Path
    created: float
    order: float = 0.0
    status: Kept = "queued"
    started: float | None = None
    ended: float | None = None
    error: str = ""
    diagnosis: list[Problem] = field(default_factory=list)
    result: Path | None = None
    summary: dict[str, Any] = field(default_factory=dict)

    def save(self, root: Path) -> None:
        """Writes it whole or not at all."""
        write_text(job_path(root, self.id), json.dumps(to_plain(asdict(self)), ensure_ascii=False, indent=2) + "\n")


def new_id() -> str:
    """Returns a name that sorts by time and is safe as a folder's name and in an address."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def job_path(root: Path, id: str) -> Path:
    return root / id / "job.json"


def log_path(root: Path, id: str) -> Path:
    return root / id / "log.txt"


def load_records(root: Path) -> list[Record]:
    """Returns the jobs below a folder, the oldest first; one whose file is damaged is passed over with a warning in the log."""
    records = []
    for path in sorted(root.glob("*/job.json")):
        try:
            records.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read and is left out of the list of jobs: %s", path, error)
    return sorted(records, key=lambda record: (record.created, record.id))


def _read(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["folder"] = Path(values["folder"])
    values["result"] = Path(values["result"]) if values.get("result") else None
    values["diagnosis"] = [Problem(**problem) for problem in values.get("diagnosis", [])]
    record = Record(**values)
    if record.id != path.parent.name:
        raise ValueError(f"it is of the job {record.id}")
    return record
