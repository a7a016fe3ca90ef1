"""Finds what a person can read on the page: the components' texts, and the literals that the page's own HTML is made from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_trainer.config.schema import field_infos
from lora_trainer.inference.table import SAMPLERS
from lora_trainer.models.table import FAMILIES
from lora_trainer.ui import page

FOLDER = Path(page.__file__).parent
# Words of YAML: they are the same in every language.
SETTINGS = {choice for info in field_infos().values() for choice in info.choices} | {"none"}
HIDDEN = {"refresh", "tick", "back", "forward"}
NAMES = {"LoRA Trainer", "my_pictures", "SD1", "SD2", "SDXL"} | {entry.label for entry in SAMPLERS}


def visible_strings(blocks: Any) -> set[str]:
    """Returns every text of a built page that somebody can see."""
    found = {text for text in _component_texts(blocks) if text} | set(_literals()) | {entry.label for entry in FAMILIES}
    return {text for text in found if any(letter.isalpha() for letter in text)} - SETTINGS - HIDDEN - NAMES


def _component_texts(blocks: Any) -> Iterator[str]:
    for block in blocks.blocks.values():
        kind = type(block).__name__
        for name in ("label", "info", "placeholder"):
            text = getattr(block, name, None)
            if isinstance(text, str) and getattr(block, "show_label", True) is not False:
                yield text
        if kind in ("Button", "UploadButton") and isinstance(block.value, str):
            yield block.value
        for choice in getattr(block, "choices", None) or ():
            yield choice[0] if isinstance(choice, tuple | list) else choice


def _literals() -> Iterator[str]:
    """Yields the texts that `word` marks in the sources, and new texts of buttons."""
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "word":
                yield from _texts_in(node.args[0])
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "update":
                for keyword in node.keywords:
                    if keyword.arg in ("value", "label", "info"):
                        yield from _texts_in(keyword.value)


def _texts_in(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts_in(node.body)
        yield from _texts_in(node.orelse)
