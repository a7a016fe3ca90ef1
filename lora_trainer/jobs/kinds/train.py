"""The kind "train": one training in the host, and what makes its file ready to use there."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.adapters.names import check_output_name
from lora_trainer.config.check import check_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.errors import ConfigError, LoraTrainerError
from lora_trainer.events import TrainEvent, fold_steps, read_events
from lora_trainer.files import write_bytes
from lora_trainer.host.base import Host
from lora_trainer.jobs.context import JobContext
from lora_trainer.jobs.settings import train_config
from lora_trainer.run_folder import RunFolder


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> Path:
    """Judges the settings without reading pictures or base model, and makes the run folder.

    Raises:
        ConfigError: with every problem found.
    """
    config = train_config(settings, host, title=title)
    problems = check_config(config)
    name_problem = check_output_name(config.name)
    if name_problem is not None:
        problems.append(name_problem)
    if any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    return config.output_dir


def run(settings: Mapping[str, Any], context: JobContext) -> Path | None:
    """Trains; returns the file in the LoRA folder, or None when it was stopped."""
    from lora_trainer.training.run import train

    config = train_config(settings, context.host, folder=context.folder)

    def watch(event: TrainEvent) -> None:
        context.watch(event)
        _release(config, event, context.host)

    with context.borrow() as lease:
        result = train(config, control=context.control, watch=watch, lease=lease)
    if result.path is None:
        return None
    return _hand_over(config, result.path, context)


def _release(config: TrainConfig, event: TrainEvent, host: Host) -> None:
    """Has the host let go of what the run put into the LoRA folder, once the file that replaces it is there."""
    from lora_trainer.adapters.owned import read_published

    folder = RunFolder(config.output_dir)
    if config.lora_dir is None or event.kind != "exported":
        return
    if Path(event.data["path"]) != folder.export_path(folder.read_job().get("name", config.name)):
        return
    for name in read_published(folder):
        if name.endswith(".safetensors"):
            host.lora_changed(config.lora_dir / name)


def _hand_over(config: TrainConfig, path: Path, context: JobContext) -> Path:
    """Returns the file that the host's users take, with its preview, and tells the host."""
    from lora_trainer.adapters.owned import read_published

    folder = RunFolder(config.output_dir)
    published = [name for name in read_published(folder) if name.endswith(".safetensors")]
    if config.lora_dir is not None and published:
        path = config.lora_dir / published[-1]
        try:
            _add_preview(folder, path)
            context.host.lora_changed(path)
            _copy_to_second_folder(config, path, context.host)
        except (OSError, LoraTrainerError) as error:  # the LoRA itself is there
            message = f"the LoRA is finished, but its preview, its second copy or the host's list of LoRAs failed: {error}"
            context.emit("warning", message=message)
    return path


def _add_preview(folder: RunFolder, path: Path) -> None:
    """Writes the last sample, without its left half drawn by the base alone, as the card's picture."""
    from PIL import Image

    from lora_trainer.adapters.owned import IN_DOUBT, is_ours, read_published, record
    from lora_trainer.adapters.shelf import find_preview, set_preview
    from lora_trainer.training.samples import GAP

    samples = fold_steps(read_events(folder.events_path), "sampled")
    there = find_preview(path)
    if not samples or (there and not is_ours(folder, there)):  # what the user put there stays
        return
    with Image.open(samples[-1].data["path"]) as pair:
        side = (pair.width - GAP) // 2
        data = io.BytesIO()
        pair.convert("RGB").crop((pair.width - side, 0, pair.width, pair.height)).save(data, "PNG")
    if there and read_published(folder).get(there.name) == IN_DOUBT:
        target = set_preview(path, data.getvalue(), path.parent)
    else:
        target = write_bytes(path.with_suffix(".png"), data.getvalue())
    record(folder, [target])


def _copy_to_second_folder(config: TrainConfig, path: Path, host: Host) -> None:
    folder, second = RunFolder(config.output_dir), host.folders().second_lora_dir
    if second is None or second.resolve() == path.parent.resolve():
        return
    from lora_trainer.adapters.folder import Card
    from lora_trainer.adapters.owned import publish_for

    preview = path.with_suffix(".png")
    publish_for(
        folder,
        path,
        second,
        path.stem,
        card=Card(description=config.comment, activation_text=config.trigger_words),
        preview=preview.read_bytes() if preview.exists() else None,
        key="published_second",
    )
