"""Gives the loop the batches of a step: cached tensors, captions of the epoch, and each item's own random draws.

Everything is a function of the step, so a resumed run asks for step N and gets what the first run would have had.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_trainer.dataset.buckets import Bucket, crop_geometry
from lora_trainer.dataset.captions import vary_caption
from lora_trainer.dataset.sampler import Placed, item_seed, plan_epoch
from lora_trainer.dataset.scan import Item
from lora_trainer.models.family import Objective, Tensors, TrainableModel
from lora_trainer.training.mirror import choose_version


@dataclass(frozen=True)
class FeederSettings:
    """How items become batches.

    Attributes:
        batch_size: items of a micro-batch at most.
        accumulation: micro-batches of a step.
        seed: of the run.
        shuffle_tags, keep_tokens, tag_dropout, caption_dropout: how captions vary from epoch to epoch.
        flip: whether a picture is seen mirrored half of the time.
        trains_text: whether captions are encoded in the loop, with gradients, instead of ahead.
    """

    batch_size: int
    accumulation: int
    seed: int
    shuffle_tags: bool = False
    keep_tokens: int = 0
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    flip: bool = False
    trains_text: bool = False

    @property
    def varies_captions(self) -> bool:
        return self.shuffle_tags or self.tag_dropout > 0 or self.caption_dropout > 0


@dataclass(frozen=True)
class Batch:
    """What one forward takes.

    Attributes:
        tensors: by name, first dimension B, on the device.
        draws: random numbers by name, likewise.
        weights: of the items' losses [B]. What is learned from is the sum of weight x loss over the *number* of items, so
            0.5 halves an item's pull and changes no other's. The loss that is shown is without weights.
        captions: to be encoded with gradients, or None when `tensors` holds them encoded.
        names: the pictures' names, for messages.
        seed: of the adapter's dropout in this forward.
    """

    tensors: Tensors
    draws: Tensors
    weights: Tensor
    captions: list[str] | None
    names: list[str]
    seed: int

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class _Epoch:
    """The plan of the epoch that is being trained, and its captions as they are this time."""

    number: int
    batches: list[list[Placed]]
    captions: dict[int, str] = field(default_factory=dict)
    encoded: dict[str, Tensors] = field(default_factory=dict)


class Feeder:
    """See the module. One per run.

    Args:
        items, buckets: the examples and their training sizes, in the same order.
        pictures, texts: return the cached tensors of the item with that index; `texts` is not asked when captions vary.
        model: collates and draws.
        encode_captions: encodes the captions of one epoch ahead of it; asked only when captions vary.
        objective: of the run; draws depend on it.
        device: where batches are put.
    """

    def __init__(
        self,
        items: Sequence[Item],
        buckets: Sequence[Bucket],
        *,
        pictures: Callable[[int], Tensors],
        texts: Callable[[int], Tensors],
        encode_captions: Callable[[list[str]], dict[str, Tensors]],
        model: TrainableModel,
        objective: Objective,
        settings: FeederSettings,
        device: torch.device,
    ) -> None:
        self._items, self._buckets = items, buckets
        self._pictures, self._texts, self._encode_captions = pictures, texts, encode_captions
        self._model, self._objective, self._settings, self._device = model, objective, settings, device
        self._epoch: _Epoch | None = None
        # Not the plan's batch size, which decides the order of the epoch: the plan's batches are cut into pieces of this many.
        self.max_items = settings.batch_size
        self.steps_per_epoch = -(-len(self._plan(0)) // settings.accumulation)

    def epoch_of(self, step: int) -> int:
        """Returns the epoch, counted from 0, that a step belongs to."""
        return step // self.steps_per_epoch

    def step_batches(self, step: int) -> list[Batch]:
        """Returns the micro-batches of a step, counted from 0."""
        epoch = self._open_epoch(self.epoch_of(step))
        first = (step % self.steps_per_epoch) * self._settings.accumulation
        batches = epoch.batches[first : first + self._settings.accumulation]
        pieces = [batch[start : start + self.max_items] for batch in batches for start in range(0, len(batch), self.max_items)]
        return [self._make_batch(epoch, piece) for piece in pieces]

    def split_batches(self) -> bool:
        """Halves the micro-batches from now on; a step keeps its items, and each item its draws. False at one item."""
        if self.max_items == 1:
            return False
        self.max_items = -(-self.max_items // 2)
        return True

    def _plan(self, epoch: int) -> list[list[Placed]]:
        return plan_epoch(
            self._buckets,
            [item.repeats for item in self._items],
            batch_size=self._settings.batch_size,
            seed=self._settings.seed,
            epoch=epoch,
        )

    def _open_epoch(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            epoch = _Epoch(number, self._plan(number))
            if self._settings.varies_captions:
                epoch.captions = self._vary_captions(epoch)
                if not self._settings.trains_text:
                    epoch.encoded = self._encode_captions(sorted(set(epoch.captions.values())))
            self._epoch = epoch
        return self._epoch

    def _vary_captions(self, epoch: _Epoch) -> dict[int, str]:
        captions = {}
        for placed in (placed for batch in epoch.batches for placed in batch):
            rng = random.Random(item_seed(self._settings.seed, epoch.number, placed.position, "caption"))
            captions[placed.position] = vary_caption(
                self._items[placed.index].caption,
                rng,
                shuffle=self._settings.shuffle_tags,
                keep_tokens=self._settings.keep_tokens,
                tag_dropout=self._settings.tag_dropout,
                caption_dropout=self._settings.caption_dropout,
            )
        return captions

    def _make_batch(self, epoch: _Epoch, placed: list[Placed]) -> Batch:
        examples = [self._make_example(epoch, one) for one in placed]
        draws = [self._draw(epoch, one, example) for one, example in zip(placed, examples, strict=True)]
        stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
        return Batch(
            tensors=self._to_device(self._model.collate(examples)),
            draws=self._to_device(stacked),
            weights=torch.tensor([self._items[one.index].weight for one in placed], device=self._device),
            captions=[self._caption(epoch, one) for one in placed] if self._settings.trains_text else None,
            names=[self._items[one.index].name for one in placed],
            seed=item_seed(self._settings.seed, epoch.number, placed[0].position, "dropout"),
        )

    def _make_example(self, epoch: _Epoch, placed: Placed) -> Tensors:
        item, bucket = self._items[placed.index], self._buckets[placed.index]
        mirrored = self._is_mirrored(epoch, placed)
        example = choose_version(self._pictures(placed.index), mirrored=mirrored)
        if not self._settings.trains_text:
            caption = epoch.captions.get(placed.position)
            example |= self._texts(placed.index) if caption is None else epoch.encoded[caption]
        scaled, left, top = crop_geometry((item.width, item.height), bucket)
        if mirrored:
            left = scaled[0] - bucket.width - left
        return example | self._model.size_condition((item.width, item.height), (left, top), (bucket.width, bucket.height))

    def _is_mirrored(self, epoch: _Epoch, placed: Placed) -> bool:
        seed = item_seed(self._settings.seed, epoch.number, placed.position, "flip")
        return self._settings.flip and random.Random(seed).random() < 0.5

    def _draw(self, epoch: _Epoch, placed: Placed, example: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(item_seed(self._settings.seed, epoch.number, placed.position, "noise"))
        return self._model.make_draws(example, generator, self._objective)

    def _caption(self, epoch: _Epoch, placed: Placed) -> str:
        return epoch.captions.get(placed.position, self._items[placed.index].caption)

    def _to_device(self, tensors: Tensors) -> Tensors:
        if self._device.type != "cuda":  # pinned memory is CUDA's; others copy as they are
            return {name: tensor.to(self._device) for name, tensor in tensors.items()}
        return {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in tensors.items()}
