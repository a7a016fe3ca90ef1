"""Sheets of pictures: their layout, their words, and the parameters in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFont

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.inference import lettering
from lora_trainer.inference.infotext import describe, save_png
from lora_trainer.inference.lettering import Lettering
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.inference.sheet import draw_grid
from tests.inference.conftest import MakeLora


def test_parameters_are_written_as_the_webui_writes_them(sd1: Any, make_lora: MakeLora) -> None:
    path = make_lora(sd1)
    settings = GenerateSettings(
        "a boat", "blurry", width=64, height=72, steps=20, cfg_scale=7.0, seed=42, sampler="dpmpp_2m_karras"
    )
    lines = describe(sd1, settings, [LoraUse(path, 0.7), LoraUse(path, 0.0)]).split("\n")
    assert lines[:2] == ["a boat <lora:ink:0.7>", "Negative prompt: blurry"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 64x72, Model: tiny, RNG: CPU, "
        f'Lora hashes: "ink: {model_hash(path)[:12]}", Version: LoRA trainer '
    )
    assert len(lines) == 3


@pytest.mark.hosts
@pytest.mark.parametrize("text", ["plain", "Ölgemälde", "水墨画 🏠\nSteps: 20", "half \ud800", 'a "quote", \\'])
def test_text_of_any_language_is_read_back_from_the_png(tmp_path: Path, text: str) -> None:
    path = save_png(tmp_path / "单.png", Image.new("RGB", (8, 8)), text)
    with Image.open(path) as picture:
        assert picture.info["parameters"] == text.replace("\ud800", "?")


@pytest.mark.hosts
@pytest.mark.parametrize("size", [(64, 64), (128, 96), (512, 768), (1024, 1024)])
def test_grid_is_large_enough_to_look_at_and_small_enough_to_open(size: tuple[int, int]) -> None:
    rows = ["", "a boat " * 100, "水墨画，红色的房子。" * 60, "x" * 3000]
    pictures: list[list[Image.Image | None]] = [
        [Image.new("RGB", size, (20 * column, 0, 90)) for column in range(5)] for _ in rows
    ]
    pictures[0][0] = pictures[2][4] = None  # not drawn yet
    sheet = draw_grid(pictures, title="水墨 " * 40, columns=["very long heading " * 9] * 5, rows=rows, footer="f" * 999)
    assert 5 * 192 < sheet.width < 5 * 560
    colours = sheet.convert("P", palette=Image.Palette.ADAPTIVE)
    assert colours.size == sheet.size
    assert sheet.getpixel((2, 2)) == (255, 255, 255)
    assert {(20 * column, 0, 90) for column in range(5)} <= {colour for _, colour in sheet.getcolors(1 << 20)}


@pytest.mark.hosts
def test_lines_are_broken_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_outlines in (True, False):
        if not has_outlines:  # as with an old Pillow on a system without fonts
            monkeypatch.setattr(lettering, "_own_font", lambda size: None)
            monkeypatch.setattr(lettering, "_system_font", lambda name, size: None)
            monkeypatch.setattr(ImageFont, "load_default", _fixed_letters)
        letters = Lettering(22, "a boat 水")
        words = "a boat on a lake with two houses"
        lines = letters.wrap(words, 160, max_lines=9)
        assert " ".join(lines) == words
        assert len(lines) > 2
        assert all(letters.width(line) <= 160 for line in (*lines, *letters.wrap("水墨画" * 40, 160, 9)))
        cut = letters.wrap(words * 5, 160, max_lines=2)
        assert len(cut) == 2 and cut[1].endswith("...") and letters.width(cut[1]) <= 160
        assert letters.wrap("", 160, max_lines=2) == []
        picture = Image.new("RGB", (200, 40), (255, 255, 255))
        letters.draw(picture, (4, 4), "水 ab \ud800", (0, 0, 0))
        assert picture.getextrema()[0][0] < 60


_LOAD_DEFAULT = ImageFont.load_default


def _fixed_letters(*args: float) -> Any:
    if args:
        raise TypeError
    loaded: Any = _LOAD_DEFAULT()
    return loaded if not isinstance(loaded, ImageFont.FreeTypeFont) else ImageFont.load_default_imagefont()
