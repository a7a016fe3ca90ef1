"""What is asked of a caption run: read from texts, lists and tables; what becomes of a captioner's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_trainer.captioning.options import CaptionOptions, check_download, missing_models, read_options
from lora_trainer.captioning.wording import Mode, Wording
from lora_trainer.demo.assets import CAPTIONER
from lora_trainer.errors import ConfigError
from tests.captioning.hub import Hub

pytestmark = pytest.mark.hosts


def read(folder: Path, **values: Any) -> CaptionOptions:
    return read_options({"input_dir": str(folder), **values})


def test_what_is_left_out_or_empty_has_its_default(tmp_path: Path) -> None:
    empty = dict.fromkeys(("model", "mode", "trigger", "banned", "replacements", "word_lists", "num_beams", "device"), "")
    assert read(tmp_path, **empty) == read(tmp_path) == CaptionOptions(str(tmp_path), "blip")


def test_a_page_writes_texts_and_a_program_lists_and_tables(tmp_path: Path) -> None:
    page = read(
        tmp_path,
        banned="beautiful, artistic\nnice",
        replacements="watercolor painting = ink wash painting\na man =",
        word_lists="medium: ink wash, oil\n\nera：宋、元",
        num_beams=5.0,
    )
    program = read(
        tmp_path,
        banned=["beautiful", "artistic", "nice"],
        replacements={"watercolor painting": "ink wash painting", "a man": ""},
        word_lists={"medium": ["ink wash", "oil"], "era": ["宋", "元"]},
        num_beams=5,
    )
    assert page == program
    assert page.word_lists == {"medium": ("ink wash", "oil"), "era": ("宋", "元")}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mode", "overwrit", "overwrite"),
        ("captioner", "blop", "did you mean 'blip'"),
        ("num_beams", 0, "from 1 to 16"),
        ("batch_size", True, "from 1 to 256"),
        ("max_tokens", "many", "from 1 to 200"),
        ("min_tokens", 60, "not be above"),
        ("replacements", "watercolor", "“=”"),
        ("word_lists", "ink wash, oil", "has no name"),
        ("word_lists", "medium:", "has no terms"),
        ("model", "no such folder", "neither a folder nor an id"),
        ("download", "yes", "true or false"),
        ("promt", "x", "did you mean 'prompt'"),
        ("input_dir", "/nowhere/at/all", "is not a folder"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, **{name: value})
    assert [problem.field for problem in caught.value.problems] == [name]


def test_what_would_be_loaded_is_told_with_its_size_and_the_way_by_hand(tmp_path: Path, hub: Hub) -> None:
    options = read(tmp_path, word_lists="medium: ink", model="made/up")
    assert [(one.model, one.size_mb) for one in missing_models(options, tmp_path)] == [
        ("made/up", 0),
        ("openai/clip-vit-large-patch14", 1710),
    ]
    with pytest.raises(ConfigError, match=r"1\.7 GB will be downloaded once, from http://127.*or load the files of") as caught:
        check_download(options, tmp_path)
    assert [problem.field for problem in caught.value.problems] == ["download", "download"]
    check_download(read(tmp_path, model="made/up", download=True), tmp_path)
    check_download(read(tmp_path, captioner="miniature"), tmp_path)
    check_download(read(tmp_path, model=str(CAPTIONER)), tmp_path)
    check_download(read(tmp_path, captioner="webui"), tmp_path)
    assert hub.requests == []


NEW = "a beautiful watercolor painting of a boat"
CLEAN = {"banned": ("beautiful",), "replacements": {"watercolor painting": "ink wash painting"}}
DONE = "a ink wash painting of a boat"


@pytest.mark.parametrize(
    ("mode", "present", "expected"),
    [
        ("missing", "", f"shuimo, {DONE}"),
        ("overwrite", "old, beautiful", f"shuimo, {DONE}"),
        ("prepend", "old, beautiful", f"shuimo, {DONE}, old, beautiful"),
        ("append", "old, beautiful", f"shuimo, old, beautiful, {DONE}"),
        ("append", "old, shuimo, pines,", f"shuimo, old, pines, {DONE}"),
        ("append", "shuimo, old", f"shuimo, old, {DONE}"),
        ("prepend", "", f"shuimo, {DONE}"),
    ],
)
def test_only_new_words_are_cleaned_and_the_trigger_comes_first_once(mode: Mode, present: str, expected: str) -> None:
    assert Wording(mode, "shuimo", **CLEAN).compose(NEW, present) == expected  # type: ignore[arg-type]


def test_without_wishes_a_caption_stays_as_it_came() -> None:
    assert Wording().compose(NEW, "") == NEW


def test_words_that_were_all_banned_take_nothing_away() -> None:
    assert Wording("append", banned=("nice",)).compose("nice", "old") == "old"
    assert Wording("missing", banned=("nice",)).compose("nice", "") == ""
