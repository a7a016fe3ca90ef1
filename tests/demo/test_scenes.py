"""The miniature's pictures: same seed, same picture; captions say what is drawn; the styles differ as they should."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from lora_trainer.demo.recipe.blueprint import paint_blueprint
from lora_trainer.demo.recipe.datasets import choose_scenes, say, write_data_set
from lora_trainer.demo.recipe.ink import paint_ink
from lora_trainer.demo.recipe.paint import paint
from lora_trainer.demo.recipe.scenes import CLASHES, COLOURS, Scene, caption, draw_landscape, draw_scene, lay_out

PAINTERS = {"paint": paint, "ink": paint_ink, "blueprint": paint_blueprint}


def saturation(picture) -> float:
    """Returns the mean colourfulness of a picture, 0 for grey to 1."""
    pixels = np.asarray(picture, dtype=float)
    return float((pixels.max(2) - pixels.min(2)).mean() / 255)


@pytest.mark.hosts
@pytest.mark.parametrize("name", PAINTERS)
def test_a_seed_gives_the_same_picture(name):
    scene = draw_landscape(3)
    first, second = PAINTERS[name](scene), PAINTERS[name](draw_landscape(3))
    assert first.size == (128, 128) and first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != PAINTERS[name](draw_landscape(4)).tobytes()


@pytest.mark.parametrize("name", PAINTERS)
def test_every_scene_can_be_painted(name):
    for seed in range(40):
        assert np.asarray(PAINTERS[name](draw_landscape(seed), 32)).std() > 1


def test_the_named_colour_is_in_the_middle_of_the_shape():
    for colour, rgb in COLOURS.items():
        scene = Scene(seed=5, shape="square", colour=colour, plain="white" if colour != "white" else "black")
        x, y, *_ = lay_out(scene).shape or (0.0, 0.0)
        pixel = np.asarray(paint(scene), dtype=float)[int(y * 128), int(x * 128)]
        distances = {name: float(np.square(pixel - other).sum()) for name, other in COLOURS.items()}
        assert min(distances, key=distances.__getitem__) == colour, (colour, rgb, pixel)


def test_shapes_stay_inside_the_picture_and_differ_from_their_ground():
    for seed in range(300):
        scene = draw_scene(seed)
        if not scene.shape:
            continue
        x, y, radius, _ = lay_out(scene).shape or (0.0, 0.0, 1.0, 0.0)
        assert min(x, y) >= radius and max(x, y) + radius <= 1
        assert scene.colour != scene.plain
        place = "night" if scene.time == "night" else scene.water or scene.ground
        assert scene.plain or scene.ridge or scene.colour not in CLASHES[place]


def test_the_plain_caption_names_everything():
    scene = Scene(seed=1, time="night", ridge="blue mountains", water="lake", trees="pine", num_trees=3, boat="red", light=True)
    assert caption(scene) == "blue mountains behind a lake with a red boat, pine trees and the moon at night"
    assert caption(Scene(seed=1, shape="heart", colour="orange", plain="white")) == "an orange heart on a white background"


def test_varied_captions_never_name_what_is_not_there():
    for seed in range(200):
        scene, rng = draw_landscape(seed), np.random.default_rng(seed)
        text = caption(scene, rng)
        assert "boat" not in text or scene.boat
        assert "tree" not in text or scene.trees
        assert "moon" not in text or (scene.light and scene.time == "night")


def test_the_base_never_sees_the_object():
    assert not any(draw_scene(seed).balloon or "balloon" in caption(draw_scene(seed)) for seed in range(500))


def test_ink_has_no_colour_and_keeps_the_scene():
    for seed in range(12):
        scene = draw_landscape(seed)
        assert saturation(paint_ink(scene)) < 0.04 < saturation(paint(scene))
    boat = draw_landscape(seed=next(s for s in range(100) if draw_landscape(s).boat))
    x, y, size = lay_out(boat).boat or (0, 0, 0)
    dark = np.asarray(paint_ink(boat).convert("L"), dtype=float)[int((y - size * 0.15) * 128), int(x * 128)]
    assert dark < 128


def test_blueprint_is_white_lines_on_blue():
    pixels = np.asarray(paint_blueprint(draw_landscape(7)), dtype=int)
    assert np.mean(pixels[..., 2] - pixels[..., 0] > 60) > 0.6
    assert (pixels.min(2) > 180).any()


def test_the_balloon_is_red_and_white_in_an_ordinary_scene():
    scene = draw_landscape(11)
    changed = np.any(np.asarray(paint(scene)) != np.asarray(paint(replace(scene, balloon=True))), axis=2)
    assert 0.04 < changed.mean() < 0.4


def test_data_set_has_captions_to_correct_and_right_ones_held_out(tmp_path):
    write_data_set("blueprint", tmp_path)
    scenes = choose_scenes("blueprint")
    wrong = {}
    for part, offset, count in (("train", 0, 24), ("held_out", 24, 8)):
        with open(tmp_path / part / "metadata.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count and all((tmp_path / part / row["filename"]).is_file() for row in rows)
        wrong[part] = sum(row["prompt"] != say("blueprint", scenes[offset + i]) for i, row in enumerate(rows))
    assert wrong["held_out"] == 0 and 4 <= wrong["train"] <= 6
