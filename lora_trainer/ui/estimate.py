"""What a training comes to before it starts: steps from the pictures' headers, time from an earlier run on the same base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_trainer import forecast
from lora_trainer.amount import warn_of_few_steps
from lora_trainer.card import card_bytes
from lora_trainer.config.check import check_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.advice import warn_of_trigger
from lora_trainer.dataset.overview import Overview, Picture, read_overview
from lora_trainer.errors import ConfigError, LoraTrainerError, ModelError, Problem
from lora_trainer.host.base import Host
from lora_trainer.host.places import may_name
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.jobs.settings import train_config
from lora_trainer.models.detect import Detection, detect
from lora_trainer.models.table import FAMILIES
from lora_trainer.ui import markup
from lora_trainer.ui.form import label_of
from lora_trainer.ui.markup import escape, word

USUAL_RESOLUTION = 512
ENOUGH_TO_HOLD_BACK = 40


@dataclass(frozen=True)
class Examination:
    """What was found out about settings without decoding a picture or loading a model.

    Attributes:
        config: the settings, None while they cannot be read.
        problems: errors first.
        detection: of the base model, None while there is none.
    """

    config: TrainConfig | None
    problems: tuple[Problem, ...]
    detection: Detection | None

    @property
    def has_errors(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


def examine(settings: Mapping[str, Any], overview: Overview | None, host: Host, title: str) -> Examination:
    """Returns everything that is wrong with settings, and what their base model is."""
    problems: list[Problem] = []
    config = detection = None
    try:
        config = train_config(settings, host, title=title)
        # The host's own LoRA folder is made when the training is queued.
        own_folder = host.folders().lora_dir
        problems += [found for found in check_config(config) if found.field != "lora_dir" or config.lora_dir != own_folder]
    except ConfigError as error:
        problems += error.problems
    path = find_base(settings.get("base_model"), host)
    if path is not None and path.exists():
        try:
            detection = detect_base(path)
            problems += [Problem("base_model", note, "notice") for note in detection.notes]
        except ModelError as error:
            problems.append(Problem("base_model", str(error)))
    if overview is not None and not overview.usable:
        problems.append(_nothing_to_train(overview))
    order = {"error": 0, "warning": 1, "notice": 2}
    return Examination(config, tuple(sorted(problems, key=lambda problem: order[problem.severity])), detection)


def find_base(value: Any, host: Host) -> Path | None:
    """Returns the base model of a name that the host shows, or of a path; None for nothing, or for a path not to be named."""
    text = str(value or "").strip()
    if not text:
        return None
    path = next((model.path for model in host.checkpoints() if model.name == text), Path(text).expanduser())
    return path if may_name(host, path) else None


def detect_base(path: Path) -> Detection:
    """Returns what a base model is, remembered until the file changes.

    Raises:
        ModelError: it is none, or none that can be trained.
    """
    return _detect(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _detect(path: Path, changed_ns: int) -> Detection:
    return detect(path)


def describe_base(detection: Detection | None) -> str:
    """Returns family, prediction and resolution of a base as HTML."""
    if detection is None:
        return ""
    family = FAMILIES.get(detection.family)
    parts = [f"<strong>{word(family.label)}</strong>"]
    if detection.prediction_type:
        parts.append(f"{word('predicts')} {markup.escape(detection.prediction_type)}")
    if detection.resolution:
        parts.append(f"{detection.resolution} {word('pixels')}")
    return markup.box(" · ".join(parts), "family")


def describe_plan(config: TrainConfig, overview: Overview, detection: Detection | None, queue: JobQueue) -> str:
    """Returns the line "120 pictures × 1 repeat × 15 epochs / batch 4 = 450 steps, about 9 minutes" as HTML."""
    held_out, trained, resolutions, per_epoch = _count(config, overview, detection)
    if not per_epoch:
        return ""
    steps = config.max_train_steps or per_epoch * config.epochs
    repeats = {picture.repeats for picture in trained}
    num_seen = sum(picture.repeats for picture in trained) * len(resolutions)
    batch = config.batch_size * config.gradient_accumulation_steps
    line = f"<b>{len(trained)}</b> {_noun(len(trained), word('picture'), word('pictures'))}"
    if len(repeats) == 1:
        number = repeats.copy().pop()
        line += f" × <b>{number}</b> {_noun(number, word('repeat'), word('repeats'))}"
    else:
        line += f" ({num_seen} {word('with their repeats')})"
    if len(resolutions) > 1:
        line += f" × <b>{len(resolutions)}</b> {word('sizes')}"
    epochs = f" × <b>{config.epochs:,}</b> {_noun(config.epochs, word('epoch'), word('epochs'))} / {word('batch')} <b>{batch}</b>"
    line += f" {word('until the step that ends it')}" if config.max_train_steps else epochs
    line += f" = <strong>{steps:,} {_noun(steps, word('step'), word('steps'))}</strong>"
    seconds = estimate_seconds(config, overview, resolutions, steps, queue)
    if seconds is not None:
        line += f", {word('about')} {markup.describe_seconds(seconds)}"
    notes = []
    if not config.max_train_steps and steps != -(-num_seen * config.epochs // batch):
        notes.append(word("Batches hold pictures of one size each, so some are smaller."))
    if held_out:
        notes.append(f"{held_out} {word('held back for validation.')}")
    if seconds is None:
        notes.append(word("The time shows after the first run on this base."))
    return f"<p>{line}</p>" + (f"<small>{' '.join(notes)}</small>" if notes else "")


def find_doubts(config: TrainConfig, overview: Overview, detection: Detection | None) -> list[Problem]:
    """Returns the warnings of `plan` that rest on the pictures and captions: too few steps, a trigger word in no caption."""
    _, trained, resolutions, per_epoch = _count(config, overview, detection)
    if not per_epoch:
        return []
    steps = config.max_train_steps or per_epoch * config.epochs
    num_shown = sum(picture.repeats for picture in trained) * len(resolutions)
    return [
        *warn_of_few_steps(config, num_pictures=len(trained), num_shown=num_shown, num_epochs=steps / per_epoch, steps=steps),
        *warn_of_trigger(config.trigger_words, [picture.caption for picture in trained]),
    ]


def _count(
    config: TrainConfig, overview: Overview, detection: Detection | None
) -> tuple[int, tuple[Picture, ...], tuple[int, ...], int]:
    """Returns how many pictures are held back, those that are trained, at which resolutions, and the steps of an epoch."""
    usable = overview.usable
    held_out = max(1, round(config.validation_share * len(usable))) if config.validation_share and usable else 0
    resolutions = config.resolutions or ((detection and detection.resolution) or USUAL_RESOLUTION,)
    per_epoch = overview.count_steps(
        resolutions,
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        upscale=config.upscale_small,
        held_out=held_out,
    )
    return held_out, usable[held_out:], resolutions, per_epoch


def describe_memory(config: TrainConfig, overview: Overview, detection: Detection) -> str:
    """Returns the line "about 5.3 GB of graphics memory: fits in 6, 8 GB; not in 4" as HTML, with what to change for those."""
    size = largest_picture(config, overview, detection)
    try:
        found = forecast.forecast(config, detection, size)
    except ConfigError:  # the targets; a start says it
        return ""
    if config.device == "cpu":
        return f"<p>{word('About')} <b>{forecast.describe_gigabytes(found.peak)}</b> {word('of main memory')}</p>"
    fits, fits_not = forecast.fitting_cards(found)
    line = f"{word('About')} <b>{forecast.describe_gigabytes(found.needed)}</b> {word('of graphics memory')}: "
    line += f"{word('fits in')} {', '.join(map(str, fits))} GB" if fits else word("more than common cards have")
    line += f"; {word('not in')} {', '.join(map(str, fits_not))}" if fits and fits_not else ""
    notes = []
    for suggested in forecast.suggest(config, detection, size):
        cards, then = ", ".join(map(str, suggested.cards)), forecast.describe_gigabytes(suggested.then.needed)
        notes.append(f"{word('For')} {cards} GB: {_describe_changes(suggested.changes)} ({then}).")
    if found.needed_for_samples > found.needed:
        notes.append(f"{word('To draw samples:')} {forecast.describe_gigabytes(found.needed_for_samples)}.")
    return f"<p>{line}</p>" + "".join(f"<small>{note}</small>" for note in notes)


def card_problem(config: TrainConfig, overview: Overview, detection: Detection) -> Problem | None:
    """Returns a warning where this machine's card has less memory than the run needs."""
    try:
        return forecast.warn_of_card(config, detection, largest_picture(config, overview, detection), card_bytes())
    except ConfigError:
        return None


