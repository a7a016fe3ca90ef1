"""A training's settings as a page or a program gives them, made whole: what the host knows is filled in, and folders that are
written to are kept inside the host's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_trainer.config.parse import parse_config
from lora_trainer.config.schema import TrainConfig, field_infos
from lora_trainer.errors import ConfigError, Problem
from lora_trainer.host.base import Host, ModelFile
from lora_trainer.host.places import judge_places
from lora_trainer.names import safe_part

WRITTEN = ("output_dir", "cache_dir", "lora_dir")
_READ = tuple(name for name, info in field_infos().items() if info.kind == "path" and name not in WRITTEN)


def train_config(settings: Mapping[str, Any], host: Host, *, title: str = "", folder: Path | None = None) -> TrainConfig:
    """Returns the settings of a training in this host.

    Left out or empty, `output_dir` is a new folder of the host's runs, `cache_dir` and `lora_dir` are the host's, and
    `save_steps` is that of its settings page. A base model or VAE may be given by the name that the host shows.

    Args:
        settings: values by YAML key.
        title: of the job; names the run where the settings do not.
        folder: the run folder of a job that is queued already.

    Raises:
        ConfigError: with every problem; a folder that is written to outside the host's, and a place that the host lets nobody
            of its page name, are two.
    """
    folders, options = host.folders(), host.options()
    values = {name: value for name, value in settings.items() if name not in WRITTEN or not _is_empty(value)}
    roots = {
        "output_dir": [folders.runs],
        "cache_dir": [folders.data_dir],
        "lora_dir": [path for path in (folders.lora_dir, folders.second_lora_dir) if path is not None],
    }
    problems: list[Problem] = []
    for name in WRITTEN:
        if name not in values:
            continue
        try:
            values[name] = _confine(name, values.pop(name), roots[name])
        except ConfigError as error:
            problems += error.problems
    values.setdefault("cache_dir", folders.cache)
    if "lora_dir" not in values:
        values["lora_dir"] = folders.lora_dir
        folders.lora_dir.mkdir(parents=True, exist_ok=True)  # a new WebUI has none yet
    if options.save_steps is not None:
        values.setdefault("save_steps", options.save_steps)
    for name, find in (("base_model", host.checkpoints), ("vae", host.vaes)):
        if not _is_empty(values.get(name)):
            values[name] = _find_model(str(values[name]), find())
    if folder is not None:
        values["output_dir"] = folder
    elif "output_dir" not in values:
        values["output_dir"] = free_folder(folders.runs, safe_part(str(values.get("output_name") or title), "lora"))
    try:
        config = parse_config(values)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    problems += judge_places(host, [(name, getattr(config, name)) for name in _READ])
    if problems:
        raise ConfigError(problems)
    return config


def free_folder(parent: Path, name: str) -> Path:
    """Returns the first of "<name>", "<name>-2", ... that is not there."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _confine(name: str, value: Any, roots: Sequence[Path]) -> Path:
    """Returns the path, relative ones from the first root; links are followed before it is judged."""
    path = None
    with suppress(OSError, ValueError, RuntimeError):  # a NUL character, or a loop of links
        path = (roots[0] / Path(str(value))).resolve()
    inside = path is not None and any(
        root.resolve() in path.parents or (name != "output_dir" and path == root.resolve()) for root in roots
    )
    if path is None or not inside:
        allowed = " or ".join(map(str, roots))
        raise ConfigError(
            [Problem(name, f"({value}) lies outside of {allowed}.", hint="Leave it empty, or name a folder in it.")]
        )
    return path


def _find_model(value: str, models: Sequence[ModelFile]) -> str:
    return next((str(model.path) for model in models if model.name == value), value)


def _is_empty(value: Any) -> bool:
    return value is None or not str(value).strip()
