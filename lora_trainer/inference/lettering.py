"""Draws lines of text into pictures, whatever Pillow and whatever language.

Pillow's own outline font, which it has since 10.1, knows plain English letters. For others, or on an older Pillow, a font of the
system is looked for by name; where there is none, Pillow's old font of small fixed letters is enlarged. What cannot be shown
becomes "?".
"""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FIXED_HEIGHT = 11  # pixels of Pillow's old font
ELLIPSIS = "..."
NEVER_A_CHARACTER = "\uffff"
# Windows, macOS, Linux: Chinese, Japanese and Korean first, then what has Greek and Cyrillic.
SYSTEM_FONTS = (
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "DejaVuSans.ttf",
)


class Lettering:
    """A font of one size.

    Args:
        size: height of the letters in pixels.
        texts: what it will be used for; the font that has most of its characters is taken.
    """

    def __init__(self, size: int, texts: str) -> None:
        self._font = _choose_font(size, frozenset(texts))
        self._factor = 1 if isinstance(self._font, ImageFont.FreeTypeFont) else max(1, round(size / FIXED_HEIGHT))
        self.line_height = round(size * 1.4)

    def width(self, text: str) -> int:
        """Returns the width of a line in pixels."""
        return round(self._font.getlength(self._showable(text)) * self._factor)

    def wrap(self, text: str, width: int, max_lines: int) -> list[str]:
        """Returns a text as lines of at most `width` pixels, broken at spaces if possible; "..." stands for what is cut."""
        rest = " ".join(text.split())
        lines: list[str] = []
        while rest and len(lines) < max_lines:
            end = self._fit(rest, width)
            if end < len(rest):
                end = rest.rfind(" ", 0, end + 1) if " " in rest[: end + 1] else end
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
        if rest:
            lines[-1] = lines[-1][: self._fit(lines[-1], width - self.width(ELLIPSIS))].rstrip() + ELLIPSIS
        return lines

    def draw(self, picture: Image.Image, position: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
        """Draws one line with its upper left corner at a position."""
        text = self._showable(text)
        if self._factor == 1:
            ImageDraw.Draw(picture).text(position, text, fill=color, font=self._font)
            return
        small = Image.new("L", (max(1, round(self._font.getlength(text))), FIXED_HEIGHT + 3))
        ImageDraw.Draw(small).text((0, 0), text, fill=255, font=self._font)
        mask = small.resize((small.width * self._factor, small.height * self._factor), Image.Resampling.NEAREST)
        picture.paste(color, position, mask)

    def _showable(self, text: str) -> str:
        return "".join(character if _has(self._font, character) else "?" for character in text)

    def _fit(self, text: str, width: int) -> int:
        """Returns how many of the first characters are not wider than that; at least one."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(text[:middle]) <= width else (low, middle - 1)
        return low


def _choose_font(size: int, characters: frozenset[str]) -> Font:
    best, most = ImageFont.load_default(), 0
    for font in (_own_font(size), *(_system_font(name, size) for name in SYSTEM_FONTS)):
        num_shown = sum(_has(font, character) for character in characters) if font else 0
        if font and num_shown > most:
            best, most = font, num_shown
        if most == len(characters):
            break
    return best


@functools.lru_cache
def _own_font(size: int) -> Font | None:
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1
        return None
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


@functools.lru_cache
def _system_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@functools.lru_cache(maxsize=4096)
def _has(font: Font, character: str) -> bool:
    if character.isspace():
        return True
    if not isinstance(font, ImageFont.FreeTypeFont):
        return " " <= character <= "~" or "\xa0" <= character <= "\xff"
    # A font shows one and the same sign for everything that it lacks.
    return bytes(font.getmask(character)) != bytes(font.getmask(NEVER_A_CHARACTER))
