"""From an adapter to the file that the WebUI loads: its key names, its metadata and hashes, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lora_trainer.adapters.adapter import Adapter, ModuleName
from lora_trainer.adapters.keys import ATTENTION_PROJECTIONS, is_open_clip
from lora_trainer.adapters.writing import write_lora
from lora_trainer.errors import AdapterError
from lora_trainer.models.family import TrainableModel


def webui_tensors(adapter: Adapter, model: TrainableModel) -> dict[str, Tensor]:
    """Returns the adapter's tensors under the WebUI's keys, on the CPU, in the adapter's own dtype.

    The WebUI applies a LoRA to an OpenCLIP attention only when all four projections are in the file. Those that were not
    trained get a pair of zeros of rank 1, which changes nothing and lets the others through.
    """
    tensors: dict[str, Tensor] = {}
    names = []
    for name, own in adapter.host_tensors():
        names.append(name)
        _add(tensors, model.webui_key(*name), own)
    present = set(names)
    for name in names:
        for sibling in _open_clip_siblings(model, name):
            if sibling not in present:
                present.add(sibling)
                _add(tensors, model.webui_key(*sibling), _zero_pair(_base_weight(model, sibling)))
    return tensors


def save_lora(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = torch.float16
) -> Path:
    """Writes a LoRA file, whole or not at all. Its stem becomes the alias in `<lora:alias:0.7>`.

    Args:
        path: "<name>.safetensors"; its folder is made when missing.
        tensors: by the WebUI's keys.
        metadata: all but the name and the hashes, which are set here.
        dtype: of the stored tensors; None keeps each as it is. Alpha is always kept in fp32, because it scales the whole layer.

    Returns:
        Where the file is, see `files.write_whole`.

    Raises:
        AdapterError: a tensor is not finite, or does not fit the dtype; no file was written.
        ValueError: `path` has another ending, so its stem would not be the whole name.
    """
    return write_lora(path, safetensors.torch.save(_to_storage(tensors, dtype)), metadata)


def _add(tensors: dict[str, Tensor], key: str, own: Mapping[str, Tensor]) -> None:
    for ending, tensor in own.items():
        tensors[f"{key}.{ending}"] = tensor.to("cpu")


def _open_clip_siblings(model: TrainableModel, name: ModuleName) -> Iterator[ModuleName]:
    """Yields the four projections of the OpenCLIP attention that a module belongs to; nothing for any other module."""
    parent, _, projection = name.module.rpartition(".")
    if projection in ATTENTION_PROJECTIONS and is_open_clip(model.webui_key(*name), is_sd2=_is_sd2(model.metadata())):
        for sibling in ATTENTION_PROJECTIONS:
            yield ModuleName(name.part, f"{parent}.{sibling}")


def _is_sd2(metadata: Mapping[str, str]) -> bool:
    return metadata.get("ss_v2") == "True"


def _base_weight(model: TrainableModel, name: ModuleName) -> Tensor:
    module = model.parts[name.part].get_submodule(name.module)
    return module.get_parameter("base_layer.weight" if hasattr(module, "base_layer") else "weight")


def _zero_pair(weight: Tensor) -> dict[str, Tensor]:
    out_features, in_features = weight.shape
    return {
        "lora_down.weight": torch.zeros(1, in_features),
        "lora_up.weight": torch.zeros(out_features, 1),
        "alpha": torch.tensor(1.0),
    }


def _to_storage(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Returns copies in the dtype of the file."""
    stored = {}
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"the weights of {key.partition('.')[0]} are not finite (NaN or infinity), so no file was written. "
                "Take an earlier saved step, and train again with a lower learning_rate."
            )
        kept = torch.float32 if key.endswith(".alpha") else dtype or tensor.dtype
        stored[key] = tensor.detach().to("cpu", kept, copy=True).contiguous()
        if not bool(torch.isfinite(stored[key]).all()):
            raise AdapterError(
                f"the weights of {key.partition('.')[0]} reach {tensor.abs().max().item():.3g}, and the largest number of "
                f"{str(kept).removeprefix('torch.')} is {torch.finfo(kept).max:.0f}, so no file was written. Export in bf16 or "
                "fp32, and train again with a lower learning_rate."
            )
    return stored
