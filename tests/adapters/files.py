"""LoRA files for the tests, written as other programs write them: with safetensors' own code and without our hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

SD1_METADATA = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"}
UNET_MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT_MODULE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def pair(
    module: str, out_features: int = 8, in_features: int = 768, rank: int = 4, alpha: float | None = 2.0
) -> dict[str, Tensor]:
    """Returns the tensors of one LoRA layer with random weights."""
    generator = torch.Generator().manual_seed(len(module))
    tensors = {
        f"{module}.lora_down.weight": torch.randn(rank, in_features, generator=generator),
        f"{module}.lora_up.weight": torch.randn(out_features, rank, generator=generator),
    }
    return tensors | ({f"{module}.alpha": torch.tensor(alpha)} if alpha is not None else {})


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a file as another program would, without our hashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        safetensors.torch.save({key: tensor.clone() for key, tensor in tensors.items()}, dict(metadata) if metadata else None)
    )
    return path
