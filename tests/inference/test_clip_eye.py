"""A small CLIP of the real classes compares pictures and prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.demo.assets import CLIP
from lora_trainer.errors import ModelError
from lora_trainer.inference.clip_eye import open_clip_eye

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    tokenizer = CLIPTokenizer.from_pretrained(str(CLIP))
    torch.manual_seed(0)
    text, vision = {**small, "vocab_size": len(tokenizer)}, {**small, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def test_pictures_and_prompts_have_embeddings(folder: Path) -> None:
    eye = open_clip_eye(folder)
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    assert eye.look(red).shape == (8,) and np.isclose(np.linalg.norm(eye.look(red)), 1)
    assert np.array_equal(eye.look(red), eye.look(red.copy())) and not np.allclose(eye.look(red), eye.look(blue))
    assert eye.kept(red, red, "a boat") == 1
    assert 0 <= eye.kept(red, blue, "a boat") <= 1


def test_a_folder_without_a_whole_clip_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CLIP, tmp_path / "text only")
    with pytest.raises(ModelError, match="text only holds no whole CLIP"):
        open_clip_eye(tmp_path / "text only")
