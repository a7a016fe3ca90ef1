"""LoRAs as a prompt names them: `<lora:ink:0.7> <lora:seal:0.5:0.8>`, read by the WebUI's rules. Standard library only.

A tag is `<lora:name:text encoder weight:UNet weight:rank cut>`. All but the name may be left out or named, as in
`<lora:seal:te=0.5:unet=0.8>`: the UNet takes the text encoder's weight where it has none of its own, and that is 1 where none is
given. The WebUI takes every `<word:...>` out of the prompt, whatever the word; the spaces around it stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_trainer.errors import ConfigError, Problem

_TAG = re.compile(r"<(\w+):([^>]+)>")
_NAMED = ("te", "unet", "dyn")
_POSITIONS = ("name", *_NAMED)


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and how strongly it acts, as in `<lora:name:text_encoder_weight:unet_weight>`.

    Attributes:
        path: a file in the WebUI's form.
        unet_weight: 0 for none; negative weights push away from what was learned.
        text_encoder_weight: None for the same as `unet_weight`.
        rank_cut: only that many of each layer's ranks act, the first ones; None for all. The factor alpha / rank stays.
    """

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float | None = None
    rank_cut: int | None = None

    def weight_of(self, part: str) -> float:
        """Returns the weight for a part of the base, "unet" or a text encoder."""
        if part == "unet" or self.text_encoder_weight is None:
            return self.unet_weight
        return self.text_encoder_weight

    def scaled(self, factor: float) -> LoraUse:
        """Returns the same file with its weights multiplied."""
        text = None if self.text_encoder_weight is None else self.text_encoder_weight * factor
        return replace(self, unet_weight=self.unet_weight * factor, text_encoder_weight=text)

    @property
    def tag(self) -> str:
        """What to write in the WebUI's prompt: "<lora:ink:0.7>"."""
        weights = f"{self.unet_weight:g}"
        if self.text_encoder_weight not in (None, self.unet_weight):
            weights = f"{self.text_encoder_weight:g}:{weights}"
        cut = "" if self.rank_cut is None else f":dyn={self.rank_cut}"
        return f"<lora:{self.path.stem}:{weights}{cut}>"


def parse_prompt(prompt: str, find: Callable[[str], Path]) -> tuple[str, tuple[LoraUse, ...]]:
    """Returns a prompt without its tags, as the WebUI encodes it, and the LoRAs that it names, in its order.

    Args:
        find: returns the file of a name; whatever it raises ends the parsing, see `library.find_lora`.

    Raises:
        ConfigError: tags that the WebUI cannot read, or would not read as they look; all of them.
    """
    problems: list[Problem] = []
    found: list[tuple[str, dict[str, float]]] = []
    for match in _TAG.finditer(prompt):
        if match[1] == "lora":
            values, problem = _parse_tag(match[0], match[2])
            if problem:
                problems.append(Problem("prompt", problem))
            else:
                found.append(values)
    names = [name for name, _ in found]
    problems += [
        Problem(
            "prompt",
            f"<lora:{name}> stands {names.count(name)} times; the WebUI would add it as often, with the last weight each time.",
            hint="Write it once.",
        )
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise ConfigError(problems)
    uses = tuple(_make_use(find(name), values) for name, values in found)
    return _TAG.sub("", prompt), uses


def write_prompt(prompt: str, uses: Sequence[LoraUse]) -> str:
    """Returns a prompt followed by the tags of its LoRAs, to be pasted into the WebUI; those without weight are left out."""
    return " ".join([prompt.rstrip(), *(use.tag for use in uses if use.unet_weight or use.text_encoder_weight)])


def _parse_tag(tag: str, inside: str) -> tuple[tuple[str, dict[str, float]], str]:
    """Returns a tag's name and its weights by "te", "unet", "dyn"; and what is wrong with it, "" for nothing."""
    positional, texts = [], {}
    for item in inside.split(":"):
        name, equals, value = item.partition("=")
        if equals and "=" not in value:
            texts[name] = value
        else:
            positional.append(item)
    nothing: tuple[str, dict[str, float]] = ("", {})
    if not positional or not positional[0].strip():
        return nothing, f"{tag} names no LoRA. Write <lora:name:0.7>."
    if unknown := [name for name in texts if name not in _NAMED]:
        return nothing, f"{tag} sets {unknown[0]!r}, which the WebUI passes over. Known: te, unet, dyn; such as te=0.5."
    if len(positional) > len(_POSITIONS):
        return nothing, f"{tag} has {len(positional) - 1} values; the WebUI reads three: text encoder, UNet, rank cut."
    texts = {**dict(zip(_NAMED, positional[1:], strict=False)), **texts}
    values: dict[str, float] = {}
    for name, text in texts.items():
        try:
            values[name] = int(text) if name == "dyn" else float(text)
        except ValueError:
            values[name] = float("nan")
        kind = "a whole number from 1, such as 8" if name == "dyn" else "a number, such as 0.7"
        if not abs(values[name]) < float("inf") or (name == "dyn" and values[name] < 1):
            return nothing, f"{text!r} in {tag} is not {kind}. The WebUI would apply none of the prompt's LoRAs."
    return (positional[0], values), ""


def _make_use(path: Path, values: dict[str, float]) -> LoraUse:
    text_weight = values.get("te", 1.0)
    unet_weight = values.get("unet", text_weight)
    cut = int(values["dyn"]) if "dyn" in values else None
    return LoraUse(path, unet_weight, None if text_weight == unet_weight else text_weight, cut)
