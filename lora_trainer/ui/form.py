"""The widgets of a training's settings, made from the schema: one for every field, with its unit, range and help.

What stands in a widget is text or a plain value; `config.parse` reads it by the field's type, so that the page, YAML and the
command line accept the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from lora_trainer.config.parse import read_value
from lora_trainer.config.schema import SECTIONS, FieldInfo, default_of, field_infos
from lora_trainer.ui.compat import unsaved

FIRST = ("base_model", "train_data_dir", "output_name", "trigger_words")
MAIN = ("resolution", "lora_rank", "batch_size", "epochs", "learning_rate")
NONE = "none"


def element_id(name: str) -> str:
    """Returns the id of a field's widget, by which the script finds it."""
    return f"lora_trainer_train_{name}"


def in_labels(text: str) -> str:
    """Returns a message with the names of settings, which a YAML file has, as the page calls them."""
    return _NAMES.sub(lambda match: label_of(match[0]), text)


def section_id(name: str) -> str:
    """Returns the id of the section that is folded around a field; "" for those always in view."""
    section = field_infos()[name].section
    return "" if name in (*FIRST, *MAIN) else f"lora_trainer_train_section_{SECTIONS.index(section)}"


def label_of(name: str) -> str:
    """Returns what a field is called on the page."""
    info = field_infos()[name]
    return f"{info.label} ({info.unit})" if info.unit else info.label


def help_of(info: FieldInfo) -> str:
    """Returns a field's help with its range and what is usual."""
    rules = "; ".join(part for part in (_range_of(info), f"usual: {info.usual}" if info.usual else "") if part)
    return f"{info.help} {rules[0].upper()}{rules[1:]}." if rules else info.help


def _range_of(info: FieldInfo) -> str:
    """Returns "1 to 1,024", "above 0, up to 100", "above 0"; "" for what has no range."""
    if info.minimum is None:
        return ""
    low = f"{info.minimum:,.10g}"
    high = "" if info.maximum is None else f"{info.maximum:,.10g}"
    if info.exclusive_minimum:
        return f"above {low}, up to {high}" if high else f"above {low}"
    return f"{low} to {high}" if high else f"at least {low}"


def build_widget(name: str, *, choices: Sequence[Any] | None = None, value: Any = None, **options: Any) -> Any:
    """Returns the widget of a field.

    Args:
        name: of the field.
        choices: makes it a list to choose from that takes other text, too.
        value: what stands in it at first; None for the field's default.
    """
    info = field_infos()[name]
    default = default_of(name)
    shown = value if value is not None else show_value(info, None if default is dataclasses.MISSING else default)
    common = {"label": label_of(name), "info": help_of(info), "elem_id": element_id(name), "interactive": True, **options}
    if choices is not None:
        return unsaved(gr.Dropdown(choices=list(choices), value=shown or None, allow_custom_value=True, **common))
    if info.kind == "bool":
        return unsaved(gr.Checkbox(value=bool(shown), **common))
    if info.kind == "choice":
        return unsaved(gr.Dropdown(choices=[NONE] * info.optional + list(info.choices), value=shown, **common))
    if info.kind == "int" and not info.optional:  # gradio 3 reads an empty number as 0
        return unsaved(gr.Number(value=shown, **common))
    lines = 3 if info.kind == "texts" else 1
    return unsaved(gr.Textbox(value=shown, lines=lines, max_lines=max(lines, 8) if lines > 1 else 1, **common))


def show_value(info: FieldInfo, value: Any) -> Any:
    """Returns a setting as its widget shows it."""
    if info.kind == "bool":
        return bool(value)
    if value is None:
        return NONE if info.kind == "choice" else ""
    if info.kind == "int":
        return str(value) if info.optional else value
    if info.kind == "float":
        return f"{value:g}"
    if info.kind == "texts":
        return "\n".join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={number:g}" for key, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def read_values(widgets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a form by YAML key, ready for `config.parse`; what is as empty as the default is left out."""
    values = {}
    for name, value in widgets.items():
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_empty = value is None or (isinstance(value, str) and not value.strip())
        if not (is_empty and _is_empty_by_default(name)):
            values[name] = "" if value is None else value
    return values


def preset_updates(widgets: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the widgets show after a change of preset, by field; what the user has set by hand stays.

    Args:
        widgets: what stands in the widgets.
        old: the values of the preset that was applied before, by YAML key; none for the defaults.
        new: those of the preset to apply.
    """
    updates = {}
    for name in {**old, **new}:
        before, after = _preset_value(name, old), _preset_value(name, new)
        if before != after and _as_text(widgets[name]) == _as_text(before):
            updates[name] = after
    return updates


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what every widget shows for settings by YAML key, with the defaults for those that are not among them."""
    infos = field_infos()
    shown = {}
    for name, info in infos.items():
        default = default_of(name)
        value = values.get(name, None if default is dataclasses.MISSING else default)
        try:
            shown[name] = show_value(info, read_value(info, value) if value is not None else None)
        except ValueError:  # shown as it was written; the problem is told beside it
            shown[name] = value
    return shown


_NAMES = re.compile("|".join(rf"\b{name}\b" for name in field_infos() if "_" in name))  # others are words of every day


def _preset_value(name: str, values: Mapping[str, Any]) -> Any:
    info = field_infos()[name]
    return show_value(info, read_value(info, values[name]) if name in values else default_of(name))


def _as_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _is_empty_by_default(name: str) -> bool:
    default = default_of(name)
    return default is dataclasses.MISSING or default in (None, "", ())
