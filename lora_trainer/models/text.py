"""Encodes captions with CLIP text encoders as the WebUI encodes prompts.

Each chunk of 75 tokens is encoded on its own, and the hidden states are joined along the tokens. Layers behind the one whose
output is used are cut off when an encoder is built: they would cost time, and a LoRA on them could learn nothing.

Shapes: B captions, n chunks, C the encoder's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.models.tokenizer import END_TOKEN, frame_chunk, split_chunks

CLIP_PADDING = END_TOKEN
OPEN_CLIP_PADDING = 0


def tokenize_captions(captions: Sequence[str], pad_token: int) -> Tensor:
    """Returns token ids [B, n, 77]; shorter captions are filled up with empty chunks to the longest's number."""
    chunks = [split_chunks(caption) for caption in captions]
    num_chunks = max(len(each) for each in chunks)
    padded = [[*each, *([[]] * (num_chunks - len(each)))] for each in chunks]
    return torch.tensor([[frame_chunk(chunk, pad_token) for chunk in each] for each in padded])


def encode_last(encoder: nn.Module, token_ids: Tensor) -> Tensor:
    """Returns the encoder's output behind its final norm, [B, n * 77, C]."""
    hidden: Tensor = encoder(_flatten_chunks(encoder, token_ids)).last_hidden_state
    return hidden.reshape(token_ids.shape[0], -1, hidden.shape[-1])


def encode_with_pooled(encoder: nn.Module, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the last layer's input, [B, n * 77, C], and the first chunk's projected pooled embedding, [B, P]."""
    output = encoder(_flatten_chunks(encoder, token_ids), output_hidden_states=True)
    hidden = output.hidden_states[-2]
    pooled = output.text_embeds.reshape(*token_ids.shape[:2], -1)[:, 0]
    return hidden.reshape(token_ids.shape[0], -1, hidden.shape[-1]), pooled


def keep_layers(encoder: nn.Module, num_layers: int, *, keeps_final_norm: bool) -> None:
    """Cuts an encoder off behind its first layers, and takes its final norm away where the hidden state is used without it."""
    model: Any = getattr(encoder, "text_model", encoder)
    model.encoder.layers = model.encoder.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    if not keeps_final_norm:
        model.final_layer_norm = nn.Identity()


def _flatten_chunks(encoder: nn.Module, token_ids: Tensor) -> Tensor:
    return token_ids.flatten(0, 1).to(next(encoder.parameters()).device)
