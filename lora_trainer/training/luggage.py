"""What a run holds on its device, moved to memory and back between two steps. No bit of it changes on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.errors import TrainingError
from lora_trainer.host.base import free_memory
from lora_trainer.models.family import CPU
from lora_trainer.training.memory import describe_memory, is_out_of_memory


class Luggage:
    """Modules, and the state of an optimizer over their parameters.

    Gradients are not among it: between two steps there are none.

    Args:
        modules: with the adapter in them.
        device: the run's.
        optimizer: None before there is one.
        rest: where the tensors wait.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        device: torch.device,
        optimizer: torch.optim.Optimizer | None = None,
        rest: torch.device = CPU,
    ) -> None:
        self._modules, self._device, self._optimizer, self._rest = tuple(modules), device, optimizer, rest
        self._moved: list[nn.Module] = []
        self._moved_states: list[tuple[dict[str, Any], str]] = []

    def away(self) -> None:
        """Moves what is on the device to memory."""
        for module in self._modules:
            if _device_of(module) == self._device.type:
                module.to(self._rest)
                self._moved.append(module)
        for state, name in self._states():
            state[name] = state[name].to(self._rest)
            self._moved_states.append((state, name))

    def back(self) -> None:
        """Moves back what `away` moved, and nothing else.

        Raises:
            TrainingError: the device has no room for it any more, at a second try neither; all of it is in memory then.
        """
        for _ in range(2):
            try:
                self._move_back()
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self.away()
            free_memory()
        raise TrainingError(
            f"the training found no room on the card when it came back ({describe_memory(self._device)}): something has taken "
            "it meanwhile. Unload models that extensions keep there (ControlNet, upscalers), close other programs, and continue."
        )

    def _move_back(self) -> None:
        for module in self._moved:
            module.to(self._device)
        for state, name in self._moved_states:
            state[name] = state[name].to(self._device)
        self._moved.clear()
        self._moved_states.clear()

    def _states(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields where an optimizer's tensors on the device are; its counters may live on the CPU."""
        for state in self._optimizer.state.values() if self._optimizer else ():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.device.type == self._device.type:
                    yield state, name


def _device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type
