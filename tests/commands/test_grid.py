"""The command grid, from its words to the sheet and the proposal."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_trainer import cli
from lora_trainer.models.webui import webui_layers
from tests import tiny
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair, write

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_checkpoint("sd1", tmp_path_factory.mktemp("base"))


@pytest.fixture
def lora(base: Path, tmp_path: Path) -> Path:
    outputs, inputs = webui_layers(base)[UNET_MODULE]
    return write(tmp_path / "ink.safetensors", pair(UNET_MODULE, outputs, inputs), SD1_METADATA)


def run(base: Path, sheet: Path, *more: str) -> int:
    return cli.main(["grid", "--base", str(base), "--steps", "2", "--size", "64x64", "--output", str(sheet), *more])


def test_sheet_and_proposal(base: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tiny.make_pictures(tmp_path / "pictures", 3)
    sheet = tmp_path / "grid.png"
    words = ["--lora", str(lora), "--prompt", "a boat", "a house", "--weights", "0.5", "1", "--train-data-dir", str(pictures)]
    assert run(base, sheet, *words) == 0
    said = capsys.readouterr().out
    assert f"Sheet {sheet}" in said
    assert "nearest training picture" in said
    assert "ink at weight" in said or "At no weight" in said
    with Image.open(sheet) as picture:
        assert picture.info["parameters"].startswith("a boat <lora:ink:1>\n")
        assert 'Sheet weights: "0, 0.5, 1"' in picture.info["parameters"]


def test_loras_may_stand_in_the_prompt_alone(base: Path, lora: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "grid.png"
    assert run(base, sheet, "--prompt", "a boat <lora:ink:0.5>", "--lora-dir", str(lora.parent), "--weights", "1") == 0
    with Image.open(sheet) as picture:
        assert picture.info["parameters"].startswith("a boat <lora:ink:0.5>\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a <lora:imk:1>"], "is called 'imk'; did you mean 'ink'?"),
        (["--prompt", "a", "--size", "big"], "--size: 'big' is no size. Give width and height in pixels, such as 512x768."),
        (["--prompt", "a", "--steps", "1"], "steps: (1) must be from 2 to 150"),
    ],
)
def test_what_is_wrong_is_said_before_the_base_is_loaded(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(tmp_path / "no-base", tmp_path / "grid.png", "--lora", str(lora), *words) in (cli.FAILED, cli.BAD_CONFIG)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "grid.png").exists()
