"""The kind "caption": first captions for the pictures of a folder, by a captioner of the table.

They go where the folder's captions already are, through its store, so that the whole run can be taken back as one change.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host, wait_while
from lora_trainer.jobs.context import JobContext
from lora_trainer.registry import did_you_mean

MODES = ("missing", "overwrite")


@dataclass(frozen=True)
class CaptionJob:
    """The settings.

    Attributes:
        input_dir: the folder.
        captioner: a name in the table; "" for the host's choice, else the first.
        mode: "missing" leaves captions that are there, "overwrite" writes all anew.
        model: a folder with the captioner's files, or its id on the hub; "" for the captioner's own.
        prompt: words that every caption begins with.
        num_beams: see `captioning.captioner`.
        batch_size: pictures looked at together.
        device: "auto", "cpu", "cuda" and so on.
    """

    input_dir: str
    captioner: str = ""
    mode: str = "missing"
    model: str = ""
    prompt: str = ""
    num_beams: int = 3
    batch_size: int = 8
    device: str = "auto"


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings.

    Raises:
        ConfigError: with every problem found.
    """
    read(settings, host)


def read(settings: Mapping[str, Any], host: Host) -> CaptionJob:
    """Returns the settings with the host's choice of captioner.

    Raises:
        ConfigError: with every problem found.
    """
    types = {field.name: int if field.type == "int" else str for field in fields(CaptionJob)}
    problems = []
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in types:
            problems.append(Problem(name, f"is not a setting{did_you_mean(name, tuple(types))}"))
        elif types[name] is str:
            values[name] = str(value or "").strip()
        elif isinstance(value, bool) or not str(value).strip().isdecimal() or not 1 <= int(value) <= 256:
            problems.append(Problem(name, f"({value}) must be a whole number from 1 to 256."))
        else:
            values[name] = int(value)
    values["captioner"] = values.get("captioner") or host.options().captioner or CAPTIONERS.names()[0]
    if values["captioner"] not in CAPTIONERS.names():
        problems.append(Problem("captioner", f"({values['captioner']}) must be one of {', '.join(CAPTIONERS.names())}."))
    if values.get("mode", MODES[0]) not in MODES:
        problems.append(Problem("mode", f"({values['mode']}) must be one of {', '.join(MODES)}."))
    folder = values.get("input_dir", "")
    if not folder or "\0" in folder or not Path(folder).is_dir():
        problems.append(Problem("input_dir", f"({folder!r}) is no folder.", hint="Give the folder that holds the pictures."))
    if problems:
        raise ConfigError(problems)
    return CaptionJob(**values)


def run(settings: Mapping[str, Any], context: JobContext) -> None:
    """Writes the captions; what is written stays when it is stopped."""
    from lora_trainer.captioning.captioner import CaptionerSettings
    from lora_trainer.captioning.run import caption_folder, captions_to_keep
    from lora_trainer.training.precision import DTYPES, choose_device, choose_precision

    job = read(settings, context.host)
    entry, device, folder = CAPTIONERS.get(job.captioner), choose_device(job.device), Path(job.input_dir)
    captioner_settings = CaptionerSettings(
        job.model or entry.options["model"],
        prompt=job.prompt,
        num_beams=job.num_beams,
        device=device,
        dtype=DTYPES[choose_precision("auto", device)],
    )
    store, change = CaptionStore(folder), None

    def save(captions: Mapping[str, str]) -> None:
        nonlocal change
        seen = dict.fromkeys(captions, "") if job.mode == "missing" else None  # one that the user wrote meanwhile stays
        result = store.save_all(captions, seen, title=f"captions by {entry.label}", change=change)
        change = result.change if change is None else change
        wait_while(lambda: context.control.is_requested("pause") and not context.control.is_requested("stop"))

    kept = captions_to_keep(folder, "overwrite" if job.mode == "overwrite" else "missing")
    context.emit("phase", name="loading the captioner", done=0, total=1)
    with context.borrow() as lease, ExitStack() as stack:
        with lease.building():
            captioner = stack.enter_context(entry.load()(captioner_settings))
        result = caption_folder(
            captioner, folder, save, kept=kept, batch_size=job.batch_size, control=context.control, emit=context.emit
        )
    message = f"{result.num_written} captions written; {result.num_kept} that were there are kept."
    context.emit("notice", message=message)
