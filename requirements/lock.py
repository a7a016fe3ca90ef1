"""Locks the package sets: writes the `.txt` files of this folder from the `.in` files, with uv."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FLAGS = ("--quiet", "--universal", "--no-annotate", "--no-header", "--override", "no-torch.in", "--no-emit-package", "torch")

# Locked file: oldest Python, the .in files, and the locked file whose versions it must share.
LOCKS = {
    "newest.txt": ("3.11", ("newest.in",), None),
    "newest-test.txt": ("3.11", ("newest.in", "test.in", "lint.in"), "newest.txt"),
    "forge.txt": ("3.10", ("forge.in",), None),
    "forge-test.txt": ("3.10", ("forge.in", "test.in"), "forge.txt"),
    "a1111-test.txt": ("3.10", ("a1111.in", "test.in"), None),
}


def main() -> None:
    for locked, (python, sources, constraint) in LOCKS.items():
        constraints = ("--constraint", constraint) if constraint else ()
        arguments = (*FLAGS, "--python-version", python, *constraints, *sources, "--output-file", locked, *sys.argv[1:])
        subprocess.run(("uv", "pip", "compile", *arguments), cwd=FOLDER, check=True)
        print(locked)


if __name__ == "__main__":
    main()
