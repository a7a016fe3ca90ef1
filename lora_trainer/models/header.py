"""What a model file holds, read from its header alone: names and shapes of its tensors, and its metadata.

Safetensors headers are read by hand with the standard library. A `.ckpt` is a zipped pickle that has no header: its names are
taken from a `weights_only` load, which refuses anything but plain data, so that no code of the file ever runs.
"""

from __future__ import annotations

import json
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
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give a .safetensors or .ckpt file, or a diffusers folder.")
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        raise ModelError(f"{path} is empty (0 bytes). Download it again.")
    _refuse_texts(path)
    if start.startswith(b"PK") or path.suffix.lower() in PICKLE_SUFFIXES:
        return _pickle_header(path)
    return _safetensors_header(path)


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
    num_values = 1
    for side in shape:
        num_values *= side
    if entry["dtype"] not in BYTES_BY_DTYPE or num_values * BYTES_BY_DTYPE[entry["dtype"]] != end - start or start < 0:
        raise ValueError(f"dtype {entry['dtype']!r}, shape {shape} and {end - start} bytes disagree")
    return TensorEntry(entry["dtype"], shape, data_start + start, data_start + end)


def _pickle_header(path: Path) -> Header:
    # Imported here so that reading a safetensors header never needs torch.
    from lora_trainer.models.checkpoint import load_pickle

    return Header(path, {name: tuple(tensor.shape) for name, tensor in load_pickle(path).items()})


def _refuse_texts(path: Path) -> None:
    """Raises for the texts that downloads leave in place of a model."""
    with open(path, "rb") as file:
        start = file.read(512).lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a git-lfs pointer, not the file itself. Fetch the file with `git lfs pull`, or download it.")
    if start[:1] == b"<":
        raise ModelError(f"{path} is a web page saved under a model's name, often a log-in page. Download the file again.")
