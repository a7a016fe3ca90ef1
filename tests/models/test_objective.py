"""The noise schedule against diffusers' scheduler and against the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from lora_trainer.models.objective import NoiseSchedule

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
        kept = math.prod(
            1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / 999) ** 2 for step in range(timestep + 1)
        )
        snr = kept / (1 - kept)
        expected.append(min(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1))
    torch.testing.assert_close(schedule.loss_weights(TIMESTEPS, gamma), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_min_snr_is_finite_where_the_schedule_ends_in_noise() -> None:
    weights = NoiseSchedule("v_prediction", is_zero_terminal_snr=True).loss_weights(TIMESTEPS, 5.0)
    assert weights.isfinite().all()
    assert weights[-1] == 0


def test_unknown_prediction_type_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sample'.*epsilon, v_prediction"):
        NoiseSchedule("sample")
