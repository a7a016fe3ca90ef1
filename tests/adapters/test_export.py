"""The written file: hashes by an independent reading of their rule, alias, dtype, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from lora_trainer.adapters.export import save_lora
from lora_trainer.errors import AdapterError
from tests.adapters.files import SD1_METADATA, TEXT_MODULE, UNET_MODULE, pair

pytestmark = pytest.mark.hosts


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


def big_tensors() -> dict[str, torch.Tensor]:
    """More than 1 MiB + 64 KiB in fp16, so that the legacy hash covers weights."""
    return pair(UNET_MODULE, out_features=640, in_features=768, rank=512) | pair(TEXT_MODULE)


def test_model_hash_is_that_of_the_bytes_after_the_header(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", big_tensors(), SD1_METADATA)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert read_metadata(path)["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()


@pytest.mark.parametrize("extra", [{}, {"ss_tag_frequency": json.dumps({"d": {"水墨\n\u001f": 1}}, ensure_ascii=False)}])
def test_legacy_hash_is_of_the_file_that_has_only_ss_metadata(tmp_path: Path, extra: dict[str, str]) -> None:
    path = save_lora(tmp_path / "ink.safetensors", big_tensors(), SD1_METADATA | extra | {"modelspec.description": "x" * 5000})
    metadata = read_metadata(path)
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    written = safetensors.torch.save(safetensors.torch.load_file(path), training_only)
    window = written[1048576 : 1048576 + 65536]
    assert len(window) == 65536
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_hashes_are_computed_anew_at_each_save(tmp_path: Path) -> None:
    stale = SD1_METADATA | {"sshs_model_hash": "stale", "sshs_legacy_hash": "stale"}
    first = read_metadata(save_lora(tmp_path / "a.safetensors", big_tensors(), stale))
    changed = {key: tensor + 1 for key, tensor in big_tensors().items()}
    second = read_metadata(save_lora(tmp_path / "a.safetensors", changed, first))
    assert len({"stale", first["sshs_model_hash"], second["sshs_model_hash"]}) == 3
    assert len({"stale", first["sshs_legacy_hash"], second["sshs_legacy_hash"]}) == 3


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    metadata = SD1_METADATA | {f"ss_{number}": str(number) for number in range(50)}
    first = save_lora(tmp_path / "a" / "ink.safetensors", big_tensors(), metadata)
    second = save_lora(tmp_path / "b" / "ink.safetensors", big_tensors(), dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("stem", ["ink", "ink-step00000100", "水墨 v1.5"])
def test_alias_is_the_stem_in_every_file(tmp_path: Path, stem: str) -> None:
    metadata = read_metadata(save_lora(tmp_path / f"{stem}.safetensors", pair(UNET_MODULE), {"ss_output_name": "other"}))
    assert metadata["ss_output_name"] == stem
    assert metadata["modelspec.title"] == stem


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_take_the_dtype_and_alpha_stays_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = safetensors.torch.load_file(save_lora(tmp_path / "a.safetensors", pair(UNET_MODULE, alpha=33.3), {}, dtype))
    assert tensors[f"{UNET_MODULE}.lora_up.weight"].dtype == dtype
    assert tensors[f"{UNET_MODULE}.alpha"].item() == pytest.approx(33.3, rel=1e-6)


@pytest.mark.parametrize(
    ("value", "dtype", "found"),
    [
        (float("nan"), torch.float16, "not finite"),
        (float("inf"), torch.float32, "not finite"),
        (70000.0, torch.float16, "reach 7e\\+04, and the largest number of float16 is 65504"),
    ],
)
def test_weights_that_cannot_be_stored_are_refused_and_named(
    tmp_path: Path, value: float, dtype: torch.dtype, found: str
) -> None:
    good = save_lora(tmp_path / "a.safetensors", pair(UNET_MODULE), {}).read_bytes()
    tensors = pair(UNET_MODULE) | pair(TEXT_MODULE)
    tensors[f"{TEXT_MODULE}.lora_up.weight"][3, 1] = value
    with pytest.raises(AdapterError, match=f"weights of {TEXT_MODULE} .*{found}"):
        save_lora(tmp_path / "a.safetensors", tensors, {}, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == good


def test_channels_last_and_shared_tensors_are_written(tmp_path: Path) -> None:
    down = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last)
    path = save_lora(tmp_path / "a.safetensors", {"a.lora_down.weight": down, "b.lora_down.weight": down}, {}, None)
    tensors = safetensors.torch.load_file(path)
    assert torch.equal(tensors["a.lora_down.weight"], down)
    assert torch.equal(tensors["b.lora_down.weight"], down)


def test_name_with_a_dot_needs_its_ending(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_lora(tmp_path / "ink v1.5", pair(UNET_MODULE), {})
