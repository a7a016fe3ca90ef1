"""A run whose device is wanted by others between two steps, or free while it is paused."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lora_trainer.control import TrainControl
from lora_trainer.errors import TrainingError
from lora_trainer.host.base import OwnDevice
from lora_trainer.host.standalone import Standalone
from lora_trainer.training.luggage import Luggage
from lora_trainer.training.run import train
from lora_trainer.training.state import load_state
from tests.training import toy
from tests.training.test_run import TOTAL_STEPS, assert_same_file, losses_of, run

CPU, META = torch.device("cpu"), torch.device("meta")


class GenerousLease:
    """Gives way whenever it is asked."""

    def __init__(self):
        self.shown, self.num_lent, self.depth = [], 0, 0

    @contextmanager
    def building(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def give_way(self, away, back, *, is_paused):
        with self.building():
            away()
            torch.manual_seed(time.monotonic_ns())  # a generation seeds the global generator
            while is_paused():
                time.sleep(0.001)
            back()
        self.num_lent += 1

    def is_waited_for(self):
        return True

    def claim(self):
        return False

    def show(self, done, total):
        self.shown.append((done, total))


class PausableLease(GenerousLease):
    """Calls a function when it finds the run paused."""

    def __init__(self, when_paused):
        super().__init__()
        self.when_paused = when_paused

    def give_way(self, away, back, *, is_paused):
        if is_paused():
            self.when_paused()
        super().give_way(away, back, is_paused=is_paused)


def run_with(lease, config, *, control=None, pause_at=None):
    events, control = [], control or TrainControl()

    def watch(event):
        events.append(event)
        if event.kind == "step" and event.data["step"] == pause_at:
            control.request("pause")

    return train(config, control=control, watch=watch, lease=lease), events


@pytest.mark.hosts
@pytest.mark.parametrize("changes", [{}, {"lora_dropout": "0.3", "shuffle_tags": "true", "optimizer": "adamw"}])
def test_giving_way_changes_no_bit_of_the_result(toy_config, tmp_path, changes):
    whole, whole_events = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
    lease = GenerousLease()
    lent, lent_events = run_with(lease, toy_config(cache_dir=str(tmp_path / "empty"), **changes))
    assert lease.num_lent > TOTAL_STEPS  # while encoding, too
    assert losses_of(lent_events) == losses_of(whole_events)
    assert_same_file(lent.path, whole.path)


def test_the_progress_is_shown_before_each_step(toy_config):
    lease = GenerousLease()
    run_with(lease, toy_config())
    assert lease.shown == [(step, TOTAL_STEPS) for step in range(TOTAL_STEPS)]


def test_layers_are_built_and_moved_only_under_the_lease(toy_config, monkeypatch):
    """Elsewhere a WebUI that loads a checkpoint would turn new layers into nothing, and moving would do nothing."""
    lease, outside, inside = GenerousLease(), [], []

    def watched(name):
        method = getattr(nn.Module, name)

        def call(self, *arguments, **options):
            (inside if lease.depth else outside).append(f"{type(self).__name__}.{name}")
            return method(self, *arguments, **options)

        monkeypatch.setattr(nn.Module, name, call)

    watched("__init__")
    watched("to")
    run_with(lease, toy_config())
    assert outside == []
    assert {"Linear.__init__", "ModuleDict.to"} <= set(inside)


def test_a_pause_gives_the_device_away_and_goes_on_to_the_same_bytes(toy_config, tmp_path):
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy")))
    control, pauses = TrainControl(), []

    def go_on():
        pauses.append(True)
        control.request("continue")

    paused, events = run_with(PausableLease(go_on), toy_config(), control=control, pause_at=7)
    assert pauses == [True]
    assert [event.data["step"] for event in events if event.kind == "paused"] == [7]
    assert_same_file(paused.path, whole.path)


def test_a_sample_asked_for_in_a_pause_takes_the_device_for_as_long(toy_config):
    control, requests = TrainControl(), ["sample", "stop"]
    result, events = run_with(PausableLease(lambda: control.request(requests.pop(0))), toy_config(), control=control, pause_at=3)
    assert requests == []
    assert any("sample_prompts is empty" in event.data.get("message", "") for event in events)
    assert (result.status, result.step) == ("stopped", 3)


def test_out_of_memory_beside_the_owners_models_repeats_the_step_without_them(toy_config, tmp_path, monkeypatch):
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy")))
    losses, calls, claims = toy.ToyModel.losses, [], []

    def fail_once(self, *arguments):
        calls.append(True)
        if len(calls) == 9:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return losses(self, *arguments)

    class Lease(GenerousLease):
        def claim(self):
            claims.append(True)
            return True

    monkeypatch.setattr(toy.ToyModel, "losses", fail_once)
    result, events = run_with(Lease(), toy_config())
    assert claims == [True]
    assert not any("memory" in event.data.get("message", "") for event in events)  # nothing had to become smaller
    assert_same_file(result.path, whole.path)


def no_room(monkeypatch, first, num_times):
    """Has memory run out when the run comes back, from that time on as often as that."""
    move_back, tries = Luggage._move_back, []

    def find_room(self):
        tries.append(True)
        if first <= len(tries) < first + num_times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        move_back(self)

    monkeypatch.setattr(Luggage, "_move_back", find_room)


@pytest.mark.parametrize("first", [2, 20])  # while encoding, and between two steps
def test_no_room_to_come_back_at_the_first_try(toy_config, tmp_path, monkeypatch, first):
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy")))
    no_room(monkeypatch, first, 1)
    result, _ = run_with(GenerousLease(), toy_config(cache_dir=str(tmp_path / "empty")))
    assert_same_file(result.path, whole.path)


def test_no_room_to_come_back_at_all_loses_nothing(toy_config, tmp_path, monkeypatch):
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), save_steps="1000"))
    config = toy_config(save_steps="1000", on_out_of_memory="adapt")
    with monkeypatch.context() as patch:
        no_room(patch, 30, 1000)
        with pytest.raises(TrainingError, match=r"found no room on the card when it came back \(.* in use\).*and continue"):
            run_with(GenerousLease(), config)
    numbers, _, _ = load_state(config.output_dir / "state")
    result, events = run(config)
    assert numbers.step > 0 and len(losses_of(events)) == TOTAL_STEPS - numbers.step
    assert_same_file(result.path, whole.path)


def test_a_pause_gives_the_cards_memory_to_other_programs(monkeypatch):
    freed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr("lora_trainer.host.base.PAUSE_POLL_SECONDS", 0.001)
    OwnDevice().give_way(lambda: None, lambda: None, is_paused=iter([True, True, False]).__next__)
    assert freed == [True]
    with Standalone().borrow_device("Training"):
        assert freed == [True]
    assert freed == [True, True]


class Whole(nn.Module):
    """A module with everything that a module can hold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.tied = self.linear
        self.norm = nn.BatchNorm1d(3)
        self.adapter = nn.Parameter(torch.ones(3, 3))
        self.register_buffer("not_saved", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.norm(self.tied(x) @ self.adapter)


OPTIMIZERS = pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.AdamW(parameters),
        lambda parameters: torch.optim.AdamW(parameters, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ],
    ids=["adamw", "fused adamw", "momentum"],
)


