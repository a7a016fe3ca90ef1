"""The map of names between diffusers' and transformers' modules and the original (LDM, SGM) single-file layout.

Computed from a network's sizes. One map serves loading, writing checkpoints, and the names in exported LoRA files. It holds
prefixes: what stands below a prefix is named alike in both layouts. Names only; `convert.py` handles the tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_trainer.models.sizes import UNetSizes, VaeSizes

RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET_PARTS = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION_PARTS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class NameMap:
    """Prefixes of names by each other: `forward` from the first layout to the second."""

    forward: Mapping[str, str]
    _backward: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        backward = {second: first for first, second in self.forward.items()}
        if len(backward) != len(self.forward):
            raise ValueError("two names map to one.")
        object.__setattr__(self, "_backward", backward)

    def to_original(self, name: str) -> str:
        """Returns the original layout's name of a module or tensor.

        Raises:
            KeyError: no such module in a network of these sizes.
        """
        return _rename(name, self.forward)

    def to_diffusers(self, name: str) -> str:
        """Returns diffusers' or transformers' name of a module or tensor.

        Raises:
            KeyError: no such module in a network of these sizes.
        """
        return _rename(name, self._backward)


@functools.lru_cache
def unet_names(sizes: UNetSizes) -> NameMap:
    """Returns the map of a denoiser; the original names start with "input_blocks", "middle_block", "output_blocks", ..."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if sizes.condition_width is not None:
        names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for index, original in ((0, 0), (1, 2)):
        names |= _below(f"mid_block.resnets.{index}", f"middle_block.{original}", RESNET_PARTS)
    names["mid_block.attentions.0"] = "middle_block.1"
    return NameMap(names | _down_names(sizes) | _up_names(sizes))


@functools.lru_cache
def vae_names(sizes: VaeSizes) -> NameMap:
    """Returns the map of an autoencoder."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    num_levels = len(sizes.channels)
    for side, blocks, sampler, num_layers in (
        ("encoder", "down", "downsample", sizes.layers),
        ("decoder", "up", "upsample", sizes.layers + 1),
    ):
        names |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for index in (0, 1):
            names |= _below(f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}", VAE_RESNET_PARTS)
        names |= _below(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", VAE_ATTENTION_PARTS)
        for level in range(num_levels):
            # Diffusers counts the decoder's levels in the order of work, the original from the outermost.
            original = f"{side}.{blocks}.{level if side == 'encoder' else num_levels - 1 - level}"
            block = f"{side}.{blocks}_blocks.{level}"
            for layer in range(num_layers):
                names |= _below(f"{block}.resnets.{layer}", f"{original}.block.{layer}", VAE_RESNET_PARTS)
            if level < num_levels - 1:
                names[f"{block}.{sampler}rs.0.conv"] = f"{original}.{sampler}.conv"
    return NameMap(names)


@functools.lru_cache
def clip_names(num_layers: int) -> NameMap:
    """Returns the map of OpenAI's CLIP text encoder, whose original names are transformers' own."""
    names = ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
    layers = (f"encoder.layers.{layer}" for layer in range(num_layers))
    return NameMap({f"text_model.{name}": f"text_model.{name}" for name in (*names, *layers)})


@functools.lru_cache
def open_clip_names(num_layers: int) -> NameMap:
    """Returns the map of an OpenCLIP text encoder, but for the joined q, k, v (`convert.py` splits them)."""
    names = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "ln_final",
        "text_projection.weight": "text_projection",
    }
    for layer in range(num_layers):
        names |= _below(f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}", OPEN_CLIP_LAYER_PARTS)
    return NameMap(names)


def original_position(sizes: UNetSizes, *, up: bool, level: int, layer: int) -> int:
    """Returns the number of the original block that holds a residual block; `level` counts in diffusers' order."""
    if up:
        return level * (sizes.layers + 1) + layer
    return 1 + level * (sizes.layers + 1) + layer


def _down_names(sizes: UNetSizes) -> dict[str, str]:
    names: dict[str, str] = {}
    for level, depth in enumerate(sizes.depths):
        for layer in range(sizes.layers):
            original = f"input_blocks.{original_position(sizes, up=False, level=level, layer=layer)}"
            names |= _below(f"down_blocks.{level}.resnets.{layer}", f"{original}.0", RESNET_PARTS)
            if depth:
                names[f"down_blocks.{level}.attentions.{layer}"] = f"{original}.1"
        if level < len(sizes.depths) - 1:
            position = original_position(sizes, up=False, level=level, layer=sizes.layers)
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{position}.0.op"
    return names


def _up_names(sizes: UNetSizes) -> dict[str, str]:
    names: dict[str, str] = {}
    for level, depth in enumerate(reversed(sizes.depths)):
        for layer in range(sizes.layers + 1):
            original = f"output_blocks.{original_position(sizes, up=True, level=level, layer=layer)}"
            names |= _below(f"up_blocks.{level}.resnets.{layer}", f"{original}.0", RESNET_PARTS)
            if depth:
                names[f"up_blocks.{level}.attentions.{layer}"] = f"{original}.1"
        if level < len(sizes.depths) - 1:
            # The up-sampler is the last part of the level's last block, behind the attention where there is one.
            position = original_position(sizes, up=True, level=level, layer=sizes.layers)
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{position}.{2 if depth else 1}.conv"
    return names


def _below(first: str, second: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{first}.{a}": f"{second}.{b}" for a, b in parts.items()}


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    """Replaces the longest prefix, ending at a dot, that the map holds."""
    end = len(name)
    while end > 0:
        if name[:end] in prefixes:
            return prefixes[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    raise KeyError(name)
