"""LoRA (arXiv 2106.09685): PEFT puts the layers in, this file gives them their weights, names and forward.

`W x + alpha/rank * up(down(x))`, for Linear and for Conv2d (down keeps the kernel, up is 1 x 1). PEFT calls them A and B.
The layers' names, first weights and dtype are ours, so that runs are equal under every version of PEFT.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora as peft_lora
from torch import Tensor, nn

from lora_trainer.adapters.adapter import ModuleName
from lora_trainer.errors import AdapterError
from lora_trainer.models.family import TrainableModel

PEFT_NAME = "default"


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, so that no picture that a host draws meanwhile depends on ours.

    What is dropped follows from `seed` and the layer's name alone: a forward that checkpointing repeats drops the same again.
    """

    def __init__(self, share: float, name: ModuleName) -> None:
        super().__init__()
        self.share = share
        self.seed = 0
        self._layer_seed = _draw_seed(f"dropout/{name.part}/{name.module}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        generator = torch.Generator(x.device).manual_seed(self.seed ^ self._layer_seed)
        is_kept = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - self.share, generator=generator)
        return x * is_kept * (1 / (1 - self.share))


class _ComputesLikeItsBase:
    """A LoRA layer that computes in the dtype of its frozen base layer, whatever that of its own weights.

    PEFT's forward widens the input to the weights' fp32, which autocast narrows again: two more copies of every layer's input.
    It also scales the output, where scaling the rank's few numbers gives the same.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.get_base_layer()  # type: ignore[attr-defined]
        x = x.to(base.weight.dtype)
        output: Tensor = base(x, *args, **kwargs)
        if self.disable_adapters:  # type: ignore[attr-defined]
            return output
        dropped = self.lora_dropout[PEFT_NAME](x)  # type: ignore[attr-defined]
        inner = _apply(_down(self), dropped) * self.scaling[PEFT_NAME]  # type: ignore[attr-defined]
        return output + _apply(_up(self), inner)


class LoraLinear(_ComputesLikeItsBase, peft_lora.Linear):
    """See `_ComputesLikeItsBase`."""


class LoraConv2d(_ComputesLikeItsBase, peft_lora.Conv2d):
    """See `_ComputesLikeItsBase`."""


class LoraAdapter:
    """See `adapter.Adapter`."""

    network_module = "networks.lora"

    def __init__(self, parts: Mapping[str, nn.Module], layers: dict[ModuleName, Any], *, rank: int, alpha: float) -> None:
        self.rank = rank
        self.alpha = alpha
        self._parts = dict(parts)
        self._layers = layers

    @classmethod
    def inject(
        cls, model: TrainableModel, targets: Mapping[str, list[str]], *, rank: int, alpha: float, dropout: float, seed: int
    ) -> LoraAdapter:
        for part in model.parts.values():
            part.requires_grad_(False)
        _check_targets(model.parts, targets)
        config = LoraConfig(r=rank, lora_alpha=alpha, bias="none")
        layers: dict[ModuleName, Any] = {}
        parts = {part: model.parts[part] for part, names in targets.items() if names}
        for part_name, root in parts.items():
            for module_name, layer in _inject_part(root, targets[part_name], config):
                name = ModuleName(part_name, module_name)
                layers[name] = layer
                _set_first_weights(layer, name, seed)
                if dropout > 0:
                    layer.lora_dropout[PEFT_NAME] = SeededDropout(dropout, name).train(layer.training)
        return cls(parts, layers, rank=rank, alpha=alpha)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        by_part: dict[str, list[nn.Parameter]] = {part: [] for part in self._parts}
        for name, layer in self._layers.items():
            by_part[name.part] += [_down(layer).weight, _up(layer).weight]
        return by_part

    def seed_dropout(self, seed: int) -> None:
        for layer in self._layers.values():
            if isinstance(dropout := layer.lora_dropout[PEFT_NAME], SeededDropout):
                dropout.seed = seed

    def tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, layer in self._layers.items():
            tensors[f"{name.part}.{name.module}.down"] = _down(layer).weight.detach()
            tensors[f"{name.part}.{name.module}.up"] = _up(layer).weight.detach()
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.tensors()
        if own.keys() != tensors.keys():
            lacking, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise AdapterError(
                f"the saved weights are of other layers: {len(lacking)} missing (first: {lacking[:1]}), {len(foreign)} unknown "
                f"(first: {foreign[:1]}). Continue with the target_modules that the run was started with, or begin anew."
            )
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise AdapterError(
                    f"the saved weight {name} has shape {list(tensor.shape)}, this run needs {list(own[name].shape)}. "
                    "Continue with the lora_rank and base model that the run was started with, or begin anew."
                )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def host_tensors(self) -> Iterator[tuple[ModuleName, dict[str, Tensor]]]:
        for name, layer in self._layers.items():
            yield (
                name,
                {
                    "lora_down.weight": _down(layer).weight.detach(),
                    "lora_up.weight": _up(layer).weight.detach(),
                    "alpha": torch.tensor(float(self.alpha)),
                },
            )

    def load_host_tensors(self, tensors: Mapping[ModuleName, Mapping[str, Tensor]]) -> None:
        for name, given in tensors.items():
            down, up = _down(self._layers[name]).weight.detach(), _up(self._layers[name]).weight.detach()
            # Without an alpha the WebUI multiplies by 1, as with alpha = rank.
            alpha = given["alpha"].item() if "alpha" in given else self.rank
            down.copy_(given["lora_down.weight"].reshape(down.shape))
            up.copy_(given["lora_up.weight"].reshape(up.shape).float() * (alpha / self.alpha))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def remove(self) -> None:
        for name, layer in self._layers.items():
            parent_name, _, child = name.module.rpartition(".")
            setattr(self._parts[name.part].get_submodule(parent_name), child, layer.get_base_layer())
        for part in self._parts.values():
            del part.peft_config
        self._layers = {}


def _check_targets(parts: Mapping[str, nn.Module], targets: Mapping[str, list[str]]) -> None:
    if not any(targets.values()):
        raise AdapterError("no layer was chosen, so there is nothing to train. Set target_modules, for example: [attention].")
    for part, names in targets.items():
        if part not in parts:
            raise AdapterError(f"the base model has no part {part!r}; its parts are {', '.join(parts)}.")
        modules = dict(parts[part].named_modules())
        for name in names:
            if not isinstance(modules.get(name), nn.Linear | nn.Conv2d):
                kind = type(modules[name]).__name__ if name in modules else "not in the model"
                raise AdapterError(f"{part}.{name} is {kind}; a LoRA fits Linear and Conv2d layers only.")


def _inject_part(root: nn.Module, names: list[str], config: LoraConfig) -> list[tuple[str, Any]]:
    """Returns the new layers by name, in the module's own order."""
    # A pattern, because PEFT would also take every module whose name ends with one of a list's names.
    config = replace(config, target_modules="|".join(re.escape(name) for name in names))
    config._register_custom_module({nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d})
    wanted = set(names)
    # PEFT draws first weights that are replaced anyway; the draws of the caller must not depend on that.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, root, PEFT_NAME)
    layers = [(name, module) for name, module in root.named_modules() if name in wanted]
    for name, layer in layers:
        if not hasattr(layer, "lora_A"):
            raise AdapterError(f"PEFT left {name} ({type(layer).__name__}) without LoRA. Choose other target_modules.")
        layer.train(layer.get_base_layer().training)
    return layers


