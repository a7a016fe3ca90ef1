from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

import lora_trainer

PROGRAM = """
import sys, torch
from pathlib import Path
from lora_trainer.dataset.buckets import assign_buckets
from lora_trainer.dataset.cache import TensorStore, cache_pictures
from lora_trainer.dataset.scan import scan_dataset

items = scan_dataset(Path(sys.argv[1])).items
buckets = assign_buckets([(item.width, item.height) for item in items], 256)
encode = lambda pixels: {"latents": torch.nn.functional.avg_pool2d(pixels, 8) + len(pixels)}
for store in map(TensorStore, map(Path, sys.argv[2:])):
    for name in range(20):  # a new encoder each time, so that there is always something to write
        for key in cache_pictures(items, buckets, encode, store=store, encoder_key=f"vae{name}", batch_size=3):
            assert store.has(key)
"""


def test_two_runs_may_fill_one_folder_at_once(tmp_path: Path, write: Callable[..., Path], astronaut: Image.Image) -> None:
    for number in range(5):
        write(f"data/{number}.png", astronaut.rotate(number * 30).resize((128, 128)))
    environment = {**os.environ, "PYTHONPATH": str(Path(lora_trainer.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(tmp_path / "shared")]
    runs = [subprocess.Popen([*command, *more], env=environment) for more in ([], [str(tmp_path / "alone")])]
    assert [run.wait() for run in runs] == [0, 0]
    shared, alone = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("shared", "alone"))
    assert len(shared) == 100
    assert shared == alone
