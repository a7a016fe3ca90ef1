"""Names that come from outside and become files: judged by the strictest of Windows, macOS and Linux, wherever we run.

A name that passes here stays inside the folder it is joined to. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata

# File systems allow 255 bytes; what is added to a name ("-2", the marks of a temporary file) needs some of them.
MAX_PART_BYTES = 200
MAX_PARTS = 8

_FORBIDDEN = '<>:"|?*\\/'
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
# Control, format (writing direction, zero width), surrogate and private-use characters: nobody can tell them in a list.
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # of Persian, Indian scripts and emoji


def check_part(part: str) -> str:
    """Returns what keeps `part` from being the name of one file or folder, to complete "the name ..."; "" when nothing does."""
    if part in ("", ".", ".."):
        return "is empty or leads to another folder"
    bad = [letter for letter in dict.fromkeys(part) if letter in _FORBIDDEN]
    if bad:
        return f"contains {' '.join(bad)}, which not every system allows"
    if any(unicodedata.category(letter) in _INVISIBLE and letter not in _JOINERS for letter in part):
        return "contains a character that cannot be seen"
    if part != part.strip() or part.endswith("."):
        return "starts or ends with a space, or ends with a dot; Windows drops these"
    if part.startswith("."):
        return "starts with a dot, so it would be hidden"
    if _DEVICES.fullmatch(part.split(".", 1)[0].rstrip()):
        return "is that of a device on Windows"
    size = len(part.encode("utf-8"))
    return f"takes {size} bytes; at most {MAX_PART_BYTES} are allowed" if size > MAX_PART_BYTES else ""


def check_relative(name: str) -> str:
    """Returns what keeps `name`, with "/" between its parts, from lying inside a folder; else as `check_part`."""
    if name.startswith("/"):
        return "is that of a whole path, not of a file"
    parts = name.split("/")
    if len(parts) > MAX_PARTS:
        return f"goes through {len(parts) - 1} folders; at most {MAX_PARTS - 1} are allowed"
    return next((problem for part in parts if (problem := check_part(part))), "")


def safe_part(text: str, fallback: str) -> str:
    """Returns the nearest name of a folder for any text, such as a title; `fallback` where nothing of it is left."""
    letters = (letter if letter.isalnum() or letter in "-_. " else "-" for letter in unicodedata.normalize("NFC", text))
    name = re.sub(r"-{2,}", "-", "".join(letters)).strip(" .-_")
    name = name.encode("utf-8", "ignore")[:80].decode("utf-8", "ignore").strip(" .-_")
    return fallback if not name or check_part(name) else name
