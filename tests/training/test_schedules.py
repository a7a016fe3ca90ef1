from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from lora_trainer.config.schema import field_infos
from lora_trainer.training.schedules import Schedule
from lora_trainer.training.table import SCHEDULES

TOTAL = 60


def factors(name, total=100, warmup=10, **settings):
    schedule = Schedule(name, total_steps=total, warmup_steps=warmup, **settings)
    return [schedule.factor(step) for step in range(total)]


def factors_of_torch(make):
    """What one of torch's schedulers gives over `TOTAL` steps at a learning rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer itself takes no step
        for _ in range(TOTAL):
            seen.append(scheduler.get_last_lr()[0])
            scheduler.step()
    return seen


def test_the_settings_offer_exactly_the_table():
    assert field_infos()["lr_scheduler"].choices == SCHEDULES.names()


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_warm_up_rises_evenly_to_the_full_rate_and_nothing_leaves_0_to_1(name):
    values = factors(name)
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert values[10] == pytest.approx(1.0)
    # Above zero at every step: a step at rate zero would be wasted.
    assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_without_warm_up_the_first_step_has_the_full_rate(name):
    assert Schedule(name, total_steps=5).factor(0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_the_floor_squeezes_what_is_above_it_and_leaves_warm_up_alone(name):
    plain, floored = factors(name), factors(name, min_ratio=0.25)
    assert floored[:10] == plain[:10]
    assert floored[10:] == pytest.approx([0.25 + 0.75 * value for value in plain[10:]])
    assert min(floored[10:]) >= 0.25


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        ("cosine", lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL)),
        ("linear", lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=TOTAL)),
        ("polynomial", lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=TOTAL, power=2.0)),
        ("cosine_with_restarts", lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=TOTAL // 4)),
    ],
)
def test_schedules_are_those_of_torch(name, make):
    assert factors(name, TOTAL, warmup=0, restarts=4) == pytest.approx(factors_of_torch(make), rel=1e-6, abs=1e-9)


def test_rex_is_the_papers_formula():
    expected = [(1 - step / TOTAL) / (0.5 + 0.5 * (1 - step / TOTAL)) for step in range(TOTAL)]
    assert factors("rex", TOTAL, warmup=0) == pytest.approx(expected)


@pytest.mark.parametrize(("restarts", "total"), [(1, 7), (3, 100), (7, 50)])
def test_restarts_come_as_often_as_asked(restarts, total):
    values = factors("cosine_with_restarts", total, warmup=0, restarts=restarts)
    assert sum(after > before for before, after in itertools.pairwise(values)) == restarts - 1
