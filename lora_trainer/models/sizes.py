"""The sizes of a Stable Diffusion model's three kinds of network, and how they are read from tensor shapes.

Everything but the number of attention heads shows in the shapes of the tensors. The module names of `layout.py` follow from
these sizes alone. Standard library only: nothing here needs a weight.

Shapes are those of the original (LDM, SGM) single-file layout, with the network's prefix taken off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_trainer.errors import ModelError, UnsupportedModelError

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64
"""Channels per attention head of SD2, SDXL and of every CLIP text encoder in use."""

SD1_HEADS = 8
"""Attention heads on every level of SD1's UNet, whatever its width."""


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of a denoiser.

    Attributes:
        channels: width of each level, outermost first.
        layers: residual blocks on each level of the way down.
        depths: transformer blocks per attention on each level, 0 where a level has no attention.
        mid_depth: transformer blocks in the middle.
        context_width: width of the text embedding.
        heads: attention heads on each level.
        uses_linear_projection: whether `proj_in` and `proj_out` are linear layers; else 1x1 convolutions.
        condition_width: width of the vector condition (pooled text and sizes), None when there is none.
        in_channels: channels of the input, 4 for plain latents.
    """

    channels: tuple[int, ...]
    layers: int
    depths: tuple[int, ...]
    mid_depth: int
    context_width: int
    heads: tuple[int, ...]
    uses_linear_projection: bool
    condition_width: int | None = None
    in_channels: int = 4

    def diffusers_config(self) -> dict[str, Any]:
        """Returns the arguments of diffusers' `UNet2DConditionModel`."""
        config: dict[str, Any] = {
            "in_channels": self.in_channels,
            "out_channels": 4,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.depths),
            "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(self.depths)),
            "transformer_layers_per_block": (*(depth or 1 for depth in self.depths[:-1]), self.mid_depth),
            "cross_attention_dim": self.context_width,
            # The library's name is wrong and kept for old files: this is the number of heads.
            "attention_head_dim": self.heads,
            "use_linear_projection": self.uses_linear_projection,
        }
        if self.condition_width is not None:
            config |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": self.condition_width,
            }
        return config

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> UNetSizes:
        """Reads them from a folder's `unet/config.json`."""
        channels = tuple(config["block_out_channels"])
        per_level = _per_level(config.get("transformer_layers_per_block", 1), len(channels))
        types = config["down_block_types"]
        heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
        layers = set(_per_level(config.get("layers_per_block", 2), len(channels)))
        if len(layers) != 1 or not set(types) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
            raise UnsupportedModelError(
                f"The denoiser's blocks ({types}, {sorted(layers)} layers) are not those of a Stable Diffusion model."
            )
        return cls(
            channels=channels,
            layers=layers.pop(),
            depths=tuple(depth if kind == "CrossAttnDownBlock2D" else 0 for depth, kind in zip(per_level, types, strict=True)),
            mid_depth=per_level[-1],
            context_width=config["cross_attention_dim"],
            heads=_per_level(heads, len(channels)),
            uses_linear_projection=bool(config.get("use_linear_projection")),
            condition_width=config.get("projection_class_embeddings_input_dim"),
            in_channels=config.get("in_channels", 4),
        )

    @classmethod
    def from_shapes(cls, shapes: Shapes, heads: int | None, head_width: int | None) -> UNetSizes:
        """Reads them from the original layout's tensors.

        Args:
            heads: attention heads on every level, when fixed.
            head_width: else channels per head.

        Raises:
            UnsupportedModelError: a level's attentions differ in depth, as in distilled SDXL models.
        """
        channels, layers, depths = _read_levels(shapes)
        mid_depth = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
        if not mid_depth or (depths[-1] and depths[-1] != mid_depth) or len(set(layers)) != 1 or not any(depths):
            raise UnsupportedModelError(
                f"The denoiser's blocks (residual blocks {layers}, transformer depths {depths}, middle {mid_depth}) are "
                "not those of SD1, SD2 or SDXL; distilled ones such as SSD-1B cannot be trained here."
            )
        attention = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
        condition = shapes.get("label_emb.0.0.weight")
        return cls(
            channels=channels,
            layers=layers[0],
            depths=depths,
            mid_depth=mid_depth,
            context_width=shapes[attention][1],
            heads=tuple(heads or max(1, width // (head_width or HEAD_WIDTH)) for width in channels),
            uses_linear_projection=len(shapes["middle_block.1.proj_in.weight"]) == 2,
            condition_width=condition[1] if condition else None,
            in_channels=shapes["input_blocks.0.0.weight"][1],
        )


@dataclass(frozen=True)
class VaeSizes:
    """Sizes of an autoencoder: `channels` of each level, outermost first, and residual `layers` on each level of the encoder.

    The decoder has one layer more on each. They are read from it: with `layers` 0 the encoder's levels do not show.
    """

    channels: tuple[int, ...]
    layers: int

    def diffusers_config(self) -> dict[str, Any]:
        """Returns the arguments of diffusers' `AutoencoderKL`."""
        return {
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "down_block_types": ("DownEncoderBlock2D",) * len(self.channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(self.channels),
            "latent_channels": 4,
        }

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> VaeSizes:
        """Reads them from a folder's `vae/config.json`.

        Raises:
            UnsupportedModelError: latents of other than 4 channels.
        """
        _check_latents(config.get("latent_channels", 4), len(config["block_out_channels"]))
        return cls(channels=tuple(config["block_out_channels"]), layers=config.get("layers_per_block", 1))

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> VaeSizes:
        """Reads them from the original layout's tensors.

        Raises:
            UnsupportedModelError: latents of other than 4 channels.
        """
        num_levels = _count(shapes, r"decoder\.up\.(\d+)\.")
        _check_latents(shapes["decoder.conv_in.weight"][1], num_levels)
        channels = tuple(shapes[f"decoder.up.{level}.block.0.conv1.weight"][0] for level in range(num_levels))
        return cls(channels=channels, layers=_count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1)

    @classmethod
    def from_diffusers_shapes(cls, shapes: Shapes) -> VaeSizes:
        """Reads them from tensors under diffusers' names.

        Raises:
            UnsupportedModelError: latents of other than 4 channels.
        """
        num_levels = _count(shapes, r"decoder\.up_blocks\.(\d+)\.")
        _check_latents(shapes["decoder.conv_in.weight"][1], num_levels)
        blocks = reversed(range(num_levels))  # diffusers counts the decoder's from the innermost
        channels = tuple(shapes[f"decoder.up_blocks.{block}.resnets.0.conv1.weight"][0] for block in blocks)
        return cls(channels=channels, layers=_count(shapes, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1)


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a CLIP text encoder.

    Attributes:
        width: of the embedding and the layers.
        layers: transformer layers in the file.
        heads: attention heads.
        inner_width: of the feed-forward.
        vocabulary: number of tokens, 49408 for CLIP.
        positions: longest sequence, 77.
        activation: "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP).
        pooled_width: of the projected pooled embedding, None where there is no projection.
    """

    width: int
    layers: int
    heads: int
    inner_width: int
    vocabulary: int
    positions: int
    activation: str
    pooled_width: int | None = None

    def transformers_config(self) -> dict[str, Any]:
        """Returns the arguments of transformers' `CLIPTextConfig`."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner_width,
            "projection_dim": self.pooled_width or self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "hidden_act": self.activation,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 1,
        }

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any], *, is_projected: bool) -> TextSizes:
        """Reads them from a folder's `text_encoder/config.json`; `is_projected` keeps the pooled projection."""
        return cls(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            inner_width=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config.get("max_position_embeddings", 77),
            activation=config.get("hidden_act", "quick_gelu"),
            pooled_width=config.get("projection_dim", 512) if is_projected else None,
        )

    @classmethod
    def from_clip_shapes(cls, shapes: Shapes, heads: int | None) -> TextSizes:
        """Reads them from CLIP's tensors ("text_model...."); `heads` None means width / 64."""
        vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
        return cls(
            width=width,
            layers=_count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
            heads=heads or max(1, width // HEAD_WIDTH),
            inner_width=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
            vocabulary=vocabulary,
            positions=shapes["text_model.embeddings.position_embedding.weight"][0],
            activation="quick_gelu",
        )

    @classmethod
    def from_open_clip_shapes(cls, shapes: Shapes, *, is_projected: bool) -> TextSizes:
        """Reads them from OpenCLIP's tensors; heads are width / 64. `is_projected` keeps the pooled projection."""
        vocabulary, width = shapes["token_embedding.weight"]
        return cls(
            width=width,
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=max(1, width // HEAD_WIDTH),
            inner_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            vocabulary=vocabulary,
            positions=shapes["positional_embedding"][0],
            activation="gelu",
            pooled_width=shapes["text_projection"][1] if is_projected else None,
        )


def _read_levels(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns width, residual blocks and transformer depth of each level of the way down."""
    widths, layers, depths = [0], [0], [set[int]()]
    for index in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            widths.append(0)
            layers.append(0)
            depths.append(set())
            continue
        widths[-1] = shapes[f"input_blocks.{index}.0.out_layers.3.weight"][0]
        layers[-1] += 1
        depths[-1].add(_count(shapes, rf"input_blocks\.{index}\.1\.transformer_blocks\.(\d+)\."))
    if any(len(found) != 1 for found in depths):
        raise UnsupportedModelError(
            f"The transformer depth varies within a level of the denoiser ({[sorted(found) for found in depths]}), as in "
            "distilled models such as SSD-1B; take SD1, SD2 or SDXL."
        )
    return tuple(widths), tuple(layers), tuple(found.pop() for found in depths)


def _count(shapes: Shapes, pattern: str) -> int:
    """Returns one more than the highest number that the pattern's group matches at the start of a name, 0 for none."""
    compiled = re.compile(pattern)
    return 1 + max((int(match[1]) for name in shapes if (match := compiled.match(name))), default=-1)


def _per_level(value: int | list[int] | tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    values = (value,) * num_levels if isinstance(value, int) else tuple(value)
    if len(values) != num_levels or not all(isinstance(each, int) for each in values):
        raise UnsupportedModelError(f"{value} does not give one number for each of the denoiser's {num_levels} levels.")
    return values


def _check_latents(num_channels: int, num_levels: int) -> None:
    if num_channels != 4:
        raise UnsupportedModelError(f"The VAE's latents have {num_channels} channels; those of SD1, SD2 and SDXL have 4.")
    if num_levels != 4:
        raise ModelError(f"The VAE has {num_levels} levels; SD1, SD2 and SDXL have 4, for latents of an eighth of the side.")
