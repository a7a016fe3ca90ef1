"""The HTML of the part Captions: pictures with their captions as fields, and the lists beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_trainer.dataset.advice import Advice, count_tags, count_words
from lora_trainer.dataset.bulk import Preview
from lora_trainer.dataset.caption_store import CaptionStore, Version
from lora_trainer.dataset.journal import Change
from lora_trainer.dataset.thumbnails import thumbnail, thumbnails
from lora_trainer.ui import markup
from lora_trainer.ui.caption_typing import Typed
from lora_trainer.ui.caption_view import Looked, page_of
from lora_trainer.ui.markup import escape, word

SIDE = 288
LARGE_SIDE = 1400
MOST_FREQUENT = 40
MOST_PREVIEWED = 12
MOST_HISTORY = 30
MOST_VERSIONS = 8


def draw_cards(looked: Looked, number: int, size: int, cache_dir: Path, store: CaptionStore, *, after: int = 0) -> str:
    """Returns one page of pictures with their captions; `number` counts from 0.

    Args:
        after: the number of the script's message that was dealt with before, see `caption_typing`; 0 for none.
    """
    names, number, count = page_of(looked.shown, number, size)
    versions = store.versions_of(names)
    if not names:
        return markup.box(word("No captions here."), "empty")
    drawn = str(time.time_ns())  # by which the script knows fields that were drawn anew
    small = thumbnails([looked.folder / name for name in names], cache_dir, SIDE)
    cards = "".join(_card(looked, name, data, versions[name], drawn) for name, data in zip(names, small, strict=True))
    return markup.box(cards, "entries", role="group", data_folder=str(looked.folder), data_after=str(after)) + _pager(
        number, count
    )


def _card(looked: Looked, name: str, data: bytes | None, versions: Sequence[Version], drawn: str) -> str:
    caption, label = looked.captions[name], escape(name)
    image = f'<img src="{markup.data_uri(data)}" alt="" loading="lazy">' if data else f"<b>{word('not readable')}</b>"
    findings = looked.report.of_picture(name) if looked.report else ()
    notes = "".join(f'<li class="lora_trainer_warning">{escape(finding.reason)}</li>' for finding in findings)
    loss = looked.losses.get(name)
    learned = f"<small>{word('Loss')} {loss.first:.4f} → {loss.last:.4f} ({loss.change:+.0%})</small>" if loss else ""
    return (
        f'<article class="lora_trainer_entry" data-entry="{label}">'
        f'<button type="button" class="lora_trainer_frame" data-large="{label}" aria-label="{label}">{image}</button>'
        f'<div><header><strong>{label}</strong>{learned}<em class="lora_trainer_state" role="status"></em></header>'
        f'<textarea data-caption="{label}" data-seen="{escape(caption)}" data-drawn="{drawn}" '
        f'rows="4" dir="auto" aria-label="{label}">'
        f'{escape(caption)}</textarea><div class="lora_trainer_conflict"></div>'
        f'<ul class="lora_trainer_problems lora_trainer_advice">{draw_advice(looked.advice.get(name, ()))}</ul>'
        f'<ul class="lora_trainer_problems">{notes}</ul>{_earlier(versions, caption)}</div></article>'
    )


def _earlier(versions: Sequence[Version], caption: str) -> str:
    """Returns what a caption was before, each with a button by which the script puts it back; "" where it was nothing else."""
    others = {version.text: version for version in reversed(versions) if version.text not in ("", caption)}
    rows = "".join(
        f'<li><button type="button" data-version="{escape(text)}">{word("Put back")}</button> '
        f"<small>{_moment(version.time)} {escape(version.title)}</small><br>{escape(text)}</li>"
        for text, version in sorted(others.items(), key=lambda entry: -entry[1].time)[:MOST_VERSIONS]
    )
    if not rows:
        return ""
    return f'<details><summary>{word("Earlier versions")}</summary><ul class="lora_trainer_history">{rows}</ul></details>'


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def draw_advice(advice: Sequence[Advice]) -> str:
    """Returns the list items of a caption's advice."""
    return "".join(f'<li class="lora_trainer_notice">{escape(one.message)}</li>' for one in advice)


