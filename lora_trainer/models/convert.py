"""Tensors of the original single-file layout as diffusers and transformers name and shape them, and back.

Names come from `layout.py`. Shapes differ in two places: the VAE's attention is 1x1 convolutions there and linear layers here,
and OpenCLIP keeps q, k, v joined in one `in_proj` and its text projection transposed.
Names that the map does not know are kept, so that the strict check of whoever loads them can name them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lora_trainer.models.layout import QKV, clip_names, open_clip_names, unet_names, vae_names
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes

Tensors = dict[str, Tensor]

_VAE_ATTENTION = re.compile(r"(?:encoder|decoder)\.mid\.attn_1\.(?:q|k|v|proj_out)\.weight")
_JOINED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_SPLIT = re.compile(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)")


def unet_to_diffusers(tensors: Mapping[str, Tensor], sizes: UNetSizes) -> Tensors:
    """Returns a denoiser's tensors under diffusers' names; the original names have no prefix."""
    return _rename_all(tensors, unet_names(sizes).to_diffusers)


def unet_to_original(tensors: Mapping[str, Tensor], sizes: UNetSizes) -> Tensors:
    """Returns a denoiser's tensors under the original names, without a prefix."""
    return _rename_all(tensors, unet_names(sizes).to_original)


def vae_to_diffusers(tensors: Mapping[str, Tensor], sizes: VaeSizes) -> Tensors:
    """Returns an autoencoder's tensors under diffusers' names, attention weights [C, C, 1, 1] as [C, C]."""
    linear = {name: tensor.flatten(1) if _VAE_ATTENTION.fullmatch(name) else tensor for name, tensor in tensors.items()}
    return _rename_all(linear, vae_names(sizes).to_diffusers)


def vae_to_original(tensors: Mapping[str, Tensor], sizes: VaeSizes) -> Tensors:
    """Returns an autoencoder's tensors under the original names, attention weights [C, C] as [C, C, 1, 1]."""
    renamed = _rename_all(tensors, vae_names(sizes).to_original)
    return {name: tensor[:, :, None, None] if _VAE_ATTENTION.fullmatch(name) else tensor for name, tensor in renamed.items()}


def clip_to_transformers(tensors: Mapping[str, Tensor], sizes: TextSizes) -> Tensors:
    """Returns CLIP's tensors under transformers' names up to version 4, with the "text_model." prefix."""
    prefixed = {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return _rename_all(prefixed, clip_names(sizes.layers).to_diffusers)


def clip_to_original(tensors: Mapping[str, Tensor], sizes: TextSizes) -> Tensors:
    """Returns CLIP's tensors under the original names, which are transformers' own with the "text_model." prefix."""
    return clip_to_transformers(tensors, sizes)


def open_clip_to_transformers(tensors: Mapping[str, Tensor], sizes: TextSizes) -> Tensors:
    """Returns OpenCLIP's tensors under transformers' names; the projection only where `sizes` has one."""
    renamed: Tensors = {}
    names = open_clip_names(sizes.layers)
    for name, tensor in tensors.items():
        if match := _JOINED.fullmatch(name):
            attention = f"text_model.encoder.layers.{match[1]}.self_attn"
            renamed |= {f"{attention}.{part}.{match[2]}": third for part, third in zip(QKV, tensor.chunk(3), strict=True)}
        elif name != "text_projection":
            renamed |= _rename_all({name: tensor}, names.to_diffusers)
        elif sizes.pooled_width is not None:
            renamed["text_projection.weight"] = tensor.t().contiguous()
    return renamed


def open_clip_to_original(tensors: Mapping[str, Tensor], sizes: TextSizes) -> Tensors:
    """Returns OpenCLIP's tensors under the original names, q, k, v joined and the projection transposed."""
    rest = {name: tensor for name, tensor in tensors.items() if not any(f".{part}." in name for part in QKV)}
    renamed = _rename_all(rest, open_clip_names(sizes.layers).to_original)
    if "text_projection" in renamed:
        renamed["text_projection"] = renamed["text_projection"].t().contiguous()
    for name in tensors:
        if match := _SPLIT.fullmatch(name):
            parts = [tensors[name.replace("q_proj", part)] for part in QKV]
            renamed[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
    return renamed


def _rename_all(tensors: Mapping[str, Tensor], rename: Callable[[str], str]) -> Tensors:
    return {_rename_known(name, rename): tensor for name, tensor in tensors.items()}


def _rename_known(name: str, rename: Callable[[str], str]) -> str:
    try:
        return rename(name)
    except KeyError:
        return name
