"""How much memory of a graphics card a run will take, told before it starts, and what to change where a card is too small.

Counted from the base's header and the settings, see `models/footprint.py`. What is added for kernels' workspaces, for CUDA itself
and for the allocator's gaps is assumed, and stands below by name. No torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_trainer.card import card_name, fails_in_fp16
from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.errors import Problem
from lora_trainer.models.detect import Detection
from lora_trainer.models.table import FAMILIES
from lora_trainer.training.table import OPTIMIZERS

if TYPE_CHECKING:
    from lora_trainer.models.footprint import Footprint

GIB = 2**30
CARDS = (4, 6, 8, 12, 16, 24)
"""Memory of graphics cards that people have, in GB."""

WORKSPACE = GIB // 10
"""Of the kernels of matrix products and convolutions."""

CONTEXT = GIB // 2
"""What CUDA and its libraries take on a card before the first tensor."""

DESKTOP = GIB // 2
"""What the screen, a browser and the like take of a card, and so what of its label no run can have."""

GAPS = 0.05
"""Share of the tensors' bytes by which the allocator's blocks are larger."""

SMALLEST_SIDE, SMALLEST_RANK = 256, 8
WORTHWHILE = 0.01
"""Share of the memory that a change must save to be named beside others."""


@dataclass(frozen=True)
class Forecast:
    """Bytes on the card, at the peak of each phase.

    Attributes:
        base: weights of the frozen base that stay on the card while training.
        lora: weights and optimizer state of the LoRA.
        activations: what a forward and backward pass holds beside them, gradients included.
        encoding: the most while pictures are encoded, before training.
        drawing: the most while samples are drawn; 0 without sample prompts. A sample that finds no room does not end the run.
    """

    base: int
    lora: int
    activations: int
    encoding: int
    drawing: int

    @property
    def training(self) -> int:
        return self.base + self.lora + self.activations + WORKSPACE

    @property
    def peak(self) -> int:
        """The most that tensors take at once: what `torch.cuda.max_memory_allocated` will say."""
        return max(self.training, self.encoding)

    @property
    def needed(self) -> int:
        """What a card must have free for the run."""
        return _with_surroundings(self.peak)

    @property
    def needed_for_samples(self) -> int:
        """What it must have free to draw the samples; 0 without any."""
        return _with_surroundings(self.drawing) if self.drawing else 0

    def fits(self, num_bytes: int) -> bool:
        """Whether the run fits in that much memory."""
        return self.needed <= num_bytes


@dataclass(frozen=True)
class Suggestion:
    """Changes of settings by which a run fits on the cards of these sizes in GB, and its forecast with them."""

    cards: tuple[int, ...]
    changes: dict[str, Any]
    then: Forecast


def forecast(config: TrainConfig, detection: Detection, size: tuple[int, int]) -> Forecast:
    """Returns the forecast of a run.

    Args:
        detection: of its base.
        size: width and height of its largest pictures as they are trained, in pixels.

    Raises:
        ConfigError: `target_modules` names no layer of the base.
    """
    from lora_trainer.models.tape import Use

    measure = _load(FAMILIES.get(detection.family).options["footprint"])
    use = Use(
        width=size[0],
        height=size[1],
        batch_size=config.batch_size,
        num_bytes=4 if computes_in_fp32(config) else 2,
        rank=config.lora_rank,
        selection=config.target_modules,
        trains_unet=config.unet_lr != 0,
        trains_text=config.text_encoder_lr > 0,
        checkpoints=config.gradient_checkpointing,
        drops=config.lora_dropout > 0,
        accumulates=config.gradient_accumulation_steps > 1,
    )
    found: Footprint = measure(detection, use)
    lora = _lora_bytes(config, found)
    base = found.unet + (found.text_encoders if keeps_text_encoders(config) else 0)
    return Forecast(
        base=base,
        lora=lora,
        activations=found.activations,
        encoding=found.text_encoders + found.vae + config.encode_batch_size * found.encoding + WORKSPACE,
        drawing=base + lora + found.vae + found.decoding + WORKSPACE if config.sample_prompts else 0,
    )


def smaller(config: TrainConfig, detection: Detection, size: tuple[int, int], num_bytes: int) -> tuple[dict[str, Any], Forecast]:
    """Returns the changes of settings by which a run fits in that much memory, and its forecast with them.

    One change where one is enough, else several, the least harmful first. Where all of them are not enough, they are returned
    with a forecast that does not fit.
    """
    steps = list(_reductions(config, size))
    for changes, smaller_size in steps:
        found = forecast(replace(config, **changes), detection, smaller_size or size)
        if found.fits(num_bytes):
            return changes, found
    collected: dict[str, Any] = {}
    best = found = forecast(config, detection, size)
    for changes, smaller_size in steps:
        size = smaller_size or size
        found = forecast(replace(config, **{**collected, **changes}), detection, size)
        if found.needed > (1 - WORTHWHILE) * best.needed:
            continue
        collected, best = {**collected, **changes}, found
        if found.fits(num_bytes):
            break
    return collected, best


def suggest(config: TrainConfig, detection: Detection, size: tuple[int, int]) -> list[Suggestion]:
    """Returns what to change for each of the common cards that a run does not fit on, the largest first.

    Cards that nothing here makes it fit on are left out.
    """
    suggestions: list[Suggestion] = []
    for card in reversed(fitting_cards(forecast(config, detection, size))[1]):
        room = card * GIB - DESKTOP
        changes, then = smaller(config, detection, size, room)
        if not then.fits(room):
            break
        if suggestions and suggestions[-1].changes == changes:
            suggestions[-1] = Suggestion((card, *suggestions[-1].cards), changes, then)
        else:
            suggestions.append(Suggestion((card,), changes, then))
    return suggestions


def describe_change(changes: dict[str, Any]) -> str:
    """Returns changes as they stand in YAML: "gradient_checkpointing: true, resolution: 768"."""
    return ", ".join(f"{name}: {str(value).lower() if isinstance(value, bool) else value}" for name, value in changes.items())


def describe_gigabytes(num_bytes: int) -> str:
    """Returns bytes as cards are counted: "5.3 GB", by 2^30 bytes each."""
    return f"{num_bytes / GIB:.1f} GB"


def largest_size(buckets: Iterable[Bucket]) -> tuple[int, int]:
    """Returns width and height of the training size with the most pixels.

    Raises:
        ValueError: there is none.
    """
    largest = max(buckets, key=lambda bucket: bucket.width * bucket.height)
    return largest.width, largest.height


def fitting_cards(found: Forecast) -> tuple[list[int], list[int]]:
    """Returns the sizes of cards that a run fits on, and those that it does not."""
    fits = [size for size in CARDS if found.fits(size * GIB - DESKTOP)]
    return fits, [size for size in CARDS if size not in fits]


def warn_of_card(
    config: TrainConfig, detection: Detection, size: tuple[int, int], card_bytes: int | None, *, is_free: bool = False
) -> Problem | None:
    """Returns a warning where the card of this machine has less than a run needs, with what to change.

    Args:
        card_bytes: of its memory; None where there is no card, or it is not known.
        is_free: whether all of that is free; else the desktop takes its part.
    """
    if card_bytes is None or config.device == "cpu":
        return None
    found = forecast(config, detection, size)
    room = card_bytes if is_free else card_bytes - DESKTOP
    if found.fits(room):
        return None
    needs, there = describe_gigabytes(found.needed), describe_gigabytes(card_bytes)
    has = f"has free {there}" if is_free else f"has {there}, about {describe_gigabytes(DESKTOP)} of that for the desktop"
    message = f"needs about {needs} of memory, and the graphics card here {has}."
    changes, then = smaller(config, detection, size, room)
    field = next(iter(changes), "resolution")
    if then.fits(room):
        hint = f"It fits with {describe_change(changes)} (about {describe_gigabytes(then.needed)})."
    else:
        hint = f"The least is about {describe_gigabytes(then.needed)}, with {describe_change(changes)}." if changes else ""
    return Problem(field, message, "warning", hint)


def computes_in_fp32(config: TrainConfig) -> bool:
    """Whether the base is held in fp32. auto is half precision on a graphics card, which a forecast is for, if it can."""
    if config.precision != "auto":
        return config.precision == "fp32"
    return config.device in ("cpu", "mps") or fails_in_fp16(card_name())


def keeps_text_encoders(config: TrainConfig) -> bool:
    """Whether captions are encoded while training: when the encoders are trained, or captions change from epoch to epoch."""
    return bool(_varying(config)) or config.text_encoder_lr > 0


def _varying(config: TrainConfig) -> dict[str, Any]:
    """Returns the switches by which captions change from epoch to epoch, as they are when off."""
    off = {"shuffle_tags": False, "tag_dropout": 0.0, "caption_dropout": 0.0}
    return {name: value for name, value in off.items() if getattr(config, name) != value}


def _reductions(config: TrainConfig, size: tuple[int, int]) -> Iterator[tuple[dict[str, Any], tuple[int, int] | None]]:
    """Yields single changes that take less memory, the least harmful first, with the smaller size of pictures if it changes."""
    if keeps_text_encoders(config) and not config.text_encoder_lr:
        yield _varying(config), None
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, None
    if computes_in_fp32(config) and not fails_in_fp16(card_name()):  # which has no bf16 of its own either
        yield {"precision": "bf16"}, None
    batch, accumulation = config.batch_size, config.gradient_accumulation_steps
    while batch > 1:
        batch, accumulation = -(-batch // 2), accumulation * 2
        yield {"batch_size": batch, "gradient_accumulation_steps": accumulation}, None
    if config.encode_batch_size > 1:
        yield {"encode_batch_size": 1}, None
    if config.text_encoder_lr > 0:
        yield {"text_encoder_lr": 0.0, **_varying(config)}, None
    if config.optimizer == "adamw":  # whose learning rates are Adafactor's, too
        yield {"optimizer": "adafactor"}, None
    if config.lora_rank > SMALLEST_RANK:
        yield {"lora_rank": SMALLEST_RANK}, None
    side = round((size[0] * size[1]) ** 0.5)
    for part in (0.75, 0.5):
        smaller_side = round(side * part) // 64 * 64
        if smaller_side >= SMALLEST_SIDE:
            share = smaller_side / side
            yield {"resolution": smaller_side}, (round(size[0] * share), round(size[1] * share))


def _lora_bytes(config: TrainConfig, found: Footprint) -> int:
    """Returns the bytes of the weights, which are fp32, and of the optimizer's state."""
    options = OPTIMIZERS.get(config.optimizer).options
    state = found.lora_numbers * options["state_bytes"] + found.lora_sides * options.get("state_bytes_per_side", 0)
    return 4 * found.lora_numbers + int(state)


def _with_surroundings(num_bytes: int) -> int:
    return round(num_bytes * (1 + GAPS)) + CONTEXT


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
