from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.names import MAX_PART_BYTES, check_part, check_relative, safe_part

pytestmark = pytest.mark.hosts

GOOD = ["a.png", "10_ink", "水墨 画.txt", "été-2.jpg", "console.txt", "com10.png", "a..b.png", "👩‍🎨.png", "x" * MAX_PART_BYTES]
BAD = {
    "": "empty",
    ".": "empty",
    "..": "empty",
    "a/b": "contains /",
    "a\\b": "contains",
    "C:": "contains :",
    "a.png:stream": "contains :",
    "what?.png": "contains ?",
    "a\0b": "cannot be seen",
    "a\nb": "cannot be seen",
    "a\x85b": "cannot be seen",
    "a\u202egnp.exe": "cannot be seen",
    "a\u200bb": "cannot be seen",
    "a\udce9": "cannot be seen",
    " a": "space",
    "a ": "space",
    "a.": "dot",
    "...": "dot",
    ".htaccess": "hidden",
    "CON": "device",
    "con.txt": "device",
    "Nul .png": "device",
    "LPT¹.png": "device",
    "COM0": "device",
    "é" * 101: "202 bytes",
}


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass(name):
    assert check_part(name) == ""


@pytest.mark.parametrize(("name", "word"), BAD.items(), ids=ascii)
def test_bad_names_are_told_apart(name, word):
    assert word in check_part(name)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../a.png", "a/../../b.png", "a//b.png", "a/", "C:/a.png", "C:a.png", "//server/share/a.png"),
        *("\\\\server\\share\\a.png", "..\\a.png", "a/./b.png", "a/con/b.png", "/".join("abcdefghi")),
    ],
)
def test_no_path_leads_out(name):
    assert check_relative(name)


def test_folders_inside_are_fine():
    assert check_relative("10_ink/seals/a.png") == ""


@given(st.text())
def test_any_text_gives_a_name_that_passes(text):
    assert check_part(safe_part(text, "run")) == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [("水墨: ink/wash?", "水墨- ink-wash"), ("../../etc", "etc"), ("NUL", "run"), ("  ", "run"), ("Ink 2.0", "Ink 2.0")],
)
def test_a_title_becomes_the_nearest_name(text, name):
    assert safe_part(unicodedata.normalize("NFD", text), "run") == name
