"""A LoRA file as bytes: its header, its tensors as NumPy arrays, and the two hashes that the WebUI's world keeps.

Needs no torch, so that a page may inspect a file. Layout of a safetensors file: 8 bytes with the header's length (little
endian), the header as JSON, the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_trainer.errors import AdapterError, ModelError
from lora_trainer.models import header as model_header
from lora_trainer.models.header import Header

LEGACY_OFFSET, LEGACY_BYTES = 0x100000, 0x10000
NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_BLOCK_BYTES = 1 << 20


def read_header(path: Path) -> Header:
    """Returns the header of a file without reading its tensors.

    Raises:
        AdapterError: the file is missing, empty, truncated, damaged or no safetensors file; the message says which.
    """
    if path.suffix.lower() in model_header.PICKLE_SUFFIXES:
        raise AdapterError(f"{path} is not a safetensors file. Only those are examined; a {path.suffix} file can run any code.")
    try:
        return model_header.read_header(path)
    except ModelError as error:
        raise AdapterError(str(error)) from error
    except (OverflowError, RecursionError) as error:  # endless numbers or brackets, made on purpose
        raise AdapterError(f"{path} has a damaged header ({type(error).__name__}). Do not use it.") from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}). Check the path and the rights to it.") from error


def read_array(header: Header, name: str) -> np.ndarray | None:
    """Returns one tensor; bf16 becomes fp32. None for a dtype that NumPy does not know (8-bit floats)."""
    entry = header.entries[name]
    if entry.dtype != "BF16" and entry.dtype not in NUMPY_DTYPES:
        return None
    with open(header.path, "rb") as file:
        file.seek(entry.start)
        data = file.read(entry.end - entry.start)
    if entry.dtype == "BF16":  # the upper half of an fp32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(entry.shape)
    return np.frombuffer(data, NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)


def with_metadata(header_json: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Returns a header's bytes, length first, with other metadata, padded as the safetensors library pads."""
    tensors = {name: value for name, value in header_json.items() if name != "__metadata__"}
    text = json.dumps({"__metadata__": dict(metadata), **tensors}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def model_hash(path: Path) -> str:
    """Returns sha256 of everything after the header, the WebUI's hash of a LoRA (`sshs_model_hash`), as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
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
