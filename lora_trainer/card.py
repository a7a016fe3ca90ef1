"""The memory of this machine's graphics card, without importing torch: a page asks at every start, and most never train there.

Where torch is loaded already it is asked; else NVIDIA's own program, once. Standard library only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import lru_cache

TIMEOUT_SECONDS = 5
MIB = 2**20


def card_bytes() -> int | None:
    """Returns the memory of the card that a training would use, in bytes; None where there is none, or nobody can tell."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):  # not while it is being imported by another thread
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.mem_get_info()[1])
    return _ask_nvidia()


@lru_cache(maxsize=1)
def _ask_nvidia() -> int | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_SECONDS, check=True).stdout
        return int(answer.split()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # a driver that does not answer is no card
        return None
