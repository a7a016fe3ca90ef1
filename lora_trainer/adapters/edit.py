"""New LoRA files from old ones: another rank, several in one, the text encoders apart from the UNet, another precision.

Every function writes a new file, whole or not at all, under a name of its own, or over its source where that is the target too.
Its metadata are those of the source, completed by what its keys and shapes say.

Shapes: r the rank, o and i a layer's outputs and inputs, k and l a convolution's kernel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.keys import group_by_module, incomplete_attentions, split_attention, split_key
from lora_trainer.adapters.names import check_output_name
from lora_trainer.adapters.pairs import DOWN, UP, Modules, change_of, find_flaw, read_modules, scale_of
from lora_trainer.adapters.repair import complete_metadata, decide_bases, describe_ranks
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import AdapterError
from lora_trainer.models.checkpoint import TORCH_DTYPES, read_tensors
from lora_trainer.models.webui import original_key

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EMBEDDINGS = "bundle_emb"
FACTS_OF_THE_BASE = ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.prediction_type")
FACTS_IF_EQUAL = ("ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_clip_skip", "ss_resolution")


@dataclass(frozen=True)
class Edited:
    """What was written.

    Attributes:
        path: where it is, see `files.write_whole`.
        rank: the largest of its layers.
        error: by how much its change to the base differs from its source's, as a share of that: the square root of the sum of all
            squared differences over that of all squared values. 0 where no rank was cut.
        notes: what was left out, one sentence each.
    """

    path: Path
    rank: int
    error: float = 0.0
    notes: tuple[str, ...] = ()


def resize(source: Path, target: Path, rank: int, *, precision: str | None = None) -> Edited:
    """Writes a file whose layers have at most a rank, each as near to the source's as that rank allows.

    The nearest matrix of a rank keeps the largest singular values (Eckart and Young, 1936); the squared error is the sum of the
    squares of the others. Layers that have no higher rank are taken over as they are.

    Args:
        rank: from 1 to the source's largest.
        precision: one of `PRECISIONS`; None for the source's own.

    Raises:
        AdapterError: the source cannot be read or is no plain LoRA, the rank or target cannot be used.
    """
    check_target(target, [source])
    modules = _read_pairs(source)
    largest = max(len(own[DOWN]) for own in modules.values())
    if not 1 <= rank <= largest:
        raise AdapterError(
            f"rank ({rank}) must be from 1 to {largest}, the largest in {source.name}; a higher one would hold nothing more."
        )
    cut, error = _cut(modules, rank)
    metadata = {**complete_metadata(source), **_describe(cut)}
    said = metadata.get("ss_training_comment", "")
    done = f"resized from rank {largest} to {rank}, error {error:.2%}"
    metadata["ss_training_comment"] = f"{said}; {done}" if said else done
    path = _save(target, cut, _read_embeddings(source), metadata, _choose_dtype([source], precision))
    return Edited(path, max(len(own[DOWN]) for own in cut.values()), error)


def merge(uses: Sequence[LoraUse], target: Path, *, rank: int | None = None, precision: str | None = None) -> Edited:
    """Writes one file that does at weight 1 what several do together at their weights.

    Their ranks are put side by side, which is exact; where the sum exceeds `rank`, it is cut as `resize` does. Layers that the
    WebUI leaves out of a file are left out here too, and said.

    Args:
        uses: one or more, with their weights.
        rank: the highest of the result; None for no limit.
        precision: one of `PRECISIONS`; None for that of the files, fp32 where they differ.

    Raises:
        AdapterError: a file cannot be read or is no plain LoRA, files are for different bases, or do not fit together.
    """
    if not uses:
        raise AdapterError("nothing to merge. Give one or more LoRA files.")
    if rank is not None and rank < 1:
        raise AdapterError(f"rank ({rank}) must be at least 1; leave it out to keep everything.")
    paths = [use.path for use in uses]
    check_target(target, paths)
    bases = _agree_on_base(paths)
    notes: dict[str, None] = {}
    pieces: dict[str, list[tuple[float, Mapping[str, Tensor]]]] = {}
    for use, modules in zip(uses, _read_alike(paths), strict=True):
        kept, left_out = _complete(use.path, modules, is_sd2=bases == ("SD2",))
        notes |= dict.fromkeys(left_out)
        for key, own in kept.items():
            weight = use.weight_of("unet" if key.startswith("lora_unet_") else "text")
            pieces.setdefault(key, []).append((weight, _cut_first(own, use.rank_cut)))
    if not pieces:
        raise AdapterError(f"nothing is left to merge: {' '.join(notes)}")
    merged = {key: _put_side_by_side(key, own) for key, own in pieces.items()}
    cut, error = _cut(merged, rank) if rank is not None else (merged, 0.0)
    metadata = _merge_metadata(uses) | _describe(cut)
    path = _save(target, cut, _merge_embeddings(paths), metadata, _choose_dtype(paths, precision))
    return Edited(path, max(len(own[DOWN]) for own in cut.values()), error, tuple(notes))


def split(source: Path, unet_target: Path, text_target: Path) -> tuple[Path, Path]:
    """Writes the UNet's layers into one file and the text encoders', with embeddings that travel along, into another.

    Takes every kind of LoRA. Returns where the two are; one that cannot be written leaves neither.

    Raises:
        AdapterError: the source cannot be read, or has only one of the two.
    """
    if unet_target == text_target:
        raise AdapterError(f"both parts would be written to {unet_target}. Give two names.")
    for target in (unet_target, text_target):
        check_target(target, [])
    metadata = complete_metadata(source)
    tensors = read_tensors(source)
    is_unet = {key: split_key(key)[0].startswith(("lora_unet_", "oft_unet_")) for key in tensors}
    unet = {key: tensor for key, tensor in tensors.items() if is_unet[key]}
    text = {key: tensor for key, tensor in tensors.items() if not is_unet[key]}
    if not unet or not text:
        lacking = "UNet" if not unet else "text encoder"
        raise AdapterError(f"{source} has no {lacking} layers, so there is nothing to split. Use the file as it is.")
    written = save_lora(unet_target, unet, metadata, None)
    try:
        return written, save_lora(text_target, text, metadata, None)
    except (AdapterError, OSError):  # half of a LoRA would stand in the WebUI's list, and its name in the way of the next try
        written.unlink(missing_ok=True)
        raise


def convert(source: Path, target: Path, precision: str) -> Path:
    """Writes a file of any kind of LoRA in another precision, and returns where it is.

    Raises:
        AdapterError: the source cannot be read, or its numbers are too large for the precision.
    """
    check_target(target, [source])
    dtype, metadata = _choose_dtype([source], precision), complete_metadata(source)
    return save_lora(target, read_tensors(source), metadata, dtype)


def check_target(target: Path, sources: Collection[Path]) -> None:
    """Raises AdapterError where a file cannot be written: its name cannot be a LoRA's, or another file is there."""
    if target.suffix != ".safetensors":
        raise AdapterError(f"{target.name!r} must end in .safetensors, by which the WebUI finds LoRA files.")
    if problem := check_output_name(target.stem):
        raise AdapterError(f"{target.name}: {problem.message} {problem.hint}")
    if target.exists() and not any(source.exists() and target.samefile(source) for source in sources):
        raise AdapterError(f"{target} exists, and nothing is written over it. Give another name, or delete it first.")


