"""A LoRA file as the first weights of a run: read, and checked layer by layer against what the run trains.

What the header alone shows (another form, kind or rank) `plan` has said before; here is what needs the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Size, Tensor

from lora_trainer.adapters.adapter import ModuleName
from lora_trainer.adapters.keys import group_by_module
from lora_trainer.errors import AdapterError, examples
from lora_trainer.models.family import TrainableModel


def read_start(
    path: Path, model: TrainableModel, targets: Mapping[str, Iterable[str]], *, rank: int
) -> dict[ModuleName, dict[str, Tensor]]:
    """Returns the tensors of a LoRA file by the modules of a model, as `Adapter.load_host_tensors` takes them.

    Layers without effect are passed over: the pairs of zeros that complete an OpenCLIP attention. The run may train layers that
    the file does not have, but all that the file changes must be trained, or its effect would be another one.

    Args:
        path: in the WebUI's form.
        model: not adapted yet.
        targets: names of the modules that will be trained, by part.
        rank: of the adapter.

    Raises:
        AdapterError: the file cannot be read, or does not fit; lists everything that does not.
    """
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"start_from ({path}) cannot be read: {error}. Copy it again, or choose another file.") from error
    names = {model.webui_key(part, module): ModuleName(part, module) for part, modules in targets.items() for module in modules}
    found: dict[ModuleName, dict[str, Tensor]] = {}
    untrained, misfits = [], []
    for module, keys in group_by_module(tensors).items():
        own = {ending: tensors[key] for ending, key in keys.items()}
        if not _has_effect(own):
            continue
        if module not in names:
            untrained.append(module)
            continue
        found[names[module]] = own
        shape = model.parts[names[module].part].get_submodule(names[module].module).get_parameter("weight").shape
        misfit = _misfit(own, shape, rank)
        if misfit:
            misfits.append(f"{module} {misfit}")
    _raise_misfits(path, untrained, misfits)
    if not found:
        raise AdapterError(f"start_from ({path}) changes nothing, so there is nothing to start from. Choose another file.")
    return found


def _has_effect(own: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.any()) for tensor in own.values())


def _misfit(own: Mapping[str, Tensor], weight: Size, rank: int) -> str:
    """Returns what is wrong with a pair of matrices for a layer whose weight has that shape, "" for nothing."""
    down, up = own.get("lora_down.weight"), own.get("lora_up.weight")
    others = own.keys() - {"lora_down.weight", "lora_up.weight", "alpha"}
    if down is None or up is None or others:
        return f"is no plain LoRA (it has {', '.join(sorted(own))})"
    if down.shape[0] != rank:
        return f"has rank {down.shape[0]}, lora_rank is {rank}"
    # A 1 x 1 convolution and a linear layer are the same thing, and tools write either.
    if _without_ones(down.shape) != _without_ones(Size((rank, *weight[1:]))) or _without_ones(up.shape) != (weight[0], rank):
        return f"is made for a layer from {down.shape[1]} to {up.shape[0]}, the base's is from {weight[1]} to {weight[0]}"
    if not (bool(down.isfinite().all()) and bool(up.isfinite().all())):
        return "has values that are not finite"
    return ""


def _without_ones(shape: Size) -> tuple[int, ...]:
    return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)


def _raise_misfits(path: Path, untrained: list[str], misfits: list[str]) -> None:
    reasons = []
    if untrained:
        reasons.append(
            f"{len(untrained)} of its layers are not trained here: {examples(untrained)}. Add them by target_modules, by a "
            "text_encoder_lr or unet_lr above 0; or the file is for another base model."
        )
    if misfits:
        reasons.append(f"{len(misfits)} of its layers do not fit: {examples(misfits)}. Take the rank and base model of the file.")
    if reasons:
        raise AdapterError(f"start_from ({path}) does not fit this run: {' '.join(reasons)}")
