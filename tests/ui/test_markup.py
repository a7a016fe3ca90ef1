from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.errors import Problem
from lora_trainer.ui import markup
from lora_trainer.ui.activity import word_of_phase
from lora_trainer.ui.plots import bucket_plot, training_plot

EVIL = """<img src=x onerror="alert('1')">${alert(1)}{{alert(1)}}&amp;"""


@given(st.text())
def test_escaped_text_is_text_again(text):
    import html

    escaped = markup.escape(text)
    assert html.unescape(escaped) == text or "\r" in text or "\0" in text
    assert not set(escaped) & set("<>\"'${}")


@pytest.mark.parametrize(
    "made",
    [
        markup.word(EVIL),
        markup.box("", "message", title=EVIL),
        markup.error_message(EVIL),
        markup.problem_list([Problem(EVIL, EVIL, hint=EVIL)]),
        markup.problem_list([Problem("lora_rank", EVIL)], {"lora_rank": (EVIL, EVIL)}),
        markup.progress_bar(1, 2, EVIL),
        markup.progress_bar(0, 0, EVIL),
        bucket_plot({EVIL: 3}),
    ],
)
def test_nothing_unescaped_gets_into_html(made):
    assert "<img" not in made and "${" not in made and "{{" not in made
    assert "onerror" in "".join([*ElementTree.fromstring(made).itertext(), *_attributes(made)])


def _attributes(made: str) -> list[str]:
    return [value for element in ElementTree.fromstring(made).iter() for value in element.attrib.values()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.2, "1 second"),
        (40.4, "40 seconds"),
        (89, "89 seconds"),
        (540, "9 minutes"),
        (5400, "1 hour 30 minutes"),
        (7500, "2 hours 5 minutes"),
    ],
)
def test_time_is_said_as_people_say_it(seconds, text):
    assert re.sub("<[^>]*>", "", markup.describe_seconds(seconds)) == text


def test_a_plot_holds_every_point_inside_the_picture():
    losses = [(step, 0.1 + (step % 7) / 100) for step in range(1, 101)]
    svg = ElementTree.fromstring(training_plot(losses, [(step, 1e-4) for step, _ in losses], [(50, 0.12)], 200))
    lines = [element for element in svg.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 3
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == 100
        assert all(0 <= x <= 640 and 0 <= y <= 220 for x, y in points)
    assert sum(element.tag.endswith("circle") for element in svg.iter()) == 1


@pytest.mark.parametrize("losses", [[(1, 0.1)], [(1, 0.1), (2, 0.1)], [(1, 0.0), (2, 0.0)]])
def test_a_plot_of_little_is_drawn(losses):
    ElementTree.fromstring(training_plot(losses, [], [], 0))


def test_nothing_is_drawn_of_nothing():
    assert training_plot([], [], [], 100) == bucket_plot({}) == ""


def test_what_a_job_does_is_told_in_words_that_are_translated():
    assert word_of_phase("encoding pictures") == markup.word("encoding pictures")
    assert word_of_phase("<i>") == "&lt;i&gt;"
