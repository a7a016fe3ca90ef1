"""Names of LoRA files: what the WebUI, its prompt syntax and the file systems can carry. Standard library only.

A LoRA is called as `<lora:name:0.7>`, so the name must survive that syntax as well as Windows, macOS and Linux.
"""

from __future__ import annotations

import re

from lora_trainer.errors import Problem

# `<lora:a:0.7>` ends at ">", is split at ":", takes "a=b" for a named argument, and the WebUI's hash list is split at ",".
# Braces: the WebUI reads metadata that looks like a JSON object as one, and the alias "{}" breaks its whole LoRA list.
PROMPT_CHARACTERS = ":,<>={}"
PATH_CHARACTERS = '/\\|?*"'
WEBUI_RESERVED = ("none", "addams")
WINDOWS_RESERVED = ("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)))
# File systems allow 255 bytes; "-step00000100.safetensors", previews and what marks a second file need about 50 of them.
MAX_NAME_BYTES = 180

_STEP_NAME = re.compile(r"(?P<name>.+)-step(?P<step>\d{8,})")


def check_output_name(name: str) -> Problem | None:
    """Returns what keeps `name` (without ".safetensors") from being a LoRA's name, or None when it is a good one."""

    def problem(message: str, hint: str) -> Problem:
        return Problem("output_name", message, hint=hint)

    if not name.strip():
        return problem("the name is empty.", "Give the LoRA a name, such as ink_style.")
    bad = [character for character in dict.fromkeys(name) if character in PROMPT_CHARACTERS + PATH_CHARACTERS]
    if bad:
        return problem(
            f"{name!r} contains {' '.join(bad)}, which <lora:name:0.7> or a file name cannot carry.",
            "Use letters, digits, spaces, '-', '_' or '.'.",
        )
    if any(ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) <= 0xDFFF for character in name):
        return problem(f"{name!r} contains a character that cannot be printed.", "Type the name anew.")
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        return problem(
            f"{name!r} starts with a dot, or starts or ends with a space, or ends with a dot.", "Remove it; Windows drops these."
        )
    if name.lower() in WEBUI_RESERVED:
        return problem(f"the WebUI keeps the name {name!r} for itself.", f"Choose another, such as {name}_style.")
    if name.split(".", 1)[0].rstrip().lower() in WINDOWS_RESERVED:
        return problem(f"{name!r} is the name of a device on Windows.", f"Choose another, such as {name}_style.")
    size = len(name.encode("utf-8"))
    if size > MAX_NAME_BYTES:
        return problem(f"the name takes {size} bytes; at most {MAX_NAME_BYTES} fit a file name.", "Choose a shorter one.")
    return None


def step_file_name(name: str, step: int) -> str:
    """Returns the stem of the file saved at an optimizer step, such as "ink-step00000100"."""
    return f"{name}-step{step:08d}"


def split_step_name(stem: str) -> tuple[str, int | None]:
    """Returns the run's name and the step of a file's stem; the step is None for a final file."""
    match = _STEP_NAME.fullmatch(stem)
    return (match["name"], int(match["step"])) if match else (stem, None)
