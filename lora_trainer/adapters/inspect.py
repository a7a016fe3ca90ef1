"""What a LoRA file from anywhere is: its form, kind, base, parts, ranks and health. Reads it without torch.

The WebUI says nothing about keys that it does not know, so a file can load and do nothing. This tells beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lora_trainer.adapters.container import model_hash, read_array, read_header
from lora_trainer.adapters.keys import foreign_form, group_by_module, kinds_of, part_of
from lora_trainer.models.header import Header

WEBUI_FORM = "WebUI"
CROSS_ATTENTION_WIDTHS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
HashState = Literal["right", "wrong", "missing"]


@dataclass(frozen=True)
class PartReport:
    """The layers of one part of the base.

    Attributes:
        name: "UNet", "text encoder", "text encoder 1" or "text encoder 2".
        num_layers: modules that the file names.
        num_silent: those of them without any effect; pairs of zeros that complete an OpenCLIP attention are such.
        ranks, alphas, scales: the different values, of the layers with effect when there are any. No alpha is scale 1.
    """

    name: str
    num_layers: int
    num_silent: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class FileReport:
    """What `inspect_file` found.

    Attributes:
        form: "WebUI", or in whose form the keys are that the WebUI does not apply ("PEFT", "diffusers", ...), or "unknown".
        kinds: of LoRA: "LoRA", "DoRA", "LoHa", ...; empty when none was recognised.
        webui_class: "SD1", "SD2", "SDXL" or "Unknown": the base that the WebUI shows the card for, from the metadata.
        possible_bases: what the keys and shapes allow of "SD1", "SD2", "SDXL".
        num_unplaced: modules whose name belongs to no part of a Stable Diffusion model.
        alias: the name in `<lora:alias:1>`.
        hash_state: of `sshs_model_hash`, computed anew.
        non_finite: modules with NaN or infinity in them.
        has_effect: whether any layer changes the base; None for kinds whose effect is not examined.
        notes: further findings, one sentence each.
    """

    path: Path
    file_bytes: int
    form: str
    kinds: tuple[str, ...]
    webui_class: str
    possible_bases: tuple[str, ...]
    parts: tuple[PartReport, ...]
    num_unplaced: int
    dtypes: tuple[str, ...]
    alias: str
    hash_state: HashState
    non_finite: tuple[str, ...]
    has_effect: bool | None
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def inspect_file(path: Path) -> FileReport:
    """Returns what a LoRA file is. Reads all of it.

    Raises:
        AdapterError: it is missing, empty, truncated or no safetensors file.
    """
    header = read_header(path)
    form = foreign_form(header.shapes)
    modules = group_by_module(header.shapes)
    placed = {module: keys for module, keys in modules.items() if part_of(module)}
    if form is None:
        form = WEBUI_FORM if placed else "unknown"
    kinds = tuple(kinds_of(header.shapes)) if form == WEBUI_FORM else ()
    # Nothing of another form is applied, so its numbers say nothing; a whole checkpoint would take long to read.
    silent, non_finite = _read_weights(header, modules) if form == WEBUI_FORM else (set(), [])
    examined = {module for module, keys in placed.items() if "lora_up.weight" in keys and "dora_scale" not in keys}
    stored = header.metadata.get("sshs_model_hash", "")
    return FileReport(
        path=path,
        file_bytes=path.stat().st_size,
        form=form,
        kinds=kinds,
        webui_class=webui_class(header.metadata),
        possible_bases=possible_bases(header, placed),
        parts=_report_parts(header, placed, silent) if form == WEBUI_FORM else (),
        num_unplaced=len(modules) - len(placed),
        dtypes=tuple(sorted({entry.dtype for key, entry in header.entries.items() if not key.endswith(".alpha")})),
        alias=header.metadata.get("ss_output_name", path.stem),
        hash_state="missing" if not stored else "right" if stored == model_hash(path) else "wrong",
        non_finite=tuple(non_finite),
        has_effect=True if examined - silent else False if examined and len(examined) == len(placed) else None,
        metadata=header.metadata,
        notes=_find_notes(header, placed),
    )


def webui_class(metadata: Mapping[str, str]) -> str:
    """Returns the base that the WebUI takes a file for, by its metadata alone: "SD1", "SD2", "SDXL" or "Unknown"."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def possible_bases(header: Header, modules: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Returns which of "SD1", "SD2", "SDXL" the names and shapes of a file in the WebUI's form allow."""
    if any(module.startswith(("lora_te1_", "lora_te2_")) for module in modules):
        return ("SDXL",)
    for module, keys in modules.items():
        down = header.shapes.get(keys.get("lora_down.weight", ""), ())
        if len(down) >= 2 and module.endswith(("_attn2_to_k", "_attn2_to_v")):
            base = CROSS_ATTENTION_WIDTHS.get(down[1])
            if base:
                return (base,)
    if any(module.startswith("lora_te_") for module in modules):
        return ("SD1", "SD2")
    # The original names of a UNet's layers are those that SDXL's files have; the WebUI finds SD1's by them too.
    if any(module.startswith(("lora_unet_input_blocks_", "lora_unet_output_blocks_")) for module in modules):
        return ("SDXL",)
    return ("SD1", "SD2", "SDXL") if modules else ()


