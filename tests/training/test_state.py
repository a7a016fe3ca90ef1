from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from lora_trainer.errors import TrainingError
from lora_trainer.training import state
from lora_trainer.training.optimizers import build_optimizer
from lora_trainer.training.state import DTYPE_NAMES, TrainState, load_state, save_state
from tests.training.choices import INSTALLED_OPTIMIZERS

RATES = {"prodigy": 1.0}  # every other lowers the quadratic at 0.01


def make(name="adamw", seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(64, 64, generator=generator))  # below 4096 numbers, 8 bits are not used
    rate = RATES.get(name, 0.01)
    optimizer = build_optimizer(name, [{"params": [weight], "lr": rate, "base_lr": 0.01}], weight_decay=0.1)
    return weight, optimizer


def take_step(weight, optimizer):
    optimizer.zero_grad()
    weight.pow(2).sum().backward()
    optimizer.step()


@pytest.mark.hosts
@pytest.mark.parametrize("name", INSTALLED_OPTIMIZERS)
def test_an_optimizer_continues_from_a_saved_state_with_the_same_bits(tmp_path, name):
    weight, optimizer = make(name)
    for _ in range(3):
        take_step(weight, optimizer)
    save_state(tmp_path, TrainState(step=3, num_skipped=1), {"w": weight.detach()}, optimizer)
    other_weight, other_optimizer = make(name, seed=9)
    numbers, lora, saved = load_state(tmp_path)
    assert numbers == TrainState(step=3, num_skipped=1)
    other_optimizer.load_state_dict(saved)
    with torch.no_grad():
        other_weight.copy_(lora["w"])
    for _ in range(4):
        take_step(weight, optimizer)
        take_step(other_weight, other_optimizer)
    assert torch.equal(weight, other_weight)
    assert other_optimizer.param_groups[0]["base_lr"] == 0.01


@pytest.mark.parametrize("name", INSTALLED_OPTIMIZERS)
def test_an_optimizer_lowers_a_quadratic(name):
    weight, optimizer = make(name)
    before = weight.pow(2).sum().item()
    for _ in range(300):
        take_step(weight, optimizer)
    assert weight.pow(2).sum().item() < 0.5 * before


@pytest.mark.hosts
def test_the_library_reads_every_kind_of_tensor_from_a_state(tmp_path):
    tensors = {f"{dtype}": torch.randn(3, 5).mul(9).to(dtype) for dtype in DTYPE_NAMES}
    tensors |= {"turned": torch.randn(4, 6).T, "number": torch.tensor(7.0), "nothing": torch.empty(0, 4)}
    tensors["part of another"] = torch.randn(8, 8)[2:5, 1::2]
    path = save_state(tmp_path, TrainState(step=5), tensors, make()[1])
    read = safetensors.torch.load_file(path)
    assert read.keys() == {f"lora.{name}" for name in tensors}
    for name, tensor in tensors.items():
        found = read[f"lora.{name}"]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.reshape(-1).view(torch.uint8).tolist() == tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 5


def test_saving_takes_no_second_copy_of_the_state_on_the_device(tmp_path, monkeypatch):
    weight, optimizer = make()
    take_step(weight, optimizer)
    monkeypatch.setattr(torch.Tensor, "clone", lambda *args, **options: pytest.fail("a tensor was copied where it lies"))
    save_state(tmp_path, TrainState(step=1), {"w": weight.detach()}, optimizer)


def test_a_disk_that_keeps_something_else_is_told_and_the_older_state_stays(tmp_path, monkeypatch):
    _, optimizer = make()
    save_state(tmp_path, TrainState(step=1), {"w": torch.ones(2)}, optimizer)
    write = state._write

    def spoil(path, pieces):
        write(path, pieces)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(state, "_write", spoil)
    with pytest.raises(TrainingError, match=r"step-00000002\.safetensors does not hold what was written to it"):
        save_state(tmp_path, TrainState(step=2), {"w": torch.ones(2)}, optimizer)
    assert (tmp_path / "step-00000001.safetensors").exists()


def test_two_states_are_kept_and_a_damaged_one_falls_back_to_the_one_before(tmp_path, caplog):
    _, optimizer = make()
    for step in (10, 20, 30):
        save_state(tmp_path, TrainState(step=step), {"w": torch.full((2,), float(step))}, optimizer)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000020.safetensors", "step-00000030.safetensors"]
    newest = tmp_path / "step-00000030.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    numbers, lora, _ = load_state(tmp_path)
    assert (numbers.step, lora["w"].tolist()) == (20, [20.0, 20.0])
    assert "step-00000030" in caplog.text


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "nothing") is None


def test_saving_leaves_the_file_free_to_be_replaced(tmp_path):
    _, optimizer = make()
    path = save_state(tmp_path, TrainState(step=1), {"w": torch.ones(2)}, optimizer)
    _, lora, _ = load_state(tmp_path)
    path.write_bytes(b"something else entirely, of another length")
    assert lora["w"].tolist() == [1.0, 1.0]
