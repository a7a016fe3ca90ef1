"""The exported file, applied by the WebUI's rules, does what the trained model does; and one test for each trap of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.export import save_lora, webui_tensors
from lora_trainer.adapters.inspect import inspect_file, webui_class
from lora_trainer.adapters.self_test import self_test
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.models.family import TrainableModel
from lora_trainer.models.webui import webui_layers
from tests.adapters.models import EVERYTHING, assert_close, inject, load, outputs, randomise, save_changed
from tests.adapters.webui_rules import apply_lora, sd_version
from tests.tiny import FAMILIES, make_checkpoint

pytestmark = pytest.mark.hosts
CLASSES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
OPEN_CLIP = {"sd2": ("text_encoder", "lora_te"), "sdxl": ("text_encoder_2", "lora_te2")}
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_checkpoint(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@dataclass(frozen=True)
class Trained:
    """A base with everything in it trained, and what was exported. For reading only."""

    base: Path
    file: Path
    model: TrainableModel
    adapter: Adapter


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base = checkpoints[request.param]
    model, adapter = train(base)
    return Trained(base, export(tmp_path_factory.mktemp("export"), model, adapter), model, adapter)


def read(path: Path) -> Tensors:
    return {key: tensor.float() for key, tensor in safetensors.torch.load(path.read_bytes()).items()}


def train(path: Path, selection: Sequence[str] = EVERYTHING, **options: object) -> tuple[TrainableModel, Adapter]:
    """Loads a base and puts an adapter with the weights of a training into it."""
    model = load(path)
    return model, randomise(inject(model, selection, **options))  # type: ignore[arg-type]


def export(folder: Path, model: TrainableModel, adapter: Adapter, dtype: torch.dtype = torch.float32) -> Path:
    return save_lora(folder / "ink.safetensors", webui_tensors(adapter, model), model.metadata(), dtype)


@pytest.mark.parametrize("name", ADAPTERS.names())
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "selection", [EVERYTHING, ("attention",), ("q_proj", "v_proj")], ids=["everything", "attention", "q and v"]
)
def test_file_does_in_the_webui_what_the_trained_model_does(
    checkpoints: dict[str, Path], tmp_path: Path, family: str, selection: Sequence[str], name: str
) -> None:
    model, adapter = train(checkpoints[family], selection, name=name)
    path = export(tmp_path, model, adapter)
    applied = apply_lora(read(checkpoints[family]), read(path))
    assert (applied.dropped, applied.skipped) == (set(), set())
    merged = load(save_changed(family, tmp_path / "merged", applied.tensors))
    with torch.no_grad():
        trained = outputs(model)
        assert_close(trained, outputs(merged), 1e-4)
        with pytest.raises(AssertionError):
            assert_close(trained, outputs(load(checkpoints[family])), 1e-2)
    assert [check for check in self_test(path, webui_layers(checkpoints[family])) if not check.passed] == []


def test_each_layer_gets_its_own_change(trained: Trained, tmp_path: Path) -> None:
    """Layer by layer, so that two exchanged or one forgotten layer cannot hide in a sum."""
    model, adapter = trained.model, trained.adapter
    applied = apply_lora(read(trained.base), read(trained.file))
    merged = load(save_changed(model.family, tmp_path / "merged", applied.tensors))
    num_layers = 0
    for (part, module), tensors in adapter.host_tensors():
        base = model.parts[part].get_submodule(module).get_parameter("base_layer.weight")
        up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
        change = (up.flatten(1) @ down.flatten(1)).reshape(base.shape) * (6.0 / 4)
        found = merged.parts[part].get_submodule(module).get_parameter("weight")
        assert torch.allclose(found, base + change, atol=1e-5), (part, module)
        num_layers += 1
    assert num_layers == sum(len(model.lora_targets(part, EVERYTHING)) for part in model.parts)


def test_fp16_file_is_close(trained: Trained, tmp_path: Path) -> None:
    path = export(tmp_path, trained.model, trained.adapter, torch.float16)
    applied = apply_lora(read(trained.base), read(path))
    merged = load(save_changed(trained.model.family, tmp_path / "merged", applied.tensors))
    with torch.no_grad():
        assert_close(outputs(trained.model), outputs(merged), 1e-2)


def test_weight_zero_is_the_base_bit_for_bit(trained: Trained) -> None:
    base = read(trained.base)
    applied = apply_lora(base, read(trained.file), te=0.0)
    assert all(torch.equal(base[key], applied.tensors[key]) for key in base)


@pytest.mark.parametrize(("weights", "changed"), [((0.7, 0.0), "text"), ((0.0, 0.7), "unet")])
def test_the_two_weights_of_a_tag_reach_their_parts(trained: Trained, weights: tuple[float, float], changed: str) -> None:
    base = read(trained.base)
    applied = apply_lora(base, read(trained.file), *weights)
    touched = {key for key in base if not torch.equal(base[key], applied.tensors[key])}
    assert touched
    assert all(key.startswith("model.diffusion_model.") == (changed == "unet") for key in touched)


def test_weight_scales_the_change_and_a_rank_cut_shrinks_it(trained: Trained) -> None:
    base, lora = read(trained.base), read(trained.file)
    whole, part, cut = (apply_lora(base, lora, **options).tensors for options in ({}, {"te": 0.7}, {"dyn": 2}))
    key = next(key for key in base if key.endswith("attn1.to_q.weight"))
    assert torch.allclose(part[key] - base[key], 0.7 * (whole[key] - base[key]), atol=1e-5)
    assert torch.linalg.matrix_rank(cut[key] - base[key], atol=1e-4) == 2
    assert torch.linalg.matrix_rank(whole[key] - base[key], atol=1e-4) == 4


def test_file_without_alpha_has_scale_one(trained: Trained) -> None:
    base, lora = read(trained.base), read(trained.file)
    plain = {key: tensor for key, tensor in lora.items() if not key.endswith(".alpha")}
    key = next(key for key in base if key.endswith("attn1.to_q.weight"))
    scaled, unscaled = apply_lora(base, lora).tensors[key] - base[key], apply_lora(base, plain).tensors[key] - base[key]
    assert torch.allclose(scaled, unscaled * 6.0 / 4, atol=1e-5)


@pytest.mark.parametrize("family", OPEN_CLIP)
def test_open_clip_attention_is_applied_only_when_complete(checkpoints: dict[str, Path], tmp_path: Path, family: str) -> None:
    part, prefix = OPEN_CLIP[family]
    model, adapter = train(checkpoints[family], ("q_proj", "v_proj"), parts=[part])
    lora = read(export(tmp_path, model, adapter))
    trained = {key: tensor for key, tensor in lora.items() if "_k_proj" not in key and "_out_proj" not in key}
    assert len(trained) * 2 == len(lora)
    base = read(checkpoints[family])
    incomplete = apply_lora(base, trained)
    assert all(torch.equal(base[key], incomplete.tensors[key]) for key in base)
    assert len(incomplete.skipped) * 3 == len(trained)
    complete = apply_lora(base, lora)
    rows = complete.tensors[next(key for key in base if key.endswith("resblocks.0.attn.in_proj_weight"))]
    before = base[next(key for key in base if key.endswith("resblocks.0.attn.in_proj_weight"))]
    assert [torch.equal(new, old) for new, old in zip(rows.chunk(3), before.chunk(3), strict=True)] == [False, True, False]
    path = save_lora(tmp_path / "half.safetensors", trained, model.metadata(), None)
    assert [check.name for check in self_test(path, webui_layers(checkpoints[family])) if not check.passed] == [
        "OpenCLIP attention"
    ]
    assert all(key.startswith(f"{prefix}_text_model_") for key in lora)


def test_openais_clip_gets_no_pairs_of_zeros(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for family in ("sd1", "sdxl"):
        lora = read(export(tmp_path, *train(checkpoints[family], ("q_proj",), parts=["text_encoder"])))
        assert all("_q_proj." in key for key in lora)


def test_sdxl_in_diffusers_names_loses_an_up_sampler(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model, adapter = train(checkpoints["sdxl"], parts=["unet"])
    diffusers_names = {
        f"lora_unet_{name.module.replace('.', '_')}.{ending}": tensor
        for name, tensors in adapter.host_tensors()
        for ending, tensor in tensors.items()
    }
    dropped = {key.partition(".")[0] for key in apply_lora(read(checkpoints["sdxl"]), diffusers_names).dropped}
    assert "lora_unet_up_blocks_0_upsamplers_0_conv" in dropped
    ours = read(export(tmp_path, model, adapter))
    assert apply_lora(read(checkpoints["sdxl"]), ours).dropped == set()
    assert "lora_unet_output_blocks_2_2_conv.alpha" in ours


def test_dotted_keys_load_and_do_nothing(trained: Trained, tmp_path: Path) -> None:
    base = read(trained.base)
    for form, prefix in (("PEFT", "base_model.model."), ("diffusers", "unet.")):
        dotted = {
            f"{prefix}{name.module}.{'lora_A' if ending.startswith('lora_down') else 'lora_B'}.weight": tensor.contiguous()
            for name, tensors in trained.adapter.host_tensors()
            for ending, tensor in tensors.items()
            if ending != "alpha" and name.part == "unet"
        }
        applied = apply_lora(base, dotted)
        assert applied.dropped == set(dotted)
        assert all(torch.equal(base[key], applied.tensors[key]) for key in base)
        path = save_lora(tmp_path / f"{form}.safetensors", dotted, {}, None)
        assert inspect_file(path).form in ("PEFT", "diffusers")
        assert not self_test(path)[0].passed


def test_card_is_shown_for_the_right_base(trained: Trained) -> None:
    metadata = inspect_file(trained.file).metadata
    assert webui_class(metadata) == sd_version(metadata) == CLASSES[trained.model.family]


@pytest.mark.parametrize(("family", "other"), [("sd1", "sdxl"), ("sdxl", "sd2")])
def test_file_of_another_base_fails_its_self_test(checkpoints: dict[str, Path], tmp_path: Path, family: str, other: str) -> None:
    path = export(tmp_path, *train(checkpoints[family]))
    failed = {check.name for check in self_test(path, webui_layers(checkpoints[other])) if not check.passed}
    assert failed == {"layers of this base"}


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_file_is_told_by_its_effect(checkpoints: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = load(checkpoints[family])
    path = export(tmp_path, model, inject(model))
    assert [check.name for check in self_test(path, webui_layers(checkpoints[family])) if not check.passed] == ["effect"]
