"""Terms behind captions: the nearest ones by CLIP's own measure, none twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.captioning.ranking import RankedCaptioner, load
from lora_trainer.errors import ModelError
from tests.captioning.models import make_clip

pytestmark = pytest.mark.hosts

LISTS = {"medium": ("ink wash", "oil painting", "woodblock print"), "composition": ("high viewpoint", "close view")}


class Fixed:
    """A captioner with one caption for all."""

    def __init__(self, caption: str) -> None:
        self.text, self.state = caption, ""

    def __enter__(self) -> Fixed:
        self.state = "entered"
        return self

    def __exit__(self, *error: object) -> None:
        self.state = "left"

    def caption(self, pictures: list[Image.Image]) -> list[str]:
        return [self.text] * len(pictures)

    def move(self, device: torch.device) -> None:
        self.state = device.type


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"))


def ranked(folder: Path, captioner: Fixed, **more: int) -> RankedCaptioner:
    return load(CaptionerSettings(str(folder)), captioner, LISTS, **more)


def pictures() -> list[Image.Image]:
    return [Image.effect_noise((40 + size, 50), 30 * size).convert("RGB") for size in range(1, 5)]


def test_the_nearest_of_each_list_by_clips_own_forward(folder: Path) -> None:
    looked = pictures()
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    expected: list[list[str]] = [[] for _ in looked]
    for terms in LISTS.values():
        inputs = processor(text=list(terms), images=looked, return_tensors="pt", padding=True)
        with torch.no_grad():
            near = model(**inputs).logits_per_image
        for row, order in enumerate(near.argsort(dim=-1, descending=True).tolist()):
            expected[row] += [terms[number] for number in order[:2]]
    with ranked(folder, Fixed("a boat"), num_terms=2) as captioner:
        assert captioner.rank(looked) == expected
        assert captioner.caption(looked) == [", ".join(["a boat", *terms]) for terms in expected]


def test_a_term_that_is_said_already_is_not_said_again(folder: Path) -> None:
    with ranked(folder, Fixed("Ink Wash, an oil painting, a woodblock print")) as captioner:
        assert all(caption.count(",") == 3 for caption in captioner.caption(pictures()))
    with ranked(folder, Fixed("")) as captioner:
        assert not captioner.caption(pictures())[0].startswith(",")


def test_the_captioner_is_entered_moved_and_left_with_it(folder: Path) -> None:
    fixed = Fixed("a boat")
    with ranked(folder, fixed) as captioner:
        assert fixed.state == "entered"
        captioner.move(torch.device("meta"))
        assert fixed.state == "meta" and all(terms.is_meta for terms in captioner._terms.values())
    assert fixed.state == "left" and captioner._model is None


def test_a_folder_that_is_no_clip_says_what_one_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"CLIP model.*merges\.txt"), ranked(tmp_path, Fixed("")):
        pass
