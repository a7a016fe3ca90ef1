"""The `<checkpoint>.yaml` beside a single file, as the WebUI reads it: what the tensors do not show.

The WebUI builds the model from this file. Widths and depths show in the tensors, so only the rest is taken from here: attention
heads, training resolution, prediction type, noise schedule, and the scale of the latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lora_trainer.errors import ModelError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Sidecar:
    """What the yaml says; None where it is silent.

    Attributes:
        path: the yaml, None when there is none.
        heads: attention heads of the denoiser, on every level.
        head_width: channels per attention head.
        text_heads: attention heads of the first text encoder, from the folder that `version` names.
        resolution: side in pixels, `image_size` x 8.
        prediction_type: "epsilon" or "v_prediction".
        scale_factor: of the latents.
        beta_start, beta_end: of the scaled-linear noise schedule.
        num_timesteps: of the noise schedule.
    """

    path: Path | None = None
    heads: int | None = None
    head_width: int | None = None
    text_heads: int | None = None
    resolution: int | None = None
    prediction_type: str | None = None
    scale_factor: float | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    num_timesteps: int | None = None


def read_sidecar(checkpoint: Path) -> Sidecar:
    """Reads the yaml beside a checkpoint, if there is one.

    Raises:
        ModelError: it is not a model's configuration.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return Sidecar()
    try:
        with open(path, encoding="utf-8-sig") as file:
            params = yaml.safe_load(file)["model"]["params"]
        unet = _section(params, "unet_config") or _section(params, "network_config")
        image_size = params.get("image_size")
        return Sidecar(
            path=path,
            heads=_positive(unet.get("num_heads")),
            head_width=_positive(unet.get("num_head_channels")),
            text_heads=_read_text_heads(path, params),
            resolution=int(image_size) * 8 if image_size else None,
            prediction_type=_read_prediction_type(params),
            scale_factor=_number(params.get("scale_factor"), float),
            beta_start=_number(params.get("linear_start"), float),
            beta_end=_number(params.get("linear_end"), float),
            num_timesteps=_number(params.get("timesteps"), int),
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a checkpoint's configuration ({type(error).__name__}: {error}). The WebUI reads the yaml beside a "
            "checkpoint as the description of its sizes: correct it, or take it away if the checkpoint is an ordinary one."
        ) from error


def _section(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    return (params.get(name) or {}).get("params") or {}


def _positive(value: Any) -> int | None:
    """Returns a number of heads or channels; LDM writes -1 for "not set"."""
    return int(value) if value is not None and int(value) > 0 else None


def _number(value: Any, kind: type[Number]) -> Number | None:
    """Returns a number; PyYAML reads some, such as 85e-5, as text."""
    return None if value is None else kind(value)


def _read_prediction_type(params: Mapping[str, Any]) -> str | None:
    parameterization = params.get("parameterization")
    if parameterization is None:
        scaling = _section(params, "denoiser_config").get("scaling_config") or {}
        parameterization = {"VScaling": "v", "EpsScaling": "eps"}.get(str(scaling.get("target", "")).rpartition(".")[2])
    known = {"v": "v_prediction", "eps": "epsilon", "None": None}
    if str(parameterization) not in known:
        raise ValueError(f"parameterization {parameterization!r} is neither 'eps' nor 'v'")
    return known[str(parameterization)]


def _read_text_heads(path: Path, params: Mapping[str, Any]) -> int | None:
    """Returns the heads that the first text encoder's configuration folder gives, None when no folder is named."""
    version = _section(params, "cond_stage_config").get("version")
    for embedder in _section(params, "conditioner_config").get("emb_models") or ():
        if str(embedder.get("target", "")).endswith("FrozenCLIPEmbedder"):
            version = (embedder.get("params") or {}).get("version")
    config_path = path.parent / str(version) / "config.json"
    if version is None or not config_path.is_file():
        return None
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    return _positive((config.get("text_config") or config).get("num_attention_heads"))
