"""This machine's graphics card and its memory, without importing torch: a page asks at every start, and most never train there.

Where torch is loaded already it is asked; else NVIDIA's own program, once. Standard library only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import lru_cache

TIMEOUT_SECONDS = 5
MIB = 2**20

_FAILS_IN_FP16 = re.compile(r"\b(GTX 16\d\d|MX[45]50|T(400|500|550|600|1000|1200|2000))\b")
"""Cards with the chips TU116 and TU117: of the RTX 20xx's generation, without their tensor cores."""


def card_bytes() -> int | None:
    """Returns the memory of the card that a training would use, in bytes; None where there is none, or nobody can tell."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):  # not while it is being imported by another thread
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.mem_get_info()[1])
    mib = _ask_nvidia()[1]
    return int(mib) * MIB if mib.isdecimal() else None


def card_name() -> str:
    """Returns the name of the card that a training would use, such as "NVIDIA GeForce GTX 1660"; "" where it is not known."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    return _ask_nvidia()[0]


def fails_in_fp16(name: str) -> bool:
    """Whether a card of that name is known to give not-a-number for Stable Diffusion in fp16: GTX 16xx and their relatives."""
    return _FAILS_IN_FP16.search(name) is not None


@lru_cache(maxsize=1)
def _ask_nvidia() -> tuple[str, str]:
    """Returns what NVIDIA's program says of the first card: its name, and its memory in MiB; "" for what is not known."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ""
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_SECONDS, check=True).stdout
        name, _, mib = answer.splitlines()[0].rpartition(",")
        return name.strip(), mib.strip()
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # a driver that does not answer is no card
        return "", ""
