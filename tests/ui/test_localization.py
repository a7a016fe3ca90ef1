"""The Chinese of the page: complete, and nothing in it that the page no longer says."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from lora_trainer.bootstrap import ROOT
from lora_trainer.config.presets import load_presets
from lora_trainer.ui.page import SCRIPTS, build_page
from tests.ui.strings import message_templates, visible_strings

CHINESE = ROOT / "localizations" / "zh_CN.json"
WORDS = json.loads(CHINESE.read_text(encoding="utf-8"))


def test_every_visible_text_has_its_chinese(services):
    found = visible_strings(build_page(services))
    services.host.name = "a1111"  # some words are only seen in a WebUI
    found |= visible_strings(build_page(dataclasses.replace(services)))
    found |= {preset.label for preset in load_presets().values()}  # those for one base are offered with it
    assert sorted(found - WORDS.keys()) == []
    messages, parts_of_messages = message_templates()
    assert sorted(messages - WORDS.keys()) == []
    found |= messages | parts_of_messages
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    assert sorted(text for text in WORDS.keys() - found if f'"{text}"' not in scripts) == []


def test_chinese_is_chinese():
    """A text that was left in English is one that nobody translated; names of models and formats are the same."""
    texts = {text: chinese for text, chinese in WORDS.items() if any(letter.isalpha() for letter in text)}
    same = {text for text, chinese in texts.items() if not any("\u4e00" <= letter <= "\u9fff" for letter in chinese)}
    assert same == {"LoRA", "VAE", "a VAE", "a ControlNet", "Alpha", "Dropout", "Clip skip", "Min-SNR gamma"} | {
        f"Stable Diffusion {version}" for version in ("1", "2", "XL")
    }


def test_every_value_of_a_message_is_in_its_chinese():
    wrong = {}
    for text, chinese in WORDS.items():
        marks = re.findall(r"\{(\d*)\}", chinese)
        numbers = {int(mark) for mark in marks if mark} or set(range(1, len(marks) + 1))
        if numbers != set(range(1, text.count("{}") + 1)) or (any(marks) and not all(marks)):
            wrong[text] = chinese
    assert wrong == {}


def test_the_memory_of_a_graphics_card_is_not_called_that_of_the_computer():
    """English has one word for both: where a job's device decides which it is, both are named; a picture fills the computer's."""
    computers = {text for text, chinese in WORDS.items() if "内存" in chinese and "显存" not in chinese}
    assert computers == {text for text in WORDS if text == "of main memory" or "fills the memory" in text}


@pytest.mark.parametrize("name", ["zh-Hans (Stable)", "zh-Hans (Testing)"])
def test_the_much_used_chinese_packs_take_ours_along(name):
    """The WebUI joins all files of the chosen name, and those packs have their own. After a change copy zh_CN.json there."""
    assert (CHINESE.parent / f"{name}.json").read_bytes() == CHINESE.read_bytes()
