"""The pairs of matrices of a LoRA file, by layer, and the change that a pair makes: `alpha / r * up @ down`.

Plain LoRA and LoCon. A third matrix between the two ("lora_mid", with a convolution's kernel) is multiplied into `down`, which
changes nothing. Facts: FORMATS.md, "The exported file".

Shapes: r the rank, o and i a layer's outputs and inputs, k and l a convolution's kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.keys import FOREIGN_FORMS, foreign_form, group_by_module, kinds_of
from lora_trainer.errors import AdapterError
from lora_trainer.models.checkpoint import read_tensors

UP, DOWN, MIDDLE = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
ENDINGS = {UP, DOWN, MIDDLE, "alpha", "scale"}
CPU = torch.device("cpu")
Modules = dict[str, dict[str, Tensor]]
"""Tensors by the WebUI's module key and ending."""


def list_keys(path: Path, purpose: str) -> dict[str, dict[str, str]]:
    """Returns a file's keys by module and ending, without embeddings that travel in it, from its header alone.

    Args:
        purpose: what the file is needed for, to complete "... with plain LoRA and LoCon files only".

    Raises:
        AdapterError: it cannot be read, is not in the WebUI's form, or holds other kinds of LoRA.
    """
    keys = read_header(path).shapes
    if form := foreign_form(keys):
        raise AdapterError(f"{path} is in another form ({form}), which the WebUI does not apply. {FOREIGN_FORMS[form][1]}")
    names = group_by_module(keys)
    foreign = sorted({ending for endings in names.values() for ending in endings} - ENDINGS)
    if foreign:
        kinds = " and ".join(kind for kind in kinds_of(keys) if kind != "LoRA") or foreign[0] or "no LoRA"
        raise AdapterError(f"{path} holds {kinds}; {purpose} with plain LoRA and LoCon files only. Try it in the WebUI itself.")
    return names


def read_modules(path: Path, purpose: str) -> Modules:
    """Returns a file's tensors in fp32, as `list_keys` lists them.

    Raises:
        AdapterError: see `list_keys`.
    """
    names = list_keys(path, purpose)
    tensors = read_tensors(path, dtype=torch.float32)
    modules = {module: {ending: tensors[key] for ending, key in endings.items()} for module, endings in names.items()}
    for module, own in modules.items():
        if MIDDLE in own:
            _fold_middle(path, module, own)
    return modules


def scale_of(tensors: Mapping[str, Tensor]) -> float:
    """Returns the factor of a pair: alpha / rank, a `scale` of the file's own, or 1 without either."""
    if "scale" in tensors:
        return float(tensors["scale"].item())
    return float(tensors["alpha"].item() / len(tensors[DOWN])) if "alpha" in tensors else 1.0


def change_of(tensors: Mapping[str, Tensor], device: torch.device = CPU, *, rank_cut: int | None = None) -> Tensor:
    """Returns `alpha / r * up @ down` of a layer, fp32 [o, i * k * l].

    Args:
        rank_cut: how many of the ranks take part; None for all.
    """
    up, down = (tensors[ending].to(device).flatten(1) for ending in (UP, DOWN))
    return scale_of(tensors) * (up[:, :rank_cut] @ down[:rank_cut])


def find_flaw(tensors: Mapping[str, Tensor]) -> str:
    """Returns why a layer's tensors are no pair; "" where they are one."""
    if UP not in tensors or DOWN not in tensors:
        return "lora_up or lora_down is missing"
    if any(tensors[ending].numel() != 1 for ending in ("alpha", "scale") if ending in tensors):
        return "alpha is not one number"
    up, down = tensors[UP], tensors[DOWN]
    if min(up.dim(), down.dim()) < 2 or not up[0].numel() == len(down) > 0:
        return f"up {list(up.shape)} and down {list(down.shape)} do not multiply"
    return ""


def _fold_middle(path: Path, module: str, own: dict[str, Tensor]) -> None:
    """Multiplies the matrix in the middle [r, r, k, l] into down [r, i], which becomes [r, i, k, l]."""
    middle, down = own.pop(MIDDLE), own.get(DOWN)
    if down is None or middle.dim() != 4 or middle.shape[0] != middle.shape[1] or down.flatten(1).shape[0] != middle.shape[1]:
        shape = "none" if down is None else list(down.shape)
        raise AdapterError(
            f"{path}: {module} has a lora_mid {list(middle.shape)} that does not fit its lora_down ({shape}). "
            "The file is damaged: get it again."
        )
    own[DOWN] = torch.einsum("nmkl,mi->nikl", middle, down.flatten(1))
