"""What a text encoder in training holds, counted while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.allocations import Allocations
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.models.family import TrainableModel
from lora_trainer.models.parts import list_layers
from lora_trainer.models.sizes import TextSizes
from lora_trainer.models.tape import Use
from lora_trainer.models.targets import select_layers


def count_text_encoder(sizes: TextSizes, use: Use) -> int:
    """Returns the bytes held at the end of its forward pass under autocast, as the loop makes it."""
    encoder: Any = CLIPTextModel(CLIPTextConfig(**sizes.transformers_config()))
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    targets = select_layers("text_encoder", {"text_encoder": list_layers("text_encoder", encoder)}, use.selection)
    model = cast(TrainableModel, SimpleNamespace(parts={"text_encoder": encoder}))
    LoraAdapter.inject(model, {"text_encoder": targets}, rank=use.rank, alpha=use.rank, dropout=0.0, seed=0)
    tokens = torch.zeros(use.batch_size, sizes.positions, dtype=torch.long)
    counted = Allocations()
    counted.leave_out(*encoder.parameters(), tokens)
    with counted, torch.autocast("cpu", torch.bfloat16):
        output = encoder(tokens).last_hidden_state
    assert output.requires_grad
    return counted.held