def _read_pairs(path: Path) -> Modules:
    """Returns a file's pairs, each with two matrices that multiply."""
    modules = read_modules(path, "ranks can be changed and files merged")
    if not modules:
        raise AdapterError(f"{path} holds no LoRA layers. Choose another file.")
    for key, own in modules.items():
        if flaw := find_flaw(own):
            raise AdapterError(f"{path}: {key}: {flaw}. The file is damaged: get it again.")
    return modules


def _read_alike(paths: Sequence[Path]) -> list[Modules]:
    """Returns the pairs of files, a layer under the same key in all of them.

    A UNet's layer may stand under diffusers' name or the original one. The WebUI would take only one of two pairs for one layer,
    so where both ways occur all are named in the original one.
    """
    read = [_read_pairs(path) for path in paths]
    if len({key != original_key(key) for modules in read for key in modules if key.startswith("lora_unet_")}) < 2:
        return read
    return [{original_key(key): own for key, own in modules.items()} for modules in read]


def _complete(path: Path, modules: Modules, *, is_sd2: bool) -> tuple[Modules, list[str]]:
    """Returns the pairs without those of incomplete OpenCLIP attentions, which would act once other files complete them."""
    incomplete = incomplete_attentions(modules, is_sd2=is_sd2)
    kept = {key: own for key, own in modules.items() if split_attention(key)[0] not in incomplete}
    if not incomplete:
        return kept, []
    note = (
        f"{path.name}: {len(modules) - len(kept)} of its {len(modules)} layers are left out, as the WebUI does: an OpenCLIP "
        f"attention needs all four of q_proj, k_proj, v_proj and out_proj (first: {incomplete[0]})."
    )
    return kept, [note]


