"""Stands for uv in the tests of the installation: notes how it was called, then unpacks the wheels of that name.

SHOP_LOG names the file for the notes. With SHOP_NO_TORCH_SOURCE it answers as uv does where torch's own source is out of
reach; with SHOP_KILL_AT "torch" or "packages" it kills who called it, and itself, in the middle of that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
import zipfile
from pathlib import Path

words = sys.argv[1:]
with open(os.environ["SHOP_LOG"], "a", encoding="utf-8") as log:
    log.write(json.dumps(words) + "\n")
is_torch = any(word.startswith("--torch-backend") for word in words)
if is_torch and os.environ.get("SHOP_NO_TORCH_SOURCE"):
    sys.exit("error: Failed to fetch")
if "--dry-run" in words:
    sys.exit(0)

names = ["torch"]
if not is_torch:
    names = [line.partition("==")[0] for line in Path(words[words.index("--requirement") + 1]).read_text("utf-8").split()]
for name in names:
    for wheel in Path(os.environ["PIP_FIND_LINKS"]).glob(f"{name}-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(sysconfig.get_path("purelib"))
if os.environ.get("SHOP_KILL_AT") == ("torch" if is_torch else "packages"):
    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
