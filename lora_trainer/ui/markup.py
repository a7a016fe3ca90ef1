"""The page's own HTML in small pieces. Everything that comes from outside goes through `escape`."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lora_trainer.errors import ConfigError, Problem


def escape(text: object) -> str:
    """Returns text for HTML content and attributes.

    Braces and dollars become entities too: gradio 6 fills in templates that are marked by them.
    """
    escaped = html.escape(str(text), quote=True)
    return escaped.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def word(text: str) -> str:
    """Returns words of the page itself in an element of their own, so that the WebUI's localization finds and translates them.

    Only called with literals: a test reads them from the source and looks for each in `localizations/`.
    """
    return f"<span>{escape(text)}</span>"


def box(content: str, *classes: str, **attributes: str) -> str:
    """Returns a `div`; classes get our prefix, all but "is_...", attributes are escaped, `aria_live` becomes `aria-live`."""
    names = {name.replace("_", "-"): value for name, value in attributes.items()}
    extra = "".join(f' {name}="{escape(value)}"' for name, value in names.items())
    prefixed = " ".join(name if name.startswith("is_") else f"lora_trainer_{name}" for name in classes)
    return f'<div class="{prefixed}"{extra}>{content}</div>'


def facts(pairs: Mapping[str, str]) -> str:
    """Returns small figures with their labels; both are HTML already. Empty figures are left out."""
    cells = "".join(f"<div><dt>{label}</dt><dd>{figure}</dd></div>" for label, figure in pairs.items() if figure)
    return f'<dl class="lora_trainer_facts">{cells}</dl>'


def error_message(text: str) -> str:
    """Returns an error for the top of the page."""
    return box(escape(text), "message", "is_error", role="alert")


def notice(content: str) -> str:
    """Returns good news for the top of the page; `content` is HTML."""
    return box(content, "message", role="status")


def problem_list(problems: Iterable[Problem], fields: Mapping[str, tuple[str, str]] | None = None) -> str:
    """Returns findings as a list. Those of a field bear its name, by which the script puts them beside it and leads there.

    Args:
        problems: in the order of showing.
        fields: the label of each field of the page, and the id of what is folded around it or "", by name.
    """
    fields = fields or {}
    items = []
    for problem in problems:
        label, section = fields.get(problem.field, (problem.field, ""))
        is_field = problem.field in fields
        subject = f"<strong>{word(label) if is_field else escape(label)}</strong> " if label else ""
        text = " ".join(f"<span>{escape(part)}</span>" for part in (problem.message, problem.hint) if part)
        marks = f' data-field="{escape(problem.field)}" data-section="{escape(section)}"' if is_field else ""
        items.append(f'<li class="lora_trainer_{problem.severity}"{marks}>{subject}{text}</li>')
    return f'<ul class="lora_trainer_problems">{"".join(items)}</ul>' if items else ""


@contextmanager
def labelled(labels: Mapping[str, str]) -> Iterator[None]:
    """Within it the problems of settings are told by the labels that their fields bear on the page.

    Args:
        labels: by the names of the settings.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(replace(one, field=labels.get(one.field, one.field)) for one in error.problems) from error


def progress_bar(done: float, total: float, label: str) -> str:
    """Returns a bar with a label for those who do not see it; without a total it only shows that something happens."""
    if not total:
        return f'<div class="lora_trainer_bar is_open" role="progressbar" aria-label="{escape(label)}"><i></i></div>'
    share = max(0.0, min(100.0, 100 * done / total))
    values = f'aria-valuemin="0" aria-valuemax="{total:g}" aria-valuenow="{done:g}" aria-label="{escape(label)}"'
    return f'<div class="lora_trainer_bar" role="progressbar" {values}><i style="width:{share:.1f}%"></i></div>'


def data_uri(picture: bytes) -> str:
    """Returns a JPEG or PNG as an address that needs no route, so that no host has to be allowed to serve our folders."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def describe_seconds(seconds: float | None) -> str:
    """Returns a time as people say it, as HTML: "40 seconds", "9 minutes", "2 hours 5 minutes"; "" for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        number = max(1, round(seconds))
        return f"{number} {word('second' if number == 1 else 'seconds')}"
    hours, minutes = divmod(round(seconds / 60), 60)
    if (hours, minutes) < (1, 30):
        return f"{60 * hours + minutes} {word('minutes')}"
    return f"{hours} {word('hour' if hours == 1 else 'hours')} {minutes} {word('minute' if minutes == 1 else 'minutes')}"


def count_pictures(number: int) -> str:
    """Returns "1 picture" or "2 pictures" as HTML."""
    return f"{number:,} {word('picture' if number == 1 else 'pictures')}"


def count_captions(number: int) -> str:
    """Returns "1 caption" or "2 captions" as HTML."""
    return f"{number:,} {word('caption' if number == 1 else 'captions')}"


def as_attribute(value: Any) -> str:
    """Returns a flag for a data attribute."""
    return "1" if value else "0"
