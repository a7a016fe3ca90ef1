"""Each optimizer against its paper's formula, and whole runs with each; `test_state.py` has what all of them share."""

from __future__ import annotations

import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from lora_trainer.config.schema import field_infos
from lora_trainer.errors import MissingPackageError
from lora_trainer.training.optimizers import averaged_weights, build_optimizer, effective_rate
from lora_trainer.training.table import OPTIMIZERS
from tests.training.choices import INSTALLED_OPTIMIZERS
from tests.training.test_run import assert_same_file, run


def make(name, *weights, rate=0.01, weight_decay=0.0):
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    groups = [{"params": parameters, "lr": rate, "base_lr": rate}]
    return parameters, build_optimizer(name, groups, weight_decay=weight_decay)


def step(parameters, optimizer, *gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def test_the_settings_offer_exactly_the_table():
    assert field_infos()["optimizer"].choices == OPTIMIZERS.names()


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=lambda entry: entry.name)
def test_an_entry_says_which_rate_and_lies_around_it(entry):
    low, high = entry.options["rates"]
    usual = [float(word) for word in entry.options["usual"].split(" to ")]
    assert low < min(usual) <= max(usual) < high
    assert f"{entry.options['usual']}" in entry.help and "earning rate" in entry.help


@pytest.mark.hosts
@pytest.mark.parametrize("entry", [entry for entry in OPTIMIZERS if entry.package], ids=lambda entry: entry.name)
def test_a_missing_package_is_named_with_its_command(entry, monkeypatch):
    for module in (entry.package, f"{entry.package}.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"optimizer: {entry.name} needs .* pip install {entry.package}"):
        make(entry.name, torch.ones(2))


@pytest.mark.hosts
def test_adamw_does_without_the_fused_kernel_where_this_torch_has_none(monkeypatch):
    """As torch before 2.4 on a CPU: it refuses after it has filled in the groups."""

    class OlderAdamW(torch.optim.AdamW):
        def __init__(self, groups, **options):
            super().__init__(groups, **options)
            if options.get("fused"):
                raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices.")

    monkeypatch.setattr(torch.optim, "AdamW", OlderAdamW)
    _, optimizer = make("adamw", torch.ones(2), rate=0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert not optimizer.param_groups[0]["fused"]


@pytest.mark.hosts
def test_lion_follows_the_papers_algorithm():
    generator = torch.Generator().manual_seed(0)
    start, other = torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator)
    parameters, optimizer = make("lion", start, other, rate=0.02, weight_decay=0.3)
    weights, momenta = start.double().tolist(), [0.0] * 3
    for _ in range(5):
        gradient = torch.randn(3, generator=generator)
        step(parameters, optimizer, gradient, torch.ones(2, 2))
        for index, slope in enumerate(gradient.double().tolist()):
            direction = 0.9 * momenta[index] + 0.1 * slope
            sign = (direction > 0) - (direction < 0)
            weights[index] -= 0.02 * (sign + 0.3 * weights[index])
            momenta[index] = 0.99 * momenta[index] + 0.01 * slope
    assert parameters[0].tolist() == pytest.approx(weights, rel=1e-5)


def test_lion_leaves_weights_without_a_gradient():
    parameters, optimizer = make("lion", torch.ones(2), torch.ones(2))
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    assert parameters[0].tolist() == pytest.approx([0.99, 0.99]) and parameters[1].tolist() == [1.0, 1.0]


@pytest.mark.hosts
def test_adafactor_takes_the_rate_as_given_from_the_first_step_on_zero_weights():
    # The squares of an outer product are factored without loss, so its first step is the sign times the rate.
    gradient = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, -4.0]))
    parameters, optimizer = make("adafactor", torch.zeros(3, 2), rate=3e-4)
    step(parameters, optimizer, gradient)
    torch.testing.assert_close(parameters[0].detach(), -3e-4 * gradient.sign(), rtol=1e-4, atol=0)


