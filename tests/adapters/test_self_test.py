"""Each check of the self-test fails for its trap and for nothing else, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.report import format_checks
from lora_trainer.adapters.self_test import self_test
from tests.adapters.files import SD1_METADATA, TEXT_MODULE, UNET_MODULE, pair, write

pytestmark = pytest.mark.hosts
OPEN_CLIP = "lora_te2_text_model_encoder_layers_0_self_attn"
SDXL_METADATA = {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"
LAYERS = {UNET_MODULE: (8, 768), TEXT_MODULE: (8, 768), CONVOLUTION: (8, 16, 3, 3)} | {
    f"{OPEN_CLIP}_{name}": (8, 8) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
}


def open_clip_pairs(*names: str) -> dict[str, Tensor]:
    return {key: tensor for name in names for key, tensor in pair(f"{OPEN_CLIP}_{name}", in_features=8).items()}


def failed(path: Path, layers: dict[str, tuple[int, ...]] | None = LAYERS) -> set[str]:
    checks = self_test(path, layers)
    assert all(check.detail for check in checks)
    text = format_checks(checks)
    assert ("FAIL" in text) == any(not check.passed for check in checks)
    return {check.name for check in checks if not check.passed}


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] = SD1_METADATA) -> Path:
    return save_lora(path / "ink.safetensors", tensors, metadata)


def test_good_file_passes_every_check(tmp_path: Path) -> None:
    convolution = {
        f"{CONVOLUTION}.lora_down.weight": torch.ones(4, 16, 3, 3),
        f"{CONVOLUTION}.lora_up.weight": torch.ones(8, 4, 1, 1),
    }
    path = saved(tmp_path, pair(UNET_MODULE) | pair(TEXT_MODULE) | convolution)
    checks = self_test(path, LAYERS)
    assert [check.name for check in checks if not check.passed] == []
    assert format_checks(checks).endswith("All 8 checks passed: the WebUI will apply the file.")


def test_without_a_base_the_layers_are_not_checked(tmp_path: Path) -> None:
    path = saved(tmp_path, pair("lora_unet_no_such_layer"))
    assert failed(path, None) == set()
    assert failed(path) == {"layers of this base"}


def test_peft_keys_fail_the_form_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", {"base_model.model.to_q.lora_A.weight": torch.ones(4, 4)})
    assert failed(path) == {"form of the keys"}


@pytest.mark.parametrize(
    "tensors",
    [
        pair(UNET_MODULE, in_features=767),
        pair(UNET_MODULE, out_features=9),
        {f"{UNET_MODULE}.lora_down.weight": torch.ones(4, 768), f"{UNET_MODULE}.lora_up.weight": torch.ones(8, 5)},
        {f"{UNET_MODULE}.lora_down.weight": torch.ones(4, 768)},
        {f"{CONVOLUTION}.lora_down.weight": torch.ones(4, 16, 1, 1), f"{CONVOLUTION}.lora_up.weight": torch.ones(8, 4, 1, 1)},
        {f"{CONVOLUTION}.lora_down.weight": torch.ones(4), f"{CONVOLUTION}.lora_up.weight": torch.ones(8)},
    ],
)
def test_shapes_that_do_not_fit_fail(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    assert failed(saved(tmp_path, pair(TEXT_MODULE) | tensors)) == {"layers of this base"}


def test_two_projections_of_an_open_clip_attention_fail(tmp_path: Path) -> None:
    path = saved(tmp_path, open_clip_pairs("q_proj", "v_proj"), SDXL_METADATA)
    assert failed(path) == {"OpenCLIP attention"}
    path = saved(tmp_path, open_clip_pairs("q_proj", "k_proj", "v_proj", "out_proj"), SDXL_METADATA)
    assert failed(path) == set()


@pytest.mark.parametrize(("is_sd2", "expected"), [("True", {"OpenCLIP attention"}), ("False", set())])
def test_the_one_encoder_of_sd2_is_open_clip_and_that_of_sd1_is_not(tmp_path: Path, is_sd2: str, expected: set[str]) -> None:
    assert failed(saved(tmp_path, pair(TEXT_MODULE), {"ss_v2": is_sd2})) == expected


def test_zero_effect_fails(tmp_path: Path) -> None:
    tensors = pair(UNET_MODULE)
    tensors[f"{UNET_MODULE}.lora_up.weight"].zero_()
    assert failed(saved(tmp_path, tensors)) == {"effect"}


def test_nan_fails(tmp_path: Path) -> None:
    tensors = pair(UNET_MODULE)
    tensors[f"{UNET_MODULE}.lora_up.weight"][0, 0] = float("nan")
    assert failed(write(tmp_path / "ink.safetensors", tensors, SD1_METADATA)) == {"finite numbers"}


def test_class_that_hides_the_card_fails(tmp_path: Path) -> None:
    assert failed(saved(tmp_path, pair(UNET_MODULE), {"ss_v2": "True"})) == {"class of the card"}
    assert failed(write(tmp_path / "plain.safetensors", pair(UNET_MODULE))) == set()


def test_alias_other_than_the_stem_fails(tmp_path: Path) -> None:
    path = saved(tmp_path, pair(UNET_MODULE))
    assert failed(path.rename(tmp_path / "renamed.safetensors")) == {"alias"}


def test_wrong_hash_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", pair(UNET_MODULE), SD1_METADATA | {"sshs_model_hash": "0" * 64})
    assert failed(path) == {"hash"}


def test_text_of_the_checks_is_ascii(tmp_path: Path) -> None:
    tensors = pair(UNET_MODULE) | open_clip_pairs("q_proj")
    tensors[f"{UNET_MODULE}.lora_up.weight"].zero_()
    format_checks(self_test(write(tmp_path / "ink.safetensors", tensors, {"ss_v2": "True", "ss_output_name": "x"}), {})).encode(
        "ascii"
    )
