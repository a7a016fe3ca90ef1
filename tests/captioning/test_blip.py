"""BLIP through the code that loads the large one, with the miniature: batches, prompts, lengths, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_trainer.captioning.blip import load
from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.demo.assets import CAPTIONER
from lora_trainer.demo.recipe.paint import paint
from lora_trainer.demo.recipe.scenes import draw_scene
from lora_trainer.errors import ConfigError, ModelError

pytestmark = pytest.mark.hosts


def pictures() -> list[Image.Image]:
    return [paint(draw_scene(seed)).resize(size) for seed, size in ((3, (128, 128)), (8, (300, 200)), (11, (64, 90)))]


def test_a_batch_gives_what_its_pictures_give_one_by_one() -> None:
    with load(CaptionerSettings(str(CAPTIONER), num_beams=2, max_new_tokens=8)) as captioner:
        together = captioner.caption(pictures())
        assert together == [captioner.caption([picture])[0] for picture in pictures()]
    assert len(set(together)) > 1, "all pictures read alike: the test could not tell a batch that is mixed up"


def test_a_prompt_begins_every_caption() -> None:
    with load(CaptionerSettings(str(CAPTIONER), prompt="a painting of", max_new_tokens=4)) as captioner:
        captions = captioner.caption(pictures())
    assert all(caption.startswith("a painting of ") for caption in captions)


def test_captions_keep_to_their_longest() -> None:
    lengths = []
    for most in (2, 12):
        with load(CaptionerSettings(str(CAPTIONER), num_beams=1, max_new_tokens=most, min_new_tokens=2)) as captioner:
            lengths.append(max(len(caption.split()) for caption in captioner.caption(pictures())))
    assert lengths[0] <= 2 < lengths[1]


def test_leaving_lets_the_model_go() -> None:
    captioner = load(CaptionerSettings(str(CAPTIONER)))
    with captioner:
        model = captioner._model
        assert model is not None and not model.training
    assert captioner._model is None


def test_half_precision_is_taken() -> None:
    with load(CaptionerSettings(str(CAPTIONER), dtype=torch.bfloat16, max_new_tokens=3)) as captioner:
        assert {parameter.dtype for parameter in captioner._model.parameters()} == {torch.bfloat16}
        assert len(captioner.caption(pictures())) == 3


def test_a_model_that_is_nowhere_says_how_to_get_it(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"nobody/no-such-model is not a folder .* --model"),
        load(CaptionerSettings("nobody/no-such-model")),
    ):
        pass


def test_a_folder_that_is_no_blip_says_what_one_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"), load(CaptionerSettings(str(tmp_path))):
        pass


@pytest.mark.parametrize(("field", "value"), [("num_beams", 0), ("max_new_tokens", 500), ("min_new_tokens", 60)])
def test_numbers_out_of_range_are_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: \({value}\) must be from"):
        CaptionerSettings("x", **{field: value})


def test_every_captioner_can_be_loaded_from_the_table() -> None:
    for entry in CAPTIONERS:
        assert entry.load()(CaptionerSettings(entry.options["model"])) is not None
        assert (entry.options["size_mb"] == 0) == Path(entry.options["model"]).is_dir()  # "" is the current folder
