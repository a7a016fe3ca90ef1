"""Which family a base model belongs to, decided from file headers and configurations, without reading weights.

Each family in `table.py` names a light `detect` function; the first that knows the file answers. A file that none knows is
refused by what it is, where that can be told.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_trainer.errors import ModelError, UnsupportedModelError
from lora_trainer.models.header import Header, read_header

Layout = Literal["original", "diffusers"]

USABLE = "Give an SD1, SD2 or SDXL base model."

# What tells other kinds of file, in the order of trial: a pattern that some tensor name starts with, and the kind's name.
OTHER_KINDS = (
    (r".*\.lora_(?:down|up|A|B)\b|.*\.(?:hada_w1_a|lokr_w1|oft_diag|lora_mid)|lora_(?:unet|te)", "a LoRA file"),
    (r"(?:model\.diffusion_model\.)?double_blocks\.|(?:transformer\.)?single_transformer_blocks\.", "a Flux model"),
    (r"(?:model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"control_model\.|input_hint_block\.|controlnet_", "a ControlNet"),
    (r"emb_params$|string_to_param|clip_[lg]$", "a textual inversion embedding"),
    (r"(?:first_stage_model\.)?(?:encoder|decoder)\.(?:down|up|mid|conv_in)", "a VAE"),
    (r"(?:text_model|transformer\.resblocks|cond_stage_model|conditioner)\.", "a text encoder"),
    (r"(?:diffusion_model\.)?input_blocks\.|down_blocks\.", "a denoiser alone, without text encoder and VAE"),
)


@dataclass(frozen=True)
class Detection:
    """What is known of a base model before it is loaded.

    Attributes:
        family: name of the table's entry.
        path: the file or folder.
        layout: "original" single file or "diffusers" folder.
        prediction_type: "epsilon" or "v_prediction"; None where only a trial forward at loading tells (SD2 without hints).
        prediction_reason: what says so, to complete "The base predicts ... (...)".
        resolution: picture side that the base was trained at, in pixels; None while the prediction type is unknown.
        notes: warnings and decisions, one sentence each.
        facts: what the family's loader needs besides; of the family's own type.
    """

    family: str
    path: Path
    layout: Layout
    prediction_type: str | None
    prediction_reason: str
    resolution: int | None
    notes: tuple[str, ...] = ()
    facts: Any = None


def detect(path: Path) -> Detection:
    """Returns the family of a base model and what its header tells.

    Raises:
        ModelError: the file is missing or damaged.
        UnsupportedModelError: it is recognised as something that cannot be trained here, or not recognised.
    """
    from lora_trainer.models.table import FAMILIES

    if not path.exists():
        raise ModelError(f"{path} does not exist. Give a .safetensors or .ckpt file, or a diffusers folder.")
    header = None if path.is_dir() else read_header(path)
    for target in dict.fromkeys(entry.options["detect"] for entry in FAMILIES):
        module, _, function = target.partition(":")
        detection: Detection | None = getattr(importlib.import_module(module), function)(path, header)
        if detection is not None:
            return detection
    if header is None:
        raise UnsupportedModelError(
            f"{path} is a folder without a Stable Diffusion pipeline's model_index.json. Give a diffusers folder or a file."
        )
    raise UnsupportedModelError(f"{_say_what_it_is(path, header)} {USABLE}")


def warn_of_distilled(path: Path, texts: Iterable[str]) -> tuple[str, ...]:
    """Returns a warning when a name or metadata text says that the model was distilled for few steps, else nothing."""
    pattern = re.compile(r"(?<![a-z])(turbo|lcm|lightning|distilled|dmd2?|hyper-?sdx?l?|tcd|pcm)(?![a-z])", re.IGNORECASE)
    match = next((match for text in (path.name, *texts) if (match := pattern.search(text))), None)
    if match is None:
        return ()
    return (
        f"Warning: the base calls itself {match[1]!r}. Training on a model distilled for few steps undoes its speed; train on "
        "the model that it was made from, and use the LoRA with both.",
    )


def _say_what_it_is(path: Path, header: Header) -> str:
    for pattern, kind in OTHER_KINDS:
        if any(re.match(pattern, name) for name in header.shapes):
            return f"{path} is {kind}, not a base model."
    names = ", ".join(list(header.shapes)[:3]) or "none"
    return f"{path} is not a base model that is known here (its first tensors: {names})."