def largest_picture(config: TrainConfig, overview: Overview, detection: Detection) -> tuple[int, int]:
    """Returns the largest size that a picture is trained at, in pixels: width and height."""
    side = max(config.resolutions or (detection.resolution or USUAL_RESOLUTION,))
    buckets = overview.buckets(side, upscale=config.upscale_small).values()
    return forecast.largest_size(buckets) if buckets else (side, side)


def _describe_changes(changes: Mapping[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, bool):
            return word("on") if value else word("off")
        return escape(f"{value:g}" if isinstance(value, float) else value)

    return ", ".join(f"{word(label_of(name))} <b>{show(value)}</b>" for name, value in changes.items())


def estimate_seconds(
    config: TrainConfig, overview: Overview, resolutions: tuple[int, ...], steps: int, queue: JobQueue
) -> float | None:
    """Returns the time of the steps by the last run on the same base, in proportion to the pixels of a step; None without."""
    for job in queue.list():
        if job.kind != "train" or not job.seconds_per_step:
            continue
        try:
            past = train_config(queue.settings(job.id), queue.host, folder=job.folder)
            if past.base_model != config.base_model:
                continue
            before = _pixels_of_a_step(past, read_overview(past.train_data_dir), past.resolutions or resolutions)
        except LoraTrainerError:  # settings of another version, or pictures that are gone
            continue
        if before:
            return job.seconds_per_step * steps * _pixels_of_a_step(config, overview, resolutions) / before
    return None


def _pixels_of_a_step(config: TrainConfig, overview: Overview, resolutions: tuple[int, ...]) -> float:
    sizes = [size for side in resolutions for size in overview.buckets(side, upscale=config.upscale_small).values()]
    pixels = sum(size.width * size.height for size in sizes) / max(1, len(sizes))
    return config.batch_size * config.gradient_accumulation_steps * pixels


def _nothing_to_train(overview: Overview) -> Problem:
    if not overview.pictures:
        return Problem("train_data_dir", f"({overview.folder}) holds no pictures.", hint="Drop some in the part Dataset.")
    if overview.num_without_caption:
        return Problem(
            "train_data_dir",
            f"holds {overview.num_without_caption} pictures without a caption, and none that can be trained.",
            hint="Press Caption in the part Dataset, or add .txt files.",
        )
    return Problem("train_data_dir", "holds no picture that can be trained.", hint="The part Dataset says why.")


def _noun(number: int, one: str, several: str) -> str:
    return one if number == 1 else several
