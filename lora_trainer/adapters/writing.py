"""A LoRA file's bytes under a name, with its metadata and hashes. Needs no torch, so that a page may rename and copy files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lora_trainer.adapters.container import legacy_hash, read_header, with_metadata
from lora_trainer.errors import LoraInUseError
from lora_trainer.files import write_whole


def copy_lora(source: Path, target: Path, metadata: Mapping[str, str]) -> Path:
    """Writes a LoRA file's tensors, byte for byte, with other metadata; whole or not at all.

    Args:
        source: a safetensors file.
        target: as in `export.save_lora`; may be the source itself.
        metadata: all but the name and the hashes, which are set here.

    Returns:
        Where the file is: the target.

    Raises:
        AdapterError: the source cannot be read.
        LoraInUseError: a program holds the target, which stays as it was.
        ValueError: see `export.save_lora`.
    """
    read_header(source)  # says what is wrong with a file that is none
    return check_place(write_lora(target, source.read_bytes(), metadata), target)


def write_lora(path: Path, serialised: bytes, metadata: Mapping[str, str]) -> Path:
    """Writes a safetensors file's content under its name, with metadata and the hashes; whole or not at all."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name!r} must end in .safetensors.")
    values = {**metadata, "ss_output_name": path.stem, "modelspec.title": path.stem}
    training_values = {key: value for key, value in sorted(values.items()) if key.startswith("ss_")}
    content = memoryview(serialised)
    data_offset = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:data_offset]))
    data = content[data_offset:]
    values["sshs_model_hash"] = hashlib.sha256(data).hexdigest()
    values["sshs_legacy_hash"] = legacy_hash(with_metadata(header, training_values), data)
    return write_whole(path, lambda temporary: _write(temporary, with_metadata(header, dict(sorted(values.items()))), data))


def check_place(written: Path, target: Path) -> Path:
    """Returns where a LoRA was written, which is its target. A neighbour of that, with the same alias inside, goes again.

    Raises:
        LoraInUseError: it was written beside a target that a program holds.
    """
    if written != target:
        written.unlink(missing_ok=True)
        raise LoraInUseError(target)
    return written


def _write(path: Path, head: bytes, data: memoryview) -> None:
    with open(path, "wb") as file:
        file.write(head)
        file.write(data)
