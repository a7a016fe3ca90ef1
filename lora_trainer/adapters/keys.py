"""How the WebUI's LoRA keys are read: "<module>.<ending>", which endings make which kind of LoRA, and whose module it is.

Only the part before the first dot names the module. Standard library only. Sources: the endings that AUTOMATIC1111's Lora
extension tests for, and the names that kohya's sd-scripts, PEFT and diffusers write.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = {
    "lora_unet_": "UNet",
    "lora_te1_": "text encoder 1",
    "lora_te2_": "text encoder 2",
    "lora_te_": "text encoder",
    "oft_unet_": "UNet",
}

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
_CONVERT = "Export it again here, or convert it to kohya's key names."
# Form -> what its keys look like, and what to do with such a file.
FOREIGN_FORMS = {
    "PEFT": (r"base_model\.model\.|(?!lora_(unet|te))(.*\.)?lora_[AB](\.\w+)?\.weight$", _CONVERT),
    "diffusers": (r"(unet|text_encoder|text_encoder_2|transformer)\..*(lora|processor)", _CONVERT),
    "Flux, SD3 or another transformer": (
        r"lora_unet_(double_|single_|joint_)?blocks_|lora_te3_|lora_transformer_",
        "It is made for another kind of base model and cannot be converted.",
    ),
    "a whole checkpoint": (
        r"(model\.diffusion_model|cond_stage_model|first_stage_model|conditioner)\.",
        "Move it to models/Stable-diffusion.",
    ),
    "a textual inversion": (r"(emb_params|string_to_param|clip_[lg])($|\.)", "Move it to the embeddings folder."),
    "a VAE": (r"(encoder|decoder)\.(conv_in|mid|mid_block)", "Move it to models/VAE."),
}


def split_key(key: str) -> tuple[str, str]:
    """Returns the module and the ending of a key, as the WebUI splits it: at the first dot."""
    module, _, ending = key.partition(".")
    return module, ending


def part_of(module: str) -> str | None:
    """Returns the part of the base model that a module is of, or None when the WebUI knows none of that name."""
    return next((part for prefix, part in PARTS.items() if module.startswith(prefix)), None)


def group_by_module(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns the keys by module and ending. Embeddings that travel in the file ("bundle_emb") are no module."""
    modules: dict[str, dict[str, str]] = {}
    for key in keys:
        module, ending = split_key(key)
        if module != "bundle_emb":
            modules.setdefault(module, {})[ending] = key
    return modules


def is_open_clip(module: str, *, is_sd2: bool) -> bool:
    """Whether a module is of an OpenCLIP text encoder, whose attention takes all four projections or none."""
    return module.startswith("lora_te2_") or (is_sd2 and module.startswith("lora_te_"))


def split_attention(module: str) -> tuple[str, str]:
    """Returns the attention that a text encoder's projection belongs to, and which one it is; "" twice for other modules."""
    attention, _, projection = module.rpartition("_self_attn_")
    return (attention, projection) if attention and projection in ATTENTION_PROJECTIONS else ("", "")


def incomplete_attentions(modules: Collection[str], *, is_sd2: bool) -> list[str]:
    """Returns the OpenCLIP attentions that have some of the four projections; the WebUI changes them as a whole or not at all."""
    found: dict[str, None] = {}
    for module in modules:
        attention, projection = split_attention(module)
        if not projection or not is_open_clip(module, is_sd2=is_sd2):
            continue
        if not all(f"{attention}_self_attn_{other}" in modules for other in ATTENTION_PROJECTIONS):
            found[attention] = None
    return list(found)


def kinds_of(keys: Iterable[str]) -> list[str]:
    """Returns the kinds of LoRA that keys in the WebUI's form hold; "LoRA" names convolutions too."""
    keys = list(keys)
    return [kind for kind, endings in KIND_ENDINGS.items() if any(key.endswith(endings) for key in keys)]


def foreign_form(keys: Iterable[str]) -> str | None:
    """Returns which of `FOREIGN_FORMS`, that the WebUI does not apply, keys are in, or None."""
    keys = list(keys)
    for form, (pattern, _) in FOREIGN_FORMS.items():
        if any(re.match(pattern, key) for key in keys):
            return form
    return None
