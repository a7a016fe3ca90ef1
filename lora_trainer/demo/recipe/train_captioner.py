"""Trains the miniature captioner: transformers' `BlipForConditionalGeneration` with small widths, on the base's scenes.

What it writes is a model folder as any BLIP has it, with a word list of its own in BERT's format: the code that loads the large
captioner loads this one.

    python -m lora_trainer.demo.recipe.train_captioner --work DIR [--minutes 35]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import string
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipConfig
from transformers.models.blip.modeling_blip import BlipForConditionalGeneration

from .datasets import say
from .paint import paint
from .scenes import SHAPES, caption, draw_scene
from .train_vae import to_tensor

log = logging.getLogger(__name__)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FADED_SHARE = 0.4  # of the landscapes
SHAPED_SHARE = 0.6
PAD, CLS, SEP = (SPECIALS.index(name) for name in ("[PAD]", "[CLS]", "[SEP]"))


def word_list() -> list[str]:
    """Returns the vocabulary: special tokens, all words of the captions, and letters for every other word a user may type."""
    rng = np.random.default_rng(0)
    words = set(re.findall(r"\w+|[^\w\s]", " ".join(caption(draw_scene(seed), rng) for seed in range(4000))))
    signs = set(string.ascii_lowercase + string.digits + ",.!?:;'-<>()&")
    return [*SPECIALS, *sorted(words | signs), *(f"##{sign}" for sign in string.ascii_lowercase + string.digits)]


def write_tokenizer(folder: Path) -> BertTokenizer:
    """Writes vocabulary, tokenizer and picture settings into the folder and returns the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(word_list()) + "\n", encoding="utf-8", newline="\n")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 64,
        "processor_class": "BlipProcessor",
    }
    _write_json(folder / "tokenizer_config.json", settings | special | {"model_input_names": ["input_ids", "attention_mask"]})
    picture: dict[str, Any] = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "size": {"height": 128, "width": 128},
    }
    picture |= {"do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True}
    _write_json(
        folder / "preprocessor_config.json", picture | {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    return BertTokenizer.from_pretrained(str(folder))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def build_captioner(num_words: int) -> BlipForConditionalGeneration:
    """Returns the untrained captioner: pictures of 128 pixels in pieces of 16, width 128."""
    width = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "attention_dropout": 0.0}
    vision = width | {"num_hidden_layers": 4, "image_size": 128, "patch_size": 16}
    text = width | {
        "vocab_size": num_words,
        "num_hidden_layers": 2,
        "encoder_hidden_size": 128,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        "sep_token_id": SEP,
        "pad_token_id": PAD,
        "is_decoder": True,
    }
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=128))


def draw_examples(work: Path, count: int) -> tuple[torch.Tensor, list[str]]:
    """Returns scenes as bytes `[count, 3, 128, 128]`, kept in `work`, and their plain captions."""
    path = work / "pictures.pt"
    if not path.exists():
        pictures = [np.asarray(paint(draw_scene(seed))) for seed in range(count)]
        torch.save(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), path)
    return torch.load(path), [caption(draw_scene(seed)) for seed in range(count)]


def fade(pictures: torch.Tensor) -> torch.Tensor:
    """Returns pictures `[B, 3, H, W]` in -1 to 1 as greys of random tone, half of them soft, all with a little grain.

    The large captioner has seen drawings and photographs without colour. So this one sees such landscapes, captioned without
    colours; ink wash and blueprints it has not seen.
    """
    count = len(pictures)
    grey = (pictures * torch.tensor([0.3, 0.59, 0.11]).view(3, 1, 1)).sum(1, keepdim=True) / 2 + 0.5
    if torch.rand(()) < 0.5:
        grey = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    dark, light = torch.rand(count, 1, 1, 1) * 0.4, 1 - torch.rand(count, 1, 1, 1) * 0.4
    toned = dark + (light - dark) * grey.clamp(0, 1) ** (0.6 + 1.2 * torch.rand(count, 1, 1, 1))
    return ((toned + 0.03 * torch.randn_like(toned)) * 2 - 1).clamp(-1, 1).expand(-1, 3, -1, -1)


def write_caption(model: BlipForConditionalGeneration, tokenizer: BertTokenizer, pictures: torch.Tensor) -> list[str]:
    """Returns a caption for each picture `[B, 3, 128, 128]` in -1 to 1, the likeliest word at each place."""
    with torch.no_grad():
        rows = model.generate(pixel_values=pictures, max_new_tokens=50, do_sample=False, num_beams=1)
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def train(work: Path, minutes: float, learning_rate: float = 1e-3, batch_size: int = 32, num_scenes: int = 10_000) -> None:
    """Trains for `minutes` of processor time; the folder `captioner` in `work` is rewritten every two, and continued if there."""
    torch.manual_seed(0)
    folder = work / "captioner"
    tokenizer = write_tokenizer(folder)
    model = build_captioner(len(word_list()))
    if (folder / "model.safetensors").exists():
        model = BlipForConditionalGeneration.from_pretrained(str(folder))
    model.train()
    # One word in ten is a shape, and for a long time the others lower the loss more easily. So the picture's pieces are asked for
    # the shape directly, too; this layer is thrown away.
    shape_layer = torch.nn.Linear(128, len(SHAPES) + 1)
    pictures, texts = draw_examples(work, num_scenes)
    colourless = [say("ink", draw_scene(seed)) for seed in range(num_scenes)]
    all_ids = tokenizer([*texts, *colourless], padding=True, return_tensors="pt").input_ids
    ids, colourless_ids = all_ids.split(num_scenes)
    shapes = torch.tensor([(*SHAPES, None).index(draw_scene(seed).shape) for seed in range(num_scenes)])
    with_shape = torch.nonzero(shapes < len(SHAPES)).flatten()
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *shape_layer.parameters()], betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    start = saved = time.process_time()
    for step in range(10**9):
        done = (time.process_time() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        # Shapes are what it learns last, so it sees them more often than there are.
        shaped, any_scene = with_shape[torch.randint(len(with_shape), (batch_size,))], torch.randint(num_scenes, (batch_size,))
        rows = torch.where(torch.rand(batch_size) < SHAPED_SHARE, shaped, any_scene)
        x, words = pictures[rows].float() / 127.5 - 1, ids[rows]
        if torch.rand(()) < 0.5:
            x = x.flip(3)  # no caption says left or right
        faded = (torch.rand(batch_size) < FADED_SHARE) & (shapes[rows] == len(SHAPES))
        if faded.any():
            x[faded], words[faded] = fade(x[faded]), colourless_ids[rows[faded]]
        words = words[:, : int((words != PAD).sum(1).max())]
        labels = words.masked_fill(words == PAD, -100)
        output = model(pixel_values=x, input_ids=words, attention_mask=(words != PAD).long(), labels=labels)
        shape_loss = F.cross_entropy(shape_layer(output.image_embeds[:, 1:].mean(1)), shapes[rows])
        optimizer.zero_grad()
        (output.loss + shape_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if time.process_time() - saved > 60:
            saved = time.process_time()
            model.save_pretrained(str(folder))
            log.info("step %d, %.0f %%: loss %.4f, of the shapes %.4f", step, 100 * done, output.loss.item(), shape_loss.item())
    model.eval().save_pretrained(str(folder))
    for seed in range(10_000_000, 10_000_008):
        picture = to_tensor(paint(draw_scene(seed)))[None]
        log.info("%s | %s", caption(draw_scene(seed)), write_caption(model, tokenizer, picture)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=35)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.work, arguments.minutes)
