"""A file made elsewhere gets the metadata that its layers tell, and keeps its weights byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.inspect import inspect_file
from lora_trainer.adapters.repair import repair
from lora_trainer.adapters.self_test import self_test
from lora_trainer.errors import AdapterError
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair, write
from tests.adapters.webui_rules import sd_version

pytestmark = pytest.mark.hosts
QUERY = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
FILES: dict[str, dict[str, Tensor]] = {
    "SD1": pair(UNET_MODULE, in_features=768),
    "SD2": pair(UNET_MODULE, in_features=1024),
    "SDXL": pair("lora_unet_input_blocks_4_1_proj_in"),
}


@pytest.mark.parametrize("metadata", [None, {"made_by": "another tool"}, SD1_METADATA], ids=["none", "foreign", "of SD1"])
@pytest.mark.parametrize("base", FILES)
def test_class_name_rank_and_hash_are_filled_in(tmp_path: Path, base: str, metadata: dict[str, str] | None) -> None:
    path = write(tmp_path / "ink.safetensors", FILES[base], metadata)
    weights = model_hash(path)
    repaired = repair(path)
    assert repaired.path == path
    assert model_hash(path) == weights
    found = read_header(path).metadata
    assert sd_version(found) == base
    assert (found["ss_output_name"], found["ss_network_dim"], found["ss_network_alpha"]) == ("ink", "4", "2")
    assert found["sshs_model_hash"] == weights
    assert found.items() >= {key: value for key, value in (metadata or {}).items() if key == "made_by"}.items()
    assert [check.name for check in self_test(path) if not check.passed] == []
    assert any(change.startswith("ss_network_dim: missing -> 4") for change in repaired.changes)
    assert repair(path).changes == ()


def test_what_the_file_says_itself_stays(tmp_path: Path) -> None:
    own = {**SD1_METADATA, "ss_base_model_version": "sd_v1_v", "ss_network_dim": "32", "ss_steps": "100"}
    path = write(tmp_path / "ink.safetensors", FILES["SD1"], own)
    repair(path)
    assert read_header(path).metadata.items() >= own.items()


def test_a_name_and_a_hash_of_another_file_are_corrected(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", FILES["SD1"], {"ss_output_name": "old", "sshs_model_hash": "0" * 64})
    assert inspect_file(path).hash_state == "wrong"
    changes = repair(path).changes
    assert "ss_output_name: old -> ink" in changes
    report = inspect_file(path)
    assert (report.hash_state, report.alias) == ("right", "ink")


@pytest.mark.parametrize(("width", "base"), [(768, "SD1"), (1024, "SD2")])
def test_a_text_encoder_is_told_by_its_width(tmp_path: Path, width: int, base: str) -> None:
    path = write(tmp_path / "ink.safetensors", pair(QUERY, in_features=width))
    repair(path)
    assert sd_version(read_header(path).metadata) == base


def test_a_base_that_nothing_tells_must_be_said(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", pair("lora_unet_mid_block_attentions_0_proj_in"))
    before = path.read_bytes()
    with pytest.raises(AdapterError, match=r"ink\.safetensors fits SD1 or SD2 or SDXL.*Say which base"):
        repair(path)
    with pytest.raises(AdapterError, match=r"base 'SD3' does not fit ink\.safetensors.*SD1 or SD2 or SDXL"):
        repair(path, base="SD3")
    assert path.read_bytes() == before
    repair(path, base="SDXL")
    assert sd_version(read_header(path).metadata) == "SDXL"


def test_other_kinds_of_lora_are_repaired_too(tmp_path: Path) -> None:
    hada = {f"{UNET_MODULE}.hada_{name}": torch.ones(4, 4) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    path = write(tmp_path / "ink.safetensors", hada)
    repair(path, base="SD1")
    assert read_header(path).metadata["ss_network_module"] == "lycoris.kohya"


def test_keys_in_another_form_are_not_mended_by_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", {"base_model.model.to_q.lora_A.weight": torch.ones(4, 4)})
    with pytest.raises(AdapterError, match=r"another form \(PEFT\).*kohya's key names"):
        repair(path)
