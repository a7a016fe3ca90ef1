"""The kind "lora_files": new LoRA files from old ones, in the LoRA folder: merge, resize, split, another precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_trainer.adapters.folder import choose_name
from lora_trainer.adapters.library import find_lora
from lora_trainer.adapters.names import check_output_name
from lora_trainer.adapters.tags import LoraUse, parse_prompt
from lora_trainer.errors import AdapterError, ConfigError, Problem
from lora_trainer.host.base import Host
from lora_trainer.jobs.context import JobContext
from lora_trainer.registry import did_you_mean

PRECISIONS = ("fp16", "bf16", "fp32")
_KNOWN = ("tool", "lora", "stack", "name", "rank", "precision")


@dataclass(frozen=True)
class FilesJob:
    """The settings.

    Attributes:
        tool: "merge", "resize", "split" or "convert".
        lora: the source's name in the LoRA folder; of a merge none.
        stack: for a merge: tags, `<lora:ink:0.7> <lora:seal:0.5:0.8>`.
        name: of the new file; of a split what the two names begin with.
        rank: the highest of the new file; None for no limit. A resize needs it.
        precision: one of `PRECISIONS`; None for the source's own. A convert needs it.
    """

    tool: str
    lora: Path | None
    stack: tuple[LoraUse, ...]
    name: str
    rank: int | None
    precision: str | None


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings, see `FilesJob`.

    Raises:
        ConfigError: with every problem found.
        AdapterError: a LoRA is not there.
    """
    read(settings, host)


def read(settings: Mapping[str, Any], host: Host) -> FilesJob:
    """Returns the settings.

    Raises:
        ConfigError: with every problem found.
        AdapterError: a LoRA is not there.
    """
    folder = host.folders().lora_dir
    problems = [Problem(name, f"is not a setting{did_you_mean(name, _KNOWN)}") for name in settings if name not in _KNOWN]
    tool, name = str(settings.get("tool") or ""), str(settings.get("name") or "").strip()
    rank, precision = settings.get("rank") or None, settings.get("precision") or None
    if tool not in TOOLS:
        problems.append(Problem("tool", f"({tool!r}) must be one of {', '.join(TOOLS)}."))
    if isinstance(rank, bool) or not isinstance(rank, int | None) or (rank is not None and rank < 1):
        problems.append(Problem("rank", f"({rank}) must be a whole number from 1.", hint="8 to 32 is usual."))
    elif tool == "resize" and rank is None:
        problems.append(Problem("rank", "is empty.", hint="Give the rank of the new file, such as 8."))
    if precision not in (None, *PRECISIONS):
        problems.append(Problem("precision", f"({precision!r}) must be one of {', '.join(PRECISIONS)}."))
    elif tool == "convert" and precision is None:
        problems.append(Problem("precision", "is empty.", hint=f"Choose one of {', '.join(PRECISIONS)}."))
    for part in [f"{name}_unet", f"{name}_te"] if tool == "split" and name else [name]:
        problems += _check_name(part, folder)
    stack = parse_prompt(str(settings.get("stack") or ""), lambda tag: find_lora(folder, tag))[1] if tool == "merge" else ()
    if tool == "merge" and not stack:
        problems.append(Problem("stack", "names no LoRA.", hint="Write <lora:one:0.7> <lora:other:0.5>."))
    if tool != "merge" and not settings.get("lora"):
        problems.append(Problem("lora", "is empty.", hint="Choose a LoRA."))
    if problems:
        raise ConfigError(problems)
    source = None if tool == "merge" else find_lora(folder, str(settings["lora"]))
    return FilesJob(tool, source, stack, name, rank, precision)


def run(settings: Mapping[str, Any], context: JobContext) -> Path:
    """Writes the files and tells the host. Returns the first."""
    job = read(settings, context.host)
    context.emit("phase", name="writing the LoRA file", done=0, total=0)
    folder = job.lora.parent if job.lora else context.host.folders().lora_dir
    paths, message = TOOLS[job.tool](job, folder)
    for path in paths:
        context.host.lora_changed(path)
    context.emit("notice", message=message)
    return paths[0]


def _check_name(name: str, folder: Path) -> list[Problem]:
    if problem := check_output_name(name):
        return [Problem("name", problem.message, hint=problem.hint)]
    if (free := choose_name(folder, name)) != name:
        return [Problem("name", f"({name}) is taken, by a file or by an alias inside one.", hint=f"{free} is free.")]
    return []


def _merge(job: FilesJob, folder: Path) -> tuple[list[Path], str]:
    from lora_trainer.adapters.edit import merge

    edited = merge(job.stack, folder / f"{job.name}.safetensors", rank=job.rank, precision=job.precision)
    notes = "".join(f" {note}" for note in edited.notes)
    return [edited.path], f"merged into {edited.path.name}, rank {edited.rank}{_describe_error(edited.error)}.{notes}"


def _resize(job: FilesJob, folder: Path) -> tuple[list[Path], str]:
    from lora_trainer.adapters.edit import resize

    edited = resize(_source(job), folder / f"{job.name}.safetensors", int(job.rank or 0), precision=job.precision)
    return [edited.path], f"{edited.path.name} has rank {edited.rank}{_describe_error(edited.error)}."


def _split(job: FilesJob, folder: Path) -> tuple[list[Path], str]:
    from lora_trainer.adapters.edit import split

    targets = (folder / f"{job.name}_{part}.safetensors" for part in ("unet", "te"))
    paths = list(split(_source(job), *targets))
    return paths, f"wrote {' and '.join(path.name for path in paths)}."


def _convert(job: FilesJob, folder: Path) -> tuple[list[Path], str]:
    from lora_trainer.adapters.edit import convert

    path = convert(_source(job), folder / f"{job.name}.safetensors", str(job.precision))
    return [path], f"{path.name} is in {job.precision}, {path.stat().st_size / 2**20:.1f} MiB."


def _source(job: FilesJob) -> Path:
    if job.lora is None:
        raise AdapterError("there is no LoRA to work on. Choose one.")
    return job.lora


def _describe_error(error: float) -> str:
    return f", {error:.2%} of the change is lost" if error else ", nothing is lost"


TOOLS: dict[str, Callable[[FilesJob, Path], tuple[list[Path], str]]] = {
    "merge": _merge,
    "resize": _resize,
    "split": _split,
    "convert": _convert,
}
