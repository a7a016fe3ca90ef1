"""Drawing one picture: repeatable, as asked, and without a trace in the model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.inference.generate import generate, preview
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.inference.table import SAMPLERS
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.objective import NoiseSchedule
from lora_trainer.models.table import load_model
from tests.inference.conftest import inject

SETTINGS = GenerateSettings("a boat on a lake", width=64, height=64, steps=3, seed=5)


def difference(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.hosts
@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_a_sampler_asks_for_no_double_precision_on_the_device(sampler):
    """Apple's GPUs have none."""
    schedule = NoiseSchedule("epsilon")
    expected = SAMPLERS.get(sampler).load()(schedule).alphas_cumprod
    schedule.alphas_cumprod = SimpleNamespace(cpu=NoiseSchedule("epsilon").alphas_cumprod.cpu)
    assert torch.equal(SAMPLERS.get(sampler).load()(schedule).alphas_cumprod, expected)


@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_same_seed_gives_the_same_picture(model: Any, sampler: str) -> None:
    settings = replace(SETTINGS, sampler=sampler)
    picture = generate(model, settings)
    assert picture.tobytes() == generate(model, settings).tobytes()
    assert difference(picture, generate(model, replace(settings, seed=6))) > 3
    assert difference(picture, generate(model, replace(settings, prompt="a red house, " * 20))) > 0


