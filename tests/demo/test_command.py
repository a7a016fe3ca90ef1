"""The demo: from nothing to a LoRA and a sheet, and what it says on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_trainer import demo
from lora_trainer.adapters.self_test import self_test
from lora_trainer.config.schema import TrainConfig
from lora_trainer.control import TrainControl
from lora_trainer.demo import command
from lora_trainer.models.webui import webui_layers


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demo on its stand-ins, with fewer steps and pictures; its training runs as it is."""
    monkeypatch.setattr(command, "MINIATURE", tmp_path / "missing.safetensors")
    monkeypatch.setattr(command, "INK_PICTURES", tmp_path / "missing")
    monkeypatch.setattr(command, "PROMPTS", command.PROMPTS[:1])
    monkeypatch.setattr(command, "STEPS", 2)
    make_config = command.make_config

    def make_short(folder: Path, material: command.Material) -> TrainConfig:
        return replace(make_config(folder, material), max_train_steps=3)

    monkeypatch.setattr(command, "make_config", make_short)
    return tmp_path / "out"


@pytest.mark.slow
def test_ends_with_a_lora_and_a_sheet_and_says_what_to_do_next(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--output", str(small)]) == 0
    said = capsys.readouterr().out
    lora, sheet = small / "demo_ink" / "demo_ink.safetensors", small / "demo_ink_sheet.png"
    assert str(lora) in said and str(sheet) in said
    assert "random weights" in said and "What to do next" in said
    failed = [check.name for check in self_test(lora, webui_layers(small / "base" / "random.safetensors")) if not check.passed]
    assert failed == []
    with Image.open(sheet) as picture:
        assert picture.info["parameters"].startswith(f"{command.PROMPTS[0]} <lora:demo_ink:1>\nSteps: 2, Sampler: Euler a")
        assert 'Sheet weights: "0, 0.3, 0.5, 0.7, 0.9, 1"' in picture.info["parameters"]
    written = lora.stat().st_mtime_ns
    assert demo.main(["--output", str(small)]) == 0
    assert "earlier demo" in capsys.readouterr().out
    assert lora.stat().st_mtime_ns == written


@pytest.mark.slow
def test_stop_saves_and_the_next_start_goes_on(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    control = TrainControl()
    control.request("stop")
    monkeypatch.setattr(command, "TrainControl", lambda: control)
    assert demo.main(["--output", str(small)]) == 130
    assert "Start the demo again" in capsys.readouterr().out
    control.take("stop")
    assert demo.main(["--output", str(small)]) == 0


def test_material_that_ships_is_taken_where_it_is_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, pictures = small / "miniature.safetensors", small / "train"
    pictures.mkdir(parents=True)
    base.touch()
    monkeypatch.setattr(command, "MINIATURE", base)
    monkeypatch.setattr(command, "INK_PICTURES", pictures)
    material = command.prepare_material(small / "out")
    assert (material.base, material.pictures, material.resolution, material.is_random) == (base, pictures, None, False)
    assert not (small / "out").exists()


def test_stand_ins_are_the_same_each_time(small: Path, tmp_path: Path) -> None:
    first, second = command.prepare_material(tmp_path / "a"), command.prepare_material(tmp_path / "b")
    assert first.is_random
    assert first.base.read_bytes() == second.base.read_bytes()
    names = sorted(path.name for path in first.pictures.iterdir())
    assert len(names) == 24
    assert all((first.pictures / name).read_bytes() == (second.pictures / name).read_bytes() for name in names)


def test_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert demo.main(["--output", str(tmp_path / "taken")]) == 1
    assert "--output" in capsys.readouterr().err


def test_folder_of_another_run_is_refused_with_the_remedy(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small / "demo_ink"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"status": "finished", "name": "x", "step": 1}', encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"train_data_dir: {small}\nbase_model: {small}\noutput_dir: {folder}\nseed: 3\n", encoding="utf-8"
    )
    assert demo.main(["--output", str(small)]) == 1
    assert "--fresh" in capsys.readouterr().err
