from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.scan import Item
from lora_trainer.models.family import Objective
from lora_trainer.training.feeder import Feeder, FeederSettings
from lora_trainer.training.mirror import MIRRORED
from tests.training import toy

CPU = torch.device("cpu")
NUM_ITEMS = 40


class SizedToy(toy.ToyModel):
    """The toy, told of sizes as SDXL is."""

    def __init__(self) -> None:
        pass

    def size_condition(self, original, crop, target):
        return {"left": torch.tensor(crop[0])}


def make_feeder(weights=None, caption="ink, a, b, c, d, e, f, g", size=(131, 128), **settings):
    items = [
        Item(Path(f"{index}.png"), f"{index}.png", f"{caption}", 1, *size, "", False, (weights or {}).get(index, 1.0))
        for index in range(NUM_ITEMS)
    ]

    def picture(index):
        return {"latents": torch.full((2,), float(index)), f"latents{MIRRORED}": torch.full((2,), -float(index))}

    return Feeder(
        items,
        [Bucket(128, 128)] * NUM_ITEMS,
        pictures=picture,
        texts=lambda index: {"text": torch.zeros(1)},
        encode_captions=lambda captions: {caption: {"text": torch.zeros(1)} for caption in captions},
        model=SizedToy(),
        objective=Objective(),
        settings=FeederSettings(batch_size=4, accumulation=2, seed=3, **settings),
        device=CPU,
    )


def epoch_of(feeder, number=0):
    steps = range(number * feeder.steps_per_epoch, (number + 1) * feeder.steps_per_epoch)
    return [batch for step in steps for batch in feeder.step_batches(step)]


def test_a_batch_carries_the_weights_of_its_items():
    feeder = make_feeder({3: 0.5, 7: 2.0})
    found = {name: weight for batch in epoch_of(feeder) for name, weight in zip(batch.names, batch.weights.tolist(), strict=True)}
    assert {name: weight for name, weight in found.items() if weight != 1} == {"3.png": 0.5, "7.png": 2.0}
    assert len(found) == NUM_ITEMS


def test_without_flip_every_picture_is_as_it_is():
    batches = epoch_of(make_feeder())
    assert all((batch.tensors["latents"] >= 0).all() and set(batch.tensors) == {"latents", "text", "left"} for batch in batches)
    assert {left for batch in batches for left in batch.tensors["left"].tolist()} == {1}


def test_flip_takes_the_mirrored_encoding_about_half_of_the_time():
    feeder = make_feeder(flip=True)
    flipped = []
    for number in range(10):
        for batch in epoch_of(feeder, number):
            assert set(batch.tensors) == {"latents", "text", "left"}
            for latents, left, name in zip(batch.tensors["latents"], batch.tensors["left"].tolist(), batch.names, strict=True):
                mirrored = bool(latents[0] < 0)
                if name != "0.png":
                    flipped.append(mirrored)
                    # Scaled to 131, cropped to 128: one column is left out on the left, two on the right.
                    assert left == (2 if mirrored else 1)
    assert 0.4 < sum(flipped) / len(flipped) < 0.6


def test_flips_are_those_of_the_step_whatever_came_before_and_however_it_is_split():
    one, other = make_feeder(flip=True), make_feeder(flip=True)
    epoch_of(one)
    other.split_batches()
    (first, *_), later = one.step_batches(7), other.step_batches(7)
    assert [len(batch) for batch in later] == [2, 2, 2, 2]
    assert torch.equal(first.tensors["latents"], torch.cat([batch.tensors["latents"] for batch in later[:2]]))
    assert torch.equal(first.draws["noise"], torch.cat([batch.draws["noise"] for batch in later[:2]]))


def test_flips_leave_the_noise_alone():
    plain, flipped = make_feeder().step_batches(0), make_feeder(flip=True).step_batches(0)
    assert all(torch.equal(one.draws["noise"], other.draws["noise"]) for one, other in zip(plain, flipped, strict=True))


@pytest.mark.parametrize("trains_text", [True])
def test_tag_dropout_leaves_out_a_share_of_the_tags_but_the_first(trains_text):
    feeder = make_feeder(tag_dropout=0.5, keep_tokens=1, trains_text=trains_text)
    first = [caption for batch in epoch_of(feeder) for caption in batch.captions]
    second = [caption for batch in epoch_of(feeder, 1) for caption in batch.captions]
    tags = [tag for caption in first for tag in caption.split(", ")]
    assert all(caption.startswith("ink") for caption in first)
    assert 0.35 < (len(tags) - NUM_ITEMS) / (7 * NUM_ITEMS) < 0.65
    assert first != second
