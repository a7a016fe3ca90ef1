"""Tiny models of the real classes, with random weights, in folders as the hub has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from lora_trainer.bootstrap import ROOT

SIDE = 32
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    *SPECIAL,
    *dict.fromkeys(
        ["a", "boat", "in", "mist", "ink", "wash", "painting", "of", "the", "red", "hill", "at", "dawn", "by", "far", "pines"]
    ),
)


def make_clip(folder: Path) -> Path:
    """Makes a CLIP with the real tokenizer."""
    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407},
        vision_config={**layers, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    for path in (ROOT / "lora_trainer" / "models" / "clip_tokenizer").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def make_blip2(folder: Path) -> Path:
    """Makes a BLIP-2 with an OPT that knows a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import Blip2Processor

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))])  # as OPT's
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast.padding_side = "left"
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**layers, image_size=SIDE, patch_size=8).to_dict(),
        qformer_config=Blip2QFormerConfig(**layers, vocab_size=len(WORDS), encoder_hidden_size=16).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            init_std=1.0,  # else all pictures read alike
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=WORDS.index("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    try:
        Blip2Processor(images, fast, num_query_tokens=4).save_pretrained(folder)
    except TypeError:  # version 4.30 knows no number of queries
        Blip2Processor(images, fast).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "blip-2"
    return folder
