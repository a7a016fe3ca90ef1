"""Builds the parts of a Stable Diffusion model from a file or folder: denoiser, VAE, text encoders.

The modules are diffusers' and transformers' own, with weights that are ours alone: nothing is shared with a running WebUI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_trainer.errors import ModelError
from lora_trainer.libraries import wait_for_libraries
from lora_trainer.models import convert
from lora_trainer.models.checkpoint import build_empty, fill, read_folder_part, read_tensors
from lora_trainer.models.detect import Detection
from lora_trainer.models.header import read_header
from lora_trainer.models.recognise import UNET_PREFIX, VAE_PREFIX, below
from lora_trainer.models.sizes import TextSizes, VaeSizes

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from lora_trainer.models.family import ModelSettings

_IGNORED_TEXT = ("logit_scale", "attn_mask")
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_unet(settings: ModelSettings, detection: Detection) -> UNet2DConditionModel:
    """Loads the denoiser in `settings.dtype`, with its weights channels last for a GPU."""
    sizes = detection.facts.unet
    if detection.layout == "diffusers":
        tensors = read_folder_part(detection.path, "unet", dtype=settings.dtype)
    else:
        tensors = convert.unet_to_diffusers(read_tensors(detection.path, UNET_PREFIX, dtype=settings.dtype), sizes)
    # Behind the reading, which goes on beside the imports.
    wait_for_libraries()
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: UNet2DConditionModel = build_empty(lambda: UNet2DConditionModel(**sizes.diffusers_config()))
    device = torch.device("cpu") if settings.denoiser_waits else settings.device
    fill(unet, tensors, source=f"The UNet of {detection.path}", device=device)
    if settings.device.type != "cpu":
        # Tensor cores take convolutions in this order. On a CPU it gains nothing, and reordering would slow the loading.
        for parameter in unet.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        recompute_blocks(unet, True)
    return unet


def recompute_blocks(unet: nn.Module, enabled: bool) -> None:
    """Has each residual block and transformer block keep its inputs alone, and compute again in the backward pass, or not.

    Like the library's own switch, which also sets the process's random generators back for each block, and takes no other way
    before diffusers 0.33: a WebUI that draws its noise from them meanwhile would get another picture than its seed's. Nothing in
    these blocks draws from them; the LoRA's dropout repeats by its seed.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock | ResnetBlock2D):
            vars(block).pop("forward", None)
            if enabled:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def load_vae(settings: ModelSettings, detection: Detection) -> AutoencoderKL:
    """Loads the checkpoint's VAE, or the one of `settings.vae`, always in fp32: SDXL's overflows in fp16.

    Raises:
        ModelError: there is none, or the file holds none.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    sizes, tensors, source = _read_vae(settings, detection)
    vae: AutoencoderKL = build_empty(lambda: AutoencoderKL(**sizes.diffusers_config()))
    fill(vae, tensors, source=f"The VAE of {source}", device=settings.device)
    return vae


def load_text_encoder(settings: ModelSettings, detection: Detection, index: int) -> nn.Module:
    """Loads the text encoder of that index in `settings.dtype`: transformers' CLIP, with projection where it is used."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes: TextSizes = detection.facts.text_encoders[index]
    if detection.layout == "diffusers":
        part = "text_encoder_2" if index else "text_encoder"
        tensors = read_folder_part(detection.path, part, dtype=settings.dtype)
        if sizes.pooled_width is None:
            tensors.pop("text_projection.weight", None)
    else:
        prefix = detection.facts.text_prefixes[index]
        read = read_tensors(detection.path, prefix, dtype=settings.dtype)
        to_transformers = convert.clip_to_transformers if ".transformer." in prefix else convert.open_clip_to_transformers
        tensors = to_transformers({name: tensor for name, tensor in read.items() if name not in _IGNORED_TEXT}, sizes)
    config = CLIPTextConfig(**sizes.transformers_config())
    encoder_class = CLIPTextModel if sizes.pooled_width is None else CLIPTextModelWithProjection
    encoder: nn.Module = build_empty(lambda: encoder_class(config))
    tensors = _match_text_prefix(encoder, tensors)
    return fill(encoder, tensors, source=f"Text encoder {index + 1} of {detection.path}", device=settings.device)


