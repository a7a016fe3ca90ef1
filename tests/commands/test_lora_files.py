"""The commands merge, resize and split: what is written, what is said, and the exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer import cli
from lora_trainer.adapters import edit
from lora_trainer.commands import lora_files
from lora_trainer.commands.lora_files import parse_weight
from lora_trainer.errors import ConfigError
from tests.adapters.files import SD1_METADATA, TEXT_MODULE, UNET_MODULE, pair, write

pytestmark = pytest.mark.hosts


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    tensors = pair(UNET_MODULE) | pair(TEXT_MODULE)
    return [str(write(tmp_path / f"{name}.safetensors", tensors, SD1_METADATA)) for name in ("ink", "seal")]


def test_merge(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "both.safetensors"
    assert cli.main(["merge", "--lora", *files, "--weights", "0.7", "0.5:0.8", "--output", str(target)]) == 0
    said = capsys.readouterr().out
    assert "Merged <lora:ink:0.7> <lora:seal:0.5:0.8>" in said
    assert f"Done: {target} (rank 8, nothing is lost)" in said
    own, merged = load_file(files[0]), load_file(target)
    for module, weight in ((UNET_MODULE, 0.7 + 0.8), (TEXT_MODULE, 0.7 + 0.5)):
        # The pairs have rank 4 and alpha 2.
        wanted = weight * 0.5 * own[f"{module}.lora_up.weight"] @ own[f"{module}.lora_down.weight"]
        found = merged[f"{module}.lora_up.weight"] @ merged[f"{module}.lora_down.weight"]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_resize_says_what_is_lost(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.safetensors"
    assert cli.main(["resize", files[0], "--rank", "2", "--output", str(target), "--precision", "fp16"]) == 0
    assert "(rank 2, " in (said := capsys.readouterr().out) and "% of the change is lost)" in said
    assert load_file(target)[f"{UNET_MODULE}.lora_down.weight"].shape[0] == 2
    assert load_file(target)[f"{UNET_MODULE}.lora_down.weight"].dtype == torch.float16


def test_split(files: list[str], tmp_path: Path) -> None:
    assert cli.main(["split", files[0]]) == 0
    assert {key.split(".")[0] for key in load_file(tmp_path / "ink_unet.safetensors")} == {UNET_MODULE}
    assert {key.split(".")[0] for key in load_file(tmp_path / "ink_te.safetensors")} == {TEXT_MODULE}


@pytest.mark.parametrize("text", ["strong", "1:2:3", "nan", "", "0.5:"])
def test_a_weight_that_is_none_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--weights: .* is no weight\. Give 0\.7, or 0\.5:0\.8"):
        parse_weight(Path("ink.safetensors"), text)


def test_every_precision_can_be_asked_for() -> None:
    assert set(lora_files.PRECISIONS) == set(edit.PRECISIONS)


def test_failures_have_their_exit_codes(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "both.safetensors")
    assert cli.main(["merge", "--lora", *files, "--weights", "1", "1", "1", "--output", target]) == cli.BAD_CONFIG
    assert "gives 3 for 2 files. Give one for each file." in capsys.readouterr().err
    assert cli.main(["resize", files[0], "--rank", "9", "--output", target]) == cli.FAILED
    assert "rank (9) must be from 1 to 4" in capsys.readouterr().err
    assert not Path(target).exists()
