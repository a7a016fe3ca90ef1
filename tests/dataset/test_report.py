"""The quality report: damaged pictures of each kind are named rightly, real ones pass, and figures are what they say."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance, ImageFilter, features

from lora_trainer.dataset.measure import Borders, find_borders, hash_looks, measure, measure_sharpness
from lora_trainer.dataset.report import ALIKE_BITS, KINDS, QualityReport, report_quality
from lora_trainer.errors import DatasetError, TruncatedPictureError

pytestmark = pytest.mark.hosts

SHARP = ("astronaut", "coffee", "camera", "coins", "gravel", "brick", "grass")
FORMATS = [".png", ".jpg", ".gif", ".bmp", ".tif", *([".webp"] if features.check("webp") else [])]
FORMATS += [".avif"] if "avif" in features.get_supported() else []


def real(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven real pictures, all sharp and different."""
    folder = tmp_path_factory.mktemp("sharp")
    for name in SHARP:
        real(name).resize((320, 320)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path, sharp: Path) -> Path:
    """A copy of them, to which a test adds one that is not right."""
    for path in sharp.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def kinds(report: QualityReport, name: str) -> list[str]:
    return [finding.kind for finding in report.of_picture(name)]


def encoded(suffix: str, image: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    (image or real("chelsea")).save(file, Image.registered_extensions()[suffix])
    return file.getvalue()


def test_sharp_real_pictures_have_no_finding(sharp: Path) -> None:
    report = report_quality(sharp, resolution=300)
    assert report.findings == () and report.groups == () and report.num_pictures == len(SHARP)
    assert report.sharpness.keys() == {f"{name}.png" for name in SHARP}


def test_every_real_picture_passes_through(tmp_path: Path) -> None:
    folder = Path(skimage.data.__file__).parent
    names = [path.name for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".gif", ".tif")]
    for name in names:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    report = report_quality(tmp_path)
    assert report.num_pictures == len(names) > 20
    assert report.of_kind("unreadable") <= {"multipage_rgb.tif"}  # has six channels
    assert report.of_kind("truncated") == report.of_kind("borders") == frozenset()
    assert "motorcycle_right.png" not in report.of_kind("duplicate")  # the other eye's view
    assert report.of_kind("duplicate") == {"chessboard_GRAY.png", "chessboard_RGB.png"}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_picture_without_its_end_is_truncated(pictures: Path, suffix: str, share: float) -> None:
    data = encoded(suffix)
    (pictures / f"cut{suffix}").write_bytes(data[: int(share * len(data))])
    if suffix == ".tif" and share < 0.6:
        assert kinds(report_quality(pictures), f"cut{suffix}") in (["unreadable"], ["truncated"])  # its header is at its end
        return
    with pytest.raises(TruncatedPictureError, match="truncated"):
        measure(pictures / f"cut{suffix}", 512)
    assert kinds(report_quality(pictures, resolution=300), f"cut{suffix}") == ["truncated"]


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 5000, b"GIF8", b"<html>not found</html>", encoded(".png")[:8] + b"\0" * 900 + b"IEND\xaeB`\x82"]
)
def test_what_is_no_picture_is_unreadable(pictures: Path, data: bytes) -> None:
    (pictures / "bad.png").write_bytes(data)
    expected = "truncated" if data == b"GIF8" else "unreadable"
    assert kinds(report_quality(pictures, resolution=300), "bad.png") == [expected]


def test_bytes_changed_inside_are_not_called_truncated(pictures: Path) -> None:
    data = bytearray(encoded(".png"))
    middle = len(data) // 2
    data[middle : middle + 200] = random.Random(0).randbytes(200)
    (pictures / "bad.png").write_bytes(data)
    (finding,) = report_quality(pictures, resolution=300).of_picture("bad.png")
    assert finding.kind == "unreadable" and "damaged" in finding.reason


def test_a_small_picture_is_told_with_its_factor(pictures: Path) -> None:
    real("chelsea").resize((320, 320)).save(pictures / "small.png")
    (finding,) = report_quality(pictures, resolution=512).of_picture("small.png")
    assert finding.kind == "too small" and finding.figure == pytest.approx(1.6)
    assert "320 x 320" in finding.reason and "1.60 times for 512x512" in finding.reason
    assert "small.png" not in report_quality(pictures, resolution=320).of_kind("too small")


