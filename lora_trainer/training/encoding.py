"""Fills the cache before training: pictures and captions that are not encoded yet, with answers to a full disk or memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.cache import TensorMemory, TensorStore, cache_pictures, cache_texts
from lora_trainer.errors import TrainingError
from lora_trainer.events import Emit
from lora_trainer.host.base import free_memory
from lora_trainer.models.family import Tensors, TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.training.disk import DiskGuard
from lora_trainer.training.memory import describe_memory, is_out_of_memory
from lora_trainer.training.mirror import encode_both

Progress = Callable[[int, int], None]
# Pixels on a side of a mask's cells: those of the latents.
MASK_CELL = 8


@dataclass
class Encoder:
    """Encodes what a run needs and the cache lacks.

    Attributes:
        config, plan, model: of the run.
        store: the cache, and memory what is kept of it in memory while training.
        disk: answers to a full disk.
        device: that the model is on.
        emit: takes warnings.
        progress: gives the reporter of a phase by its name.
    """

    config: TrainConfig
    plan: TrainPlan
    model: TrainableModel
    store: TensorStore
    disk: DiskGuard
    device: torch.device
    emit: Emit
    progress: Callable[[str], Progress]
    memory: TensorMemory = field(init=False)

    def __post_init__(self) -> None:
        self.memory = TensorMemory(self.store)

    def encode_pictures(self) -> list[str]:
        """Returns the cache key of each picture. Takes fewer at a time when memory runs out and adapting is asked for.

        Raises:
            TrainingError: memory ran out; says what to set.
        """
        batch_size = self.config.encode_batch_size
        while True:
            try:
                return self._write(partial(self._cache_pictures, batch_size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            batch_size = self._shrink(batch_size)

    def encode_texts(self) -> list[str]:
        """Returns the cache key of each picture's caption."""
        return self._write(self._cache_texts)

    def encode_now(self, captions: list[str]) -> dict[str, Tensors]:
        """Returns captions encoded, on the CPU, by caption; they change each epoch, so the cache is not asked."""
        encoded: dict[str, Tensors] = {}
        with torch.no_grad():
            for caption in captions:  # one by one: each keeps its own number of chunks
                encoded[caption] = {name: tensor[0].cpu() for name, tensor in self.model.encode_texts([caption]).items()}
        return encoded

    def get(self, key: str, name: str) -> Tensors:
        """Returns the cached tensors of the picture `name`, or of its caption.

        Raises:
            TrainingError: they are not there any more.
        """
        tensors = self.memory.get(key)
        if tensors is None:
            raise TrainingError(
                f"the cached encoding of {name} in {self.store.folder} was damaged or deleted while training. Start again with "
                "the same settings: it is encoded anew, and the run goes on where it stopped."
            )
        return tensors

    def _write(self, encode: Callable[[], list[str]]) -> list[str]:
        with torch.no_grad():
            return self.disk.run(self.config.cache_folder, "the cache", encode)

    def _cache_pictures(self, batch_size: int) -> list[str]:
        return cache_pictures(
            self.plan.items,
            self.plan.buckets,
            self._encode_versions,
            store=self.store,
            encoder_key=self.model.picture_key + "+mask" * self.config.alpha_mask + "+mirrored" * self.config.flip,
            batch_size=batch_size,
            with_alpha=self.config.alpha_mask,
            on_progress=self.progress("encoding pictures"),
        )

    def _cache_texts(self) -> list[str]:
        return cache_texts(
            [item.caption for item in self.plan.items],
            self.model.encode_texts,
            store=self.store,
            encoder_key=self.model.text_key,
            batch_size=1,  # each caption keeps its own number of chunks, whatever stands beside it
            on_progress=self.progress("encoding captions"),
        )

    def _encode_versions(self, pixels: Tensor) -> Tensors:
        return encode_both(self._encode_pixels, pixels) if self.config.flip else self._encode_pixels(pixels)

    def _encode_pixels(self, pixels: Tensor) -> Tensors:
        encoded = self.model.encode_pictures(pixels[:, :3])
        if self.config.alpha_mask:
            encoded["mask"] = nn.functional.avg_pool2d(pixels[:, 3:], MASK_CELL)
        return encoded

    def _shrink(self, batch_size: int) -> int:
        memory = describe_memory(self.device)
        free_memory()
        smaller = batch_size // 2
        if smaller == 0:
            raise TrainingError(
                f"out of memory while encoding one picture ({memory}). Lower resolution, or close other programs."
            )
        if self.config.on_out_of_memory == "stop":
            raise TrainingError(
                f"out of memory while encoding pictures ({memory}). Set encode_batch_size to {smaller}, "
                "or on_out_of_memory to adapt, which does this by itself."
            )
        self.emit("warning", message=f"out of memory while encoding pictures ({memory}); going on with {smaller} at a time.")
        return smaller
