"""Fills the cache before training: pictures and captions that are not encoded yet, with answers to a full disk or memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from lora_trainer.config.schema import TrainConfig
from lora_trainer.dataset.cache import TensorStore, cache_pictures, cache_texts
from lora_trainer.errors import TrainingError
from lora_trainer.events import Emit
from lora_trainer.models.family import Tensors, TrainableModel
from lora_trainer.plan import TrainPlan
from lora_trainer.training.disk import DiskGuard
from lora_trainer.training.memory import describe_memory, free_memory, is_out_of_memory

Progress = Callable[[int, int], None]


@dataclass
class Encoder:
    """Encodes what a run needs and the cache lacks.

    Attributes:
        config, plan, model: of the run.
        store: the cache.
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
        tensors = self.store.get(key)
        if tensors is None:
            raise TrainingError(
                f"the cached encoding of {name} was damaged or deleted meanwhile. Start again with the same settings: it is "
                "encoded anew, and the run goes on from its last save."
            )
        return tensors

    def _write(self, encode: Callable[[], list[str]]) -> list[str]:
        with torch.no_grad():
            return self.disk.run(self.config.cache_folder, "the cache", encode)

    def _cache_pictures(self, batch_size: int) -> list[str]:
        return cache_pictures(
            self.plan.scan.items,
            self.plan.buckets,
            self.model.encode_pictures,
            store=self.store,
            encoder_key=self.model.picture_key,
            batch_size=batch_size,
            on_progress=self.progress("encoding pictures"),
        )

    def _cache_texts(self) -> list[str]:
        return cache_texts(
            [item.caption for item in self.plan.scan.items],
            self.model.encode_texts,
            store=self.store,
            encoder_key=self.model.text_key,
            batch_size=1,  # each caption keeps its own number of chunks, whatever stands beside it
            on_progress=self.progress("encoding captions"),
        )

    def _shrink(self, batch_size: int) -> int:
        memory = describe_memory(self.device)
        free_memory(self.device)
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
