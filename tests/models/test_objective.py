"""The noise schedule against diffusers' scheduler and against the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from lora_trainer.models.family import Objective
from lora_trainer.models.objective import DEBIASED_LIMIT, NoiseSchedule, element_losses, mean_error

TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def _theirs(prediction_type: str, **settings: bool) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type, **settings
    )


@pytest.mark.parametrize("is_zero_terminal_snr", [False, True])
def test_noising_and_v_are_those_of_diffusers(is_zero_terminal_snr: bool) -> None:
    ours = NoiseSchedule("v_prediction", is_zero_terminal_snr=is_zero_terminal_snr)
    theirs = _theirs("v_prediction", rescale_betas_zero_snr=is_zero_terminal_snr)
    latents, noise = torch.randn(2, 6, 4, 8, 8)
    close = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, **close)
    torch.testing.assert_close(ours.add_noise(latents, noise, TIMESTEPS), theirs.add_noise(latents, noise, TIMESTEPS), **close)
    torch.testing.assert_close(ours.target(latents, noise, TIMESTEPS), theirs.get_velocity(latents, noise, TIMESTEPS), **close)


def test_zero_terminal_snr_ends_in_noise_alone_and_only_with_v() -> None:
    assert NoiseSchedule("v_prediction", is_zero_terminal_snr=True).alphas_cumprod[-1] == 0
    assert NoiseSchedule("epsilon", is_zero_terminal_snr=True).alphas_cumprod[-1] > 0.004


def test_epsilon_predicts_the_noise() -> None:
    latents, noise = torch.randn(2, 6, 4, 2, 2)
    assert torch.equal(NoiseSchedule("epsilon").target(latents, noise, TIMESTEPS), noise)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_by_the_papers_formula(prediction_type: str, gamma: float) -> None:
    schedule = NoiseSchedule(prediction_type)
    expected = []
    for timestep in TIMESTEPS.tolist():
        snr = _snr(timestep)
        expected.append(min(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1))
    weights = schedule.loss_weights(TIMESTEPS, Objective(min_snr_gamma=gamma))
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_debiased_estimation_weighs_by_the_papers_formula(prediction_type: str) -> None:
    schedule = NoiseSchedule(prediction_type)
    # Equal weight on the clean latents: a loss on v is (SNR + 1) / SNR times the one on the noise.
    expected = [
        1 / math.sqrt(snr) * (1 if prediction_type == "epsilon" else snr / (snr + 1)) for snr in map(_snr, TIMESTEPS.tolist())
    ]
    weights = schedule.loss_weights(TIMESTEPS, Objective(debiased_estimation=True))
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert 14 < 1 / math.sqrt(_snr(999)) < 15


def test_debiased_estimation_is_bounded_where_the_schedule_ends_close_to_noise() -> None:
    objective = Objective(debiased_estimation=True)
    assert NoiseSchedule("epsilon", beta_end=0.05).loss_weights(TIMESTEPS, objective).max() == DEBIASED_LIMIT
    zero = NoiseSchedule("v_prediction", is_zero_terminal_snr=True).loss_weights(TIMESTEPS, objective)
    assert zero.isfinite().all() and zero.max() <= 0.5


def test_the_plain_objective_weighs_all_alike() -> None:
    assert NoiseSchedule("epsilon").loss_weights(TIMESTEPS, Objective()).tolist() == [1.0] * 6


def test_huber_is_the_smooth_formula() -> None:
    prediction, target = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    losses = element_losses(prediction, target, Objective(loss_type="huber", huber_delta=0.1))
    expected = [
        2 * 0.1 * (math.sqrt((p - t) ** 2 + 0.1**2) - 0.1)
        for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(losses.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_huber_is_the_squared_error_below_its_delta_and_straight_above() -> None:
    errors = torch.tensor([0.0, 1e-3, 100.0])
    zero = torch.zeros(3)
    huber = element_losses(errors, zero, Objective(loss_type="huber", huber_delta=0.5))
    assert huber.tolist() == pytest.approx([0, 1e-6, 2 * 0.5 * (100 - 0.5)], rel=1e-4)
    wide = element_losses(errors, zero, Objective(loss_type="huber", huber_delta=100.0))
    torch.testing.assert_close(wide[:2], element_losses(errors, zero, Objective())[:2])
    assert element_losses(errors, zero, Objective()).tolist() == pytest.approx([0, 1e-6, 1e4])


def test_min_snr_is_finite_where_the_schedule_ends_in_noise() -> None:
    weights = NoiseSchedule("v_prediction", is_zero_terminal_snr=True).loss_weights(TIMESTEPS, Objective(min_snr_gamma=5.0))
    assert weights.isfinite().all()
    assert weights[-1] == 0


def _snr(timestep: int) -> float:
    start, end = math.sqrt(0.00085), math.sqrt(0.012)
    kept = math.prod(1 - (start + (end - start) * step / 999) ** 2 for step in range(timestep + 1))
    return kept / (1 - kept)


def test_unknown_prediction_type_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sample'.*epsilon, v_prediction"):
        NoiseSchedule("sample")


def test_the_mean_is_over_the_masked_area_alone() -> None:
    errors = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    torch.testing.assert_close(mean_error(errors, torch.ones(2, 1, 4, 4)), mean_error(errors, None))
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 1, 2:] = 1
    spoilt = errors.clone()
    spoilt[:, :, 0] = 1e9
    torch.testing.assert_close(mean_error(spoilt, mask), errors[:, :, 1, 2:].mean(dim=(1, 2)))
    mask[:, :, 1, 3] = 0.5
    torch.testing.assert_close(mean_error(errors, mask), (errors[:, :, 1, 2] + errors[:, :, 1, 3] / 2).mean(dim=1) / 1.5)


def test_an_empty_mask_gives_zero_and_another_grid_is_averaged() -> None:
    errors = torch.rand(2, 3, 4, 4)
    assert mean_error(errors, torch.zeros(2, 1, 4, 4)).tolist() == [0, 0]
    fine = torch.zeros(2, 1, 8, 8)
    fine[:, :, :4] = 1
    torch.testing.assert_close(mean_error(errors, fine), errors[:, :, :2].mean(dim=(1, 2, 3)))
