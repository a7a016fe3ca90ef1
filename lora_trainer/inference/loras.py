"""Puts LoRA files into a loaded base by the WebUI's rules, `W + weight * alpha / rank * up @ down`, and takes them out again.

What the WebUI would leave out is left out here too, but named. Facts: FORMATS.md, "The exported file". Where this is stricter: a
file in another form, of another kind, or for another base is an error, since its pictures would prove nothing.

Shapes: r the rank, o and i a layer's outputs and inputs, k and l a convolution's kernel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.keys import ATTENTION_PROJECTIONS, FOREIGN_FORMS, foreign_form, group_by_module, is_open_clip, kinds_of
from lora_trainer.errors import AdapterError
from lora_trainer.models import webui
from lora_trainer.models.checkpoint import read_tensors

if TYPE_CHECKING:
    from lora_trainer.models.diffusion import DiffusionModel

_ENDINGS = {"lora_up.weight", "lora_down.weight", "alpha", "scale"}
_TEXT_LAYER = re.compile(r"lora_te(?P<number>[12]?)_text_model_encoder_layers_(?P<layer>\d+)_")


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and how strongly it acts, as in `<lora:name:text_encoder_weight:unet_weight>`.

    Attributes:
        path: a file in the WebUI's form.
        unet_weight: 0 for none; negative weights push away from what was learned.
        text_encoder_weight: None for the same as `unet_weight`.
    """

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float | None = None

    def weight_of(self, part: str) -> float:
        """Returns the weight for a part of the base, "unet" or a text encoder."""
        if part == "unet" or self.text_encoder_weight is None:
            return self.unet_weight
        return self.text_encoder_weight

    def scaled(self, factor: float) -> LoraUse:
        """Returns the same file with its weights multiplied."""
        text = None if self.text_encoder_weight is None else self.text_encoder_weight * factor
        return LoraUse(self.path, self.unet_weight * factor, text)

    @property
    def tag(self) -> str:
        """What to write in the WebUI's prompt: "<lora:ink:0.7>"."""
        if self.text_encoder_weight is None or self.text_encoder_weight == self.unet_weight:
            return f"<lora:{self.path.stem}:{self.unet_weight:g}>"
        return f"<lora:{self.path.stem}:{self.text_encoder_weight:g}:{self.unet_weight:g}>"


@dataclass(frozen=True)
class AppliedLora:
    """What became of a file's layers.

    Attributes:
        num_layers: put into the base. 0 where all weights are 0.
        skipped: what the WebUI leaves out in silence, one sentence each.
    """

    use: LoraUse
    num_layers: int
    skipped: tuple[str, ...]


class _Layer(NamedTuple):
    """A layer of the base: its part, and its name without PEFT's wrapper."""

    part: str
    module: str


@contextmanager
def applied(model: DiffusionModel, uses: Sequence[LoraUse]) -> Iterator[tuple[AppliedLora, ...]]:
    """Within it the base carries the LoRAs; afterwards every weight is what it was, bit for bit.

    Several LoRAs add up. The sum is made in fp32 and rounded once to the base's own format. The originals of the touched layers
    wait on the CPU. Yields what became of each file.

    Raises:
        AdapterError: a file cannot be read, is not in the WebUI's form, of a kind other than LoRA and LoCon, or fits no layer.
    """
    layers = _layers_by_key(model)
    changes: dict[_Layer, list[tuple[float, Mapping[str, Tensor]]]] = {}
    reports = []
    for use in uses:
        fitting, skipped = _match(model, use, layers)
        effective = {layer: tensors for layer, tensors in fitting.items() if use.weight_of(layer.part)}
        for layer, tensors in effective.items():
            changes.setdefault(layer, []).append((use.weight_of(layer.part), tensors))
        reports.append(AppliedLora(use, len(effective), skipped))
    originals: dict[_Layer, Tensor] = {}
    try:
        for layer, added in changes.items():
            parameter = _weight(model, layer)
            originals[layer] = parameter.detach().to("cpu", copy=True)
            _add(parameter, added)
        yield tuple(reports)
    finally:
        for layer, original in originals.items():
            _weight(model, layer).data.copy_(original)


def lora_hash(path: Path) -> str:
    """Returns the 12 hex digits that stand under "Lora hashes" in a picture's parameters."""
    return model_hash(path)[:12]


def _match(
    model: DiffusionModel, use: LoraUse, layers: Mapping[str, _Layer]
) -> tuple[dict[_Layer, dict[str, Tensor]], tuple[str, ...]]:
    """Returns a file's tensors by layer, and one sentence for each reason to leave layers out."""
    modules = _read(use.path)
    fitting: dict[_Layer, dict[str, Tensor]] = {}
    left_out: dict[str, list[str]] = {}
    for key, tensors in modules.items():
        reason = _find_obstacle(model, modules, layers, key)
        if reason:
            left_out.setdefault(reason, []).append(key)
        elif key in layers:
            fitting[layers[key]] = tensors
    skipped = tuple(
        f"{use.path.name}: {len(keys)} of its {len(modules)} layers are left out, as the WebUI does: {reason} (first: {keys[0]})."
        for reason, keys in left_out.items()
    )
    if any(key.startswith("bundle_emb.") for key in read_header(use.path).shapes):
        skipped += (f"{use.path.name} carries embeddings for words of the prompt, which the WebUI uses; they are not used here.",)
    if not fitting:
        base = f"{model.detection.path.name} ({model.family})"
        reasons = " ".join(skipped) or "It holds no LoRA layers."
        raise AdapterError(f"{use.path} fits no layer of {base}. {reasons} Use it with the base that it was trained on.")
    return fitting, skipped


