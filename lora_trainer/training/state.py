"""The resume state: one file per save, from which a run goes on as if it had never stopped.

A safetensors file, so no code is run by reading it: LoRA weights, optimizer tensors, and the numbers as JSON in its metadata.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lora_trainer.adapters.container import with_metadata
from lora_trainer.errors import TrainingError
from lora_trainer.files import write_whole
from lora_trainer.models.checkpoint import TORCH_DTYPES

log = logging.getLogger(__name__)

KEPT_STATES = 2
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class TrainState:
    """Where a run is. Everything random is keyed by the step, so no generator is kept.

    Attributes:
        step: steps taken, skipped ones included: the position in the plan.
        num_skipped: steps that did not change the weights, because loss or gradient was not finite.
        loss_scale, good_steps: of fp16's scaler.
    """

    step: int = 0
    num_skipped: int = 0
    loss_scale: float = 1.0
    good_steps: int = 0


def save_state(folder: Path, state: TrainState, lora: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Path:
    """Writes a state whole, reads it back, and only then deletes all but the newest two.

    Raises:
        TrainingError: what was read back differs from what was written; the older states are kept.
        OSError: it could not be written; the older states are kept.
    """
    tensors, numbers = _flatten_optimizer(optimizer.state_dict())
    tensors |= {f"lora.{name}": tensor for name, tensor in lora.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"state": json.dumps(asdict(state)), "optimizer": json.dumps(numbers)}
    pieces = _pieces(tensors, metadata)
    path = write_whole(folder / f"step-{state.step:08d}.safetensors", lambda temporary: _write(temporary, pieces))
    if not _holds(path, pieces):
        raise TrainingError(f"{path} does not hold what was written to it; the disk may be failing. The older state is kept.")
    for old in _list_states(folder)[KEPT_STATES:]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path) -> tuple[TrainState, dict[str, Tensor], dict[str, Any]] | None:
    """Returns the newest readable state: numbers, LoRA tensors and the optimizer's state dict; None where there is none."""
    for path in _list_states(folder):
        try:
            # From bytes, not mapped: Windows could not replace a mapped file.
            data = path.read_bytes()
            tensors = safetensors.torch.load(data)
            metadata = _read_metadata(data)
            state = TrainState(**json.loads(metadata["state"]))
            optimizer = _unflatten_optimizer(tensors, json.loads(metadata["optimizer"]))
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            log.warning("%s cannot be read (%s); the state before it is taken.", path, error)
            continue
        lora = {name.removeprefix("lora."): tensor for name, tensor in tensors.items() if name.startswith("lora.")}
        return state, lora, optimizer
    return None


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[np.ndarray]:
    """Returns a safetensors file as bytes, the header and each tensor's own memory.

    The library's writer copies all of it first, and its error for a full disk, which is waited for, is not the system's.
    """
    header: dict[str, Any] = {}
    pieces, end = [], 0
    # As the library sorts them: each tensor then begins at a multiple of its numbers' size.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        pieces.append(tensor.reshape(-1).view(torch.uint8).numpy())
    return [np.frombuffer(with_metadata(header, metadata), np.uint8), *pieces]


def _write(path: Path, pieces: list[np.ndarray]) -> None:
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece.data)


def _holds(path: Path, pieces: list[np.ndarray]) -> bool:
    with open(path, "rb") as file:
        return all(np.array_equal(np.frombuffer(file.read(piece.size), np.uint8), piece) for piece in pieces) and not file.read(1)


def _list_states(folder: Path) -> list[Path]:
    """Returns the state files, newest step first."""
    found = [path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.name)]
    return sorted(found, reverse=True)


def _read_metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata


def _flatten_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimizer's state dict into tensors by "optimizer.<index>.<key>" and everything else as JSON values."""
    tensors: dict[str, Tensor] = {}
    numbers = _take_out_tensors(state_dict["state"], "optimizer", tensors)
    return tensors, {"numbers": numbers, "param_groups": state_dict["param_groups"]}


def _take_out_tensors(values: dict[Any, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Moves the tensors of nested dicts to `tensors`, named by their path (bitsandbytes nests its own); returns the rest."""
    rest: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}.{key}"] = value
        else:
            rest[str(key)] = _take_out_tensors(value, f"{prefix}.{key}", tensors) if isinstance(value, dict) else value
    return rest


def _unflatten_optimizer(tensors: dict[str, Tensor], saved: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = saved["numbers"]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            *path, key = name.split(".")[1:]
            values = state
            for part in path:
                values = values.setdefault(part, {})
            values[key] = tensor
    return {"state": {int(index): values for index, values in state.items()}, "param_groups": saved["param_groups"]}
