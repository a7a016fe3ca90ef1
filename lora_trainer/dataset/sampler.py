"""The order of an epoch, and the seeds of everything random about an item.

Both are pure functions of (seed, epoch) and the data set, so that a resumed run needs to store no more than where it is.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """One example of an epoch.

    Attributes:
        index: which item.
        position: its running number in the epoch, in the order of training; the key of its random draws.
    """

    index: int
    position: int


def plan_epoch(
    buckets_of_items: Sequence[Hashable], repeats: Sequence[int], *, batch_size: int, seed: int, epoch: int
) -> list[list[Placed]]:
    """Returns the micro-batches of an epoch in order; each item is in them as often as it repeats.

    A batch holds items of one bucket; the last of a bucket may be smaller. To lower the batch size in the middle of a run,
    split the batches of this plan: another `batch_size` makes another order.

    Args:
        buckets_of_items: for each item what it must have in common with the others of its batch.
        repeats: how often each item is seen in the epoch.
        batch_size: items in a batch at most.
        seed: of the run.
        epoch: counted from 0.

    Raises:
        ValueError: the lists differ in length, or `batch_size` is below 1.
    """
    _check(buckets_of_items, repeats, batch_size)
    rng = random.Random(f"{seed}/{epoch}/order")  # a string: its seeding is the same in every version of Python
    groups: dict[Hashable, list[int]] = {}
    for index in shuffled([index for index, count in enumerate(repeats) for _ in range(count)], rng):
        groups.setdefault(buckets_of_items[index], []).append(index)
    batches = [group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)]
    plan: list[list[Placed]] = []
    position = 0
    for batch in shuffled(batches, rng):
        plan.append([Placed(index, position + offset) for offset, index in enumerate(batch)])
        position += len(batch)
    return plan


def steps_per_epoch(buckets_of_items: Sequence[Hashable], repeats: Sequence[int], *, batch_size: int) -> int:
    """Returns the number of micro-batches of every epoch, which is its steps where gradients are not accumulated."""
    _check(buckets_of_items, repeats, batch_size)
    counts: Counter[Hashable] = Counter()
    for bucket, count in zip(buckets_of_items, repeats, strict=True):
        counts[bucket] += count
    return sum(-(-count // batch_size) for count in counts.values())


def item_seed(seed: int, epoch: int, position: int, purpose: str = "") -> int:
    """Returns the seed (63 bits) of an item's random draws: the one source of chance besides the order.

    Args:
        seed: of the run.
        epoch: counted from 0.
        position: of the item in the epoch, see `Placed`.
        purpose: keeps independent draws of one item apart ("noise", "caption").
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{position}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stable_order(names: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Returns the indices of names in a random order in which another name moves no two others."""
    digests = [hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=digests.__getitem__)


def shuffled(values: Sequence[T], rng: random.Random) -> list[T]:
    """Returns the values in a random order that is the same in every version of Python.

    Of `random.Random` only the numbers of `random()` are promised to stay, not what `shuffle` makes of them.
    """
    return sorted(values, key=lambda _: rng.random())


def _check(buckets_of_items: Sequence[Hashable], repeats: Sequence[int], batch_size: int) -> None:
    if len(buckets_of_items) != len(repeats):
        raise ValueError(f"{len(buckets_of_items)} buckets and {len(repeats)} repeats must be as many as the items.")
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
