"""Moves models by itself; they are loaded again by the next generation."""

from __future__ import annotations

import threading
from typing import Any

unloaded_in: list[str] = []
loaded: list[Any] = []


def unload_all_models() -> None:
    unloaded_in.append(threading.current_thread().name)


def load_models_gpu(models: list[Any]) -> None:
    loaded.extend(models)
    for patcher in models:
        patcher.model.to(patcher.load_device)
