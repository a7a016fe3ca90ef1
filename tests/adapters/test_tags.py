"""LoRA tags are read from a prompt as the WebUI reads them, and what it cannot read is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.adapters.tags import LoraUse, parse_prompt, write_prompt
from lora_trainer.errors import ConfigError

pytestmark = pytest.mark.hosts


def find(name: str) -> Path:
    return Path(f"{name}.safetensors")


@pytest.mark.parametrize(
    ("tag", "text_weight", "unet_weight", "rank_cut"),
    [
        ("<lora:ink>", 1.0, 1.0, None),
        ("<lora:ink:0.7>", 0.7, 0.7, None),
        ("<lora:ink:0.5:0.8>", 0.5, 0.8, None),
        ("<lora:ink:0.5:0.8:4>", 0.5, 0.8, 4),
        ("<lora:ink:te=0.5>", 0.5, 0.5, None),
        ("<lora:ink:unet=0.8>", 1.0, 0.8, None),
        ("<lora:ink:0.3:unet=0.8:te=-0.5>", -0.5, 0.8, None),
        ("<lora:ink:0.3:dyn=8>", 0.3, 0.3, 8),
        ("<lora:ink:0:1>", 0.0, 1.0, None),
    ],
)
def test_weights_are_those_that_the_webui_reads(tag: str, text_weight: float, unet_weight: float, rank_cut: int | None) -> None:
    prompt, (use,) = parse_prompt(f"a boat {tag}, a lake", find)
    assert prompt == "a boat , a lake"
    assert (use.path.name, use.weight_of("text_encoder_2"), use.weight_of("unet")) == (
        "ink.safetensors",
        text_weight,
        unet_weight,
    )
    assert use.rank_cut == rank_cut
    assert parse_prompt(use.tag, find) == ("", (use,))


def test_several_tags_stay_in_order_and_other_words_in_brackets_go_too() -> None:
    prompt, uses = parse_prompt("<lora:ink:0.7> a <hypernet:x:1>boat<lora:水墨 2:0.5:0.8> a < b", find)
    assert prompt == " a boat a < b"
    assert [use.tag for use in uses] == ["<lora:ink:0.7>", "<lora:水墨 2:0.5:0.8>"]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("<lora:te=0.5>", r"<lora:te=0\.5> names no LoRA\. Write <lora:name:0\.7>"),
        ("<lora:ink:strong>", r"'strong' in <lora:ink:strong> is not a number, such as 0\.7"),
        ("<lora:ink:nan>", r"'nan' in .* is not a number"),
        ("<lora:ink:1:1:2.5>", r"'2\.5' in .* is not a whole number from 1"),
        ("<lora:ink:dyn=0>", r"'0' in .* is not a whole number from 1"),
        ("<lora:ink:1:1:4:5>", r"has 4 values; the WebUI reads three"),
        ("<lora:ink:clip=1>", r"sets 'clip', which the WebUI passes over\. Known: te, unet, dyn"),
        ("<lora:ink:1> <lora:ink:0.5>", r"<lora:ink> stands 2 times; .* Write it once"),
    ],
)
def test_what_the_webui_cannot_read_is_named_with_its_remedy(prompt: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_prompt(prompt, find)


def test_every_bad_tag_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_prompt("<lora:a:x> <lora:b:y>", find)
    assert len(caught.value.problems) == 2


def test_a_prompt_is_written_with_the_tags_that_act() -> None:
    uses = [LoraUse(find("ink"), 0.7), LoraUse(find("seal"), 0.0, 0.5), LoraUse(find("none"), 0.0)]
    assert write_prompt("a boat ", uses) == "a boat <lora:ink:0.7> <lora:seal:0.5:0>"
