"""What AUTOMATIC1111's WebUI (1.10.1) does with a LoRA file, written anew from its behaviour: names, scaling, and what it drops.

It works on a checkpoint's tensors in the original single-file layout, and shares no code with the export that it judges.
A layer of the WebUI is called by its path in the model with "_" for ".": "diffusion_model_input_blocks_1_1_proj_in".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Where the WebUI finds the parts of a checkpoint, and how its names of their layers begin.
ROOTS = (
    (re.compile(r"model\.(diffusion_model\..+)"), "{0}"),
    (re.compile(r"cond_stage_model\.(.+)"), "{0}"),
    (re.compile(r"conditioner\.embedders\.(\d+)\.(.+)"), "{0}_{1}"),
)
RESNET_ENDS = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


@dataclass
class Applied:
    """A checkpoint with a LoRA in it.

    Attributes:
        tensors: the checkpoint's tensors; changed ones are new.
        dropped: keys of the file that matched no layer. The WebUI says nothing about them.
        skipped: layers that matched and were not changed, because an attention was not complete or a shape did not fit.
    """

    tensors: dict[str, Tensor]
    dropped: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)


def apply_lora(
    checkpoint: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
    te: float = 1.0,
    unet: float | None = None,
    dyn: int | None = None,
) -> Applied:
    """Returns the checkpoint under `<lora:name:te:unet:dyn=dyn>`; without `unet` the first weight counts for both."""
    layers = {_layer_name(key): key for key in checkpoint if key.endswith(".weight") and _layer_name(key)}
    attentions = {_layer_name(key, ".in_proj_weight"): key for key in checkpoint if key.endswith(".in_proj_weight")}
    is_sd2 = any("model_transformer_resblocks" in name and not name.startswith("1_") for name in attentions)
    applied = Applied(dict(checkpoint))
    networks: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        module, _, ending = key.partition(".")
        name = _find_layer(module, {*layers, *attentions}, is_sd2=is_sd2)
        if name is None:
            applied.dropped.add(key)
        else:
            networks.setdefault(name, {})[ending] = tensor
    weights = {"te": te, "unet": te if unet is None else unet}
    deltas = {name: _delta(name, network, weights, dyn) for name, network in networks.items()}
    for name, key in layers.items():
        # An attention's own output layer is no layer of its own: the attention uses its weight directly.
        if name in deltas and name.removesuffix("_out_proj") not in attentions:
            _add(applied, name, key, deltas[name])
    for name, key in attentions.items():
        _apply_attention(applied, name, key, deltas)
    return applied


def sd_version(metadata: Mapping[str, str]) -> str:
    """Returns the class that the WebUI gives a file, from its metadata alone."""
    if not metadata:
        return "Unknown"
    if str(metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
        return "SDXL"
    return "SD2" if metadata.get("ss_v2", "") == "True" else "SD1"


def _layer_name(key: str, end: str = ".weight") -> str:
    for pattern, form in ROOTS:
        match = pattern.fullmatch(key.removesuffix(end))
        if match:
            return form.format(*match.groups()).replace(".", "_")
    return ""


def _find_layer(module: str, layers: set[str], *, is_sd2: bool) -> str | None:
    """Returns the name under which a file's module is kept, or None when it matches nothing."""
    name = diffusers_to_original(module, is_sd2=is_sd2)
    if name in layers or (re.search(r"_[qkv]_proj$", name) and name[: -len("_q_proj")] in layers):
        return name
    if "lora_unet" in module:
        name = module.replace("lora_unet", "diffusion_model")
        return name if name in layers else None
    for beginning in ("0_transformer_text_model", "transformer_text_model"):
        name = module.replace("lora_te1_text_model", beginning)
        if "lora_te1_text_model" in module and name in layers:
            return name
    return None