def test_prodigy_finds_its_step_size_and_prints_nothing(capsys):
    pytest.importorskip("prodigyopt")
    parameters, optimizer = make("prodigy", torch.full((20,), 5.0), rate=1.0, weight_decay=0.01)
    first = effective_rate(optimizer)
    for _ in range(100):
        step(parameters, optimizer, parameters[0].detach())
    assert effective_rate(optimizer) > 100 * first
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert capsys.readouterr().out == ""


def test_the_effective_rate_of_others_is_their_own():
    _, optimizer = make("adamw", torch.ones(2), rate=0.25)
    assert effective_rate(optimizer) == 0.25


class TestAveragedWeights:
    @pytest.fixture
    def trained(self):
        """A schedule-free optimizer after seven steps, and the weights z of each, whose mean is what should be used."""
        pytest.importorskip("schedulefree")
        generator = torch.Generator().manual_seed(3)
        parameters, optimizer = make("schedule_free", torch.randn(5, generator=generator))
        fast = []
        for _ in range(7):
            step(parameters, optimizer, torch.randn(5, generator=generator))
            fast.append(optimizer.state[parameters[0]]["z"].clone())
        return parameters, optimizer, fast

    def test_are_the_mean_of_all_steps_within_and_the_same_bits_after(self, trained):
        parameters, optimizer, fast = trained
        before = parameters[0].detach().clone()
        with averaged_weights(optimizer):
            torch.testing.assert_close(parameters[0].detach(), torch.stack(fast).mean(0))
        assert torch.equal(parameters[0], before)
        step(parameters, optimizer, torch.ones(5))

    def test_are_given_back_after_an_error_too(self, trained):
        parameters, optimizer, _ = trained
        before = parameters[0].detach().clone()
        with pytest.raises(OSError, match="full"), averaged_weights(optimizer):
            raise OSError("full")
        assert torch.equal(parameters[0], before) and optimizer.param_groups[0]["train_mode"]

    def test_of_others_are_those_that_are_trained(self):
        parameters, optimizer = make("adamw", torch.ones(3))
        step(parameters, optimizer, torch.ones(3))
        before = parameters[0].detach().clone()
        with averaged_weights(optimizer):
            assert torch.equal(parameters[0], before)


def settings(name, **changes):
    rates = {"prodigy": "1", "lion": "1e-3"}
    return {"optimizer": name, "learning_rate": rates.get(name, "1e-2"), "save_precision": "fp32", **changes}


@pytest.mark.parametrize("name", INSTALLED_OPTIMIZERS)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(toy_config, tmp_path, name):
    changes = settings(name, lr_warmup_steps="3", lora_rank="96")  # 96 x 48 numbers: enough for 8 bits
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
    stopped, _ = run(toy_config(**changes), stop_at=13)
    continued, events = run(toy_config(**changes))
    assert (stopped.step, continued.step) == (13, whole.step)
    assert_same_file(whole.path, continued.path)
    rates = [event.data["learning_rate"] for event in events if event.kind == "step"]
    assert all(rate > 0 for rate in rates)


def test_the_file_of_a_schedule_free_run_holds_the_average_and_its_state_the_trained_weights(toy_config):
    pytest.importorskip("schedulefree")
    result, _ = run(toy_config(**settings("schedule_free")))
    state = safetensors.torch.load((result.path.parent / "state" / "step-00000024.safetensors").read_bytes())
    trained = [tensor for name, tensor in sorted(state.items()) if name.startswith("lora.")]
    fast = [tensor for name, tensor in state.items() if name.startswith("optimizer.") and name.endswith(".z")]
    # The trained weights y are 0.9 x + 0.1 z, x the average.
    averages = [(y - 0.1 * z) / 0.9 for y in trained for z in fast if z.shape == y.shape]
    exported = [tensor for tensor in safetensors.torch.load(result.path.read_bytes()).values() if tensor.dim() == 2]
    assert len(exported) == len(trained) == len(fast)
    for tensor in exported:
        assert any(tensor.shape == x.shape and torch.allclose(tensor, x, atol=1e-5) for x in averages)
        assert not any(tensor.shape == y.shape and torch.equal(tensor, y) for y in trained)
