"""The command that writes captions, with the miniature."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.captioning import download
from lora_trainer.cli import main
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.demo.assets import CAPTIONER
from lora_trainer.demo.recipe.paint import paint
from lora_trainer.demo.recipe.scenes import draw_scene

QUICK = ["--captioner", "miniature", "--beams", "1", "--max-tokens", "6", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "set"
    path.mkdir()
    for seed, name in ((3, "a.png"), (8, "b.png")):
        paint(draw_scene(seed)).save(path / name)
    return path


def captions(folder: Path) -> dict[str, str]:
    return CaptionStore(folder).read().captions


def test_captions_go_into_the_sets_table_and_can_be_taken_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--input", str(folder), *QUICK, "--trigger", "demo", "--ban", "a"]) == 0
    assert "2 captions written" in capsys.readouterr().out
    with open(folder / "metadata.csv", encoding="utf-8-sig", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["filename", "a.png", "b.png"]
    assert all(text.startswith("demo, ") and not text.startswith("demo, a ") for text in captions(folder).values())
    CaptionStore(folder).undo()
    assert not any(captions(folder).values())


def test_overwriting_reaches_the_caption_that_counts(folder: Path) -> None:
    (folder / "a.txt").write_text("old", encoding="utf-8")
    assert main(["caption", "--input", str(folder), *QUICK]) == 0
    assert captions(folder)["a.png"] == "old"
    assert main(["caption", "--input", str(folder), *QUICK, "--mode", "append"]) == 0
    assert captions(folder)["a.png"].startswith("old, ")
    assert main(["caption", "--input", str(folder), *QUICK, "--overwrite"]) == 0
    assert "old" not in (folder / "a.txt").read_text(encoding="utf-8")


def test_a_table_elsewhere_leaves_the_set_alone(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.iterdir())
    assert main(["caption", "--input", str(folder), "--output", "out.jsonl", *QUICK]) == 0
    assert sorted(folder.iterdir()) == before and (tmp_path / "out.jsonl").read_text(encoding="utf-8").count("\n") == 2


def test_a_download_is_asked_for_first(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["caption", "--input", str(folder)]) == 2
    assert "HF_HUB_OFFLINE forbids that" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert main(["caption", "--input", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "990 MB will be downloaded once" in said and "--download" in said and "lora_trainer_data" in said


def test_a_model_of_the_hub_is_loaded_and_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from tests.captioning.hub import Hub

    shutil.copytree(CAPTIONER, tmp_path / "hub" / "made" / "small")
    hub = Hub(tmp_path / "hub")
    hub.break_after = [1000]
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    words = ["caption", "--input", str(folder), "--model", "made/small", "--beams", "1", "--max-tokens", "6", "--device", "cpu"]
    try:
        assert main(words) == 2
        assert main([*words, "--download"]) == 0
    finally:
        hub.close()
    assert all(captions(folder).values())
    assert "downloading made/small (MB)" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(folder / "c.png")
    assert main(words) == 0  # without a hub: the files are here now
