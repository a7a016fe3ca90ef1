"""Puts LoRA files into a loaded base by the WebUI's rules, `W + weight * alpha / rank * up @ down`, and takes them out again.

What the WebUI would leave out is left out here too, but named. Facts: FORMATS.md, "The exported file". Where this is stricter: a
file in another form, of another kind, or for another base is an error, since its pictures would prove nothing.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import Tensor, nn

from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.keys import incomplete_attentions, split_attention
from lora_trainer.adapters.pairs import DOWN, UP, Modules, change_of, find_flaw, read_modules
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import AdapterError
from lora_trainer.models import webui

if TYPE_CHECKING:
    from lora_trainer.models.diffusion import DiffusionModel

PURPOSE = "pictures are drawn here"  # with which files, says `pairs.list_keys`
_TEXT_LAYER = re.compile(r"lora_te(?P<number>[12]?)_text_model_encoder_layers_(?P<layer>\d+)_")


@dataclass(frozen=True)
class AppliedLora:
    """What became of a file's layers.

    Attributes:
        num_layers: put into the base. 0 where all weights are 0.
        changes_texts: whether any of them is of a text encoder, so that prompts have another encoding.
        skipped: what the WebUI leaves out in silence, one sentence each.
    """

    use: LoraUse
    num_layers: int
    changes_texts: bool
    skipped: tuple[str, ...]


class _Layer(NamedTuple):
    """A layer of the base: its part, and its name without PEFT's wrapper."""

    part: str
    module: str


class LoraReader:
    """Reads LoRA files, each once, however often it is applied. Holds what it read, in fp32."""

    def __init__(self) -> None:
        self._modules: dict[Path, Modules] = {}

    def __call__(self, path: Path) -> Modules:
        if path not in self._modules:
            self._modules[path] = read_modules(path, PURPOSE)
        return self._modules[path]


@contextmanager
def applied(
    model: DiffusionModel, uses: Sequence[LoraUse], read: Callable[[Path], Modules] | None = None
) -> Iterator[tuple[AppliedLora, ...]]:
    """Within it the base carries the LoRAs; afterwards every weight is what it was, bit for bit.

    Several LoRAs add up. The sum is made in fp32 and rounded once to the base's own format. The originals of the touched layers
    wait on the CPU. Yields what became of each file.

    Args:
        read: gives a file's tensors; a `LoraReader` of the caller's spares reading files that are applied again and again.

    Raises:
        AdapterError: a file cannot be read, is not in the WebUI's form, of a kind other than LoRA and LoCon, or fits no layer.
    """
    read = read or LoraReader()
    layers = _layers_by_key(model)
    changes: dict[_Layer, list[tuple[LoraUse, Mapping[str, Tensor]]]] = {}
    reports = []
    for use in uses:
        fitting, skipped = _match(model, use, read(use.path), layers)
        effective = {layer: tensors for layer, tensors in fitting.items() if use.weight_of(layer.part)}
        for layer, tensors in effective.items():
            changes.setdefault(layer, []).append((use, tensors))
        reports.append(AppliedLora(use, len(effective), any(layer.part != "unet" for layer in effective), skipped))
    originals: dict[_Layer, Tensor] = {}
    try:
        for layer, added in changes.items():
            parameter = _weight(model, layer)
            originals[layer] = parameter.detach().to("cpu", copy=True)
            _add(parameter, layer.part, added)
        yield tuple(reports)
    finally:
        for layer, original in originals.items():
            _weight(model, layer).data.copy_(original)


def lora_hash(path: Path) -> str:
    """Returns the 12 hex digits that stand under "Lora hashes" in a picture's parameters."""
    state = path.stat()
    return _hash_once(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache
def _hash_once(path: Path, size: int, changed_at: int) -> str:
    """Reads a file again only when its size or time of change differs."""
    return model_hash(path)[:12]


def _match(
    model: DiffusionModel, use: LoraUse, modules: Modules, layers: Mapping[str, _Layer]
) -> tuple[dict[_Layer, dict[str, Tensor]], tuple[str, ...]]:
    """Returns a file's tensors by layer, and one sentence for each reason to leave layers out."""
    fitting: dict[_Layer, dict[str, Tensor]] = {}
    left_out: dict[str, list[str]] = {}
    incomplete = set(incomplete_attentions(modules, is_sd2=model.family == "sd2"))
    for key, tensors in modules.items():
        if split_attention(key)[0] in incomplete:
            reason = "an OpenCLIP attention needs all four of q_proj, k_proj, v_proj and out_proj"
        else:
            reason = _find_obstacle(model, tensors, layers, key)
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


def _find_obstacle(model: DiffusionModel, tensors: Mapping[str, Tensor], layers: Mapping[str, _Layer], key: str) -> str:
    """Returns why the WebUI leaves a module out; "" where it does not, or where it makes no difference."""
    if key not in layers:
        return "" if _is_behind_output(model, key) else "this base has no such layers"
    if flaw := find_flaw(tensors):
        return flaw
    weight = _weight(model, layers[key]).shape
    if len(tensors[UP]) != weight[0] or tensors[DOWN][0].numel() != math.prod(weight[1:]):
        return "their shapes are not this base's"
    return ""


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


def _add(parameter: nn.Parameter, part: str, added: Sequence[tuple[LoraUse, Mapping[str, Tensor]]]) -> None:
    total = parameter.detach().float()
    for use, tensors in added:
        change = change_of(tensors, parameter.device, rank_cut=use.rank_cut)
        total = total + use.weight_of(part) * change.reshape(parameter.shape)
    parameter.data.copy_(total)


def _weight(model: DiffusionModel, layer: _Layer) -> nn.Parameter:
    module = model.parts[layer.part].get_submodule(layer.module)
    return cast(nn.Parameter, getattr(module, "base_layer", module).weight)