def take_step(module, optimizer):
    module(torch.arange(12.0).reshape(4, 3)).pow(3).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@OPTIMIZERS
def test_nothing_is_left_on_the_device(build):
    """The CPU plays the device, and "meta" the memory."""
    module = Whole()
    optimizer = build(module.parameters())
    take_step(module, optimizer)
    Luggage([module], CPU, optimizer, rest=META).away()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    tensors = [*module.parameters(), *module.buffers(), *states]
    assert states and all(tensor.is_meta for tensor in tensors)


@OPTIMIZERS
def test_training_goes_on_as_if_nothing_had_moved(build):
    torch.manual_seed(0)
    one, other = Whole(), Whole()
    other.load_state_dict(one.state_dict())
    optimizers = [build(module.parameters()) for module in (one, other)]
    for _ in range(3):
        take_step(one, optimizers[0])
        take_step(other, optimizers[1])
        luggage = Luggage([other], CPU, optimizers[1])
        luggage.away()
        luggage.back()
    for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_what_waited_in_memory_already_stays_there():
    """Frozen text encoders and the VAE are not on the device while training, and must not come onto it."""
    in_memory, on_device = nn.Linear(2, 2), nn.Linear(2, 2, device=META)
    luggage = Luggage([in_memory, on_device], META, rest=META)
    luggage.away()
    luggage.back()
    assert in_memory.weight.device == CPU


@pytest.mark.parametrize(("lease", "only_warns"), [(None, False), (GenerousLease(), True)])
def test_a_deterministic_run_is_strict_where_no_host_computes_beside_it(toy_config, monkeypatch, lease, only_warns):
    """Strict, a host's generation could fail for an operation that has no deterministic form."""
    seen, losses = set(), toy.ToyModel.losses

    def look(self, *args):
        seen.add(torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled())
        return losses(self, *args)

    monkeypatch.setattr(toy.ToyModel, "losses", look)
    train(toy_config(deterministic="true"), control=TrainControl(), watch=lambda event: None, lease=lease)
    assert seen == {only_warns} and not torch.are_deterministic_algorithms_enabled()