def draw_answer(typed: Typed, advice: Mapping[str, Mapping[str, Sequence[Advice]]]) -> str:
    """Returns what the script is told of the captions that it had saved, as data of an empty element.

    Args:
        typed: what became of them.
        advice: by folder and picture, where it is shown.
    """
    told: dict[str, dict[str, dict[str, str | None]]] = {}
    for folder, wanted in typed.wanted.items():
        if folder in typed.failures:
            told[folder] = {name: {"failed": typed.failures[folder]} for name in wanted}
            continue
        result, beside = typed.results[folder], advice.get(folder, {})
        conflicts = {one.name: {"current": one.current, "reason": one.reason} for one in result.conflicts}
        told[folder] = {
            name: conflicts.get(name) or {"saved": result.saved.get(name, text), "advice": draw_advice(beside.get(name, ()))}
            for name, text in wanted.items()
        }
    return f'<div data-answer="{typed.id}" data-told="{escape(json.dumps(told))}"></div>'


def draw_totals(looked: Looked) -> str:
    """Returns how much of the set is shown, and what is doubtful about its captions."""
    figures = {
        word("Pictures"): str(len(looked.captions)),
        word("Shown"): str(len(looked.shown)),
        word("Without caption"): str(sum(not caption for caption in looked.captions.values()) or ""),
        word("With advice"): str(len(looked.advice) or ""),
    }
    return markup.facts(figures) + markup.problem_list(looked.problems)


def draw_frequency(captions: Sequence[str]) -> str:
    """Returns the most frequent tags and words as buttons, by which the script filters."""
    parts = []
    for title, counts in ((word("Tags"), count_tags(captions)), (word("Words"), count_words(captions))):
        buttons = "".join(
            f'<button type="button" data-filter="{escape(text)}">{escape(text)} <small>{number}</small></button>'
            for text, number in counts[:MOST_FREQUENT]
        )
        parts.append(f"<h4>{title}</h4>{markup.box(buttons, 'chips')}")
    return "".join(parts)


def draw_preview(preview: Preview) -> str:
    """Returns how many captions would change, and the first of them before and after."""
    if not preview.changes:
        return markup.box(word("Nothing would change."), "message")
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><del>{escape(before)}</del></td><td><ins>{escape(after)}</ins></td></tr>"
        for name, (before, after) in list(preview.changes.items())[:MOST_PREVIEWED]
    )
    more = len(preview.changes) - MOST_PREVIEWED
    rest = f"<p>… {more} {word('more')}</p>" if more > 0 else ""
    heading = f"<p><strong>{len(preview.changes)}</strong> / {preview.num_captions} {word('captions would change:')}</p>"
    return markup.box(f"{heading}<table>{rows}</table>{rest}", "preview")


def draw_history(changes: Sequence[Change]) -> str:
    """Returns the last changes, the latest first, each with a button that takes it back."""
    if not changes:
        return markup.box(word("Nothing was changed yet."), "empty")
    rows = "".join(
        f'<li><button type="button" data-revert="{change.id}">{word("Take back")}</button> '
        f"<small>{_moment(change.time)}</small> {escape(change.title)} "
        f"<small>{len(change.values)}</small></li>"
        for change in changes[:MOST_HISTORY]
    )
    return f'<ul class="lora_trainer_history">{rows}</ul>'


def name_run(run: Change) -> str:
    """Returns what a caption run is called in the list of runs."""
    return f"{run.title}, {_moment(run.time)} (#{run.id})"


def draw_report(looked: Looked) -> str:
    """Returns what the last report found, by kind, and the groups of near-duplicates."""
    report = looked.report
    if report is None:
        return markup.box(word("The pictures were not checked yet."), "empty")
    counts = {escape(kind): str(number) for kind, number in report.counts().items()}
    groups = "".join(
        f"<li>{word('Keep')} <strong>{escape(group.best)}</strong>: {escape(', '.join(group.names[1:]))}</li>"
        for group in report.groups
    )
    heading = f"<p>{report.num_pictures} {word('pictures checked, for')} {report.resolution} {word('pixels')}</p>"
    return heading + (markup.facts(counts) or word("No problems found.")) + (f"<ul>{groups}</ul>" if groups else "")


def draw_large(folder: Path, name: str, cache_dir: Path) -> str:
    """Returns a picture as large as a screen shows it; "" where it cannot be read."""
    data = thumbnail(folder / name, cache_dir, LARGE_SIDE)
    return f'<img src="{markup.data_uri(data)}" alt="{escape(name)}" data-shown="{escape(name)}">' if data else ""


def _pager(page: int, last: int) -> str:
    if last == 1:
        return ""
    back, forward = (" disabled" if is_end else "" for is_end in (page == 0, page == last - 1))
    return markup.box(
        f'<button type="button" data-press="lora_trainer_captions_back"{back}>◀ {word("Back")}</button>'
        f"<span>{page + 1} / {last}</span>"
        f'<button type="button" data-press="lora_trainer_captions_forward"{forward}>{word("Next")} ▶</button>',
        "pager",
    )
