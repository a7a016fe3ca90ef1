"""The checkpoints, and the model that is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from modules import shared
from torch import nn


@dataclass(eq=False)
class CheckpointInfo:
    title: str
    filename: str

    @property
    def name(self) -> str:
        return self.title.partition(" [")[0]


checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}
moves: list[str] = []  # for the tests: "cpu" and "device", in order


class Model(nn.Module):
    def __init__(self, lowvram: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, device=shared.device)
        self.lowvram = lowvram

    @property
    def is_on_device(self) -> bool:
        return self.layer.weight.device.type == shared.device.type


class ModelData:
    def __init__(self) -> None:
        self.sd_model: Any = None
        self.loaded_sd_models: list[Any] = []
        self.lock = threading.Lock()
        self.load_seconds = 0.0

    def get_sd_model(self) -> Any:
        with self.lock:
            if self.sd_model is None:
                with _new_layers_on_meta():
                    time.sleep(self.load_seconds)
                self.set_sd_model(Model())
        return self.sd_model

    def set_sd_model(self, model: Any) -> None:
        self.sd_model = shared.sd_model = model
        self.loaded_sd_models.insert(0, model)


model_data = ModelData()


def send_model_to_cpu(model: Any) -> None:
    moves.append("cpu")
    if not model.lowvram:
        model.to_empty(device="cpu")


def send_model_to_device(model: Any) -> None:
    moves.append("device")
    if not model.lowvram:
        model.to_empty(device=shared.device)


@contextmanager
def _new_layers_on_meta() -> Iterator[None]:
    """While a checkpoint loads, every new layer of the process is on "meta", and `Module.to` does nothing."""
    init, to = nn.Linear.__init__, nn.Module.to

    def init_on_meta(self: nn.Linear, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **{**options, "device": "meta"})

    nn.Linear.__init__ = init_on_meta  # type: ignore[method-assign]
    nn.Module.to = lambda self, *arguments, **options: None  # type: ignore[assignment, method-assign, return-value]
    try:
        yield
    finally:
        nn.Linear.__init__, nn.Module.to = init, to  # type: ignore[method-assign]


def is_on_meta(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in module.state_dict().values() if isinstance(tensor, torch.Tensor))
