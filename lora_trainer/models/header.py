"""What a model file holds, read from its header alone: names and shapes of its tensors, and its metadata.

Safetensors headers are read by hand with the standard library. A `.ckpt` is a zipped pickle that has no header: its names are
taken from a `weights_only` load, which refuses anything but plain data, so that no code of the file ever runs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.errors import ModelError

MAX_HEADER_BYTES = 100_000_000
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
BYTES_BY_DTYPE = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is: its safetensors dtype name, shape, and first and last byte (exclusive) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Names and shapes of a file's tensors.

    Attributes:
        path: the file.
        shapes: by tensor name.
        metadata: the file's own texts; empty for a `.ckpt`.
        entries: by tensor name; empty for a `.ckpt`.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    entries: dict[str, TensorEntry] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Reads what a single file holds, without its weights.

    Raises:
        ModelError: no such file, or it is empty, damaged, cut off, or no model file at all.
    """
    return _pickle_header(path) if is_pickle(path) else _safetensors_header(path)


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name unless it starts like a safetensors file.

    Raises:
        ModelError: no such file, or it is empty, or a text that a download left in place of a model.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give a .safetensors or .ckpt file, or a diffusers folder.")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise ModelError(f"{path} is empty (0 bytes). Download it again.")
    if start[8:9] == b"{":
        # Safetensors: its first bytes are a number, which may look like anything, a web page's "<" too.
        return False
    _refuse_texts(path, start.lstrip())
    is_named_pickle = path.suffix.lower() in PICKLE_SUFFIXES
    if start.startswith(b"PK") and not is_named_pickle:
        raise ModelError(
            f"{path} is a .ckpt file under another name, which the WebUI cannot load either. Rename it to end in .ckpt."
        )
    return is_named_pickle


def find_part_files(folder: Path, part: str) -> list[Path]:
    """Returns the weight files of one part of a diffusers folder; more than one when they are in shards.

    Safetensors go before pickles, the plain precision before the fp16 variant.

    Raises:
        ModelError: there are none.
    """
    stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    pickle_stem = "pytorch_model" if part.startswith("text_encoder") else stem
    names = (f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{pickle_stem}.bin", f"{pickle_stem}.fp16.bin")
    for name in names:
        if (folder / part / name).is_file():
            return [folder / part / name]
        for index in (f"{name}.index.json", name.replace(".fp16.safetensors", ".safetensors.index.fp16.json")):
            if (folder / part / index).is_file():
                with open(folder / part / index, encoding="utf-8") as file:
                    return [folder / part / shard for shard in sorted(set(json.load(file)["weight_map"].values()))]
    raise ModelError(f"{folder / part} holds no weights; looked for {', '.join(names)}. Download the folder again.")


def _safetensors_header(path: Path) -> Header:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES or length + 8 > size:
            raise ModelError(
                f"{path} is not a safetensors file, or it is damaged: its header would have {length} bytes, the file has "
                f"{size}. Download it again."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        entries = {name: _parse_entry(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: its header cannot be read ({error}). Download it again.") from error
    end = max((entry.end for entry in entries.values()), default=8 + length)
    if end > size:
        raise ModelError(f"{path} is cut off: {size} of {end} bytes are there. Download it again.")
    return Header(path, {name: entry.shape for name, entry in entries.items()}, metadata, entries)


def _parse_entry(entry: dict[str, Any], data_start: int) -> TensorEntry:
    shape = tuple(int(side) for side in entry["shape"])
    start, end = entry["data_offsets"]
    num_values = math.prod(shape)
    if min(shape, default=0) < 0 or start < 0 or entry["dtype"] not in BYTES_BY_DTYPE:
        raise ValueError(f"shape {shape}, first byte {start} or dtype {entry['dtype']!r} is impossible")
    if num_values * BYTES_BY_DTYPE[entry["dtype"]] != end - start:
        raise ValueError(f"dtype {entry['dtype']!r}, shape {shape} and {end - start} bytes disagree")
    return TensorEntry(entry["dtype"], shape, data_start + start, data_start + end)


def _pickle_header(path: Path) -> Header:
    # Imported here so that reading a safetensors header never needs torch.
    from lora_trainer.models.checkpoint import load_pickle

    return Header(path, {name: tuple(tensor.shape) for name, tensor in load_pickle(path).items()})


def _refuse_texts(path: Path, start: bytes) -> None:
    """Raises for the texts that downloads leave in place of a model."""
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a git-lfs pointer, not the file itself. Fetch the file with `git lfs pull`, or download it.")
    if start[:1] == b"<":
        raise ModelError(f"{path} is a web page saved under a model's name, often a log-in page. Download the file again.")
