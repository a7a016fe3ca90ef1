"""The metadata of a LoRA file: what the WebUI's card, its editor and other tools read. All values are strings.

Keys and forms follow kohya's sd-scripts (`ss_`) and Stability's ModelSpec 1.0.1 (`modelspec.`), which those tools expect.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
MODELSPEC_VERSION = "1.0.1"


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a training when its file is written. None leaves a key out.

    Attributes:
        rank, alpha, dropout: of the adapter.
        learning_rate, unet_lr, text_encoder_lr: as asked; 0 means not trained.
        optimizer, lr_scheduler: their names, options in brackets.
        num_train_images, num_reg_images: with repeats. num_epochs, max_train_steps: planned. lr_warmup_steps: optimizer steps.
        batch_size, gradient_accumulation_steps: pictures per forward, forwards per optimizer step.
        resolution: (width, height) that the buckets are made from, in pixels.
        mixed_precision: "no", "bf16" or "fp16".
        started_at: seconds since 1970.
        dataset_dirs: {folder name: {"n_repeats": r, "img_count": n}}.
        tag_frequency: {folder name: {tag: count}}, see `count_tags`.
        buckets: {(width, height): pictures}.
        description, trigger_phrase, comment: free text.
        thumbnail: a small JPEG or PNG, or None.
    """

    rank: int
    alpha: float
    learning_rate: float
    optimizer: str
    lr_scheduler: str
    num_train_images: int
    num_epochs: int
    max_train_steps: int
    batch_size: int
    resolution: tuple[int, int]
    seed: int
    started_at: float
    dropout: float = 0.0
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    lr_warmup_steps: int = 0
    max_grad_norm: float | None = None
    mixed_precision: str = "no"
    clip_skip: int | None = None
    min_snr_gamma: float | None = None
    noise_offset: float | None = None
    debiased_estimation: bool = False
    zero_terminal_snr: bool = False
    loss_type: str | None = None
    huber_delta: float | None = None
    caption_dropout: float | None = None
    num_reg_images: int = 0
    shuffle_caption: bool = False
    keep_tokens: int | None = None
    target_modules: tuple[str, ...] = ()
    dataset_dirs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    description: str = ""
    trigger_phrase: str = ""
    comment: str = ""
    thumbnail: bytes | None = None


def count_tags(captions: list[str]) -> dict[str, int]:
    """Returns how often each tag occurs, most frequent first; captions are split at commas and lowered."""
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in caption.lower().split(","):
            if tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def metadata(
    facts: TrainingFacts, base: Mapping[str, str], *, network_module: str, step: int, epoch: int, finished_at: float
) -> dict[str, str]:
    """Returns the metadata of a file, but for its name and hashes, which `save_lora` adds.

    Args:
        facts: of the training.
        base: facts of the base model, from `TrainableModel.metadata()`; they win where both have a key.
        network_module: from the adapter.
        step: optimizer steps behind these weights.
        epoch: passes over the data behind them, the running one counted.
        finished_at: when these weights were reached, in seconds since 1970.
    """
    values = _training_values(facts) | _data_values(facts) | _modelspec_values(facts, finished_at)
    values |= {"ss_network_module": network_module, "ss_steps": step, "ss_epoch": epoch, "ss_training_finished_at": finished_at}
    texts = {key: _to_text(value) for key, value in values.items() if value is not None and value != ""}
    return {key: _printable(text) for key, text in {**texts, **base}.items()}


def _training_values(facts: TrainingFacts) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dropout": facts.dropout}
    if facts.target_modules:
        arguments["target_modules"] = list(facts.target_modules)
    return {
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_dropout": facts.dropout,
        "ss_network_args": arguments,
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.unet_lr,
        "ss_text_encoder_lr": facts.text_encoder_lr,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.lr_scheduler,
        "ss_lr_warmup_steps": facts.lr_warmup_steps,
        "ss_max_train_steps": facts.max_train_steps,
        "ss_num_epochs": facts.num_epochs,
        "ss_gradient_accumulation_steps": facts.gradient_accumulation_steps,
        "ss_gradient_checkpointing": facts.gradient_checkpointing,
        "ss_max_grad_norm": facts.max_grad_norm,
        "ss_mixed_precision": facts.mixed_precision,
        "ss_seed": facts.seed,
        "ss_clip_skip": facts.clip_skip,
        "ss_min_snr_gamma": facts.min_snr_gamma,
        "ss_noise_offset": facts.noise_offset,
        "ss_debiased_estimation": facts.debiased_estimation,
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        "ss_loss_type": facts.loss_type,
        "ss_huber_c": facts.huber_delta,
        "ss_training_started_at": facts.started_at,
        "ss_training_comment": facts.comment,
    }


def _data_values(facts: TrainingFacts) -> dict[str, Any]:
    buckets = {
        str(number): {"resolution": list(size), "count": count}
        for number, (size, count) in enumerate(sorted(facts.buckets.items()))
    }
    return {
        "ss_num_train_images": facts.num_train_images,
        "ss_num_reg_images": facts.num_reg_images or None,
        "ss_batch_size_per_device": facts.batch_size,
        "ss_total_batch_size": facts.batch_size * facts.gradient_accumulation_steps,
        # The form "(512, 512)" is what tools expect here; ModelSpec writes "512x512".
        "ss_resolution": str(tuple(facts.resolution)),
        "ss_enable_bucket": True,
        "ss_bucket_info": {"buckets": buckets} if buckets else None,
        "ss_dataset_dirs": {name: dict(counts) for name, counts in facts.dataset_dirs.items()},
        "ss_tag_frequency": {name: dict(counts) for name, counts in facts.tag_frequency.items()},
        "ss_caption_dropout_rate": facts.caption_dropout,
        "ss_shuffle_caption": facts.shuffle_caption,
        "ss_keep_tokens": facts.keep_tokens,
    }


def _modelspec_values(facts: TrainingFacts, finished_at: float) -> dict[str, Any]:
    finished = datetime.datetime.fromtimestamp(finished_at, tz=datetime.timezone.utc)
    return {
        "modelspec.sai_model_spec": MODELSPEC_VERSION,
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.date": finished.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{facts.resolution[0]}x{facts.resolution[1]}",
        "modelspec.description": facts.description,
        "modelspec.trigger_phrase": facts.trigger_phrase,
        "modelspec.thumbnail": _data_url(facts.thumbnail) if facts.thumbnail else None,
    }


def _data_url(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _to_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _printable(text: str) -> str:
    """Replaces what UTF-8 cannot hold: a file name that was not valid text carries lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")