def list_layers(part: str, module: nn.Module) -> dict[str, str]:
    """Returns the kind ("linear" or "conv") of each module that a LoRA can go into, in the module's order.

    In text encoders these are the layers' own: the WebUI applies nothing to the embeddings and the pooled projection.
    1x1 convolutions count as linear, which they are.
    """
    layers = {}
    for name, layer in module.named_modules():
        if part != "unet" and ".layers." not in name:
            continue
        if isinstance(layer, nn.Linear):
            layers[name] = "linear"
        elif isinstance(layer, nn.Conv2d):
            layers[name] = "linear" if name.endswith(("proj_in", "proj_out")) else "conv"
    return layers


def _read_vae(settings: ModelSettings, detection: Detection) -> tuple[VaeSizes, dict[str, Tensor], Path]:
    """Returns sizes and tensors under diffusers' names, and where they come from."""
    if settings.vae is None:
        if detection.facts.vae is None:
            raise ModelError(f"{detection.path} holds no VAE. Give one by the setting `vae`.")
        if detection.layout == "original":
            tensors = read_tensors(detection.path, VAE_PREFIX, dtype=torch.float32)
            return detection.facts.vae, _vae_to_diffusers(tensors, detection.facts.vae), detection.path
        tensors = read_folder_part(detection.path, "vae", dtype=torch.float32)
        return detection.facts.vae, _rename_old_attention(tensors), detection.path
    if settings.vae.is_dir():
        return _read_vae_folder(settings.vae)
    return _read_vae_file(settings.vae)


def _read_vae_folder(folder: Path) -> tuple[VaeSizes, dict[str, Tensor], Path]:
    """Reads a diffusers folder, or its "vae" part."""
    part = folder if (folder / "config.json").is_file() else folder / "vae"
    if not (part / "config.json").is_file():
        raise ModelError(f"{folder} holds no VAE: there is no config.json. Give a VAE file or a diffusers folder.")
    with open(part / "config.json", encoding="utf-8") as file:
        sizes = VaeSizes.from_diffusers(json.load(file))
    return sizes, _rename_old_attention(read_folder_part(part.parent, part.name, dtype=torch.float32)), part


def _read_vae_file(path: Path) -> tuple[VaeSizes, dict[str, Tensor], Path]:
    """Reads a VAE file in either layout, or the VAE of a whole checkpoint."""
    shapes = read_header(path).shapes
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in shapes) else ""
    shapes = below(shapes, prefix)
    tensors = read_tensors(path, prefix, dtype=torch.float32)
    try:
        if "encoder.down.0.block.0.conv1.weight" in shapes:
            sizes = VaeSizes.from_shapes(shapes)
            return sizes, _vae_to_diffusers(tensors, sizes), path
        if "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes:
            return VaeSizes.from_diffusers_shapes(shapes), _rename_old_attention(tensors), path
    except KeyError as error:
        raise ModelError(f"{path} is incomplete: {error} is missing. Download it again.") from error
    raise ModelError(f"{path} holds no VAE; its first tensors: {', '.join(list(shapes)[:3])}. Give an SD1, SD2 or SDXL VAE.")


def _vae_to_diffusers(tensors: Mapping[str, Tensor], sizes: VaeSizes) -> dict[str, Tensor]:
    # Files made by the VAE's own training hold its loss, too.
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(("loss.", "model_ema."))}
    return convert.vae_to_diffusers(wanted, sizes)


def _rename_old_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Older diffusers folders name the VAE's attention "query", "key", "value", "proj_attn"."""
    renamed = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        if "attentions" in words:
            words = [_OLD_VAE_ATTENTION.get(word, word) for word in words]
            tensor = tensor.flatten(1) if tensor.dim() == 4 else tensor
        renamed[".".join(words)] = tensor
    return renamed


def _match_text_prefix(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers 5 dropped the "text_model." level of its `CLIPTextModel`; most files keep it."""
    level = "text_model." if any(name.startswith("text_model.") for name, _ in encoder.named_parameters()) else ""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return {name if name.startswith("text_projection.") else f"{level}{name}": tensor for name, tensor in bare.items()}
