"""Mirrored pictures: both versions are encoded, side by side in one entry of the cache, and each use of an item takes one.

A VAE does not mirror its latents when its picture is mirrored, so the mirrored picture is encoded, not its latents turned round.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lora_trainer.models.family import Tensors

# Ends the names of what was encoded of a mirrored picture.
MIRRORED = "@mirrored"


def encode_both(encode: Callable[[Tensor], Tensors], pixels: Tensor) -> Tensors:
    """Returns pictures `[B, C, H, W]` encoded, and their mirror images under names that end in `MIRRORED`."""
    return encode(pixels) | {f"{name}{MIRRORED}": tensor for name, tensor in encode(pixels.flip(-1)).items()}


def choose_version(tensors: Tensors, *, mirrored: bool) -> Tensors:
    """Returns the tensors of one picture as it is, or those of its mirror image, under the plain names."""
    return {name.removesuffix(MIRRORED): tensor for name, tensor in tensors.items() if name.endswith(MIRRORED) == mirrored}
