"""The settings of the kind "grid", read strictly, and the rows that they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from lora_trainer.adapters.library import find_lora
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host, ModelFile
from lora_trainer.host.places import judge_places
from lora_trainer.inference.rows import USUAL_WEIGHTS, Row, make_rows
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.registry import did_you_mean

MOST_CELLS = 500


@dataclass(frozen=True)
class GridJob:
    """The settings; lists may be given as text, a prompt a line, numbers between commas.

    Attributes:
        prompts: rows of their own; the WebUI's LoRA tags in them are read.
        loras: names in the LoRA folder, or files, such as saved steps of a run: rows of their own. None for those that the
            prompts name, together.
        base_model: a name that the host shows, or a path; "" for the first, in a WebUI the one that is loaded.
        weights: the columns; the untouched base comes first in any case.
        seeds: rows of their own.
        width, height: in pixels; 0 for what the base was trained at.
        negative_prompt, steps, cfg_scale, sampler: see `inference.settings`.
        vae, clip_skip: where we draw ourselves; a WebUI uses its own.
        train_data_dir: the training pictures, to say which weight to take; "" for none.
        clip: a folder with a CLIP model of transformers' layout that compares the pictures; "" for the host's own where it has
            one on the disk, else colours and textures.
    """

    prompts: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    base_model: str = ""
    weights: tuple[float, ...] = USUAL_WEIGHTS
    seeds: tuple[int, ...] = (0,)
    width: int = 0
    height: int = 0
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = "euler_a"
    vae: str = ""
    clip_skip: int = 1
    train_data_dir: str = ""
    clip: str = ""


def read(settings: Mapping[str, Any], host: Host) -> GridJob:
    """Returns the settings.

    Raises:
        ConfigError: with every problem found.
    """
    readers = {field.name: _READERS[str(field.type)] for field in fields(GridJob)}
    values: dict[str, Any] = {}
    problems = []
    for name, value in settings.items():
        if name not in readers:
            problems.append(Problem(name, f"is not a setting{did_you_mean(name, tuple(readers))}"))
        elif value is not None and value != "":
            try:
                values[name] = readers[name](value)
            except (ValueError, TypeError, OverflowError):
                problems.append(Problem(name, f"({value}) must be {_WANTED.get(name, 'text')}."))
    job = GridJob(**values)
    places = [("train_data_dir", job.train_data_dir), ("clip", job.clip), ("vae", job.vae)]
    problems += judge_places(host, [*places, *(("loras", name) for name in job.loras if _is_file(name))])
    if problems:
        raise ConfigError(problems)
    for name in ("train_data_dir", "clip"):
        folder = getattr(job, name)
        if folder and ("\0" in folder or not Path(folder).is_dir()):
            problems.append(Problem(name, f"({folder!r}) is not a folder.", hint="Correct it, or leave it empty."))
    num_cells = max(1, len(job.loras)) * len(job.prompts) * len(job.seeds) * len({0.0, *job.weights})
    if num_cells > MOST_CELLS:
        problems.append(Problem("prompts", f"come to {num_cells} pictures; at most {MOST_CELLS}.", hint="Take fewer rows."))
    if problems:
        raise ConfigError(problems)
    return job


def find_base(job: GridJob, host: Host) -> ModelFile:
    """Returns the base model.

    Raises:
        ConfigError: there is none; in a WebUI it must be one of its list.
    """
    known = host.checkpoints()
    if not job.base_model:
        if not known:
            raise ConfigError([Problem("base_model", "is empty.", hint="Choose the base model to draw with.")])
        return known[0]
    path = Path(job.base_model).expanduser()
    found = next((model for model in known if job.base_model == model.name or path == model.path), None)
    if found is None and (host.has_pipeline or "\0" in job.base_model or not path.exists()):
        hint = did_you_mean(job.base_model, tuple(model.name for model in known)).strip()
        raise ConfigError([Problem("base_model", f"({job.base_model}) is not there.", hint=hint or "Choose one of the list.")])
    return found or ModelFile(path.name, path)


def plan_rows(job: GridJob, host: Host, *, side: int) -> tuple[Row, ...]:
    """Returns the rows.

    Args:
        side: of pictures whose size is left to the base, in pixels.

    Raises:
        ConfigError: there is no prompt or no LoRA, or a tag cannot be read.
        AdapterError: a LoRA is not in the folder, or its name is not clear.
    """
    folder = host.folders().lora_dir
    settings = GenerateSettings(
        "",
        job.negative_prompt,
        job.width or side,
        job.height or side,
        steps=job.steps,
        cfg_scale=job.cfg_scale,
        sampler=job.sampler,
    )
    stacks = [[LoraUse(_find_file(name, folder))] for name in job.loras]
    return make_rows(stacks, job.prompts, settings, seeds=job.seeds, find=partial(find_lora, folder))


def _find_file(name: str, folder: Path) -> Path:
    return Path(name) if _is_file(name) and Path(name).is_file() else find_lora(folder, name.removesuffix(".safetensors"))


def _is_file(name: str) -> bool:
    """Whether a LoRA is given by its file."""
    return name.endswith(".safetensors") and Path(name).is_absolute()


def _split(value: Any, separator: str) -> list[Any]:
    parts = value.split(separator) if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [value]
    return [part for part in parts if not isinstance(part, str) or part.strip()]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value.strip()


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _whole,
    "float": _number,
    "tuple[str, ...]": lambda value: tuple(_text(part) for part in _split(value, "\n")),
    "tuple[float, ...]": lambda value: tuple(_number(part) for part in _split(value, ",")),
    "tuple[int, ...]": lambda value: tuple(_whole(part) for part in _split(value, ",")),
}
_WANTED = {
    "weights": "numbers with commas between, such as 0, 0.5, 1",
    "seeds": "whole numbers with commas between, such as 1, 2, 3",
    **dict.fromkeys(("width", "height", "steps", "clip_skip"), "a whole number"),
    "cfg_scale": "a number",
}