@pytest.mark.hosts
@pytest.mark.parametrize("has_zero_snr", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_samplers_find_the_only_picture_there_is(sampler: str, prediction: str, has_zero_snr: bool) -> None:
    """The right prediction for a world of one picture is known; whoever follows it must arrive at that picture."""
    schedule = NoiseSchedule(prediction, is_zero_terminal_snr=has_zero_snr)
    goal = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    scheduler = SAMPLERS.get(sampler).load()(schedule)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(goal.shape, generator=generator) * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        share = 1 / (1 + scheduler.sigmas[index] ** 2) if hasattr(scheduler, "sigmas") else scheduler.alphas_cumprod[timestep]
        noisy = scheduler.scale_model_input(sample, timestep)
        noise = (noisy - share.sqrt() * goal) / (1 - share).sqrt()
        told = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * goal
        sample = scheduler.step(told, timestep, sample, generator=generator).prev_sample
    # DDIM ends, as in the WebUI, at the lowest noise level, 0.029, and the largest of 64 draws is about three times that.
    torch.testing.assert_close(sample, goal, rtol=0, atol=0.12 if sampler == "ddim" else 0.001)


def test_samplers_start_at_the_webui_s_noise_level() -> None:
    """SD's highest noise level is 14.6146 in the WebUI; DDIM starts from plain noise at timestep 951 of 20 steps."""
    schedulers = {name: SAMPLERS.get(name).load()(NoiseSchedule("epsilon")) for name in SAMPLERS.names()}
    for scheduler in schedulers.values():
        scheduler.set_timesteps(20)
    assert float(schedulers["euler_a"].init_noise_sigma) == pytest.approx(14.6146, abs=1e-3)
    assert float(schedulers["euler_a"].timesteps[1]) == pytest.approx(999 * 18 / 19, abs=1e-2)
    assert float(schedulers["dpmpp_2m_karras"].sigmas[0]) == pytest.approx(14.6146, abs=1e-3)
    assert float(schedulers["dpmpp_2m_karras"].sigmas[19]) == pytest.approx(0.02917, abs=1e-4)
    assert (int(schedulers["ddim"].timesteps[0]), int(schedulers["ddim"].timesteps[-1])) == (951, 1)


def test_first_noise_is_the_webui_s_cpu_noise(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    denoise = sd1.denoise
    monkeypatch.setattr(sd1, "denoise", lambda latents, *rest: seen.append(latents.clone()) or denoise(latents, *rest))
    generate(sd1, replace(SETTINGS, sampler="ddim", seed=1234))
    wanted = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(1234))
    assert torch.equal(seen[0][0], wanted)
    assert torch.equal(seen[0][1], wanted)


def test_v_prediction_base_is_drawn_as_such(checkpoints: Any, sd1: Any) -> None:
    other: Any = load_model(ModelSettings(checkpoints["sd1"], prediction_type="v_prediction"))
    assert difference(generate(other, SETTINGS), generate(sd1, SETTINGS)) > 3


def test_negative_prompt_counts_only_above_scale_one(sd1: Any) -> None:
    for scale, counts in ((1.0, False), (7.0, True)):
        settings = replace(SETTINGS, cfg_scale=scale)
        changed = difference(generate(sd1, settings), generate(sd1, replace(settings, negative_prompt="a red house")))
        assert (changed > 0.01) == counts


def test_prompts_of_several_chunks_and_any_language(model: Any) -> None:
    settings = replace(SETTINGS, prompt="水墨画，红色的房子 🏠 " * 30, negative_prompt="blurry")
    assert generate(model, settings).size == (64, 64)


def test_sdxl_is_given_zeros_for_an_empty_negative_prompt(sdxl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    denoise = sdxl.denoise
    monkeypatch.setattr(sdxl, "denoise", lambda *args: seen.append(args[2]) or denoise(*args))
    generate(sdxl, replace(SETTINGS, width=96))
    generate(sdxl, replace(SETTINGS, negative_prompt="blurry"))
    empty, full = seen[0], seen[-1]
    assert not empty["text"][0].any() and not empty["pooled_text"][0].any()
    assert empty["text"][1].any() and full["text"][0].any() and full["pooled_text"][0].any()
    assert empty["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2


def test_sizes_that_are_no_multiple_of_64(model: Any) -> None:
    assert generate(model, replace(SETTINGS, width=72, height=104, steps=2)).size == (72, 104)


@pytest.mark.hosts
def test_leaves_no_trace_in_a_model_in_training(model: Any) -> None:
    model.unet.train()
    adapter = inject(model, dropout=0.5)
    modes = [module.training for root in model.parts.values() for module in root.modules()]
    assert any(modes) and not all(modes)
    state = torch.random.get_rng_state()
    try:
        base, trained = preview(model, adapter, SETTINGS)
        again = preview(model, adapter, SETTINGS)
    finally:
        assert modes == [module.training for root in model.parts.values() for module in root.modules()]
        adapter.remove()
        model.unet.eval()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled()
    assert (base.tobytes(), trained.tobytes()) == tuple(picture.tobytes() for picture in again)
    assert base.tobytes() == generate(model, SETTINGS).tobytes()
    assert difference(base, trained) > 1


def test_training_goes_on_as_if_nothing_had_been_drawn(sd1: Any) -> None:
    def train(draws: bool) -> torch.Tensor:
        torch.manual_seed(3)
        sd1.unet.train()
        adapter = inject(sd1, dropout=0.5)
        try:
            if draws:
                preview(sd1, adapter, SETTINGS)
            text = sd1.encode_texts(["a"])["text"].detach()
            out = sd1.denoise(torch.ones(1, 4, 8, 8), torch.tensor([500]), {"text": text})
            out.square().mean().backward()
            return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters_by_part()["unet"]])
        finally:
            adapter.remove()
            sd1.unet.eval()

    assert torch.equal(train(draws=False), train(draws=True))


def test_progress_is_told_and_may_cancel(sd1: Any) -> None:
    seen: list[tuple[int, int]] = []

    class _CancelledError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise _CancelledError

    generate(sd1, SETTINGS, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    sd1.unet.train()
    with pytest.raises(_CancelledError):
        generate(sd1, SETTINGS, on_step=cancel)
    assert sd1.unet.training
    assert not sd1.text_encoders[0].training
    sd1.unet.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_base_with_adapter(checkpoints: Any, dtype: torch.dtype) -> None:
    model: Any = load_model(ModelSettings(checkpoints["sdxl"], dtype=dtype))
    adapter = inject(model)
    base, trained = preview(model, adapter, SETTINGS)
    assert difference(base, trained) > 1


def test_overflow_is_an_error_and_not_a_black_picture(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd1, "scale_factor", 0.0)
    with pytest.raises(ModelError, match=r"not-a-number.*float32.*inspect.*bf16"):
        generate(sd1, SETTINGS)


def test_every_setting_that_cannot_be_used_is_named(sd1: Any) -> None:
    bad = GenerateSettings("a \ud800", width=100, height=32, steps=1, cfg_scale=0.5, seed=-1, sampler="euler")
    with pytest.raises(ConfigError) as caught:
        generate(sd1, bad)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["prompt", "width", "height", "steps", "cfg_scale", "seed", "sampler"]
    assert all(value in str(caught.value) for value in ("(100)", "(32)", "(1)", "(0.5)", "(-1)", "'euler'"))
