"""Finds what a person can read on the page: the components' texts, and the literals that the page's own HTML is made from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_trainer.config.schema import field_infos
from lora_trainer.inference.table import SAMPLERS
from lora_trainer.models.table import FAMILIES
from lora_trainer.ui import page
from lora_trainer.ui.form import in_labels

FOLDER = Path(page.__file__).parent
# Words of YAML: they are the same in every language.
SETTINGS = {choice for info in field_infos().values() for choice in info.choices} | {"none"}
HIDDEN = {"refresh", "tick", "back", "forward"}
# Behind the page, but what they say is read elsewhere: in a terminal, in the log, by programs, or on the WebUI's settings page.
ELSEWHERE = (
    *("__main__", "api", "app", "bootstrap", "cli", "commands", "control", "demo", "entry", "extension", "libraries", "progress"),
    *("adapters/inspect", "adapters/report", "config/schema"),
    *("host/login", "host/settings", "host/table", "inference/lettering", "jobs/context"),
)
IN_LABELS = ("jobs/diagnosis",)  # why a run ended: the page names the settings as it labels them
# What a program reads or writes: patterns, lines of the log and of YAML, words looked for in captions, the text of a sheet.
NO_MESSAGE = re.compile(
    r"%s|import |\(\?:|\|non-finite|of memory\||\.\*|^\w+: \w+$"
    r"|^trending on|^some kind of$|CFG scale \{\}, seed|^LoRA \{\} on the base"
)
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


def message_templates() -> tuple[set[str], set[str]]:
    """Returns the messages of the rooms behind the page: errors, warnings, advice, with "{}" where a value stands.

    That is every text of three words and more in their sources that is no docstring, and what the page's own code raises. The
    second set are the shorter ones, of which some are parts of messages and others the program's own words.
    """
    package = FOLDER.parent
    found = {re.sub(r"^[\d.]+(e-\d+)? to [\d.]+(e-\d+)?$", "{} to {}", info.usual) for info in field_infos().values()}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if name.startswith("ui/"):
            found |= set(_raised(ast.parse(path.read_text(encoding="utf-8"))))
        elif name not in ELSEWHERE and name.partition("/")[0] not in ELSEWHERE:
            texts = set(_sentences(ast.parse(path.read_text(encoding="utf-8"))))
            found |= texts | ({in_labels(text) for text in texts} if name in IN_LABELS else set())
    whole = {text for text in found if len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and " " in text.strip()}
    return {text for text in whole if not NO_MESSAGE.search(text)}, found - whole


def _raised(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith(("Error", "Problem")):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                yield from _sentences(argument)


def _sentences(tree: ast.AST) -> Iterator[str]:
    """Yields the texts below a node; f-strings whole, but not what is inside them, docstrings left out."""
    if isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant):
        return
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree.value
    elif isinstance(tree, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in tree.values)
        for part in tree.values:
            if isinstance(part, ast.FormattedValue):
                yield from _sentences(part.value)
    else:
        for child in ast.iter_child_nodes(tree):
            yield from _sentences(child)
