"""How often a run shows its pictures: a preset's epochs for the set at hand, and a warning where there are too few steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lora_trainer.config.parse import read_value
from lora_trainer.config.presets import Preset, load_presets, usual_epochs
from lora_trainer.config.schema import TrainConfig, field_infos
from lora_trainer.dataset.overview import read_overview
from lora_trainer.errors import DatasetError, Problem

USUAL_VIEWS = 2000
"""Pictures seen in a training of usual length: 1500 to 2500, of few pictures or many."""

FEW_STEPS, USUAL_STEPS = 100, 300


def with_preset(preset: Preset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by YAML key over those of a preset, which looks for its epochs at the folder of the pictures."""
    num_shown = 0
    with suppress(ValueError, DatasetError):  # what is wrong with the folder is told when the settings are checked
        num_shown = read_overview(read_value(field_infos()["train_data_dir"], settings.get("train_data_dir"))).num_shown
    return {**preset.for_pictures(num_shown), **settings}


def warn_of_few_steps(config: TrainConfig, *, num_pictures: int, num_shown: int, num_epochs: float, steps: int) -> list[Problem]:
    """Returns a warning where a run shows its pictures far more seldom than is usual, or takes very few steps.

    None for a base that has a preset of its own, which is no usual one, nor where a LoRA is trained further.

    Args:
        num_pictures: that are trained.
        num_shown: pictures of an epoch, repeats and several resolutions counted.
        num_epochs, steps: of the run.
    """
    is_own = any(preset.base == config.base_model.stem for preset in load_presets().values())
    if is_own or config.start_from is not None or not num_shown:
        return []
    usual = usual_epochs(num_shown, USUAL_VIEWS)
    field = "max_train_steps" if config.max_train_steps else "epochs"
    if num_epochs < usual / 2:
        views = num_shown / num_pictures
        low, high = (max(1, round(part * usual * views)) for part in (0.8, 1.2))
        times, usually = f"{num_epochs * views:.3g}", f"{low} to {high} times is usual for that many."
        message = f"({getattr(config, field)}) shows each of {num_pictures} pictures {times} times, in {_steps(steps)}; {usually}"
        if num_pictures == 1:
            message = f"({getattr(config, field)}) shows the one picture {times} times, in {_steps(steps)}; {usually}"
        better = usual
    elif steps < FEW_STEPS:
        message = f"({getattr(config, field)}) makes only {_steps(steps)}; {USUAL_STEPS} and more are usual."
        better = round(num_epochs * USUAL_STEPS / steps)
    else:
        return []
    value = round(better * steps / num_epochs) if config.max_train_steps else better
    return [Problem(field, message, "warning", f"Set it to {value}.")]


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"
