"""Writes what was trained as the files that ship: a checkpoint in the original layout with its yaml, a CLIP folder, a captioner.

python -m lora_trainer.demo.recipe.export --work DIR [--into DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from transformers.models.blip.modeling_blip import BlipForConditionalGeneration

from lora_trainer.models.convert import clip_to_original, unet_to_original, vae_to_original
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes

from .train_base import build_schedule, build_text_encoder, build_unet
from .train_captioner import write_tokenizer
from .train_vae import build_vae

DEMO = Path(__file__).parents[1]
TOKENIZER = DEMO.parent / "models" / "clip_tokenizer"
Tensors = dict[str, torch.Tensor]


def gather_weights(work: Path) -> tuple[Tensors, float]:
    """Returns the checkpoint's tensors under the original names in float16, and the latents' scale.

    Raises:
        ValueError: a weight does not fit into float16.
    """
    state = torch.load(work / "base.pt")
    networks = {"unet": build_unet(), "encoder": build_text_encoder()}
    for name, network in networks.items():
        network.load_state_dict({key[len(name) + 1 :]: t for key, t in state["average"].items() if key.startswith(f"{name}.")})
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt"))
    unet_tensors = unet_to_original(networks["unet"].state_dict(), UNetSizes.from_diffusers(networks["unet"].config))
    vae_tensors = vae_to_original(vae.state_dict(), VaeSizes.from_diffusers(vae.config))
    text_sizes = TextSizes.from_transformers(networks["encoder"].config.to_dict(), is_projected=False)
    text_tensors = {k: t for k, t in networks["encoder"].state_dict().items() if not k.endswith("position_ids")}
    tensors = {f"model.diffusion_model.{k}": t for k, t in unet_tensors.items()}
    tensors |= {f"first_stage_model.{k}": t for k, t in vae_tensors.items()}
    tensors |= {f"cond_stage_model.transformer.{k}": t for k, t in clip_to_original(text_tensors, text_sizes).items()}
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has values beyond float16; train again with a smaller learning rate.")
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors, state["scale"]


def write_checkpoint_yaml(path: Path, scale: float) -> None:
    """Writes the yaml from which a WebUI builds the model, in the words of the original LDM code."""
    schedule, unet, vae = build_schedule().config, build_unet().config, build_vae().config
    channels = unet.block_out_channels
    unet_params = {
        "image_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": channels[0],
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": unet.layers_per_block,
        "channel_mult": [width // channels[0] for width in channels],
        "num_heads": unet.attention_head_dim,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet.cross_attention_dim,
        "use_checkpoint": False,
        "legacy": False,
    }
    vae_params = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": vae.block_out_channels[0],
        "ch_mult": [width // vae.block_out_channels[0] for width in vae.block_out_channels],
        "num_res_blocks": vae.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "num_timesteps_cond": 1,
        "timesteps": schedule.num_train_timesteps,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 16,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": round(scale, 6),
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet_params},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae_params, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": "clip"}},
    }
    content = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8", newline="\n")


def write_clip_folder(folder: Path) -> None:
    """Writes the text encoder's configuration and CLIP's vocabulary, without weights: those are in the checkpoint."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    config = build_text_encoder().config.to_dict()
    wanted: tuple[str, ...] = (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "projection_dim",
    )
    wanted += ("max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
    content = {"architectures": ["CLIPTextModel"]} | {name: config[name] for name in wanted}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def write_captioner(captioner: BlipForConditionalGeneration, folder: Path) -> None:
    """Writes the captioner's folder, weights in float16.

    The output layer shares its weight with the word embeddings. Transformers 5 leaves such a weight out and version 4 then
    makes a random one, so it is written here.
    """
    write_tokenizer(folder)
    captioner.config.save_pretrained(str(folder))
    tensors = {name: tensor.half().clone() for name, tensor in captioner.state_dict().items() if tensor.is_floating_point()}
    words = next(tensor for name, tensor in tensors.items() if name.endswith("word_embeddings.weight"))
    tensors.setdefault("text_decoder.cls.predictions.decoder.weight", words.clone())
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def export(work: Path, into: Path) -> None:
    """Writes `base/` and `captioner/` below `into`, weights in float16."""
    base = into / "base"
    base.mkdir(parents=True, exist_ok=True)
    tensors, scale = gather_weights(work)
    save_file(tensors, str(base / "miniature.safetensors"), metadata={"format": "pt"})
    write_checkpoint_yaml(base / "miniature.yaml", scale)
    write_clip_folder(base / "clip")
    write_captioner(BlipForConditionalGeneration.from_pretrained(str(work / "captioner")), into / "captioner")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=DEMO)
    arguments = parser.parse_args()
    export(arguments.work, arguments.into)