def _set_first_weights(layer: Any, name: ModuleName, seed: int) -> None:
    """Gives a layer fp32 weights: `down` uniform as `nn.Linear` would (Kaiming with a = sqrt 5), `up` zero.

    The draws depend on the seed and the layer's name alone, so the choice of other layers changes nothing here.
    """
    generator = torch.Generator().manual_seed(_draw_seed(f"{seed}/{name.part}/{name.module}"))
    device = layer.get_base_layer().weight.device
    down, up = _down(layer), _up(layer)
    bound = 1 / math.sqrt(math.prod(down.weight.shape[1:]))
    first = torch.empty(down.weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    down.weight = nn.Parameter(first.to(device))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, dtype=torch.float32, device=device))


def _draw_seed(text: str) -> int:
    """Returns a number of 63 bits that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _apply(layer: Any, x: Tensor) -> Tensor:
    """Returns a matrix's output for x, in the dtype of x; the gradient of the weight is of the weight's own dtype."""
    weight = layer.weight.to(x.dtype)
    output: Tensor = layer._conv_forward(x, weight, None) if isinstance(layer, nn.Conv2d) else nn.functional.linear(x, weight)
    return output


def _down(layer: Any) -> Any:
    return layer.lora_A[PEFT_NAME]


def _up(layer: Any) -> Any:
    return layer.lora_B[PEFT_NAME]
