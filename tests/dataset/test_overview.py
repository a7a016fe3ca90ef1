import os
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.dataset.overview import read_overview
from lora_trainer.dataset.sampler import steps_per_epoch
from lora_trainer.dataset.scan import scan_dataset
from lora_trainer.dataset.thumbnails import thumbnail, thumbnails

pytestmark = pytest.mark.hosts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "3_more").mkdir(parents=True)
    for number, size in enumerate([(512, 512), (640, 512), (512, 700), (300, 200)]):
        Image.new("RGB", size, (50 * number, 10, 10)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    Image.new("RGB", (512, 512)).save(folder / "3_more" / "again.jpg")
    (folder / "3_more" / "again.txt").write_text("again", encoding="utf-8")
    Image.new("RGB", (512, 512)).save(folder / "silent.png")
    Image.new("RGB", (40, 512)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_tells_what_a_scan_would_take(folder):
    overview = read_overview(folder)
    assert {picture.name for picture in overview.usable} == {item.name for item in scan_dataset(folder).items}
    by_name = {picture.name: picture for picture in overview.pictures}
    assert (by_name["2.png"].width, by_name["2.png"].height, by_name["2.png"].caption) == (512, 700, "picture 2")
    assert "too small: 40 x 512" in by_name["small.png"].error
    assert "not a picture" in by_name["broken.png"].error and str(folder) not in by_name["broken.png"].error
    assert overview.num_without_caption == 1


@pytest.mark.parametrize(("resolutions", "batch_size"), [((512,), 1), ((512,), 4), ((256, 512), 3)])
def test_counts_the_steps_of_the_plan(folder, resolutions, batch_size):
    from lora_trainer.dataset.buckets import assign_buckets

    items = scan_dataset(folder).items
    buckets = [bucket for side in resolutions for bucket in assign_buckets([(i.width, i.height) for i in items], side)]
    expected = steps_per_epoch(buckets, [i.repeats for i in items] * len(resolutions), batch_size=batch_size)
    overview = read_overview(folder)
    assert overview.count_steps(resolutions, batch_size=batch_size) == expected
    assert overview.count_steps(resolutions, batch_size=batch_size, accumulation=2) == -(-expected // 2)


def test_a_changed_file_is_read_again(folder):
    read_overview(folder)
    Image.new("RGB", (100, 90)).save(folder / "0.png")
    os.utime(folder / "0.png", ns=(1, 1))
    assert next(p for p in read_overview(folder).pictures if p.name == "0.png").width == 100


def test_no_pixel_is_decoded(folder, tmp_path):
    """A file cut off behind its header has a size here."""
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:60])
    assert next(p for p in read_overview(folder).pictures if p.name == "1.png").width == 640


def test_thumbnails_are_upright_small_and_kept(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    found = thumbnails([folder / "2.png", folder / "broken.png", folder / "gone.png"], cache, 64)
    assert found[1:] == [None, None]
    (kept,) = cache.rglob("*.jpg")
    assert Image.open(kept).size == (47, 64)
    kept.write_bytes(b"kept")
    assert thumbnail(folder / "2.png", cache, 64) == b"kept"
    os.utime(folder / "2.png", ns=(1, 1))
    assert thumbnail(folder / "2.png", cache, 64) != b"kept"