def _cut_first(own: Mapping[str, Tensor], rank_cut: int | None) -> Mapping[str, Tensor]:
    """Returns a pair with its first ranks alone, as the WebUI's dyn=... cuts it; the factor stays that of the whole."""
    if rank_cut is None:
        return own
    return {UP: own[UP][:, :rank_cut], DOWN: own[DOWN][:rank_cut], "scale": torch.tensor(scale_of(own))}


def _put_side_by_side(key: str, pieces: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Returns one pair that makes the sum of the weighted changes; alpha is its rank, so its factor is 1."""
    like_up, like_down = pieces[0][1][UP], pieces[0][1][DOWN]
    ups, downs = [], []
    for weight, own in pieces:
        if len(own[UP]) != len(like_up) or own[DOWN][0].numel() != like_down[0].numel():
            raise AdapterError(
                f"{key} has {len(own[UP])} outputs and {own[DOWN][0].numel()} inputs in one file, {len(like_up)} and "
                f"{like_down[0].numel()} in another. Only LoRA files made for the same kind of base can be merged."
            )
        if weight and own[UP].any() and own[DOWN].any():
            ups.append(own[UP].flatten(1) * (weight * scale_of(own)))
            downs.append(own[DOWN].flatten(1))
    if not ups:  # a pair of zeros: without effect, but an OpenCLIP attention may need it to be complete
        ups, downs = [torch.zeros(len(like_up), 1)], [torch.zeros(1, like_down[0].numel())]
    return _shaped(torch.cat(ups, dim=1), torch.cat(downs), like_up, like_down)


def _cut(modules: Modules, rank: int) -> tuple[Modules, float]:
    """Returns the pairs with at most a rank, and the error of all together, see `Edited.error`."""
    cut, lost, total = {}, 0.0, 0.0
    for key, own in modules.items():
        cut[key], lost_here, total_here = _cut_pair(own, rank)
        lost, total = lost + lost_here, total + total_here
    return cut, math.sqrt(lost / total) if lost else 0.0


def _cut_pair(own: dict[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float, float]:
    """Returns the nearest pair of a rank, and the squares' sums of what is lost and of what there was."""
    if len(own[DOWN]) <= rank:
        return own, 0.0, float(change_of(own).square().sum())
    # The product's singular values, from matrices no larger than the rank: up = Q1 R1, down = R2' Q2'.
    outer, left = torch.linalg.qr(own[UP].flatten(1))
    inner, right = torch.linalg.qr(own[DOWN].flatten(1).T)
    u, values, vh = torch.linalg.svd(scale_of(own) * (left @ right.T), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    pair = _shaped(outer @ u[:, :rank] * root, root[:, None] * (vh[:rank] @ inner.T), own[UP], own[DOWN])
    return pair, float(values[rank:].square().sum()), float(values.square().sum())


def _shaped(up: Tensor, down: Tensor, like_up: Tensor, like_down: Tensor) -> dict[str, Tensor]:
    """Returns matrices [o, r] and [r, i * k * l] as a pair in the shape of another, with the factor 1."""
    rank = len(down)
    return {
        DOWN: down.reshape(rank, *like_down.shape[1:]),
        UP: up.reshape(len(like_up), rank, *like_up.shape[2:]),
        "alpha": torch.tensor(float(rank)),
    }


def _describe(modules: Modules) -> dict[str, str]:
    ranks = [len(own[DOWN]) for own in modules.values()]
    return describe_ranks(ranks, [scale_of(own) * rank for own, rank in zip(modules.values(), ranks, strict=True)])


def _read_embeddings(path: Path) -> dict[str, Tensor]:
    return {f"{EMBEDDINGS}.{name}": tensor for name, tensor in read_tensors(path, f"{EMBEDDINGS}.").items()}


def _merge_embeddings(paths: Sequence[Path]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for path in paths:
        for key, tensor in _read_embeddings(path).items():
            if key in merged and not torch.equal(merged[key], tensor):
                word = key.split(".")[1]
                raise AdapterError(f"{path} and another file both bring an embedding for {word!r}. Merge without one of them.")
            merged[key] = tensor
    return merged


def _agree_on_base(paths: Sequence[Path]) -> tuple[str, ...]:
    """Returns the kinds of base that all files fit."""
    by_path = {path: decide_bases(read_header(path)) for path in paths}
    common = tuple(base for base in ("SD1", "SD2", "SDXL") if all(base in bases for bases in by_path.values()))
    if not common:
        each = ", ".join(f"{path.name} for {' or '.join(bases) or 'none'}" for path, bases in by_path.items())
        raise AdapterError(f"the files are made for different bases: {each}. Merge files for one kind of base.")
    return common


def _merge_metadata(uses: Sequence[LoraUse]) -> dict[str, str]:
    """Returns what holds for the merged file: facts of the base, where it came from, and the tags of all trainings."""
    sources = [complete_metadata(use.path) for use in uses]
    metadata: dict[str, str] = {}
    for key in FACTS_OF_THE_BASE:
        values = [source[key] for source in sources if key in source]
        metadata |= {key: values[0]} if values else {}
    for key in FACTS_IF_EQUAL:
        values = [source.get(key, "") for source in sources]
        metadata |= {key: values[0]} if values[0] and len(set(values)) == 1 else {}
    for key in ("ss_tag_frequency", "ss_dataset_dirs"):
        folders: dict[str, object] = {}
        for use, source in zip(uses, sources, strict=True):
            folders |= {f"{use.path.stem}/{name}": value for name, value in _read_json(source.get(key, "")).items()}
        metadata |= {key: json.dumps(folders, ensure_ascii=False)} if folders else {}
    triggers = dict.fromkeys(source["modelspec.trigger_phrase"] for source in sources if source.get("modelspec.trigger_phrase"))
    metadata |= {"modelspec.trigger_phrase": ", ".join(triggers)} if triggers else {}
    return metadata | {
        "ss_network_module": "networks.lora",
        "ss_training_comment": "merged from " + " ".join(use.tag for use in uses),
        "modelspec.merged_from": ", ".join(use.path.stem for use in uses),
    }


def _read_json(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _choose_dtype(paths: Sequence[Path], precision: str | None) -> torch.dtype:
    """Returns the precision asked for, or that of the files' matrices; fp32 where they differ."""
    if precision is not None:
        if precision not in PRECISIONS:
            raise AdapterError(f"precision {precision!r} is unknown. Known: {', '.join(PRECISIONS)}.")
        return PRECISIONS[precision]
    names = {
        header.entries[key].dtype
        for header in map(read_header, paths)
        for own in group_by_module(header.entries).values()
        for ending, key in own.items()
        if ending in (UP, DOWN)
    }
    dtype = TORCH_DTYPES[names.pop()] if len(names) == 1 else torch.float32
    return dtype if dtype in PRECISIONS.values() else torch.float32


def _save(
    target: Path, modules: Modules, embeddings: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype
) -> Path:
    tensors = {f"{key}.{ending}": tensor for key, own in modules.items() for ending, tensor in own.items()}
    return save_lora(target, tensors | dict(embeddings), metadata, dtype)
