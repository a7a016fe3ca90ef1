"""What runs now, in one line at the top of the page, and the words for a job's status."""

from __future__ import annotations

import time

from lora_trainer.jobs.view import JobView
from lora_trainer.ui import markup
from lora_trainer.ui.markup import word

BEGINNING_SECONDS = 60


def describe_activity(jobs: list[JobView]) -> str:
    """Returns the line at the top: what runs, how far it is, how many jobs wait.

    The script ticks while it is marked active, and draws anew when the mark of the last end changes: a short job may be over
    before the page has seen it at work.
    """
    active = next((job for job in jobs if job.is_active), None)
    num_queued = sum(job.status == "queued" for job in jobs)
    content = ""
    if active is not None:
        left = markup.describe_seconds(active.seconds_left)
        where = f"{active.done} / {active.total}" if active.total else ""
        content = (
            f'<strong>{markup.escape(active.title)}</strong> <span class="lora_trainer_status is_{active.status}">'
            f"{word_of_status(active.status)}</span> <span>{word_of_phase(active.phase)} {where}</span>"
            + (f" <span>{word('Time left')} {left}</span>" if left else "")
            + markup.progress_bar(active.done, active.total, active.title)
        )
    if num_queued:
        content += f" <span>{num_queued} {word('waiting in the queue')}</span>"
    # A job that was queued a moment ago is about to begin.
    is_beginning = any(job.status == "queued" and time.time() - job.created < BEGINNING_SECONDS for job in jobs)
    marks = {"data_active": markup.as_attribute(active or is_beginning), "data_beat": _beat(active)}
    marks["data_ended"] = str(max((job.ended or 0 for job in jobs), default=0))
    return markup.box(content, "strip", *([] if content else ["is_idle"]), **marks)


def word_of_status(status: str) -> str:
    """Returns a status in words, for the page."""
    words = {
        "queued": word("queued"),
        "waiting": word("waiting for the graphics card"),
        "running": word("running"),
        "paused": word("paused"),
        "stopping": word("stopping"),
        "stopped": word("stopped"),
        "interrupted": word("interrupted"),
        "failed": word("failed"),
        "finished": word("finished"),
    }
    return words[status]


def word_of_phase(phase: str) -> str:
    """Returns what a job does now, for the page; one that is not listed is shown as it is."""
    words = {
        "loading the base model": word("loading the base model"),
        "encoding pictures": word("encoding pictures"),
        "encoding captions": word("encoding captions"),
        "encoding pictures for validation": word("encoding pictures for validation"),
        "encoding captions for validation": word("encoding captions for validation"),
        "training": word("training"),
        "validating": word("validating"),
        "drawing samples": word("drawing samples"),
        "writing captions": word("writing captions"),
        "looking at the pictures": word("looking at the pictures"),
        "changing the pictures": word("changing the pictures"),
        "drawing": word("drawing"),
        "comparing with the training pictures": word("comparing with the training pictures"),
        "writing the LoRA file": word("writing the LoRA file"),
    }
    return words.get(phase) or markup.escape(phase)


def _beat(job: JobView | None) -> str:
    """Returns what changes whenever something happened; also the time a little, so that the script sees an answer."""
    return f"{time.time():.1f}-{job.num_events if job else 0}"
