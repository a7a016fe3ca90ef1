"""Pictures as training sees them: upright, three channels of 8 bits, nothing transparent.

Every room that shows or reads a picture goes through here, so that trainer, captioner and page see the same one. Whatever is
wrong with a file becomes a `DatasetError` with a reason a person can act on. Works with Pillow 9.5 to 12.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lora_trainer.errors import DatasetError, TruncatedPictureError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

# Hosts lift Pillow's own limit (`Image.MAX_IMAGE_PIXELS = None`), so that the limit against decompression bombs is ours.
MAX_PIXELS = 89_478_485

# Without this list Pillow would also try formats that start other programs, such as PostScript.
_FORMATS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "DIB": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
_MOVING_FORMATS = ("PNG", "WEBP", "GIF", "AVIF")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_WIDE_GREY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

# What Pillow's decoders raise on damaged files. OSError covers truncation and UnidentifiedImageError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class PictureFacts:
    """What a scan wants to know of a picture that was decoded in full.

    Attributes:
        width: pixels, upright.
        height: pixels, upright.
        has_alpha: it has a transparency channel, which can serve as a mask.
        is_animated: it has more than one frame; only the first is used.
        is_invisible: every pixel is fully transparent.
    """

    width: int
    height: int
    has_alpha: bool
    is_animated: bool
    is_invisible: bool


def open_image(path: Path) -> Image.Image:
    """Returns the picture as RGB: upright, transparency composited on white, the first frame of an animation.

    Grey pictures of 16 bits are scaled, not clipped.

    Raises:
        DatasetError: it cannot be read, is truncated, or has more than `MAX_PIXELS` pixels.
    """
    return decode_image(read_bytes(path), path)


def decode_image(data: bytes, path: Path) -> Image.Image:
    """Returns `open_image` of a file's bytes; `path` only names it in errors."""
    return _to_rgb(_decode(data, path), path)


def decode_for_editing(data: bytes, path: Path) -> Image.Image:
    """Returns a file's picture upright as RGB, or as RGBA where it has transparency; `path` only names it in errors.

    Raises:
        DatasetError: as `open_image`.
    """
    image = _decode(data, path)
    return image.convert("RGBA") if _has_alpha(image) else _to_rgb(image, path)


def flatten(image: Image.Image) -> Image.Image:
    """Returns RGB of an RGB or RGBA picture, its transparency on white, as `open_image` does."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def read_turn(data: bytes, path: Path) -> int:
    """Returns how EXIF says that the pixels have to be turned: 1 not at all, 5 to 8 exchange the sides."""
    image = open_header(data, path)
    if image.format == "TIFF":
        try:
            value = image.tag_v2.get(0x0112, 1)  # type: ignore[attr-defined]
        except _DECODER_ERRORS:
            return 1
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return _orientation(image)


def open_mask(path: Path) -> Image.Image | None:
    """Returns the transparency channel, upright, as mode L (255 is opaque), or None when the picture has none.

    Raises:
        DatasetError: as `open_image`.
    """
    return decode_mask(read_bytes(path), path)


def decode_mask(data: bytes, path: Path) -> Image.Image | None:
    """Returns `open_mask` of a file's bytes; `path` only names it in errors."""
    return _alpha(_decode(data, path))


def read_size(path: Path) -> tuple[int, int]:
    """Returns width and height in pixels, upright, from the header alone where the format allows.

    Raises:
        DatasetError: the header cannot be read, or names more than `MAX_PIXELS` pixels.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise DatasetError(_empty(path))
            image = _open(file, path)
            if image.format == "TIFF":  # turned by Pillow as its pixels are loaded
                return _decode(read_bytes(path), path).size
            width, height = image.size
            if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all pixels to look behind them
                return width, height
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except OSError as error:
        raise DatasetError(_unreadable(path, error)) from error


def usual_suffix(path: Path) -> str:
    """Returns the suffix that goes with a picture's content, such as ".jpg".

    Raises:
        DatasetError: the header cannot be read.
    """
    return _FORMATS[str(_open(io.BytesIO(read_bytes(path)), path).format)]


def examine(path: Path) -> PictureFacts:
    """Decodes every pixel of the picture and returns its facts.

    Raises:
        DatasetError: as `open_image`.
    """
    data = read_bytes(path)
    header = open_header(data, path)
    try:
        is_animated = header.format in _MOVING_FORMATS and getattr(header, "n_frames", 1) > 1
    except _DECODER_ERRORS as error:  # frames are counted by reading all of them
        raise _damaged(data, path, error) from error
    image = _decode(data, path)
    if image.mode != "RGB":  # some modes cannot be read as RGB, or some of their values
        _to_rgb(image, path)
    alpha = _alpha(image)
    is_invisible = alpha is not None and not alpha.getextrema()[1]
    return PictureFacts(image.width, image.height, alpha is not None, is_animated, is_invisible)


def read_bytes(path: Path) -> bytes:
    """Returns the file's bytes.

    Raises:
        DatasetError: it is gone, empty or may not be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(_unreadable(path, error)) from error
    if not data:
        raise DatasetError(_empty(path))
    return data


