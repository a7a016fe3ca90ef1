"""BLIP-2 with a tiny OPT: batches, prompts, precision, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_trainer.captioning.blip2 import Blip2Captioner, load
from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.errors import ModelError
from tests.captioning.models import make_blip2

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_blip2(tmp_path_factory.mktemp("blip2")))


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (size, 40), (250 - size, size, size)) for size in (20, 64, 240)]


def test_a_batch_gives_what_its_pictures_give_one_by_one(folder: str) -> None:
    looked = pictures()
    with load(CaptionerSettings(folder, num_beams=2, max_new_tokens=6, min_new_tokens=2)) as captioner:
        together = captioner.caption(looked)
        assert together == [captioner.caption([picture])[0] for picture in looked]
    assert len(set(together)) > 1 and all("<" not in caption for caption in together)


def test_a_prompt_begins_every_caption_once(folder: str) -> None:
    with load(CaptionerSettings(folder, prompt="a painting of", max_new_tokens=4, num_beams=1)) as captioner:
        captions = captioner.caption(pictures())
    assert all(caption.startswith("a painting of") and caption.count("a painting of") == 1 for caption in captions)


def test_half_precision_is_read_as_such_and_frozen(folder: str) -> None:
    with load(CaptionerSettings(folder, dtype=torch.bfloat16, max_new_tokens=3, num_beams=1)) as captioner:
        assert {parameter.dtype for parameter in captioner._model.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in captioner._model.parameters())
        assert len(captioner.caption(pictures())) == 3
        captioner.move(torch.device("meta"))
        assert next(captioner._model.parameters()).is_meta
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    ("prompt", "answer", "caption"),
    [
        ("", " a boat\n", "a boat"),
        ("a painting of", "a boat", "a painting of a boat"),
        ("a painting of", "A painting of a boat", "A painting of a boat"),
        ("Question: what medium is this? Answer:", "ink wash", "ink wash"),
    ],
)
def test_an_answer_with_or_without_its_prompt(prompt: str, answer: str, caption: str) -> None:
    assert Blip2Captioner(CaptionerSettings("x", prompt=prompt)).clean(answer) == caption


def test_a_folder_that_is_no_blip2_says_what_one_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"BLIP-2 captioner.*tokenizer"), load(CaptionerSettings(str(tmp_path))):
        pass
