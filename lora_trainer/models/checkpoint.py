"""Reads the weights of checkpoints and puts them into freshly built modules.

Safetensors are read by hand straight into memory: no memory map stays open that would keep Windows from replacing the file, and
each tensor is converted on its own, so that no second copy of the model is ever held.
Modules are built with their parameters on the meta device, which costs neither time nor memory, and every parameter is then
replaced by the file's tensor. This is done for the calling thread only, and needs no `Module.to`, which a WebUI may have patched.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lora_trainer.errors import ModelError, examples
from lora_trainer.models.header import find_part_files, is_pickle, read_header

Tensors = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

# What torch's reader raises for a file that is no pickle, or is cut off.
_DAMAGED_PICKLE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
    struct.error,
)

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_tensors(path: Path, prefix: str = "", *, dtype: torch.dtype | None = None) -> Tensors:
    """Reads the tensors below a prefix, by their names without it.

    Args:
        dtype: what floating-point tensors are converted to; None keeps the file's.

    Raises:
        ModelError: the file is damaged or holds more than plain weights.
    """
    if is_pickle(path):
        mapped = {name: tensor for name, tensor in load_pickle(path).items() if name.startswith(prefix)}
        # Copied always, so that the file's memory map is let go.
        return {name[len(prefix) :]: _convert(tensor, dtype, copies=True) for name, tensor in mapped.items()}
    wanted = {name: entry for name, entry in read_header(path).entries.items() if name.startswith(prefix)}
    tensors: Tensors = {}
    # Tensors that are converted go through one piece of memory: fresh pages cost as much time as the conversion.
    scratch = torch.empty(max((entry.end - entry.start for entry in wanted.values()), default=0), dtype=torch.uint8)
    # Unbuffered: through Python's own buffer the same takes five times as long.
    with open(path, "rb", buffering=0) as file:
        for name, entry in sorted(wanted.items(), key=lambda item: item[1].start):
            stored = TORCH_DTYPES.get(entry.dtype)
            if stored is None:
                raise ModelError(
                    f"{path}: {name} is stored as {entry.dtype}, which cannot be read. Take a float16 or float32 file."
                )
            is_converted = dtype not in (None, stored) and stored.is_floating_point
            num_bytes = entry.end - entry.start
            data = scratch[:num_bytes] if is_converted else torch.empty(num_bytes, dtype=torch.uint8)
            file.seek(entry.start)
            if not _read_fully(file, data.numpy().data):
                raise ModelError(f"{path} is cut off within {name}. Download it again.")
            tensors[name[len(prefix) :]] = _convert(data.view(stored).reshape(entry.shape), dtype)
    return tensors


def load_pickle(path: Path) -> Tensors:
    """Returns the tensors of a `.ckpt` or `.bin` without running anything in it; where the format allows, mapped, not yet read.

    Raises:
        ModelError: it is damaged, holds more than plain weights, or the WebUI refuses it.
    """
    try:
        # torch 2.1, which AUTOMATIC1111 pins, maps a file only where it is named by a string.
        content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than plain weights, which could run code, and was not loaded. "
            "Take the .safetensors file of this model, or convert it with a tool that you trust."
        ) from error
    except _DAMAGED_PICKLE as error:
        raise ModelError(f"{path} is damaged or not a model file ({error}). Download it again.") from error
    if content is None:  # so answers the function that AUTOMATIC1111 puts in the place of `torch.load`
        raise ModelError(
            f"{path} was refused by the WebUI's own check of such files, and was not loaded; its console says why. "
            "Take the .safetensors file of this model."
        )
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors by name, so it is not a model file.")
    return tensors


def read_folder_part(folder: Path, part: str, *, dtype: torch.dtype | None = None) -> Tensors:
    """Reads the weights of one part of a diffusers folder ("unet", "vae", "text_encoder", "text_encoder_2").

    Raises:
        ModelError: no weights are there.
    """
    files = find_part_files(folder, part)
    return {name: tensor for path in files for name, tensor in read_tensors(path, dtype=dtype).items()}


def build_empty(make: Callable[[], Module]) -> Module:
    """Builds a module without filling its parameters; `fill` must follow."""
    with _ParametersOnMeta():
        return make()


def fill(module: Module, tensors: Mapping[str, Tensor], *, source: str, device: torch.device) -> Module:
    """Puts tensors into a module built empty, and freezes it.

    Args:
        tensors: one for each parameter, in the dtype wanted.
        source: what is loaded, for messages ("the UNet of model.safetensors").

    Raises:
        ModelError: names or shapes do not agree; the message names some.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    # Positions are counted, not learned: some files hold them as a tensor, and modules make their own.
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("position_ids")}
    problems = [
        _describe("missing", sorted(shapes.keys() - found.keys())),
        _describe("unexpected", sorted(found.keys() - shapes.keys())),
        _describe("of another shape", [name for name in shapes.keys() & found.keys() if shapes[name] != found[name]]),
    ]
    if any(problems):
        raise ModelError(
            f"{source} does not fit its architecture: {'; '.join(filter(None, problems))}. "
            "The file is damaged, or a kind of model that is not supported."
        )
    for name in shapes:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensors[name].to(device), requires_grad=False))
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer.to(device)
    return module.eval()


def hash_tensors(tensors: Iterable[tuple[str, Tensor]], *facts: Any) -> str:
    """Returns a hash of named tensors' values and of further facts, 32 hex digits; it does not depend on the order of names."""
    digest = hashlib.blake2b(repr(facts).encode("utf-8"), digest_size=16)
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_fully(file: RawIOBase, data: memoryview) -> bool:
    """Fills the memory from the file's position; False when the file ends before. One read may give less than asked for."""
    while data:
        num_read = file.readinto(data)
        if not num_read:
            return False
        data = data[num_read:]
    return True


def _convert(tensor: Tensor, dtype: torch.dtype | None, *, copies: bool = False) -> Tensor:
    return tensor.to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=copies)


def _describe(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{what}: {examples(names)}"


class _ParametersOnMeta(TorchFunctionMode):
    """Makes `torch.empty`, by which layers make their parameters, give tensors without memory; in this thread only.

    Unlike `torch.device("meta")` it leaves tensors alone that are computed while building, such as position ids.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
