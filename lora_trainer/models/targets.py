"""Which modules of a denoiser or text encoder a LoRA goes into, by presets and by projection names of either convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.registry import did_you_mean

PRESETS = ("attention", "attention_ff", "all_linear")

# What each word means in a denoiser and in a text encoder, as ends of module names.
_UNET_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNET_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
_TEXT_FEED_FORWARD = ("mlp.fc1", "mlp.fc2")
_PAIRS = tuple(zip(_UNET_ATTENTION + _UNET_FEED_FORWARD, _TEXT_ATTENTION + _TEXT_FEED_FORWARD, strict=True))
_OTHER_SPELLINGS = {"to_out": "to_out.0", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "o_proj": "out_proj"}


def select_layers(part: str, layers: Mapping[str, Mapping[str, str]], selection: Sequence[str]) -> list[str]:
    """Returns the names of a part's modules that the selection means, in the module's order.

    Args:
        layers: `parts.list_layers` of every part, by part.
        selection: presets, projection names, or "conv".

    Raises:
        ConfigError: a word matches no module of any part.
    """
    problems = [
        _describe_unknown(word, layers)
        for word in selection
        if not any(_matches(name, kind, word, each) for each in layers for name, kind in layers[each].items())
    ]
    if problems or not selection:
        raise ConfigError(
            problems or [Problem("target_modules", f"is empty; allowed: {', '.join(PRESETS)}, or projection names.")]
        )
    return [name for name, kind in layers[part].items() if any(_matches(name, kind, word, part) for word in selection)]


def _matches(name: str, kind: str, word: str, part: str) -> bool:
    if word == "all_linear":
        return kind == "linear"
    if word == "conv":
        return kind == "conv"
    return any(name == end or name.endswith(f".{end}") for end in _ends(word, is_unet=part == "unet"))


def _ends(word: str, *, is_unet: bool) -> tuple[str, ...]:
    """Returns the ends of module names that a word means in a denoiser or a text encoder."""
    attention, feed_forward = (_UNET_ATTENTION, _UNET_FEED_FORWARD) if is_unet else (_TEXT_ATTENTION, _TEXT_FEED_FORWARD)
    if word == "attention":
        return attention
    if word == "attention_ff":
        return attention + feed_forward
    word = _OTHER_SPELLINGS.get(word, word)
    return next((((pair[0],) if is_unet else (pair[1],)) for pair in _PAIRS if word in pair), (word,))


def _describe_unknown(word: str, layers: Mapping[str, Mapping[str, str]]) -> Problem:
    names = sorted({_short(name) for each in layers.values() for name in each})
    return Problem(
        "target_modules",
        f"{word!r} names no layer of this model{did_you_mean(word, (*PRESETS, 'conv', *names))}",
        hint=f"Allowed: {', '.join((*PRESETS, 'conv'))}, or names of layers: {', '.join(names)}.",
    )


def _short(name: str) -> str:
    """Returns the end of a module's name that says what it is: "to_q", "to_out.0"."""
    words = name.split(".")
    return ".".join(words[-2:]) if words[-1].isdigit() else words[-1]