def _read_weights(header: Header, modules: Mapping[str, Mapping[str, str]]) -> tuple[set[str], list[str]]:
    """Returns the modules whose pair multiplies to zero, and those with values that are not finite."""
    silent, non_finite = set(), []
    for module, keys in modules.items():
        is_finite, is_silent = True, False
        for ending, key in keys.items():
            values = read_array(header, key)
            if values is None:
                continue
            is_finite = is_finite and bool(np.isfinite(values).all())
            is_silent = is_silent or (ending in ("lora_up.weight", "lora_down.weight", "alpha") and not values.any())
        if is_silent:
            silent.add(module)
        if not is_finite:
            non_finite.append(module)
    return silent, non_finite


def _report_parts(header: Header, modules: Mapping[str, Mapping[str, str]], silent: set[str]) -> tuple[PartReport, ...]:
    by_part: dict[str, list[str]] = {}
    for module in modules:
        by_part.setdefault(part_of(module) or "", []).append(module)
    reports = []
    for part, names in sorted(by_part.items()):
        ranks, alphas, scales = set(), set(), set()
        for module in [name for name in names if name not in silent] or names:
            down = header.shapes.get(modules[module].get("lora_down.weight", ""))
            alpha = _read_alpha(header, modules[module])
            if alpha is not None:
                alphas.add(alpha)
            if down and down[0]:
                ranks.add(down[0])
                scales.add(round(alpha / down[0], 6) if alpha is not None else 1.0)
        num_silent = sum(name in silent for name in names)
        reports.append(
            PartReport(part, len(names), num_silent, tuple(sorted(ranks)), tuple(sorted(alphas)), tuple(sorted(scales)))
        )
    return tuple(reports)


def _read_alpha(header: Header, keys: Mapping[str, str]) -> float | None:
    values = read_array(header, keys["alpha"]) if "alpha" in keys else None
    return round(float(values.reshape(-1)[0]), 6) if values is not None and values.size == 1 else None


def _find_notes(header: Header, modules: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    notes = []
    scales = [header.shapes[keys["dora_scale"]] for keys in modules.values() if "dora_scale" in keys]
    if any(len(shape) < 2 or shape[0] != 1 for shape in scales):
        notes.append(
            "dora_scale is kept per output row; the WebUI scales per input column, so this DoRA gives wrong pictures there."
        )
    convolutions = [
        module
        for module, keys in modules.items()
        if (key := keys.get("lora_down.weight")) and len(header.shapes[key]) == 4 and header.shapes[key][2:] != (1, 1)
    ]
    if convolutions:
        notes.append(f"{len(convolutions)} convolutions are among its layers (such a LoRA is also called LoCon).")
    if any(key.startswith("bundle_emb.") for key in header.shapes):
        notes.append("Embeddings travel in the file.")
    return tuple(notes)
