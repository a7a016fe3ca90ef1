"""Why a LoRA has no effect, or not the one expected: findings over its file, the base and the LoRA folder, each with what to do.

What the file itself tells comes from the self-test; here is added what only base and folder together show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from lora_trainer.adapters.folder import LORA_SUFFIXES, read_alias, walk
from lora_trainer.adapters.inspect import WEBUI_FORM, FileReport, inspect_file
from lora_trainer.adapters.names import WEBUI_RESERVED
from lora_trainer.adapters.self_test import self_test
from lora_trainer.errors import AdapterError, ModelError, Problem
from lora_trainer.models.detect import detect
from lora_trainer.models.webui import webui_layers

CLASSES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
# A failed check of these spoils the name or the card; of the others the picture.
OF_THE_NAME = ("class of the card", "alias", "hash")


def diagnose(
    path: Path, base: Path | None = None, lora_dir: Path | None = None, *, listed_at: float | None = None
) -> list[Problem]:
    """Returns what is wrong with a LoRA, the gravest first; nothing where it should work.

    An "error" keeps it from having its effect, a "warning" may lead to another file or hide its card.

    Args:
        base: the base model that is loaded.
        lora_dir: the folder in which the WebUI looks for LoRAs.
        listed_at: when the WebUI last read the file, in seconds since 1970.
    """
    try:
        report = inspect_file(path)
    except AdapterError as error:
        return [Problem("file", str(error))]
    family, problems = _detect_family(base)
    problems += _check_family(report, family)
    layers = webui_layers(base) if base and family and not problems else None
    problems += [
        Problem(check.name, check.detail, "warning" if check.name in OF_THE_NAME else "error")
        for check in self_test(path, layers)
        if not check.passed
    ]
    if report.form == WEBUI_FORM:
        problems += _check_card(report, family)
        problems += _check_names(report, lora_dir)
        problems += _check_age(path, listed_at)
    return sorted(problems, key=lambda problem: ("error", "warning", "notice").index(problem.severity))


def _detect_family(base: Path | None) -> tuple[str | None, list[Problem]]:
    """Returns the WebUI's class of a base, None where it is not known."""
    if base is None:
        return None, []
    try:
        return CLASSES.get(detect(base).family), []
    except ModelError as error:
        return None, [Problem("base", str(error))]


def _check_family(report: FileReport, family: str | None) -> Iterator[Problem]:
    bases = report.possible_bases if report.form == WEBUI_FORM else ()
    if family and bases and family not in bases:
        yield Problem(
            "base",
            f"{report.path.name} is for {' or '.join(bases)}, and the base that is loaded is {family}: none of its layers fit.",
            hint=f"Load a base of the kind {' or '.join(bases)}, or train the LoRA on this one.",
        )


def _check_card(report: FileReport, family: str | None) -> Iterator[Problem]:
    """Finds whether the WebUI hides the card while this base is loaded; a card may say another class than the file."""
    stated = _stated_class(report.path)
    shown_for = stated or report.webui_class
    if family and shown_for not in (family, "Unknown") and (family in report.possible_bases):
        where = f"its card says 'sd version' {stated}" if stated else f"its metadata say {shown_for}"
        remedy = "Set 'sd version' on the card" if stated else "Repair its metadata"
        yield Problem(
            "card",
            f"the WebUI hides it while a base of the kind {family} is loaded, since {where}.",
            "warning",
            f"{remedy}. A tag in the prompt works all the same.",
        )


def _stated_class(path: Path) -> str:
    """Returns the class that the card beside a file states in a way that the WebUI heeds, or ""."""
    try:
        stated = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sd version"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return stated if stated in (*CLASSES.values(), "Unknown") else ""


def _check_names(report: FileReport, lora_dir: Path | None) -> Iterator[Problem]:
    """Finds what the WebUI could mix the file up with."""
    if report.alias.lower() in WEBUI_RESERVED or report.path.stem.lower() in WEBUI_RESERVED:
        yield Problem("name", f"the WebUI keeps the name {report.path.stem!r} for itself.", hint="Rename the file.")
    if lora_dir is None:
        return
    if report.path.suffix.lower() not in LORA_SUFFIXES or lora_dir.resolve() not in report.path.resolve().parents:
        yield Problem("folder", f"{report.path} is not in {lora_dir}, where the WebUI looks for LoRAs.", hint="Move it there.")
    others = [path for path in walk(lora_dir) if path.suffix.lower() in LORA_SUFFIXES and not _is_same(path, report.path)]
    twins = [path for path in others if path.stem == report.path.stem]
    if twins:
        yield Problem(
            "name",
            f"{_places(twins, lora_dir)} has the same name, and of files of one name the WebUI keeps the last that it finds.",
            hint="Rename one of them.",
        )
    namesakes = [path for path in others if path not in twins and report.alias in read_alias(path)]
    if namesakes:
        yield Problem(
            "name",
            f"{_places(namesakes, lora_dir)} calls itself {report.alias!r} (ss_output_name) as well: <lora:{report.alias}:1> may "
            "take the other file, or none.",
            hint="Rename one of them here, which changes the name inside too.",
        )


def _check_age(path: Path, listed_at: float | None) -> Iterator[Problem]:
    changed_at = path.stat().st_mtime
    if listed_at is not None and changed_at > listed_at:
        when = time.strftime("%H:%M:%S", time.localtime(changed_at))
        yield Problem(
            "file",
            f"{path.name} was replaced at {when}, after the WebUI had read it, which keeps the old weights while the tag stays.",
            "warning",
            "Draw one picture without the tag, or with another weight; refreshing the list updates the hash.",
        )


def _places(paths: list[Path], folder: Path) -> str:
    return " and ".join(str(path.relative_to(folder)) for path in paths)


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)