@pytest.mark.parametrize("blur", [2.5, 6.0])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "grass"])
def test_a_blurred_picture_stands_out_in_its_set(pictures: Path, blur: float, name: str) -> None:
    image = real(name).resize((320, 320)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.filter(ImageFilter.GaussianBlur(blur)).save(pictures / "blurred.png")
    report = report_quality(pictures, resolution=300)
    assert report.of_kind("blurred") == {"blurred.png"}
    (finding,) = report.of_picture("blurred.png")
    assert finding.figure < min(value for other, value in report.sharpness.items() if other != "blurred.png")
    assert f"{finding.figure:.3g}" in finding.reason


def test_sharpness_of_an_ink_drawing_is_that_of_its_strokes() -> None:
    paper = np.full((512, 512), 240, np.uint8)
    paper[200:330, 150:400:6] = 20
    blurred = np.asarray(Image.fromarray(paper).filter(ImageFilter.GaussianBlur(3)))
    assert measure_sharpness(paper) > 1000 > 50 > measure_sharpness(blurred)
    assert measure_sharpness(np.full((8, 8), 7, np.uint8)) == 0


@pytest.mark.parametrize("name", ["astronaut", "coffee", "text", "moon"])
def test_near_duplicates_are_grouped_and_the_sharpest_is_proposed(pictures: Path, name: str) -> None:
    image = real(name)
    width, height = image.size
    versions = {
        "small.png": image.resize((width // 2, height // 2)),
        "dark.png": ImageEnhance.Brightness(image).enhance(0.8),
        "cropped.png": image.crop((width // 60, height // 60, width - width // 60, height - height // 60)),
        "soft.png": image.filter(ImageFilter.GaussianBlur(1.5)),
    }
    for version, changed in versions.items():
        changed.save(pictures / version)
    image.save(pictures / "strong.jpg", quality=40)
    image.save(pictures / f"{name}.png")
    report = report_quality(pictures, resolution=300)
    (group,) = report.groups
    assert set(group.names) == {*versions, "strong.jpg", f"{name}.png"}
    assert group.best in (f"{name}.png", "cropped.png", "dark.png", "strong.jpg")
    assert f"{group.best} is the sharpest" in report.of_picture("soft.png")[-1].reason
    assert "keep it" in next(finding.reason for finding in report.of_picture(group.best) if finding.kind == "duplicate")


def test_different_pictures_are_far_from_alike() -> None:
    looks = [hash_looks(real(name).convert("L").resize((300, 300))) for name in (*SHARP, "chelsea", "rocket", "moon")]
    distances = [int((one != other).sum()) for number, one in enumerate(looks) for other in looks[:number]]
    assert min(distances) > 1.5 * ALIKE_BITS


def framed(image: Image.Image, borders: Borders, colour: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    left, top, right, bottom = borders
    whole = Image.new("RGB", (image.width + left + right, image.height + top + bottom), colour)
    whole.paste(image, (left, top))
    return whole


@pytest.mark.parametrize("borders", [Borders(0, 60, 0, 60), Borders(40, 0, 40, 0), Borders(30, 31, 32, 33), Borders(0, 0, 0, 90)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_borders_are_measured_to_the_pixel(pictures: Path, borders: Borders, suffix: str) -> None:
    framed(real("coffee"), borders, (250, 245, 240)).save(
        pictures / f"framed{suffix}", **({"quality": 80} if suffix == ".jpg" else {})
    )
    found = measure(pictures / f"framed{suffix}", 512).borders
    assert all(abs(one - other) <= (3 if suffix == ".jpg" else 0) for one, other in zip(found, borders, strict=True))
    report = report_quality(pictures, resolution=300)
    assert [finding.name for finding in report.findings if finding.kind == "borders"] == [f"framed{suffix}"]


def test_plain_paper_around_a_drawing_is_no_border() -> None:
    paper = np.full((300, 200, 3), 245, np.uint8)
    paper[100:200, 60:65] = 10
    paper[150, 40:160] = 10
    assert find_borders(paper) == Borders()
    assert find_borders(np.full((9, 9, 3), 5, np.uint8)) == Borders()


def test_one_colour_is_told_and_nothing_else(pictures: Path) -> None:
    Image.new("RGB", (600, 600), (200, 199, 198)).save(pictures / "plain.png")
    Image.new("RGB", (600, 600), (20, 19, 18)).save(pictures / "dark.png")
    report = report_quality(pictures, resolution=300)
    assert kinds(report, "plain.png") == kinds(report, "dark.png") == ["one colour"]


def test_transparency_is_told_with_its_share(pictures: Path) -> None:
    image = real("coffee").convert("RGBA")
    image.save(pictures / "opaque.png")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 450 + [0] * 150]), 400, axis=0)))
    image.save(pictures / "alpha.png")
    report = report_quality(pictures, resolution=300)
    (finding,) = (finding for finding in report.of_picture("alpha.png") if finding.kind == "transparency")
    assert finding.figure == pytest.approx(0.25) and "25% transparent" in finding.reason
    assert report.of_kind("transparency") == {"alpha.png"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_exif_turned_is_told(pictures: Path, suffix: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    real("chelsea").save(pictures / f"turned{suffix}", exif=exif)
    report = report_quality(pictures, resolution=300)
    assert report.of_kind("turned") == ({f"turned{suffix}"} if turn != 1 else frozenset())
    measures = measure(pictures / f"turned{suffix}", 300)
    assert (measures.width, measures.height) == ((300, 451) if turn == 6 else (451, 300))


def test_extreme_aspect_is_told_with_its_ratio(pictures: Path) -> None:
    real("astronaut").resize((1600, 400)).save(pictures / "wide.png")
    (finding,) = (one for one in report_quality(pictures, resolution=300).of_picture("wide.png") if one.kind == "extreme aspect")
    assert finding.figure == 4.0 and "4.0 times as wide as high" in finding.reason


def test_progress_counts_and_cancels(sharp: Path) -> None:
    seen: list[tuple[int, int]] = []
    report_quality(sharp, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, len(SHARP)) for number in range(1, len(SHARP) + 1)]

    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        seen.append((done, total))
        raise Cancelled

    seen.clear()
    with pytest.raises(Cancelled):
        report_quality(sharp, on_progress=cancel)
    assert len(seen) == 1


def test_a_report_is_kept_and_read_again(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bad.png").write_bytes(b"")
    real("astronaut").save(pictures / "again.png")
    report = report_quality(pictures)
    path = tmp_path / "kept" / "report.json"
    report.save(path)
    assert QualityReport.load(path) == report
    assert report.counts()["unreadable"] == 1 and report.counts()["duplicate"] == 2 and set(report.counts()) <= set(KINDS)
    path.write_text("{}", encoding="utf-8")
    assert QualityReport.load(path) is None and QualityReport.load(tmp_path / "none") is None


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    assert report_quality(tmp_path).num_pictures == 0
    with pytest.raises(DatasetError, match="does not exist"):
        report_quality(tmp_path / "gone")