def diffusers_to_original(module: str, *, is_sd2: bool) -> str:
    """Returns the WebUI's translation of a module's name; a name that it does not know stays as it is."""
    if module.startswith("lora_unet_"):
        return _unet_name(module.removeprefix("lora_unet_")) or module
    match = re.match(r"lora_te(2?)_text_model_encoder_layers_(\d+)_(.+)", module)
    if not match:
        return module
    second, number, end = match.groups()
    if not second and not is_sd2:
        return f"transformer_text_model_encoder_layers_{number}_{end}"
    for old, new in (("mlp_fc1", "mlp_c_fc"), ("mlp_fc2", "mlp_c_proj"), ("self_attn", "attn")):
        if old in end:
            end = end.replace(old, new)
            break
    return f"{'1_' if second else ''}model_transformer_resblocks_{number}_{end}"


def _unet_name(name: str) -> str | None:
    for beginning, original in (("conv_in", "input_blocks_0_0"), ("conv_out", "out_2")):
        if name.startswith(beginning):
            return f"diffusion_model_{original}{name.removeprefix(beginning)}"
    if match := re.match(r"time_embedding_linear_(\d+)(.*)", name):
        return f"diffusion_model_time_embed_{2 * int(match[1]) - 2}{match[2]}"
    if match := re.match(r"mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        position = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"diffusion_model_middle_block_{position}_{_resnet_end(match[1], match[3])}"
    # Always counted as if a level had two blocks going down and three going up: true of every Stable Diffusion.
    if match := re.match(r"(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        side, level, kind, block = match[1], int(match[2]), match[3], int(match[4])
        position = f"input_blocks_{1 + 3 * level + block}" if side == "down" else f"output_blocks_{3 * level + block}"
        return f"diffusion_model_{position}_{int(kind == 'attentions')}_{_resnet_end(kind, match[5])}"
    if match := re.match(r"down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"diffusion_model_input_blocks_{3 + 3 * int(match[1])}_0_op"
    # Takes for granted that the first level going up has no attention, which is not so in SDXL.
    if match := re.match(r"up_blocks_(\d+)_upsamplers_0_conv", name):
        level = int(match[1])
        return f"diffusion_model_output_blocks_{2 + 3 * level}_{2 if level else 1}_conv"
    return None


def _resnet_end(kind: str, end: str) -> str:
    return RESNET_ENDS.get(end, end) if kind == "resnets" else end


def _delta(name: str, network: Mapping[str, Tensor], weights: Mapping[str, float], dyn: int | None) -> Tensor:
    up, down = network["lora_up.weight"].float(), network["lora_down.weight"].float()
    rank = down.shape[0]
    scale = network["alpha"].item() / rank if "alpha" in network else 1.0
    product = up.flatten(1)[:, :dyn] @ down.flatten(1)[:dyn]
    weight = weights["te" if "transformer" in name[:20] else "unet"]
    return (product * scale * weight).reshape(up.shape[0], *down.shape[1:])


def _add(applied: Applied, name: str, key: str, delta: Tensor) -> None:
    weight = applied.tensors[key]
    if delta.numel() != weight.numel() or delta.shape[0] != weight.shape[0]:
        applied.skipped.add(name)
    else:
        applied.tensors[key] = weight + delta.reshape(weight.shape).to(weight.dtype)


def _apply_attention(applied: Applied, name: str, key: str, deltas: Mapping[str, Tensor]) -> None:
    """Changes an OpenCLIP attention, whose q, k and v are rows of one weight: all four projections or none."""
    names = [f"{name}_{projection}" for projection in ("q_proj", "k_proj", "v_proj", "out_proj")]
    present = [projection for projection in names if projection in deltas]
    if len(present) < 4:
        applied.skipped.update(present)
        return
    weight = applied.tensors[key].clone()
    for rows, projection in zip(weight.chunk(3), names, strict=False):
        rows += deltas[projection].to(weight.dtype)
    applied.tensors[key] = weight
    _add(applied, names[3], key.replace("in_proj_weight", "out_proj.weight"), deltas[names[3]])
