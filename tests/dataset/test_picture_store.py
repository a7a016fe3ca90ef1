"""Pictures retouched in place: what each tool does, and that nothing is lost by any."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, features

from lora_trainer.dataset.images import open_image
from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.dataset.retouch import Retouch, apply_table, crop, read_cube, resize, trim_borders
from lora_trainer.dataset.scan import list_files
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts

FORMATS = [".png", ".jpg", ".bmp", ".tif", ".gif", *([".webp"] if features.check("webp") else [])]


def bytes_of(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in list_files(folder)}


def cube(path: Path, size: int = 2, *, swap: bool = False, title: str = 'TITLE "ink tone"\n') -> Path:
    """An identity table, or one that exchanges red and blue."""
    lines = [f"{title}# by hand\nLUT_3D_SIZE {size}\nDOMAIN_MIN 0 0 0\nDOMAIN_MAX 1.0 1.0 1.0\n"]
    steps = [number / (size - 1) for number in range(size)]
    lines += [f"{b} {g} {r}" if swap else f"{r} {g} {b}" for b in steps for g in steps for r in steps]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("size", "ratio", "focus", "box"),
    [
        ((90, 60), 1.0, (0.5, 0.5), (15, 0, 75, 60)),
        ((90, 60), 1.0, (0.0, 0.9), (0, 0, 60, 60)),
        ((90, 60), 1.0, (0.7, 0.5), (30, 0, 90, 60)),
        ((60, 90), 1.0, (0.5, 0.4), (0, 6, 60, 66)),
        ((90, 60), 2.0, (0.5, 0.5), (0, 8, 90, 53)),
        ((90, 60), 0.5, (0.5, 0.5), (30, 0, 60, 60)),
    ],
)
def test_a_crop_is_the_largest_around_its_focus(
    size: tuple[int, int], ratio: float, focus: tuple[float, float], box: tuple[int, int, int, int]
) -> None:
    image = noise(*size)
    found = crop(ratio, focus)(image)
    assert found.size == (box[2] - box[0], box[3] - box[1])
    assert found.tobytes() == image.crop(box).tobytes()


def test_what_is_in_shape_already_stays_itself() -> None:
    image = noise(64, 64)
    assert crop()(image) is resize(64)(image) is resize(128)(image) is trim_borders(image) is image
    assert resize(128, enlarge=True)(image).size == (128, 128)
    assert resize(32)(noise(64, 96)).size == (32, 48)


@pytest.mark.parametrize("make", [lambda: crop(0), lambda: crop(1, (0.5, 1.2)), lambda: resize(3), lambda: apply_table(None, 2)])
def test_senseless_values_are_refused(make: object) -> None:
    with pytest.raises(DatasetError, match="must be"):
        make()  # type: ignore[operator]


def test_trimming_leaves_the_picture(tmp_path: Path) -> None:
    whole = Image.new("RGB", (100, 90), (0, 0, 0))
    whole.paste(noise(60, 50), (10, 20))
    assert trim_borders(whole).tobytes() == noise(60, 50).tobytes()


@pytest.mark.parametrize("size", [2, 17, 33])
def test_an_identity_table_changes_nothing_and_a_swap_swaps(tmp_path: Path, size: int) -> None:
    image = Image.fromarray(skimage.data.chelsea())
    same = np.asarray(apply_table(read_cube(cube(tmp_path / "a.cube", size)))(image)).astype(int)
    assert np.abs(same - np.asarray(image)).max() <= 1
    swap = read_cube(cube(tmp_path / "b.CUBE", size, swap=True))
    swapped = np.asarray(apply_table(swap)(image)).astype(int)
    assert np.abs(swapped - np.asarray(image)[..., ::-1]).max() <= 1
    assert swap.title == "ink tone"
    half = np.asarray(apply_table(swap, 0.5)(image)).astype(int)
    assert np.abs(half - (swapped + np.asarray(image)) / 2).max() <= 1
    assert apply_table(swap, 0.0)(image).tobytes() == image.tobytes()


def test_transparency_stays(tmp_path: Path) -> None:
    image = noise(20, 20).convert("RGBA")
    image.putalpha(noise(20, 20).convert("L"))
    graded = apply_table(read_cube(cube(tmp_path / "a.cube", swap=True)))(image)
    assert graded.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_one_dimensional_tables_and_other_domains(tmp_path: Path) -> None:
    (tmp_path / "a.cube").write_text("LUT_1D_SIZE 3\n1 0 0\n0.5 0 0.5\n0 0 1\n", encoding="utf-8")
    image = Image.fromarray(np.uint8([[[0, 90, 0], [255, 9, 255], [51, 3, 204]]]))
    assert np.asarray(apply_table(read_cube(tmp_path / "a.cube"))(image)).tolist() == [[[255, 0, 0], [0, 0, 255], [204, 0, 204]]]
    text = cube(tmp_path / "b.cube").read_text(encoding="utf-8").replace("DOMAIN_MAX 1.0 1.0 1.0", "DOMAIN_MAX 0.5 1 2")
    (tmp_path / "b.cube").write_text(text, encoding="utf-8")
    graded = np.asarray(apply_table(read_cube(tmp_path / "b.cube"))(Image.new("RGB", (1, 1), (100, 100, 100))))
    assert np.abs(graded.astype(int) - [200, 100, 50]).max() <= 1
    (tmp_path / "c.cube").write_text("LUT_3D_SIZE 2\nLUT_3D_INPUT_RANGE 0.0 0.5\n" + "0.2 0.4 0.6\n" * 8, encoding="utf-8")
    assert np.asarray(apply_table(read_cube(tmp_path / "c.cube"))(image))[0, 0].tolist() == [51, 102, 153]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("LUT_3D_SIZE 2\n0 0 0\n", "1 rows of colours for a size that needs 8"),
        ("LUT_3D_SIZE 900\n", "must be from 2 to 65"),
        ("0 0 0\n", "names no LUT_3D_SIZE"),
        ("LUT_3D_SIZE 2\n0 0\n", "line 2: '0 0' are not 3 numbers"),
        ("LUT_3D_SIZE 2\n0 0 x\n", "line 2: '0 0 x' are not numbers"),
        ("LUT_3D_SIZE 2\n0 nan 0\n", "not 3 numbers"),
        ("LUT_3D_SIZE 2\nDOMAIN_MIN 1 1 1\n" + "0 0 0\n" * 8, "domain is empty"),
        ("", "names no LUT_3D_SIZE"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.cube").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=reason):
        read_cube(tmp_path / "a.cube")
    with pytest.raises(DatasetError, match=r"\.cube"):
        read_cube(tmp_path / "a.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    image = Image.fromarray(skimage.data.chelsea()).resize((150, 100))
    for number, suffix in enumerate(FORMATS):
        image.save(folder / ("sub" if number % 2 else "") / f"picture{suffix}")
    rgba = image.convert("RGBA")
    rgba.putalpha(image.convert("L"))
    rgba.save(folder / "alpha.png")
    return folder


@pytest.mark.parametrize("edits", [(crop(),), (resize(64),), (crop(1, (0, 0)), resize(50))])
def test_every_format_is_retouched_and_taken_back_to_the_byte(pictures: Path, edits: tuple[Retouch, ...]) -> None:
    before, names = bytes_of(pictures), list_files(pictures)
    looks = {name: open_image(pictures / name) for name in names}
    result = PictureStore(pictures).retouch(names, *edits, title="crop")
    assert set(result.changed) == set(names) and result.refused == {}
    for name in names:
        expected = looks[name]
        for edit in edits:
            expected = edit(expected)
        found = open_image(pictures / name)
        assert found.size == expected.size
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean() < 5  # GIF has few colours
    after = bytes_of(pictures)
    assert PictureStore(pictures).undo().refused == {}
    assert bytes_of(pictures) == before
    PictureStore(pictures).redo()
    assert bytes_of(pictures) == after


def test_transparency_is_kept_in_the_file_where_it_can_be(pictures: Path) -> None:
    PictureStore(pictures).retouch(["alpha.png"], crop(), title="crop")
    with Image.open(pictures / "alpha.png") as image:
        assert (image.mode, image.size) == ("RGBA", (100, 100))


def test_turned_pictures_come_out_upright_once(pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(skimage.data.chelsea()).save(pictures / "turned.jpg", exif=exif)
    before = open_image(pictures / "turned.jpg")
    PictureStore(pictures).retouch(["turned.jpg"], resize(200), title="resize")
    after = open_image(pictures / "turned.jpg")
    assert (before.size, after.size) == ((300, 451), (200, 301))
    assert np.abs(np.asarray(before.resize(after.size)).astype(int) - np.asarray(after)).mean() < 4


def test_several_changes_are_taken_back_in_turn_or_all_at_once(pictures: Path) -> None:
    store, before = PictureStore(pictures), bytes_of(pictures)
    states = []
    for side in (90, 80, 70):
        states.append(bytes_of(pictures))
        store.retouch(["alpha.png", "picture.png"], resize(side), title=f"to {side}")
    for state in reversed(states[1:]):
        store.undo()
        assert bytes_of(pictures) == state
    assert [change.title for change in store.history()] == ["undo: to 80", "undo: to 70", "to 70", "to 80", "to 90"]
    store.restore(["alpha.png", "picture.png", "sub/picture.jpg"])
    assert bytes_of(pictures) == before
    store.undo()
    assert bytes_of(pictures) == states[1]


def test_what_cannot_be_retouched_is_named_and_stays(pictures: Path) -> None:
    (pictures / "bad.png").write_bytes(b"no picture")
    frames = [noise(80, 60), noise(60, 80).resize((80, 60))]
    frames[0].save(pictures / "moving.gif", save_all=True, append_images=frames[1:])
    before = bytes_of(pictures)
    result = PictureStore(pictures).retouch(["bad.png", "moving.gif", "gone.png", "../set/alpha.png"], crop(), title="crop")
    assert result.change is None and result.changed == () and bytes_of(pictures) == before
    assert "is not a picture" in result.refused["bad.png"] and "more than one frame" in result.refused["moving.gif"]
    assert result.refused.keys() >= {"gone.png", "../set/alpha.png"}


def test_undo_leaves_what_another_program_wrote(pictures: Path) -> None:
    store = PictureStore(pictures)
    store.retouch(["alpha.png", "picture.png"], crop(), title="crop")
    noise(9, 9).save(pictures / "alpha.png")
    result = store.undo()
    assert result.changed == ("picture.png",) and "another program" in result.refused["alpha.png"]
    assert open_image(pictures / "alpha.png").size == (9, 9)


def test_a_cancelled_change_is_taken_back_as_far_as_it_came(pictures: Path) -> None:
    store, before, names = PictureStore(pictures), bytes_of(pictures), list_files(pictures)

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.retouch(names, crop(), title="crop", on_progress=cancel)
    assert sum(bytes_of(pictures)[name] != before[name] for name in names) == 2
    store.undo()
    assert bytes_of(pictures) == before


def test_a_table_is_applied_to_a_whole_set(pictures: Path, tmp_path: Path) -> None:
    names = list_files(pictures)
    table = read_cube(cube(tmp_path / "swap.cube", swap=True))
    red_before = {name: np.asarray(open_image(pictures / name))[..., 0].mean() for name in names}
    assert len(PictureStore(pictures).retouch(names, apply_table(table), title="one tone").changed) == len(names)
    for name in names:
        assert abs(np.asarray(open_image(pictures / name))[..., 2].mean() - red_before[name]) < 6
