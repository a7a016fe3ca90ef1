"""Inspection and self-test as text for a terminal. Our own words are ASCII; names stand as the file has them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from lora_trainer.adapters.inspect import WEBUI_FORM, FileReport
from lora_trainer.adapters.self_test import Check

WIDTH = 110


def format_report(report: FileReport) -> str:
    """Returns a `FileReport` as a table of two columns."""
    rows = [
        ("file", f"{report.path.name}, {_size(report.file_bytes)}"),
        ("keys", _describe_form(report)),
        ("card shown for", report.webui_class),
        ("call it as", f"<lora:{report.alias}:1>"),
        ("stored as", ", ".join(report.dtypes)),
        ("hash", report.hash_state),
    ]
    if report.form == WEBUI_FORM:
        rows += _describe_weights(report)
    for part in report.parts:
        facts = [f"{part.num_layers} layers", _list("rank", part.ranks), _list("alpha", part.alphas), _list("scale", part.scales)]
        facts.append(f"{part.num_silent} of them zero" if part.num_silent else "")
        rows.append((part.name, ", ".join(fact for fact in facts if fact)))
    if report.num_unplaced:
        rows.append(("not placed", f"{report.num_unplaced} modules belong to no part of a Stable Diffusion model"))
    rows += [("note", note) for note in report.notes]
    return _table(rows)


def format_checks(checks: Sequence[Check]) -> str:
    """Returns the checks as a table, with a last line that says how many failed."""
    rows = [(f"{'ok  ' if check.passed else 'FAIL'} {check.name}", check.detail) for check in checks]
    failed = sum(not check.passed for check in checks)
    verdict = (
        f"{failed} of {len(checks)} checks failed."
        if failed
        else f"All {len(checks)} checks passed: the WebUI will apply the file."
    )
    return f"{_table(rows)}\n{verdict}"


def _describe_weights(report: FileReport) -> list[tuple[str, str]]:
    effect = {True: "yes", False: "NONE: every pair multiplies to zero", None: "not examined for this kind"}
    non_finite = f"NO: {len(report.non_finite)} layers with NaN or infinity" if report.non_finite else "yes"
    return [
        ("kind", ", ".join(report.kinds) or "none that is known"),
        ("made for", " or ".join(report.possible_bases)),
        ("effect", effect[report.has_effect]),
        ("finite numbers", non_finite),
    ]


def _describe_form(report: FileReport) -> str:
    if report.form == WEBUI_FORM:
        return "in the WebUI's form"
    return f"{report.form}: AUTOMATIC1111's WebUI loads this without an error, and it has no effect"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def _list(word: str, values: Iterable[float]) -> str:
    texts = [f"{value:g}" for value in values]
    if len(texts) > 4:
        texts = [texts[0], "...", texts[-1]]
    return f"{word} {', '.join(texts)}" if texts else ""


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        # A file's own texts may hold control characters, which a terminal would obey.
        printable = "".join(character if character.isprintable() else "?" for character in text)
        wrapped = textwrap.wrap(printable, WIDTH - width) or [""]
        lines.append(f"{name:<{width}}{wrapped[0]}")
        lines += [" " * width + line for line in wrapped[1:]]
    return "\n".join(lines)
