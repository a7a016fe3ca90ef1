"""Counts the memory of tensors while code runs: what is held, what the most was. Works on fake tensors, which have no memory.

So a step of SDXL at 1024 pixels can be counted on a laptop: every operation runs on shapes alone, and autograd keeps what it
would keep. What kernels take inside themselves (workspaces of cuDNN, copies in another memory layout) is not in it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Allocations(TorchDispatchMode):
    """Within it, each new tensor's storage counts until it is freed.

    Tensors that were there before do not count, however they are used.

    Attributes:
        held: bytes that are alive now.
        peak: the most bytes that were alive at once since the last `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def leave_out(self, *tensors: torch.Tensor) -> None:
        """Has tensors that exist already not counted, even when an operation returns them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)

    def reset_peak(self) -> None:
        self.peak = self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = {value.untyped_storage()._cdata for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in given:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._seen and self._seen[key]() is not None:
            return

        def forget(_: Any) -> None:
            self.held -= num_bytes
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, forget)
        self.held += num_bytes
        self.peak = max(self.peak, self.held)
