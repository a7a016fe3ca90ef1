from __future__ import annotations

import math

import pytest

from lora_trainer.config.schema import field_infos
from lora_trainer.training.schedules import SCHEDULES, rate_factor


def factors(name, total=100, warmup=10):
    return [rate_factor(name, step, total_steps=total, warmup_steps=warmup) for step in range(total)]


def test_the_settings_offer_exactly_the_table():
    assert field_infos()["lr_scheduler"].choices == SCHEDULES.names()


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_warm_up_rises_evenly_to_the_full_rate_and_nothing_leaves_0_to_1(name):
    values = factors(name)
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert values[10] == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_without_warm_up_the_first_step_has_the_full_rate(name):
    assert rate_factor(name, 0, total_steps=5, warmup_steps=0) == 1.0


def test_cosine_halves_in_the_middle_and_ends_near_zero():
    values = factors("cosine", total=1000, warmup=0)
    assert values[500] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(math.sin(math.pi / 2000) ** 2, rel=1e-6)