def open_header(data: bytes, path: Path) -> Image.Image:
    """Returns a file's picture with its header read and its pixels not yet; `path` only names it in errors.

    Raises:
        DatasetError: it is no picture, or has more than `MAX_PIXELS` pixels.
    """
    return _open(io.BytesIO(data), path)


def _open(file: BinaryIO, path: Path) -> Image.Image:
    """Returns the picture with its header read and its pixels not yet."""
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(_too_large(path, "too many")) from error
    except UnidentifiedImageError as error:
        if _is_cut_off(data := _whole(file)):
            raise _damaged(data, path, error) from error
        raise DatasetError(
            f"{path} is not a picture that can be read: its content is none of PNG, JPEG, WebP, BMP, GIF, TIFF"
            f"{', AVIF' if 'AVIF' in Image.OPEN else ' (AVIF needs a newer Pillow)'}. Save it as PNG."
        ) from error
    except _DECODER_ERRORS as error:
        raise _damaged(_whole(file), path, error) from error
    limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if image.width * image.height > limit:
        raise DatasetError(_too_large(path, f"{image.width} x {image.height}", limit))
    return image


def _whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _decode(data: bytes, path: Path) -> Image.Image:
    """Returns the first frame with all its pixels, upright, in the mode that the file has."""
    image = open_header(data, path)
    try:
        image.load()
        return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(_too_large(path, "too many")) from error
    except _DECODER_ERRORS as error:
        raise _damaged(data, path, error) from error


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it rewrites the metadata and fails on damaged EXIF, where the pixels are still good.
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Returns how the pixels still have to be turned, as EXIF counts it: 1 not at all, 5 to 8 exchange the sides."""
    if image.format == "TIFF":  # Pillow turns it itself; 9.5 leaves the mark, and the picture would be turned twice
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or ("transparency" in image.info and image.mode not in _WIDE_GREY_MODES)


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if _has_alpha(image) else None


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in _WIDE_GREY_MODES:
        return Image.fromarray(_grey_to_8_bits(np.asarray(image), path)).convert("RGB")
    try:
        if not _has_alpha(image):
            return image.convert("RGB")
        return flatten(image.convert("RGBA"))
    except ValueError as error:  # LAB
        raise DatasetError(f"{path} is in the colour mode {image.mode}, which cannot be read. Save it as RGB.") from error


def _grey_to_8_bits(grey: np.ndarray, path: Path) -> np.ndarray:
    """Returns uint8 of grey values that Pillow's own conversion would clip at 255.

    Integers are taken as 16 bits, or as 32 bits where one needs them; floating-point values as 0 to 1.
    """
    if grey.dtype.kind == "f":
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
            found = f"{grey.min():g} to {grey.max():g}"
            raise DatasetError(f"{path} has values from {found}; 0 to 1 can be read. Save it with 8 or 16 bits.")
        return (grey * 255 + 0.5).astype(np.uint8)
    if grey.min() < 0 or grey.max() > 65535:
        return (grey.astype(np.uint32) >> 24).astype(np.uint8)
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror or error}. Put it back, or start again without it."


def _empty(path: Path) -> str:
    return f"{path} is empty (0 bytes). Copy it again, or remove it."


def _damaged(data: bytes, path: Path, error: BaseException) -> DatasetError:
    is_truncated = _is_cut_off(data) or "truncated" in str(error).lower()
    reason = "truncated" if is_truncated else "damaged"
    message = f"{path} is {reason} ({error or type(error).__name__}). Copy it again, or remove it."
    return TruncatedPictureError(message) if is_truncated else DatasetError(message)


def _is_cut_off(data: bytes) -> bool:
    """Whether the end is missing, by each format's own mark of its end or count of its bytes; TIFF has neither."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-1024:]
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    return data[4:8] == b"ftyp" and _boxes_end(data) > len(data)


def _boxes_end(data: bytes) -> int:
    """Returns where the boxes of an AVIF file end, by the sizes that they name."""
    end = 0
    while end + 8 <= len(data):
        size = int.from_bytes(data[end : end + 4], "big")
        if size == 1:
            size = int.from_bytes(data[end + 8 : end + 16], "big")
        if size < 8:  # 0: to the end of the file
            return len(data)
        end += size
    return end


def _too_large(path: Path, size: str, limit: int = MAX_PIXELS) -> str:
    return (
        f"{path} has {size} pixels; at most {limit / 1e6:.0f} million are read, because a small file can claim a size "
        "that fills the memory (a decompression bomb). Scale it down."
    )
