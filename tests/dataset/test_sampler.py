from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset.sampler import Placed, item_seed, plan_epoch, steps_per_epoch

pytestmark = pytest.mark.hosts

items = st.lists(st.tuples(st.sampled_from([(512, 512), (640, 384), (384, 640)]), st.integers(0, 4)), max_size=30)


@given(items, st.integers(1, 7), st.integers(-5, 2**63), st.integers(0, 50))
def test_every_example_once_in_batches_of_one_bucket(
    items: list[tuple[tuple[int, int], int]], batch_size: int, seed: int, epoch: int
) -> None:
    buckets, repeats = [bucket for bucket, _ in items], [count for _, count in items]
    plan = plan_epoch(buckets, repeats, batch_size=batch_size, seed=seed, epoch=epoch)
    placed = [one for batch in plan for one in batch]
    assert Counter(one.index for one in placed) == Counter({i: count for i, count in enumerate(repeats) if count})
    assert [one.position for one in placed] == list(range(sum(repeats)))
    assert all(1 <= len(batch) <= batch_size and len({buckets[one.index] for one in batch}) == 1 for batch in plan)
    assert len(plan) == steps_per_epoch(buckets, repeats, batch_size=batch_size)
    smaller = [batch for batch in plan if len(batch) < batch_size]
    assert len({buckets[batch[0].index] for batch in smaller}) == len(smaller)
    assert plan == plan_epoch(buckets, repeats, batch_size=batch_size, seed=seed, epoch=epoch)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(one.index for batch in plan_epoch(["a"] * 20, [1] * 20, batch_size=4, seed=seed, epoch=epoch) for one in batch)
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(orders) == 100


def test_the_batches_of_different_buckets_are_mixed() -> None:
    buckets = ["a"] * 40 + ["b"] * 40
    plan = plan_epoch(buckets, [1] * 80, batch_size=2, seed=0, epoch=0)
    kinds = [buckets[batch[0].index] for batch in plan]
    assert sum(one != other for one, other in pairwise(kinds)) > 10


def test_the_order_is_the_same_on_every_system_and_python() -> None:
    plan = plan_epoch(["a", "b", "a", "a"], [1, 1, 2, 1], batch_size=2, seed=42, epoch=3)
    assert plan == [[Placed(2, 0), Placed(3, 1)], [Placed(2, 2), Placed(0, 3)], [Placed(1, 4)]]
    assert item_seed(42, 3, 0, "noise") == 1323521993610575551


def test_item_seeds_differ_in_every_argument_and_have_63_bits() -> None:
    seeds = {
        item_seed(seed, epoch, position, purpose)
        for seed in range(8)
        for epoch in range(8)
        for position in range(8)
        for purpose in ("", "noise")
    }
    assert len(seeds) == 8 * 8 * 8 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size \\(0\\)"):
        plan_epoch(["a"], [1], batch_size=0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="2 buckets and 1 repeats"):
        steps_per_epoch(["a", "b"], [1], batch_size=1)
