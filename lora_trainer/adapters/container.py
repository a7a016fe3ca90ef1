"""The safetensors container as bytes: header, tensors as NumPy arrays, and the two hashes that the WebUI's world keeps.

Layout: 8 bytes with the header's length (little endian), the header as JSON, the tensors' bytes. Needs no torch, so that a
page may inspect a file, and says in plain words what is wrong with a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lora_trainer.errors import AdapterError

HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it
LEGACY_OFFSET, LEGACY_BYTES = 0x100000, 0x10000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ITEM_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a file. `start` and `end` count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `data_offset` is where the tensors' bytes begin."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]
    data_offset: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """Returns the header of a file without reading its tensors.

    Raises:
        AdapterError: the file is missing, empty, truncated, damaged or no safetensors file; the message says which.
    """
    try:
        with open(path, "rb") as file:
            return _parse_header(file, path)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}). Check the path and the rights to it.") from error


def read_array(path: Path, header: Header, name: str) -> np.ndarray | None:
    """Returns one tensor; bf16 becomes fp32. None for a dtype that NumPy does not know (8-bit floats)."""
    tensor = header.tensors[name]
    with open(path, "rb") as file:
        file.seek(header.data_offset + tensor.start)
        data = file.read(tensor.end - tensor.start)
    if tensor.dtype == "BF16":  # the upper half of an fp32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(tensor.shape)
    if tensor.dtype not in NUMPY_DTYPES:
        return None
    return np.frombuffer(data, NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)


def with_metadata(header_json: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Returns a header's bytes, length first, with other metadata, padded as the safetensors library pads."""
    tensors = {name: value for name, value in header_json.items() if name != "__metadata__"}
    text = json.dumps({"__metadata__": dict(metadata), **tensors}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def model_hash(path: Path, header: Header) -> str:
    """Returns sha256 of everything after the header, the WebUI's hash of a LoRA (`sshs_model_hash`), as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(header.data_offset)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def legacy_hash(head: bytes, data: bytes | memoryview) -> str:
    """Returns the 8 hex digits of `sshs_legacy_hash`: of 64 KiB at 1 MiB of a whole file that has only its `ss_` metadata.

    A file below 1 MiB gives the hash of nothing, "e3b0c442", as in the tools that made this hash.

    Args:
        head: the header's bytes, length first, from `with_metadata`.
        data: the tensors' bytes, or as many of the first as reach 1 MiB + 64 KiB.
    """
    end = LEGACY_OFFSET + LEGACY_BYTES
    first = head[:end] + bytes(data[: max(0, end - len(head))])
    return hashlib.sha256(first[LEGACY_OFFSET:]).hexdigest()[:8]


def _parse_header(file: BinaryIO, path: Path) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    if size == 0:
        raise AdapterError(f"{path} is empty (0 bytes). It was not written to the end; download or export it again.")
    length = int.from_bytes(file.read(8), "little")
    start = file.read(1)
    if size < 10 or length < 2 or length > HEADER_LIMIT or start != b"{":
        raise AdapterError(f"{path} is not a safetensors file, whatever its name says. The WebUI's LoRA files are; look for one.")
    if size < 8 + length:
        raise AdapterError(f"{path} ends within its header ({size} bytes). It is truncated; download or export it again.")
    try:
        entries = json.loads(start + file.read(length - 1))
        metadata = {str(key): str(value) for key, value in (entries.pop("__metadata__", None) or {}).items()}
        tensors = {
            name: StoredTensor(entry["dtype"], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path} has a damaged header ({type(error).__name__}). Download or export it again.") from error
    header = Header(metadata, tensors, 8 + length, size)
    _check_extent(header, path)
    return header


def _check_extent(header: Header, path: Path) -> None:
    """Compares what the header promises with the file's size."""
    promised = max((tensor.end for tensor in header.tensors.values()), default=0)
    present = header.file_bytes - header.data_offset
    if promised > present:
        raise AdapterError(
            f"{path} is truncated: its header promises {promised:,} bytes of tensors, {present:,} are there. "
            "Download or export it again."
        )
    for name, tensor in header.tensors.items():
        count = ITEM_BYTES.get(tensor.dtype, 0)
        for side in tensor.shape:
            count *= side
        if (
            min(tensor.shape, default=0) < 0
            or tensor.start < 0
            or (count != tensor.end - tensor.start and tensor.dtype in ITEM_BYTES)
        ):
            raise AdapterError(f"{path} has a damaged header: the place of {name} does not fit its shape. Get the file again.")
