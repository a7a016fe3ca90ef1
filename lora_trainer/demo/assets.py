"""Where the files are that come along: a miniature base model, a miniature captioner, and pictures to train on. See `recipe/`."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
BASE = _HERE / "base" / "miniature.safetensors"
CLIP = _HERE / "base" / "clip"
CAPTIONER = _HERE / "captioner"
DATA_SETS = _HERE / "datasets"
"""One folder each for "ink", "blueprint" and "balloon", with `train/` and `held_out/`, each with pictures and metadata.csv."""
