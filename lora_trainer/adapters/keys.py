"""How the WebUI's LoRA keys are read: "<module>.<ending>", which endings make which kind of LoRA, and whose module it is.

Only the part before the first dot names the module. Standard library only. Sources: the endings that AUTOMATIC1111's Lora
extension tests for, and the names that kohya's sd-scripts, PEFT and diffusers write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = {"lora_unet_": "UNet", "lora_te1_": "text encoder 1", "lora_te2_": "text encoder 2", "lora_te_": "text encoder"}

# Kind -> an ending that only it has, in the order in which they are looked for.
KIND_ENDINGS = {
    "DoRA": (".dora_scale",),
    "LoHa": (".hada_w1_a",),
    "LoKr": (".lokr_w1", ".lokr_w1_a"),
    "(IA)^3": (".on_input",),
    "GLoRA": (".a1.weight",),
    "OFT": (".oft_diag", ".oft_blocks"),
    "full difference": (".diff",),
    "norm": (".w_norm",),
    "LoRA": (".lora_up.weight",),
}
# What a file without effect in the WebUI, or that is no LoRA at all, is recognised by.
FOREIGN_PATTERNS = {
    "PEFT": r"base_model\.model\.|.*\.lora_[AB](\.\w+)?\.weight$",
    "diffusers": r"(unet|text_encoder|text_encoder_2|transformer)\..*(lora|processor)",
    "Flux, SD3 or another transformer": r"lora_unet_(double_|single_|joint_)?blocks_|lora_te3_|lora_transformer_",
    "a whole checkpoint": r"(model\.diffusion_model|cond_stage_model|first_stage_model|conditioner)\.",
    "a textual inversion": r"(emb_params|string_to_param|clip_[lg])($|\.)",
    "a VAE": r"(encoder|decoder)\.(conv_in|mid|mid_block)",
}


def split_key(key: str) -> tuple[str, str]:
    """Returns the module and the ending of a key, as the WebUI splits it: at the first dot."""
    module, _, ending = key.partition(".")
    return module, ending


def part_of(module: str) -> str | None:
    """Returns the part of the base model that a module is of, or None when the WebUI knows none of that name."""
    return next((part for prefix, part in PARTS.items() if module.startswith(prefix)), None)


def is_open_clip(module: str, *, is_sd2: bool) -> bool:
    """Whether a module is of an OpenCLIP text encoder, whose attention takes all four projections or none."""
    return module.startswith("lora_te2_") or (is_sd2 and module.startswith("lora_te_"))


def kinds_of(keys: Iterable[str]) -> list[str]:
    """Returns the kinds of LoRA that keys in the WebUI's form hold; "LoRA" names convolutions too."""
    keys = list(keys)
    return [kind for kind, endings in KIND_ENDINGS.items() if any(key.endswith(endings) for key in keys)]


def foreign_form(keys: Iterable[str]) -> str | None:
    """Returns whose form keys are in that the WebUI does not apply, or None."""
    keys = list(keys)
    for form, pattern in FOREIGN_PATTERNS.items():
        if any(re.match(pattern, key) for key in keys):
            return form
    return None
