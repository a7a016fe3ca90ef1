"""Every adapter of the table, in a tiny real model: no-op at the start, trains, comes off, and is the same after a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_trainer.adapters.adapter import ModuleName
from lora_trainer.adapters.lora import SeededDropout
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.errors import AdapterError
from lora_trainer.models.family import TrainableModel
from tests.adapters.models import EVERYTHING, inject, load, outputs, randomise
from tests.tiny import make_checkpoint

pytestmark = pytest.mark.hosts
NAMES = ADAPTERS.names()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("sd1", tmp_path_factory.mktemp("sd1"))


@pytest.fixture
def model(checkpoint: Path) -> TrainableModel:
    return load(checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_changes_nothing_at_the_start(model: TrainableModel, name: str) -> None:
    with torch.no_grad():
        before = outputs(model)
        inject(model, name=name)
        after = outputs(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_adapter_is_trained_and_it_learns(model: TrainableModel, name: str) -> None:
    adapter = inject(model, name=name)
    trainable = {id(parameter) for part in model.parts.values() for parameter in part.parameters() if parameter.requires_grad}
    own = [parameter for parameters in adapter.parameters_by_part().values() for parameter in parameters]
    assert trainable == {id(parameter) for parameter in own}
    assert adapter.parameters_by_part().keys() == model.parts.keys()
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = outputs(model)["losses"].mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in own)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_disabled_and_removed_give_the_base_bit_for_bit(model: TrainableModel, name: str) -> None:
    names_before = [name for name, _ in model.parts["unet"].named_parameters()]
    with torch.no_grad():
        before = outputs(model)
        adapter = randomise(inject(model, name=name))
        changed = outputs(model)
        with adapter.disabled():
            disabled = outputs(model)
        enabled = outputs(model)
        trainable = [parameter.requires_grad for parameters in adapter.parameters_by_part().values() for parameter in parameters]
        adapter.remove()
        removed = outputs(model)
    assert all(trainable)
    for key in before:
        assert not torch.equal(before[key], changed[key])
        assert torch.equal(changed[key], enabled[key])
        assert torch.equal(before[key], disabled[key])
        assert torch.equal(before[key], removed[key])
    assert [name for name, _ in model.parts["unet"].named_parameters()] == names_before
    with torch.no_grad():
        inject(model, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_from_a_round_trip(checkpoint: Path, name: str) -> None:
    first, second = load(checkpoint), load(checkpoint)
    saved = {key: tensor.clone() for key, tensor in randomise(inject(first, name=name)).tensors().items()}
    inject(second, name=name, seed=99).load_tensors(saved)
    with torch.no_grad():
        expected, found = outputs(first), outputs(second)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_other_layers_or_shapes_are_refused_whole(model: TrainableModel, name: str) -> None:
    adapter = inject(model, name=name)
    tensors = {key: torch.ones_like(tensor) for key, tensor in adapter.tensors().items()}
    first, last = next(iter(tensors)), list(tensors)[-1]
    with pytest.raises(AdapterError, match=r"1 missing .*1 unknown"):
        adapter.load_tensors({("renamed" if key == first else key): tensor for key, tensor in tensors.items()})
    with pytest.raises(AdapterError, match=r"has shape \[3\]"):
        adapter.load_tensors(tensors | {last: torch.ones(3)})
    assert not torch.equal(adapter.tensors()[first], tensors[first])


@pytest.mark.parametrize("name", NAMES)
def test_first_weights_depend_on_seed_and_layer_alone(checkpoint: Path, name: str) -> None:
    everything = inject(load(checkpoint), name=name).tensors()
    torch.manual_seed(5)
    attention = inject(load(checkpoint), ["attention"], name=name, parts=["unet"]).tensors()
    assert attention.keys() < everything.keys()
    assert all(torch.equal(attention[key], everything[key]) for key in attention)
    other = inject(load(checkpoint), name=name, seed=2).tensors()
    assert any(not torch.equal(other[key], everything[key]) for key in other)


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_random_numbers_are_left_alone(model: TrainableModel, name: str) -> None:
    state = torch.get_rng_state()
    inject(model, name=name)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_fp32_whatever_the_base_is(checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    adapter = inject(load(checkpoint, dtype), name=name)
    assert {tensor.dtype for tensor in adapter.tensors().values()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_mode_alone(model: TrainableModel, name: str) -> None:
    randomise(inject(model, name=name, dropout=0.5))
    with torch.no_grad():
        first, second = outputs(model), outputs(model)
        assert torch.equal(first["losses"], second["losses"]), "parts are in evaluation mode after loading"
        for part in model.parts.values():
            part.train()
        assert not torch.equal(outputs(model)["losses"], first["losses"])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_dropped_follows_from_the_seed_and_no_picture_of_a_host_from_it(model: TrainableModel, name: str) -> None:
    adapter = inject(model, name=name, dropout=0.5)
    randomise(adapter)
    for part in model.parts.values():
        part.train()

    def losses(seed: int) -> torch.Tensor:
        adapter.seed_dropout(seed)
        return outputs(model)["losses"]

    with torch.no_grad():
        first, before = losses(7), torch.get_rng_state()
        assert not torch.equal(losses(8), first)
        torch.manual_seed(3)  # a generation of the host, which sets torch's own generator
        assert torch.equal(losses(7), first)
        torch.set_rng_state(before)
        losses(7)
        assert torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    dropout = SeededDropout(0.25, ModuleName("unet", "conv_in")).train()
    kept = dropout(torch.ones(400, 400))
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    other = SeededDropout(0.25, ModuleName("unet", "conv_out")).train()
    assert not torch.equal(other(torch.ones(400, 400)), kept), "each layer drops its own"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_targets_are_named(model: TrainableModel, name: str) -> None:
    inject_into = ADAPTERS.get(name).load().inject
    options = {"rank": 4, "alpha": 4.0, "dropout": 0.0, "seed": 0}
    for targets, found in (
        ({}, "nothing to train"),
        ({"unet": []}, "nothing to train"),
        ({"vae": ["conv_in"]}, "no part 'vae'; its parts are unet, text_encoder"),
        ({"unet": ["conv_in", "no.such"]}, "unet.no.such is not in the model"),
        ({"unet": ["conv_norm_out"]}, "unet.conv_norm_out is GroupNorm"),
    ):
        with pytest.raises(AdapterError, match=found):
            inject_into(model, targets, **options)
    assert set(model.lora_targets("unet", EVERYTHING)) <= {module for module, _ in model.parts["unet"].named_modules()}


def test_a_name_that_ends_another_is_taken_alone(model: TrainableModel) -> None:
    """PEFT takes lists of names as endings: "conv_in" would be every module so named, at any depth."""
    unet = model.parts["unet"]
    unet.add_module("extra", torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(4, 4, 1)}))
    adapter = ADAPTERS.get("lora").load().inject(model, {"unet": ["conv_in"]}, rank=2, alpha=2.0, dropout=0.0, seed=0)
    assert set(adapter.tensors()) == {"unet.conv_in.down", "unet.conv_in.up"}
    assert not any("lora" in name for name, _ in unet.get_submodule("extra").named_parameters())


def test_first_weights_of_lora_are_kaiming_and_zero(model: TrainableModel) -> None:
    tensors = inject(model).tensors()
    assert all(not tensor.any() for key, tensor in tensors.items() if key.endswith(".up"))
    down = tensors["unet.down_blocks.0.resnets.0.conv1.down"]
    bound = (down[0].numel()) ** -0.5
    assert down.abs().max() <= bound
    assert down.abs().mean().item() == pytest.approx(bound / 2, rel=0.1)
