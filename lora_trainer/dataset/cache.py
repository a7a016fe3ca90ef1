"""Encoded pictures and captions kept on disk, keyed by content.

A key is a hash of all that the encoding depends on (picture bytes, bucket, VAE; caption, text encoder), so an edited file is
never stale and nothing has to be cleared. An entry carries a digest: one that was truncated or altered counts as missing and
is written again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from lora_trainer.dataset.buckets import Bucket, fit_image
from lora_trainer.dataset.images import decode_image, decode_mask, read_bytes
from lora_trainer.dataset.scan import Item
from lora_trainer.errors import DatasetError, TrainingError
from lora_trainer.files import TEMPORARY_SUFFIX, replace_file, temporary_for

Encoded = Mapping[str, Sequence[Tensor] | Tensor]
Progress = Callable[[int, int], object]
T = TypeVar("T")
R = TypeVar("R")

# Part of every key: raise it when pictures come out of `images` or `buckets` differently.
_VERSION = "1"
_DIGEST_BYTES = 32
_STALE_SECONDS = 3600.0


class TensorStore:
    """A folder of entries, each a few named tensors. Any number of runs may use one folder at once.

    An entry is a file: the SHA-256 of the rest, then the tensors in the safetensors layout. It is written beside and renamed,
    without waiting for the disk: what a power cut damages, the digest shows.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def has(self, key: str) -> bool:
        """Whether the entry is there and undamaged."""
        return self._read(key) is not None

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors of an entry, on the CPU, or None when it is missing or damaged."""
        data = self._read(key)
        return None if data is None else load(data)

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes an entry whole or not at all.

        Raises:
            OSError: the disk is full, or the folder may not be written.
        """
        data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
        temporary = temporary_for(self._path(key))  # each its own: two threads or two runs may write one key at once
        try:
            with open(temporary, "wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            replace_file(temporary, self._path(key))
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.cache"

    def _read(self, key: str) -> bytes | None:
        try:
            data = self._path(key).read_bytes()
        except OSError:  # missing; or, on Windows, another run is replacing it
            return None
        digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        # A damaged entry is not deleted: another run may have replaced it by a good one this moment. `put` replaces it too.
        return body if hashlib.sha256(body).digest() == digest else None

    def _remove_leftovers(self) -> None:
        """Removes what runs that were killed while writing have left."""
        for path in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            try:
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
            except OSError:  # another run removes it too, or has it open
                continue


class TensorMemory:
    """Entries of a store that stay in memory as far as they fit; the others are read from the disk at each use.

    Nothing is thrown out for something else: an epoch asks for every entry once, in a new order, so of any choice of entries
    equally many are found.

    Args:
        store: has all entries.
        max_bytes: that the tensors kept take at most.
    """

    def __init__(self, store: TensorStore, max_bytes: int = 2 << 30) -> None:
        self._store, self._free_bytes = store, max_bytes
        self._kept: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors of an entry, which are not to be changed, or None when it is missing or damaged."""
        if key in self._kept:
            return self._kept[key]
        tensors = self._store.get(key)
        if tensors is not None:
            size = sum(tensor.nbytes for tensor in tensors.values())
            if size <= self._free_bytes:
                self._kept[key] = tensors
                self._free_bytes -= size
        return tensors


def picture_key(picture_sha256: str, bucket: Bucket, vae_key: str) -> str:
    """Returns the key of an encoded picture.

    Args:
        picture_sha256: of the file's bytes, in hexadecimal digits.
        bucket: what it is cropped to.
        vae_key: names the encoder's weights and all settings that change its output.
    """
    return _hash("picture", picture_sha256, str(bucket), vae_key)


def text_key(caption: str, encoder_key: str) -> str:
    """Returns the key of an encoded caption; `encoder_key` names the encoder's weights and settings (clip skip, length)."""
    return _hash("text", caption, encoder_key)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Returns RGB pictures of one size as float32 `[B, 3, H, W]` from -1 to 1, RGBA ones with alpha from 0 to 1 as fourth."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous().float()
    pixels[:, :3].div_(127.5).sub_(1.0)
    pixels[:, 3:].div_(255.0)
    return pixels


def cache_pictures(
    items: Sequence[Item],
    buckets: Sequence[Bucket],
    encode: Callable[[Tensor], Encoded],
    *,
    store: TensorStore,
    encoder_key: str,
    batch_size: int,
    with_alpha: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Encodes the pictures that the store lacks, and returns the key of each item.

    What a batch consists of depends on the arguments alone: where one picture of it is missing the whole batch is encoded, and
    the missing ones are kept. Encoders give slightly different numbers in batches of another size, so otherwise a
    run that was interrupted here would not continue with the same bytes.

    Args:
        items: the pictures.
        buckets: of each item.
        encode: takes pixels `[B, 3, H, W]` from -1 to 1, float32 on the CPU; returns tensors by name, `[B, ...]` each.
        store: where to keep them.
        encoder_key: see `picture_key`.
        batch_size: pictures in a batch at most.
        with_alpha: whether `encode` takes pixels `[B, 4, H, W]`, where the fourth channel is the opacity from 0 to 1, and 1 for
            pictures without transparency.
        on_progress: is called with the number of items done and of all, after each batch. What it raises ends the
            work; what was encoded so far is kept.

    Raises:
        DatasetError: a picture vanished, or is not what it was at the scan.
        TrainingError: the encoder gave non-finite numbers.
    """
    groups: dict[Bucket, list[int]] = {}
    for index, bucket in enumerate(buckets):
        groups.setdefault(bucket, []).append(index)
    batches = [group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)]

    def prepare(batch: list[int]) -> _Prepared:
        return _prepare([items[index] for index in batch], buckets[batch[0]], store, encoder_key, with_alpha)

    keys = [""] * len(items)
    done = 0
    with closing(_in_advance(prepare, batches)) as prepared_batches:
        for batch, prepared in zip(batches, prepared_batches, strict=True):
            if prepared.pixels is not None:
                _keep(store, prepared.keys, encode(prepared.pixels), [items[index].name for index in batch])
            for index, key in zip(batch, prepared.keys, strict=True):
                keys[index] = key
            done += len(batch)
            if on_progress:
                on_progress(done, len(items))
    return keys


def cache_texts(
    captions: Sequence[str],
    encode: Callable[[list[str]], Encoded],
    *,
    store: TensorStore,
    encoder_key: str,
    batch_size: int,
    on_progress: Progress | None = None,
) -> list[str]:
    """Encodes the captions that the store lacks, each once, and returns the key of each.

    Batches are made as `cache_pictures` makes them. Arguments and errors are those of `cache_pictures` too, but for

    Args:
        captions: any number may be equal.
        encode: takes captions; returns by name a tensor `[B, ...]`, or a list of B tensors where lengths differ.
    """
    unique = list(dict.fromkeys(captions))
    keys = {caption: text_key(caption, encoder_key) for caption in unique}
    done = 0
    for start in range(0, len(unique), batch_size):
        batch = unique[start : start + batch_size]
        batch_keys = [keys[caption] for caption in batch]
        if not all(store.has(key) for key in batch_keys):
            _keep(store, batch_keys, encode(batch), batch)
        done += len(batch)
        if on_progress:
            on_progress(done, len(unique))
    return [keys[caption] for caption in captions]


@dataclass(frozen=True)
class _Prepared:
    """A batch with its keys, and its pixels `[B, 3 or 4, H, W]`, or None when the store has all of it."""

    keys: list[str]
    pixels: Tensor | None


def _prepare(items: list[Item], bucket: Bucket, store: TensorStore, encoder_key: str, with_alpha: bool) -> _Prepared:
    # Hash and pixels come from one reading, so that the key is true even if the file is replaced meanwhile.
    contents = [read_bytes(item.path) for item in items]
    keys = [picture_key(hashlib.sha256(data).hexdigest(), bucket, encoder_key) for data in contents]
    if all(store.has(key) for key in keys):
        return _Prepared(keys, None)
    images = [_decode(item, data, bucket, with_alpha) for item, data in zip(items, contents, strict=True)]
    return _Prepared(keys, to_pixels(images))


def _decode(item: Item, data: bytes, bucket: Bucket, with_alpha: bool) -> Image.Image:
    image = decode_image(data, item.path)
    if image.size != (item.width, item.height):
        found = f"{image.width} x {image.height}"
        raise DatasetError(
            f"{item.path} was {item.width} x {item.height} pixels when the run began and is {found} now. Start again."
        )
    fitted = fit_image(image, bucket)
    if with_alpha:
        # Fitted apart from the colours, which are those on white with and without a mask.
        mask = decode_mask(data, item.path)
        fitted = fitted.convert("RGBA")
        if mask is not None:
            fitted.putalpha(fit_image(mask, bucket))
    return fitted


def _keep(store: TensorStore, keys: list[str], encoded: Encoded, names: list[str]) -> None:
    """Writes those entries of a batch that the store lacks. Of equal items the first is kept, in every run."""
    for tensor_name, values in encoded.items():
        if len(values) != len(keys):
            raise ValueError(f"the encoder gave {len(values)} of {tensor_name!r} for {len(keys)} items.")
    for place, key in enumerate(keys):
        if store.has(key):
            continue
        tensors = {tensor_name: values[place] for tensor_name, values in encoded.items()}
        for tensor_name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(
                    f"Encoding {names[place]!r} gave non-finite numbers ({tensor_name}). Encode with precision fp32; "
                    "if they stay, the checkpoint is damaged."
                )
        store.put(key, tensors)


def _in_advance(function: Callable[[T], R], arguments: Sequence[T]) -> Generator[R, None, None]:
    """Yields the results in order, working on the next ones in threads while the caller uses one."""
    num_threads = min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_threads)
    try:
        waiting: list[Future[R]] = []
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > num_threads:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)


def _hash(*parts: str) -> str:
    """Returns 40 hexadecimal digits; short enough for the paths of Windows."""
    text = "\0".join((_VERSION, *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
