from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_trainer.captioning import download
from tests.captioning.hub import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, `made/up`, an empty cache of the hub's own programs, and no waiting between tries."""
    model = tmp_path / "hub" / "made" / "up"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "vocab.txt").write_text("ink\n", encoding="utf-8")
    (model / "README.md").write_text("no", encoding="utf-8")
    (model / "tf_model.h5").write_bytes(b"no")
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (model / "pytorch_model.bin").write_bytes(b"no")
    served = Hub(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    yield served
    served.close()
