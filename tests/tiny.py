"""Tiny but real base models and data sets for tests: real classes, real layouts, random weights.

The weights come from a seed and each tensor's name through NumPy's frozen legacy generator, so that they are the same under every
version of every library. Files are a few megabytes, most of it CLIP's vocabulary of 49,408 tokens.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_trainer.models import convert
from lora_trainer.models.checkpoint import build_empty
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes

FAMILIES = ("sd1", "sd2", "sdxl")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TinySizes:
    """Sizes of all parts of a tiny model."""

    unet: UNetSizes
    vae: VaeSizes
    text_encoders: tuple[TextSizes, ...]


def _text(width: int, layers: int, activation: str, pooled_width: int | None = None) -> TextSizes:
    return TextSizes(
        width=width,
        layers=layers,
        heads=2 if activation == "quick_gelu" else 1,
        inner_width=2 * width,
        vocabulary=49408,
        positions=77,
        activation=activation,
        pooled_width=pooled_width,
    )


_VAE = VaeSizes(channels=(32, 32, 32, 32), layers=1)
SIZES = {
    "sd1": TinySizes(
        unet=UNetSizes(
            channels=(32, 64), layers=2, depths=(1, 0), mid_depth=1, context_width=24, heads=(8, 8), uses_linear_projection=False
        ),
        vae=_VAE,
        text_encoders=(_text(24, 2, "quick_gelu"),),
    ),
    "sd2": TinySizes(
        unet=UNetSizes(
            channels=(32, 64), layers=2, depths=(1, 0), mid_depth=1, context_width=24, heads=(2, 4), uses_linear_projection=True
        ),
        vae=_VAE,
        text_encoders=(_text(24, 3, "gelu"),),
    ),
    "sdxl": TinySizes(
        unet=UNetSizes(
            channels=(32, 64, 64),
            layers=2,
            depths=(0, 1, 2),
            mid_depth=2,
            context_width=40,
            heads=(2, 4, 4),
            uses_linear_projection=True,
            condition_width=16 + 6 * 256,
        ),
        vae=_VAE,
        text_encoders=(_text(24, 2, "quick_gelu"), _text(16, 10, "gelu", pooled_width=16)),
    ),
}
HEAD_WIDTH = 16
TEXT_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}


def make_checkpoint(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    sizes: TinySizes | None = None,
    has_yaml: bool = True,
    resolution: int = 64,
    name: str = "tiny",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a tiny single file in the original layout, with its yaml and CLIP folder beside it.

    Args:
        family: "sd1", "sd2" or "sdxl".
        folder: where; made when missing.
        seed: of the weights.
        prediction: written into the yaml; the weights are the same.
        sizes: other than `SIZES[family]`.
        has_yaml: without it the heads are those of ordinary models, and the weights mean something else.
        resolution: in the yaml of SD1 and SD2, in pixels; SDXL's has no such line.
        name: the file's stem.
        metadata: of the safetensors header.

    Returns:
        The `.safetensors` file.
    """
    sizes = sizes or SIZES[family]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in original_tensors(family, seed, sizes).items()}, path, metadata)
    if has_yaml:
        clip_folder = folder / f"{name}_clip"
        clip_folder.mkdir(exist_ok=True)
        config = {**sizes.text_encoders[0].transformers_config(), "model_type": "clip_text_model"}
        (clip_folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        content = _yaml(family, sizes, prediction, resolution, clip_folder.name)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def make_diffusers_folder(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    sizes: TinySizes | None = None,
    resolution: int = 64,
    variant: str = "",
) -> Path:
    """Writes the same model as `make_checkpoint` as a diffusers folder, and returns the folder.

    Args:
        variant: "fp16" puts that word into the names of the weight files.
    """
    sizes = sizes or SIZES[family]
    pipeline = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    _write_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": "0.31.0"})
    tensors = module_tensors(seed, sizes)
    unet_config = {**sizes.unet.diffusers_config(), "_class_name": "UNet2DConditionModel", "sample_size": resolution // 8}
    vae_config = {**sizes.vae.diffusers_config(), "scaling_factor": 0.13025 if family == "sdxl" else 0.18215}
    _write_part(folder / "unet", "diffusion_pytorch_model", unet_config, tensors["unet"], variant)
    _write_part(folder / "vae", "diffusion_pytorch_model", vae_config, tensors["vae"], variant)
    for index, text_sizes in enumerate(sizes.text_encoders):
        part = "text_encoder_2" if index else "text_encoder"
        weights = tensors[part]
        if family == "sd2":
            # The unused last layer is left out of folders.
            text_sizes = replace(text_sizes, layers=text_sizes.layers - 1)
            weights = {name: tensor for name, tensor in weights.items() if f".layers.{text_sizes.layers}." not in name}
        _write_part(folder / part, "model", text_sizes.transformers_config(), weights, variant)
    scheduler = {"prediction_type": prediction, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    return folder


def original_tensors(family: str, seed: int = 0, sizes: TinySizes | None = None) -> Tensors:
    """Returns a tiny model's tensors, fp16, under the names of the original single-file layout."""
    sizes = sizes or SIZES[family]
    tensors = module_tensors(seed, sizes)
    unet = convert.unet_to_original(tensors["unet"], sizes.unet)
    vae = convert.vae_to_original(tensors["vae"], sizes.vae)
    result = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    result |= {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    for prefix, part, text_sizes in zip(
        TEXT_PREFIXES[family], ("text_encoder", "text_encoder_2"), sizes.text_encoders, strict=False
    ):
        to_original = convert.clip_to_original if ".transformer." in prefix else convert.open_clip_to_original
        result |= {f"{prefix}{name}": tensor for name, tensor in to_original(tensors[part], text_sizes).items()}
    return result


def module_tensors(seed: int, sizes: TinySizes) -> dict[str, Tensors]:
    """Returns the fp16 tensors of each part under diffusers' and transformers' names, with the "text_model." prefix."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    makers: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNet2DConditionModel(**sizes.unet.diffusers_config()),
        "vae": lambda: AutoencoderKL(**sizes.vae.diffusers_config()),
    }
    for part, text_sizes in zip(("text_encoder", "text_encoder_2"), sizes.text_encoders, strict=False):
        config = CLIPTextConfig(**text_sizes.transformers_config())
        text_class = CLIPTextModelWithProjection if text_sizes.pooled_width else CLIPTextModel
        makers[part] = lambda text_class=text_class, config=config: text_class(config)
    tensors = {}
    for part, make in makers.items():
        shapes = {_full_name(part, name): parameter.shape for name, parameter in build_empty(make).named_parameters()}
        tensors[part] = {name: random_tensor(f"{part}.{name}", tuple(shape), seed) for name, shape in shapes.items()}
    return tensors


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Returns the fp16 weights of one tensor: norms near 1, biases small, others scaled to keep variance."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    values = np.random.RandomState(int.from_bytes(digest[:4], "little")).standard_normal(shape)
    if len(shape) == 1:
        values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    elif "embedding." in name and "time" not in name and "add" not in name:
        values = values * 0.3
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values).to(torch.float16)


def make_pictures(
    folder: Path,
    num_pictures: int = 4,
    *,
    size: tuple[int, int] = (96, 80),
    repeats: int | None = None,
    captions: Literal["txt", "csv", "none"] = "txt",
) -> Path:
    """Writes real pictures, crops of those that scikit-image ships, with captions.

    Args:
        folder: where; made when missing.
        size: (width, height); every second picture is turned upright.
        repeats: puts the pictures into a kohya folder "<repeats>_scene" below `folder`.
        captions: one ".txt" beside each picture, one "metadata.csv" in `folder`, or none.

    Returns:
        `folder`.
    """
    target = folder / f"{repeats}_scene" if repeats else folder
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (name, picture) in zip(range(num_pictures), _photographs(), strict=False):
        width, height = size if index % 2 == 0 else size[::-1]
        left, top = (37 * index) % max(1, picture.width - width), (23 * index) % max(1, picture.height - height)
        path = target / f"{index:02d}_{name}.png"
        picture.crop((left, top, left + width, top + height)).save(path)
        caption = f"a photograph of {name}, number {index}"
        rows.append((path.relative_to(folder).as_posix(), caption))
        if captions == "txt":
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    if captions == "csv":
        with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("filename", "prompt"), *rows])
    return folder


def _photographs() -> Iterable[tuple[str, Image.Image]]:
    """Yields names and pictures for ever."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None, "the tests need scikit-image for its pictures"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png", "coins.png", "brick.png")
    paths = [path for name in names if (path := Path(spec.origin).parent / "data" / name).is_file()]
    pictures = [(path.stem, Image.open(path).convert("RGB")) for path in paths]
    while True:
        yield from pictures


def _full_name(part: str, name: str) -> str:
    if not part.startswith("text_encoder") or name.startswith(("text_model.", "text_projection.")):
        return name
    return f"text_model.{name}"


def _write_part(folder: Path, stem: str, config: dict[str, Any], tensors: Tensors, variant: str) -> None:
    _write_json(folder / "config.json", config)
    middle = f".{variant}" if variant else ""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{stem}{middle}.safetensors")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _yaml(family: str, sizes: TinySizes, prediction: str, resolution: int, clip_folder: str) -> dict[str, Any]:
    """Returns a configuration as the WebUI's model code reads it."""
    build = {"sd1": _ldm_yaml, "sd2": _ldm_yaml, "sdxl": _sgm_yaml}[family]
    return build(family, sizes, prediction, resolution, clip_folder)


def _ldm_yaml(family: str, sizes: TinySizes, prediction: str, resolution: int, clip_folder: str) -> dict[str, Any]:
    if family == "sd1":
        heads: dict[str, Any] = {"num_heads": sizes.unet.heads[0]}
        text = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": clip_folder}}
    else:
        heads = {"num_head_channels": HEAD_WIDTH, "use_linear_in_transformer": True}
        text = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        }
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": resolution // 8,
        "channels": 4,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": 0.18215,
        "use_ema": False,
        **({"parameterization": "v"} if prediction == "v_prediction" else {}),
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {"image_size": 32, **_unet_yaml(sizes.unet), **heads, "transformer_depth": sizes.unet.mid_depth},
        },
        "first_stage_config": _vae_yaml(sizes.vae, "ldm.models.autoencoder.AutoencoderKL"),
        "cond_stage_config": text,
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _sgm_yaml(family: str, sizes: TinySizes, prediction: str, resolution: int, clip_folder: str) -> dict[str, Any]:
    modules, layers = "sgm.modules", sizes.text_encoders[0].layers
    diffusion = f"{modules}.diffusionmodules"
    scaling = "VScaling" if prediction == "v_prediction" else "EpsScaling"
    clip = {"layer": "hidden", "layer_idx": layers - 1, "version": clip_folder}
    open_clip = {"arch": "ViT-bigG-14", "freeze": True, "layer": "penultimate", "always_return_pooled": True, "legacy": False}
    embedders = [
        {"input_key": "txt", "target": f"{modules}.encoders.modules.FrozenCLIPEmbedder", "params": clip},
        {"input_key": "txt", "target": f"{modules}.encoders.modules.FrozenOpenCLIPEmbedder2", "params": open_clip},
        *(
            {"input_key": key, "target": f"{modules}.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": 256}}
            for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
        ),
    ]
    depths = [depth or 1 for depth in sizes.unet.depths]
    unet = {
        "adm_in_channels": sizes.unet.condition_width,
        "num_classes": "sequential",
        **_unet_yaml(sizes.unet),
        "num_head_channels": HEAD_WIDTH,
        "use_linear_in_transformer": True,
        "transformer_depth": depths,
    }
    denoiser = {
        "num_idx": 1000,
        "weighting_config": {"target": f"{diffusion}.denoiser_weighting.EpsWeighting"},
        "scaling_config": {"target": f"{diffusion}.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"},
    }
    params = {
        "scale_factor": 0.13025,
        "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{diffusion}.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{diffusion}.openaimodel.UNetModel", "params": unet},
        "conditioner_config": {"target": f"{modules}.GeneralConditioner", "params": {"emb_models": embedders}},
        "first_stage_config": _vae_yaml(sizes.vae, "sgm.models.autoencoder.AutoencoderKLInferenceWrapper"),
    }
    return {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}}


def _unet_yaml(sizes: UNetSizes) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": sizes.channels[0],
        "attention_resolutions": [2**level for level, depth in enumerate(sizes.depths) if depth],
        "num_res_blocks": sizes.layers,
        "channel_mult": [width // sizes.channels[0] for width in sizes.channels],
        "use_spatial_transformer": True,
        "context_dim": sizes.context_width,
        "use_checkpoint": False,
        "legacy": False,
    }


def _vae_yaml(sizes: VaeSizes, target: str) -> dict[str, Any]:
    ddconfig = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": sizes.channels[0],
        "ch_mult": [width // sizes.channels[0] for width in sizes.channels],
        "num_res_blocks": sizes.layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    loss = {"target": "torch.nn.Identity"}
    return {"target": target, "params": {"embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": ddconfig, "lossconfig": loss}}
