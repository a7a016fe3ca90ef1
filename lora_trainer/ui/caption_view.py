"""What the part Captions shows of a set: which captions, in what order, with which advice, findings and losses beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_trainer.dataset.advice import Advice, AdviceKind, Adviser, CaptionFilter, choose
from lora_trainer.dataset.bulk import (
    Edit,
    add_prefix,
    add_suffix,
    add_tags,
    change_case,
    dedupe_tags,
    put_trigger_first,
    read_list,
    read_pairs,
    remove_tags,
    remove_words,
    replace_pattern,
    replace_text,
    replace_words,
    sort_tags,
)
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.dataset.losses import PictureLoss, read_losses
from lora_trainer.dataset.report import QualityReport, report_path
from lora_trainer.errors import Problem
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.jobs.view import JobView
from lora_trainer.run_folder import RunFolder

ORDERS = ("By name", "Least learned first")
_ADVICE: dict[str, AdviceKind] = {
    "Without caption": "empty",
    "Without trigger word": "no trigger",
    "Vague words": "vague",
    "Over 75 tokens": "too long",
    "Nearly the same": "near-identical",
}
_FINDINGS = {
    "Unreadable pictures": "unreadable",
    "Truncated pictures": "truncated",
    "Too small": "too small",
    "Single colour": "one colour",
    "Blurred": "blurred",
    "Near-duplicates": "duplicate",
    "With borders": "borders",
    "With transparency": "transparency",
    "Rotated by EXIF": "turned",
    "Extreme shape": "extreme aspect",
}
SPARE = "Near-duplicates, except the sharpest"
ANY_FINDING = "With any finding"
FILTERS = ("All", *_ADVICE, ANY_FINDING, *_FINDINGS, SPARE)


@dataclass(frozen=True)
class Looked:
    """A set as it was looked at.

    Attributes:
        folder: of the set.
        captions: of all pictures.
        shown: the names of those that the filter lets through, in order.
        advice, report, losses: see their types; an empty report before the first.
        problems: what is doubtful about the captions.
    """

    folder: Path
    captions: dict[str, str]
    shown: tuple[str, ...]
    advice: dict[str, list[Advice]]
    report: QualityReport | None
    losses: dict[str, PictureLoss]
    problems: tuple[Problem, ...] = field(default=())


def look(
    store: CaptionStore,
    queue: JobQueue,
    *,
    adviser: Adviser | None = None,
    shows: str = "All",
    contains: str = "",
    trigger: str = "",
    order: str = ORDERS[0],
) -> Looked:
    """Returns a set through a filter.

    Args:
        store: of the set.
        queue: of jobs; the last training of this folder tells the losses.
        adviser: of the set, where one is kept.
        shows: one of `FILTERS`.
        contains: a text that captions must contain, or a regular expression between slashes.
        trigger: the trigger word, for advice.
        order: one of `ORDERS`.

    Raises:
        DatasetError: the folder cannot be read, or the expression is wrong.
    """
    found = store.read()
    advice = (adviser or Adviser()).advise(found.captions, trigger=trigger)
    report = QualityReport.load(report_path(store.folder))
    losses = read_run_losses(queue, store.folder)
    wanted = _filter(shows, report)
    text = contains.strip()
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        wanted = replace(wanted, pattern=text[1:-1])
    else:
        wanted = replace(wanted, contains=text)
    names = tuple(choose(found.captions, wanted, advice))
    if order == ORDERS[1]:
        names = tuple(sorted(names, key=lambda name: -losses[name].change if name in losses else float("inf")))
    return Looked(store.folder, found.captions, names, advice, report, losses, found.problems)


def _filter(shows: str, report: QualityReport | None) -> CaptionFilter:
    if shows in _ADVICE:
        return CaptionFilter(advice=_ADVICE[shows])
    findings = () if report is None else report.findings
    if shows in _FINDINGS:
        return CaptionFilter(names=frozenset(finding.name for finding in findings if finding.kind == _FINDINGS[shows]))
    if shows == ANY_FINDING:
        return CaptionFilter(names=frozenset(finding.name for finding in findings))
    if shows == SPARE:
        best = {group.best for group in report.groups} if report else set()
        return CaptionFilter(names=frozenset(name for group in (report.groups if report else ()) for name in group.names) - best)
    return CaptionFilter()


def runs_of(queue: JobQueue, folder: Path) -> list[JobView]:
    """Returns the trainings of a folder that have a record of their captions, the newest first."""
    found = [job for job in queue.list() if job.kind == "train" and RunFolder(job.folder).captions_path.is_file()]
    own = [job for job in found if _is_same(str(queue.settings(job.id).get("train_data_dir") or ""), folder)]
    return sorted(own, key=lambda job: -job.created)


def read_run_losses(queue: JobQueue, folder: Path) -> dict[str, PictureLoss]:
    """Returns the losses of single pictures of the last training of a folder that has some; {} where none has."""
    for job in runs_of(queue, folder):
        losses = read_losses(RunFolder(job.folder).losses_path)
        if losses:
            return losses
    return {}


def _is_same(path: str, folder: Path) -> bool:
    try:
        return bool(path) and Path(path).samefile(folder)
    except OSError:
        return False


# What each change needs of the two fields, and what it is called.
EDITS: dict[str, Callable[[str, str, Mapping[str, Any]], Edit]] = {
    "Find and replace": lambda find, other, how: replace_text(
        find, other, ignore_case=bool(how.get("ignore_case")), whole_words=bool(how.get("whole_words"))
    ),
    "Find and replace a pattern": lambda find, other, how: replace_pattern(find, other, ignore_case=bool(how.get("ignore_case"))),
    "Replace words (a = b, one a line)": lambda find, other, how: replace_words(read_pairs(find)),
    "Remove words": lambda find, other, how: remove_words(read_list(find)),
    "Add before": lambda find, other, how: add_prefix(find),
    "Add behind": lambda find, other, how: add_suffix(find),
    "Add tags": lambda find, other, how: add_tags(read_list(find)),
    "Add tags at the start": lambda find, other, how: add_tags(read_list(find), at_start=True),
    "Remove tags": lambda find, other, how: remove_tags(read_list(find)),
    "Trigger word first, once": lambda find, other, how: put_trigger_first(find or str(how.get("trigger") or "")),
    "Sort tags": lambda find, other, how: sort_tags(keep_first=1 if how.get("trigger") else 0),
    "Remove repeated tags": lambda find, other, how: dedupe_tags(),
    "lowercase": lambda find, other, how: change_case("lower"),
    "UPPERCASE": lambda find, other, how: change_case("upper"),
    "Each Word With A Capital": lambda find, other, how: change_case("title"),
    "First letter a capital": lambda find, other, how: change_case("sentence"),
}


def page_of(names: Sequence[str], number: int, size: int) -> tuple[tuple[str, ...], int, int]:
    """Returns the names on a page, the page's number made to fit, and how many pages there are. Pages count from 0."""
    count = max(1, -(-len(names) // size))
    number = min(max(0, number), count - 1)
    return tuple(names[number * size : (number + 1) * size]), number, count