def _find_obstacle(
    model: DiffusionModel, modules: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, _Layer], key: str
) -> str:
    """Returns why the WebUI leaves a module out; "" where it does not, or where it makes no difference."""
    attention, marker, projection = key.rpartition("_self_attn_")
    # The WebUI keeps these four in one layer, and changes it as a whole or not at all.
    is_joined = marker and projection in ATTENTION_PROJECTIONS and is_open_clip(key, is_sd2=model.family == "sd2")
    if is_joined and not all(f"{attention}{marker}{other}" in modules for other in ATTENTION_PROJECTIONS):
        return "an OpenCLIP attention needs all four of q_proj, k_proj, v_proj and out_proj"
    if key not in layers:
        return "" if _is_behind_output(model, key) else "this base has no such layers"
    up, down = (modules[key].get(f"lora_{name}.weight") for name in ("up", "down"))
    if up is None or down is None:
        return "lora_up or lora_down is missing"
    if any(modules[key][ending].numel() != 1 for ending in ("alpha", "scale") if ending in modules[key]):
        return "alpha is not one number"
    weight = _weight(model, layers[key]).shape
    fits = min(up.dim(), down.dim()) > 1 and math.prod(up.shape[1:]) == down.shape[0] > 0
    if not fits or up.shape[0] != weight[0] or math.prod(down.shape[1:]) != math.prod(weight[1:]):
        return "their shapes are not this base's"
    return ""


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    """Returns a file's tensors in fp32 by the WebUI's module key and ending."""
    keys = read_header(path).shapes
    if form := foreign_form(keys):
        raise AdapterError(f"{path} is in another form ({form}), which the WebUI does not apply. {FOREIGN_FORMS[form][1]}")
    names = group_by_module(keys)
    foreign = sorted({ending for endings in names.values() for ending in endings} - _ENDINGS)
    if foreign:
        kinds = " and ".join(kind for kind in kinds_of(keys) if kind != "LoRA") or foreign[0] or "no LoRA"
        raise AdapterError(
            f"{path} holds {kinds}; pictures are drawn here with plain LoRA and LoCon files only. Try it in the WebUI itself."
        )
    tensors = read_tensors(path, dtype=torch.float32)
    return {module: {ending: tensors[key] for ending, key in endings.items()} for module, endings in names.items()}


def _layers_by_key(model: DiffusionModel) -> dict[str, _Layer]:
    """Returns the base's layers by every key under which the WebUI finds them."""
    layers = {}
    for part, root in model.parts.items():
        for name, module in root.named_modules():
            # With an adapter in the model, its own two layers are no layers of the base, and the base's own is wrapped.
            if not isinstance(module, nn.Linear | nn.Conv2d) or ".lora_" in name:
                continue
            layer = _Layer(part, name.removesuffix(".base_layer"))
            for key in _keys(model, layer):
                layers[key] = layer
    return layers


def _keys(model: DiffusionModel, layer: _Layer) -> set[str]:
    if layer.part != "unet":
        return {model.webui_key(*layer)} if ".layers." in layer.module else set()
    # The WebUI finds a UNet's layer under its original name, as SDXL files have it, and under diffusers' name, as those of SD1
    # have it, where its arithmetic understands that.
    return {webui.unet_key(family, model.facts.unet, layer.module) for family in ("sdxl", "sd1")}


def _is_behind_output(model: DiffusionModel, key: str) -> bool:
    """Whether a key is of a text encoder's layer behind the one whose output is used: it has no effect in the WebUI either."""
    match = _TEXT_LAYER.match(key)
    if not match or (model.family == "sdxl") != bool(match["number"]):
        return False
    sizes = model.facts.text_encoders[int(match["number"] or 1) - 1]
    return int(match["layer"]) < int(sizes.layers)


def _add(parameter: nn.Parameter, added: Sequence[tuple[float, Mapping[str, Tensor]]]) -> None:
    total = parameter.detach().float()
    for weight, tensors in added:
        total = total + weight * _change(tensors, parameter.device).reshape(parameter.shape)
    parameter.data.copy_(total)


def _change(tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Returns `alpha / r * up @ down` of a layer, fp32 [o, i * k * l]. Without alpha the factor is 1."""
    up, down = (tensors[f"lora_{name}.weight"].to(device).flatten(1) for name in ("up", "down"))
    rank = tensors["lora_down.weight"].shape[0]
    scale = tensors["alpha"].item() / rank if "alpha" in tensors else 1.0
    if "scale" in tensors:
        scale = tensors["scale"].item()
    return scale * (up @ down)


def _weight(model: DiffusionModel, layer: _Layer) -> nn.Parameter:
    module = model.parts[layer.part].get_submodule(layer.module)
    return cast(nn.Parameter, getattr(module, "base_layer", module).weight)
