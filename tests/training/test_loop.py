from __future__ import annotations

import pytest
import torch

from tests.training.test_run import losses_of, run


@pytest.fixture
def seen_gradients(monkeypatch):
    """Records the norm of the gradient that AdamW is given, at each step."""
    norms, real = [], torch.optim.AdamW.step

    def step(self, *arguments):
        gradients = [parameter.grad.norm() for group in self.param_groups for parameter in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return norms


def test_clipping_really_clips_and_the_norm_before_it_is_reported(toy_config, seen_gradients):
    _, events = run(toy_config(max_grad_norm="0.001", epochs="1"))
    reported = [event.data["grad_norm"] for event in events if event.kind == "step"]
    assert min(reported) > 0.01
    assert seen_gradients == pytest.approx([0.001] * len(reported), rel=1e-2)


def test_without_clipping_the_gradient_is_left_alone(toy_config, seen_gradients):
    _, events = run(toy_config(max_grad_norm="0", epochs="1"))
    reported = [event.data["grad_norm"] for event in events if event.kind == "step"]
    assert seen_gradients == pytest.approx(reported, rel=1e-5)


def test_the_schedule_reaches_the_optimizer(toy_config):
    _, events = run(toy_config(lr_scheduler="cosine", lr_warmup_steps="4", save_steps="0"))
    rates = [event.data["learning_rate"] for event in events if event.kind == "step"]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(0.01) and rates[-1] < 0.0005
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_an_epoch_counts_every_picture_with_its_repeats(toy_config, pictures):
    (pictures / "3_more").mkdir()
    (pictures / "5.png").rename(pictures / "3_more" / "5.png")
    (pictures / "5.txt").rename(pictures / "3_more" / "5.txt")
    result, events = run(toy_config(batch_size="1", epochs="2", save_steps="0"))
    assert result.step == len(losses_of(events)) == 2 * (5 + 3)
