from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.host.standalone import Standalone
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.ui.services import Services


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Real services on an empty data folder; nothing of theirs works until a job is submitted."""
    host = Standalone(tmp_path / "data")
    queue = JobQueue(host)
    yield Services(host, queue, DatasetLibrary(host.folders().datasets))
    queue.close()


@pytest.fixture
def make_set(services: Services):
    """Returns a maker of data sets of captioned pictures."""

    def make(
        name: str = "ink", num_pictures: int = 24, size: tuple[int, int] = (512, 512), caption: str = "a boat {number}"
    ) -> Path:
        folder = services.library.create(name)
        for number in range(num_pictures):
            Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number:03}.png")
            if caption:
                (folder / f"{number:03}.txt").write_text(caption.format(number=number), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def make_base(services: Services):
    """Returns a maker of base models that are nothing but a header: enough to be detected."""

    def make(name: str = "base.safetensors") -> Path:
        import torch
        from safetensors.torch import save_file

        from tests.tiny import original_tensors

        path = services.host.checkpoint_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.to(torch.float16) for key, tensor in original_tensors("sd1").items()}, path)
        return path

    return make
