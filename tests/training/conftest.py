from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from lora_trainer.config.parse import parse_config
from lora_trainer.models import table
from lora_trainer.registry import Registry
from tests.training import toy


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Six real pictures of two shapes, captioned."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    source = Image.fromarray(np.asarray(skimage.data.astronaut()))
    for number in range(6):
        box = (40 * number, 20 * number, 40 * number + 128, 20 * number + (96 if number % 2 else 128))
        source.crop(box).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"astronaut, part {number}, orange suit", encoding="utf-8")
    return folder


@pytest.fixture
def toy_family(monkeypatch):
    """Adds the toy family by its one table line."""
    monkeypatch.setattr(table, "FAMILIES", Registry("model family", (toy.ENTRY, *table.FAMILIES)))


@pytest.fixture
def toy_values(tmp_path, pictures, toy_family) -> dict[str, str]:
    return {
        "train_data_dir": str(pictures),
        "base_model": str(toy.make_toy_checkpoint(tmp_path)),
        "output_dir": str(tmp_path / "runs" / "toy"),
        "cache_dir": str(tmp_path / "cache"),
        "lora_rank": "4",
        "resolution": "128",
        "batch_size": "2",
        "epochs": "6",
        "learning_rate": "1e-2",
        "save_steps": "5",
        "device": "cpu",
        "validation_pictures": "0",  # tests of the loop count calls of the model; test_validation.py looks at all six
    }


@pytest.fixture
def toy_config(toy_values):
    return lambda **changes: parse_config({**toy_values, **changes})
