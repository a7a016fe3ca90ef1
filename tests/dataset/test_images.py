from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from lora_trainer.dataset.images import MAX_PIXELS, examine, open_image, open_mask, read_size
from lora_trainer.errors import DatasetError

pytestmark = pytest.mark.hosts


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, in steps of 255."""
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize(
    ("suffix", "most"), [("png", 0), ("bmp", 0), ("tif", 0), ("tiff", 0), ("jpg", 4), ("jpeg", 4), ("webp", 5), ("gif", 8)]
)
def test_every_format_gives_the_same_picture(tmp_path: Path, astronaut: Image.Image, suffix: str, most: float) -> None:
    path = tmp_path / f"a.{suffix}"
    astronaut.save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (512, 512))
    assert difference(image, astronaut) <= most
    assert read_size(path) == (512, 512)


def test_avif_is_read_where_pillow_can_and_named_where_not(tmp_path: Path, coffee: Image.Image) -> None:
    path = tmp_path / "a.avif"
    if "AVIF" in Image.SAVE and features.check("avif"):
        coffee.save(path)
        assert difference(open_image(path), coffee) < 5
    else:
        path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf")
        with pytest.raises(DatasetError, match="AVIF needs a newer Pillow"):
            open_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_turns_the_picture_upright(tmp_path: Path, chelsea: Image.Image, orientation: int, suffix: str) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera stores it turned the other way
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = chelsea.transpose(turns[orientation]) if orientation in turns else chelsea
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    image = open_image(path)
    assert image.size == chelsea.size == read_size(path)
    assert (examine(path).width, examine(path).height) == chelsea.size
    assert difference(image, chelsea) < 4


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, chelsea: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    chelsea.save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01")
    assert open_image(path).size == chelsea.size


def test_alpha_is_composited_on_white_and_is_the_mask(tmp_path: Path, chelsea: Image.Image) -> None:
    alpha = Image.new("L", chelsea.size, 0)
    alpha.paste(255, (0, 0, 200, 300))
    rgba = chelsea.copy()
    rgba.putalpha(alpha)
    path = tmp_path / "a.png"
    rgba.save(path)
    image = np.asarray(open_image(path))
    assert (image[:, 200:] == 255).all()
    assert (image[:, :200] == np.asarray(chelsea)[:, :200]).all()
    mask = open_mask(path)
    assert mask is not None and mask.mode == "L"
    assert (np.asarray(mask) == np.asarray(alpha)).all()
    assert examine(path).has_alpha


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1", "RGB"])
def test_transparency_of_every_mode_is_white(tmp_path: Path, mode: str) -> None:
    """A black and a transparent half, by an alpha channel or by a transparent colour."""
    path = tmp_path / "a.png"
    if mode == "LA":
        image = Image.new("LA", (80, 80), (0, 255))
        image.paste((60, 0), (40, 0, 80, 80))
        image.save(path)
    else:
        clear = {"P": 1, "L": 60, "1": 255, "RGB": (9, 60, 9)}[mode]
        image = Image.new(mode, (80, 80), 0)
        if mode == "P":
            image.putpalette([0, 0, 0, 9, 60, 9])
        image.paste(clear, (40, 0, 80, 80))
        image.save(path, transparency=1 if mode == "1" else clear)
    pixels = np.asarray(open_image(path))
    assert (pixels[:, :40] == 0).all() and (pixels[:, 40:] == 255).all()
    assert open_mask(path) is not None


def test_a_picture_without_alpha_has_no_mask(tmp_path: Path, chelsea: Image.Image) -> None:
    path = tmp_path / "a.png"
    chelsea.save(path)
    assert open_mask(path) is None
    assert not examine(path).has_alpha


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (70, 1))
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(ramp).save(path)
    pixels = np.asarray(open_image(path))
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    assert pixels.min() == 0 and pixels.max() == 255


def test_wide_grey_is_turned_upright_in_every_byte_order(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 80).astype(np.uint16), (70, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    png, tif = tmp_path / "a.png", tmp_path / "a.tif"
    Image.fromarray(ramp).save(png, exif=exif)
    assert open_image(png).size == (70, 80) == read_size(png)
    assert open_image(png).getpixel((3, 79)) == (255, 255, 255)
    big_endian = Image.frombytes("I;16B", (80, 70), ramp.astype(">u2").tobytes())
    big_endian.save(tif)
    assert [open_image(tif).getpixel((x, 9))[0] for x in (0, 79)] == [0, 255]


def test_floating_point_grey_is_read_from_0_to_1_and_else_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((70, 70), 0.5, dtype=np.float32)).save(path)
    assert np.asarray(open_image(path)).max() == 128
    Image.fromarray(np.full((70, 70), 300.0, dtype=np.float32)).save(path)
    with pytest.raises(DatasetError, match="300"):
        open_image(path)


def test_cmyk_keeps_its_colours(tmp_path: Path, chelsea: Image.Image) -> None:
    path = tmp_path / "a.jpg"
    chelsea.convert("CMYK").save(path, quality=95)
    assert difference(open_image(path), chelsea) < 6


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path: Path, chelsea: Image.Image, astronaut: Image.Image) -> None:
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        chelsea.save(path, save_all=True, append_images=[astronaut.resize(chelsea.size)], duration=100)
        assert difference(open_image(path), chelsea) < 12
        assert examine(path).is_animated


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_named(tmp_path: Path, astronaut: Image.Image, suffix: str, share: float) -> None:
    path = tmp_path / f"half.{suffix}"
    astronaut.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DatasetError, match=f"half.{suffix} is"):
        examine(path)


@pytest.mark.parametrize("lost", [1, 20, 300, 3000, 12_000])
def test_an_animation_that_lacks_its_end_gives_facts_or_is_named(tmp_path: Path, chelsea: Image.Image, lost: int) -> None:
    """Counting the frames reads all of them, and Pillow fails there with errors of every kind."""
    small = chelsea.resize((120, 90))
    path = tmp_path / "a.gif"
    small.save(path, save_all=True, append_images=[small.rotate(90), small.rotate(180)])
    data = path.read_bytes()
    for end in range(len(data) - lost - 40, len(data) - lost):
        path.write_bytes(data[:end])
        try:
            assert examine(path).width == 120
        except DatasetError as error:
            assert "a.gif is" in str(error)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "half.png"),
        (b"\0" * 5000, "not a picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(data)
    for read in (examine, open_image, open_mask, read_size):
        with pytest.raises(DatasetError, match=reason):
            read(path)


def test_postscript_is_never_run(tmp_path: Path, chelsea: Image.Image) -> None:
    path = tmp_path / "a.png"
    chelsea.save(path, format="EPS")
    with pytest.raises(DatasetError, match="not a picture"):
        open_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.png"):
        open_image(tmp_path / "gone.png")


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("host_limit", [None, Image.MAX_IMAGE_PIXELS])
@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_named_whatever_the_host_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_limit: int | None, side: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", host_limit)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(side, side))
    assert side * side > MAX_PIXELS
    for read in (examine, read_size):
        with pytest.raises(DatasetError, match="decompression bomb"):
            read(path)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_pillows_warning_as_an_error_is_the_same_problem(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(10_000, 10_000))
    with pytest.raises(DatasetError, match="decompression bomb"):
        examine(path)


def test_unicode_names_are_opened(tmp_path: Path, chelsea: Image.Image) -> None:
    path = tmp_path / "山水 🎨 é.png"
    chelsea.save(path)
    assert open_image(path).size == chelsea.size


def test_a_file_can_be_replaced_after_reading(tmp_path: Path, chelsea: Image.Image) -> None:
    """Windows refuses that while the file is held open; pixels come from the bytes."""
    path = tmp_path / "a.png"
    chelsea.save(path)
    image = open_image(path)
    path.unlink()
    assert difference(image, chelsea) == 0
