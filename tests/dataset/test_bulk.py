"""Changes of many captions: what each does to the letter, what it leaves alone, and patterns that never end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.dataset import bulk, patterns
from lora_trainer.dataset.bulk import Edit, preview
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts

ODD = "  two,, tags ,\n水墨, 🎨"  # no caption reads like this after cleaning, but an edit must not tidy what it does not change


def apply(edit: Edit, caption: str) -> str:
    return edit([caption])[0]


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (bulk.replace_text("ink", "oil"), "ink, Ink, pink", "oil, Ink, poil"),
        (bulk.replace_text("ink", "oil", ignore_case=True, whole_words=True), "ink, Ink, pink, ink-x", "oil, oil, pink, oil-x"),
        (bulk.replace_text("a.b", r"\1"), "a.b axb", r"\1 axb"),
        (bulk.replace_text("水", "火", whole_words=True), "水墨", "火墨"),
        (bulk.replace_pattern(r"(\w+) cat", r"cat, \1"), "a black cat", "a cat, black"),
        (bulk.replace_pattern("CAT", "dog", ignore_case=True), "a cat", "a dog"),
        (bulk.replace_words({"watercolor painting": "ink wash", "wash": "x"}), "A Watercolor Painting, wash", "A ink wash, x"),
        (bulk.replace_words({"left": "right", "right": "left"}), "left of right", "right of left"),
        (bulk.remove_words(["beautiful", "very artistic"]), "a beautiful, Very Artistic painting, beautiful", "a, painting"),
        (bulk.remove_words(["beautiful"]), "beautifully made", "beautifully made"),
        (bulk.remove_words(["艺术的"]), "一幅艺术的画, 艺术的", "一幅画"),
        (bulk.add_prefix("ink style, "), "a boat", "ink style, a boat"),
        (bulk.add_prefix("ink style, "), "ink style, a boat", "ink style, a boat"),
        (bulk.add_suffix(", song dynasty"), "a boat", "a boat, song dynasty"),
        (bulk.add_tags(["mist", "Boat, river"]), "boat,", "boat, mist, river"),
        (bulk.add_tags(["mist"], at_start=True), "boat", "mist, boat"),
        (bulk.add_tags(["mist"]), "", "mist"),
        (bulk.remove_tags(["Boat", "none"]), "a boat, boat, river", "a boat, river"),
        (bulk.sort_tags(keep_first=1), "trigger, b, C, a", "trigger, a, b, C"),
        (bulk.dedupe_tags(), "a, b, A, c, b", "a, b, c"),
        (bulk.change_case("lower"), "A BOAT", "a boat"),
        (bulk.change_case("upper"), "straße", "STRASSE"),
        (bulk.change_case("title"), "the old man's boat", "The Old Man's Boat"),
        (bulk.change_case("sentence"), "THE boat", "The boat"),
        (bulk.put_trigger_first("shuimo"), "a boat", "shuimo, a boat"),
        (bulk.put_trigger_first("shuimo"), "a boat, Shuimo, river, shuimo", "shuimo, a boat, river"),
        (bulk.put_trigger_first("shuimo"), "shuimo painting of a boat", "shuimo painting of a boat"),
        (bulk.put_trigger_first("shuimo"), "shuimo painting of a boat, shuimo", "shuimo painting of a boat"),
        (bulk.put_trigger_first(" shuimo, "), "", "shuimo"),
        (bulk.put_trigger_first("ink"), "inkwell, pen", "ink, inkwell, pen"),
    ],
)  # fmt: skip
def test_an_edit_does_what_it_says_and_the_second_time_nothing(edit: Edit, before: str, after: str) -> None:
    assert apply(edit, before) == after
    if after not in ("right of left", "A ink wash, x", "a cat, black"):
        assert apply(edit, after) == after


def test_lists_and_replacements_are_read_with_chinese_marks_too() -> None:
    assert bulk.read_list("艺术的，美丽的、nice, 2.5\nink wash") == ["艺术的", "美丽的", "nice", "2.5", "ink wash"]
    assert bulk.read_pairs("水彩＝水墨\nwash = ink") == {"水彩": "水墨", "wash": "ink"}


@pytest.mark.parametrize(
    "edit",
    [
        bulk.replace_text("none", "x"),
        bulk.replace_pattern("none", "x"),
        bulk.replace_words({"none": "x"}),
        bulk.replace_words({}),
        bulk.remove_words(["none"]),
        bulk.remove_words([" "]),
        bulk.add_tags(["two"]),
        bulk.remove_tags(["none"]),
        bulk.sort_tags(keep_first=4),
        bulk.dedupe_tags(),
    ],
)
def test_what_an_edit_has_nothing_to_do_with_stays_to_the_letter(edit: Edit) -> None:
    assert apply(edit, ODD) == ODD


@given(st.lists(st.text()))
def test_tag_edits_take_any_text(captions: list[str]) -> None:
    for edit in (
        bulk.dedupe_tags(),
        bulk.sort_tags(),
        bulk.remove_words(["a", "b c"]),
        bulk.put_trigger_first("t"),
        bulk.add_tags(["t"]),
    ):
        once = edit(captions)
        assert len(once) == len(captions)
        assert edit(once) == once


def test_a_preview_tells_what_and_how_many() -> None:
    captions = {"a.png": "ink", "b.png": "oil", "c.png": "ink, oil"}
    found = preview(captions, bulk.replace_text("ink", "  pen"), bulk.add_suffix(", x"), bulk.remove_tags(["x"]))
    assert found.changes == {"a.png": ("ink", "pen"), "c.png": ("ink, oil", "pen, oil")}
    assert found.num_captions == 3
    assert found.seen == {"a.png": "ink", "c.png": "ink, oil"}
    assert found.wanted == {"a.png": "pen", "c.png": "pen, oil"}


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        ("(a", "x", "unterminated"),
        ("a", r"\3", "invalid group reference"),
        ("*", "", "nothing to repeat"),
        ("(?P<n>a)", r"\g<m>", "unknown group"),
    ],
)
def test_a_wrong_pattern_is_explained(pattern: str, replacement: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        apply(bulk.replace_pattern(pattern, replacement), "text")
    assert repr(pattern) in str(caught.value)


def test_a_pattern_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    with pytest.raises(DatasetError, match=r"\(a\+\)\+b.*seconds"):
        apply(bulk.replace_pattern("(a+)+b", ""), "a" * 60)


def test_patterns_search_in_any_script() -> None:
    assert patterns.search_all("^水.画$", ["水墨画", "水墨", "\n水墨画", "🎨"]) == [True, False, False, False]
    assert patterns.substitute_all("(?i)İ|🎨", "\u2028", ["🎨\r\nİ"]) == ["\u2028\r\n\u2028"]


def test_a_result_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MOST_CHARACTERS", 1000)
    with pytest.raises(DatasetError, match="too long"):
        patterns.substitute_all("", "x" * 100, ["a" * 100])


@pytest.mark.parametrize(
    "make", [lambda: bulk.replace_text("", "x"), lambda: bulk.put_trigger_first(" , "), lambda: bulk.replace_pattern("", "x")]
)
def test_an_empty_search_is_refused(make: object) -> None:
    with pytest.raises(DatasetError, match="is empty"):
        make()  # type: ignore[operator]


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(DatasetError, match="'loud'"):
        bulk.change_case("loud")  # type: ignore[arg-type]
