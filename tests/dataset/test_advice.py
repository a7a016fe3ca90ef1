"""Advice beside captions, filters and frequencies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_trainer.dataset.advice import Adviser, CaptionFilter, advise, choose, count_tags, count_words, warn_of_trigger
from lora_trainer.errors import DatasetError
from lora_trainer.models.tokenizer import count_tokens

pytestmark = pytest.mark.hosts

LONG = ", ".join(["mountain"] * 60)
CAPTIONS = {
    "a.png": "shuimo, a boat on a river, mist",
    "b.png": "a beautiful Boat, shuimos",
    "c.png": "",
    "d.png": f"shuimo, {LONG}",
    "e.png": "shuimo, 水墨画, 漂亮的山",
}


def kinds(captions: dict[str, str], trigger: str = "shuimo") -> dict[str, list[str]]:
    return {name: [one.kind for one in advice] for name, advice in advise(captions, trigger=trigger).items()}


def test_each_kind_of_advice_names_its_captions() -> None:
    assert kinds(CAPTIONS) == {
        "b.png": ["no trigger", "vague"],
        "c.png": ["empty"],
        "d.png": ["too long"],
        "e.png": ["vague"],
    }
    (vague,) = advise(CAPTIONS, trigger="shuimo")["e.png"]
    assert "漂亮" in vague.message
    (long,) = advise(CAPTIONS, trigger="shuimo")["d.png"]
    assert f"{count_tokens(CAPTIONS['d.png'])} tokens" in long.message and "75" in long.message


def test_the_token_limit_is_exact() -> None:
    word = "ink " * 75
    assert count_tokens(word) == 75
    assert kinds({"a.png": word.strip()}, trigger="") == {}
    assert kinds({"a.png": f"{word}ink"}, trigger="") == {"a.png": ["too long"]}
    (advice,) = advise({"a.png": "ink " * 230})["a.png"]
    assert "the last 5 are cut off" in advice.message


def test_captions_like_many_others_are_told_without_the_trigger_word() -> None:
    same = {f"{number}.png": f"shuimo, a painting of a boat {'' if number else 'here'}".strip() for number in range(5)}
    others = {"x.png": "shuimo, mountains in the evening", "y.png": "shuimo, two cranes under a pine", "z.png": "shuimo"}
    found = advise({**same, **others}, trigger="shuimo")
    assert set(found) == {"1.png", "2.png", "3.png", "4.png"}
    assert "3 others" in found["1.png"][0].message
    assert advise({f"{number}.png": "shuimo" for number in range(4)}, trigger="shuimo").keys() == {
        f"{number}.png" for number in range(4)
    }


def test_no_caption_is_no_trouble() -> None:
    assert advise({}) == {} and count_tags([]) == [] and choose({}, CaptionFilter(pattern="x"), {}) == {}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (CaptionFilter(), "abcde"),
        (CaptionFilter(contains="BOAT"), "ab"),
        (CaptionFilter(tag="Mist"), "a"),
        (CaptionFilter(tag="boat"), ""),
        (CaptionFilter(lacks_word="shuimo"), "bc"),
        (CaptionFilter(is_empty=True), "c"),
        (CaptionFilter(over_tokens=75), "d"),
        (CaptionFilter(over_tokens=3), "abde"),
        (CaptionFilter(advice="vague"), "be"),
        (CaptionFilter(pattern=r"^(shuimo, )?a b"), "ab"),
        (CaptionFilter(names=frozenset({"a.png", "c.png", "gone.png"})), "ac"),
        (CaptionFilter(contains="boat", lacks_word="shuimo"), "b"),
        (CaptionFilter(contains="boat", pattern="none"), ""),
    ],
)
def test_filters(wanted: CaptionFilter, names: str) -> None:
    assert list(choose(CAPTIONS, wanted, advise(CAPTIONS, trigger="shuimo"))) == [f"{name}.png" for name in names]


def test_a_wrong_pattern_in_a_filter_is_explained() -> None:
    with pytest.raises(DatasetError, match=r"'\[' is not valid"):
        choose(CAPTIONS, CaptionFilter(pattern="["), {})


def test_frequencies_count_captions_not_mentions() -> None:
    captions = ["Ink, boat, ink", "ink, the old man's boat", "水墨, ink-wash"]
    assert count_tags(captions) == [("ink", 2), ("boat", 1), ("ink-wash", 1), ("the old man's boat", 1), ("水墨", 1)]
    assert count_words(captions)[:2] == [("boat", 2), ("ink", 2)]
    assert {"man's", "ink-wash", "水墨"} <= dict(count_words(captions)).keys()


def test_counting_tokens_needs_neither_torch_nor_transformers() -> None:
    code = "import sys; from lora_trainer.dataset import advice; advice.advise({'a': 'ink ' * 99}); "
    code += "print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.strip() == "[]"


def test_advice_that_is_remembered_is_of_these_captions() -> None:
    adviser, captions = Adviser(), dict(CAPTIONS)
    assert adviser.advise(captions) is adviser.advise(dict(CAPTIONS))
    captions["c.png"] = "a boat"
    assert adviser.advise(captions) == advise(captions) != adviser.advise(captions, trigger="shuimo")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", ""),
        ("ohwx woman", "(ohwx woman) is in none of 4 captions"),
        ("boat, ohwx", "(ohwx) is in none of 4 captions"),
        ("水墨", "(水墨) is in 1 of 4 captions"),
        ("Boat", ""),
        ("boat, temple", ""),
    ],
)
def test_a_trigger_word_must_stand_in_the_captions(words: str, told: str) -> None:
    captions = ["a boat, ink", "a boat at night", "temple, 水墨画", "temple on a hill"]
    assert [told in str(problem) for problem in warn_of_trigger(words, captions)] == [True] * bool(told)
    assert warn_of_trigger(words, []) == []
