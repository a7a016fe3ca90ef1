"""The Chinese of the page: complete, and nothing in it that the page no longer says."""

from __future__ import annotations

import dataclasses
import json

from lora_trainer.bootstrap import ROOT
from lora_trainer.config.presets import load_presets
from lora_trainer.ui.page import SCRIPTS, build_page
from tests.ui.strings import visible_strings

WORDS = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))


def test_every_visible_text_has_its_chinese(services):
    found = visible_strings(build_page(services))
    services.host.name = "a1111"  # some words are only seen in a WebUI
    found |= visible_strings(build_page(dataclasses.replace(services)))
    found |= {preset.label for preset in load_presets().values()}  # those for one base are offered with it
    assert sorted(found - WORDS.keys()) == []
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    assert sorted(text for text in WORDS.keys() - found if f'"{text}"' not in scripts) == []


def test_chinese_is_chinese():
    """A text that was left in English is one that nobody translated; names of models and formats are the same."""
    same = {text for text, chinese in WORDS.items() if not any("\u4e00" <= letter <= "\u9fff" for letter in chinese)}
    assert same == {"LoRA", "VAE", "Alpha", "Dropout", "Clip skip", "Min-SNR gamma"} | {
        f"Stable Diffusion {version}" for version in ("1", "2", "XL")
    }


def test_the_memory_of_a_graphics_card_is_not_called_that_of_the_computer():
    """English has one word for both; only a job's own figure is either, by its device."""
    assert {text for text, chinese in WORDS.items() if "内存" in chinese} == {"of main memory", "Memory"}
