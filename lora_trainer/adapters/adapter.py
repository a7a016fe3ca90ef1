"""What the training loop and the export know of an adapter: one Protocol.

A module is named by its part ("unet", "text_encoder", ...) and its name in that part, as `named_modules` gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from lora_trainer.models.family import TrainableModel


class ModuleName(NamedTuple):
    """Where an adapted layer is."""

    part: str
    module: str


class Adapter(Protocol):
    """Trainable weights inside a frozen model.

    Attributes:
        rank, alpha: what it was made with.
        network_module: what the file's `ss_network_module` says, for the tools that read it.
    """

    rank: int
    alpha: float
    network_module: str

    @classmethod
    def inject(
        cls, model: TrainableModel, targets: Mapping[str, list[str]], *, rank: int, alpha: float, dropout: float, seed: int
    ) -> Adapter:
        """Freezes every part of the model and puts new, trainable weights beside the target modules.

        The model's output does not change before the first step. Layers are in training mode where their base layer is.

        Args:
            targets: module names by part.
            rank: inner width of the two matrices, 1 or more. 8 to 64 is usual.
            alpha: the adapter's output is multiplied by alpha / rank. Above 0; once or twice the rank is usual.
            dropout: share of a layer's inputs that the adapter does not see in training, 0 up to (not including) 1.
            seed: of the first weights. Equal seeds give equal weights, whatever the versions of the libraries.

        Raises:
            AdapterError: there is no target, or one does not exist or is neither Linear nor Conv2d.
        """

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trainable weights (fp32) by part, in a stable order."""

    def seed_dropout(self, seed: int) -> None:
        """Says what is dropped in the forwards from now on: for equal seeds the same, whatever else draws random numbers.

        Args:
            seed: 0 or more, below 2 to the power of 63.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Returns the trainable weights by our own stable names, for the resume state. They are not copies."""

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over weights that `tensors` gave.

        Raises:
            AdapterError: names or shapes differ from this adapter's; nothing was changed.
        """

    def host_tensors(self) -> Iterator[tuple[ModuleName, dict[str, Tensor]]]:
        """Yields each adapted module with its tensors under the WebUI's endings, such as "lora_down.weight"."""

    def load_host_tensors(self, tensors: Mapping[ModuleName, Mapping[str, Tensor]]) -> None:
        """Takes over tensors of a file, in the form of `host_tensors`, so that the effect is the file's.

        Args:
            tensors: of all or some of the adapted modules, of this adapter's rank and any alpha, see `start.read_start`. Other
                modules keep what they have.
        """

    def disabled(self) -> AbstractContextManager[None]:
        """Within it, the model gives what the base alone would give."""

    def remove(self) -> None:
        """Puts the untouched base layers back. The adapter is of no use afterwards."""
