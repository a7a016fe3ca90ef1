"""The WebUI's names of a base model's layers, as they stand in LoRA files.

Facts: FORMATS.md, "The exported file". The WebUI turns diffusers' names of a UNet into the original ones by arithmetic that holds
for SD1's plan: two residual blocks a level, no attention on the deepest. Where a module lies elsewhere, as in SDXL, only the
original (SGM) name finds it; names of other modules load without an error and have no effect. Standard library only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_trainer.errors import ModelError
from lora_trainer.models.detect import Detection, detect
from lora_trainer.models.header import find_part_files, read_header
from lora_trainer.models.layout import QKV, NameMap, open_clip_names, unet_names
from lora_trainer.models.recognise import UNET_PREFIX, below
from lora_trainer.models.sizes import Shapes, UNetSizes

Layers = dict[str, tuple[int, ...]]

TEXT_PREFIXES = {"sd1": ("lora_te",), "sd2": ("lora_te",), "sdxl": ("lora_te1", "lora_te2")}
_JOINED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")


def unet_key(family: str, sizes: UNetSizes, module_name: str) -> str:
    """Returns the key of a denoiser's module: diffusers' name where the WebUI understands it, else the original one.

    SDXL always gets original names: with diffusers' names the WebUI misplaces an up-sampler.
    """
    if family != "sdxl" and _is_understood(sizes, module_name):
        return _join("lora_unet", module_name)
    return _join("lora_unet", unet_names(sizes).to_original(module_name))


def text_key(family: str, index: int, module_name: str) -> str:
    """Returns the key of a text encoder's module; `index` 0 or 1. The "text_model." level is put back where it is missing."""
    return _join(TEXT_PREFIXES[family][index], f"text_model.{module_name.removeprefix('text_model.')}")


def original_key(key: str) -> str:
    """Returns a UNet's key under the original (SGM) name into which the WebUI translates diffusers' names; others as they are.

    A name that the WebUI misplaces gets the place where it looks, and stays without effect.
    """
    if key.startswith("lora_unet_"):
        for name, original in _translated_names():
            if key == name or key.startswith(f"{name}_"):
                return original + key[len(name) :]
    return key


@functools.lru_cache
def _translated_names() -> tuple[tuple[str, str], ...]:
    """Returns the beginnings of keys with diffusers' names and what the WebUI makes of them, longest first."""
    every_level = UNetSizes((320,) * 4, 2, (1,) * 4, mid_depth=1, context_width=768, heads=(8,) * 4, uses_linear_projection=False)
    names = {_join("lora_unet", name): _join("lora_unet", to) for name, to in unet_names(every_level).forward.items()}
    # The one that lies elsewhere in SDXL, whose deepest level has attention.
    names["lora_unet_up_blocks_0_upsamplers_0_conv"] = "lora_unet_output_blocks_2_1_conv"
    return tuple(sorted(names.items(), key=lambda pair: -len(pair[0])))


def webui_layers(path: Path) -> Layers:
    """Returns every key that the WebUI finds a layer for in this base, with the shape of the layer's weight.

    Reads headers only. OpenCLIP's q, k and v projections count as layers of their own, as in the WebUI's LoRA loader.

    Raises:
        ModelError: the base cannot be read, or is of a kind that cannot be trained here.
    """
    detection = detect(path)
    try:
        layers = _unet_layers(detection, dict(_weights(_part_shapes(detection, "unet", UNET_PREFIX))))
        for index in range(len(detection.facts.text_encoders)):
            layers |= _text_layers(detection, index)
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path} is damaged: {error} does not fit its architecture. Download it again.") from error
    return layers


def _unet_layers(detection: Detection, weights: Shapes) -> Layers:
    sizes: UNetSizes = detection.facts.unet
    names = unet_names(sizes)
    layers: Layers = {}
    for name, shape in weights.items():
        module = name if detection.layout == "diffusers" else names.to_diffusers(name)
        layers[_join("lora_unet", names.to_original(module))] = shape
        if _is_understood(sizes, module):
            layers[_join("lora_unet", module)] = shape
    return layers


def _text_layers(detection: Detection, index: int) -> Layers:
    prefixes = detection.facts.text_prefixes
    part = "text_encoder_2" if index else "text_encoder"
    shapes = _part_shapes(detection, part, prefixes[index] if prefixes else "")
    if prefixes and ".transformer." not in prefixes[index]:
        shapes = _split_open_clip(shapes, open_clip_names(detection.facts.text_encoders[index].layers))
    return {
        text_key(detection.family, index, name): shape for name, shape in _weights(shapes) if ".encoder.layers." in f".{name}"
    }


def _split_open_clip(shapes: Shapes, names: NameMap) -> Layers:
    split: Layers = {}
    for name, shape in shapes.items():
        if match := _JOINED.fullmatch(name):
            for part in QKV:
                split[f"text_model.encoder.layers.{match[1]}.self_attn.{part}.weight"] = (shape[0] // 3, *shape[1:])
        elif name.startswith("transformer.resblocks.") and name.endswith(".weight"):
            split[names.to_diffusers(name)] = shape
    return split


def _part_shapes(detection: Detection, part: str, prefix: str) -> Layers:
    if detection.layout == "original":
        return below(read_header(detection.path).shapes, prefix)
    return {name: shape for file in find_part_files(detection.path, part) for name, shape in read_header(file).shapes.items()}


def _weights(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields name and shape of the modules that multiply: linear layers and convolutions, no norms."""
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) in (2, 4):
            yield name.removesuffix(".weight"), shape


def _is_understood(sizes: UNetSizes, module_name: str) -> bool:
    """Whether the WebUI's arithmetic puts diffusers' name of a module where the module is."""
    num_levels = len(sizes.channels)
    plan = replace(sizes, layers=2, depths=(*[1] * (num_levels - 1), 0), condition_width=None)
    try:
        return unet_names(plan).to_original(module_name) == unet_names(sizes).to_original(module_name)
    except KeyError:
        return False


def _join(prefix: str, module_name: str) -> str:
    return f"{prefix}_{module_name.replace('.', '_')}"
