"""Small JPEG copies of pictures for the page, kept in the cache folder under a name that changes with the file."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from lora_trainer.dataset.images import open_image
from lora_trainer.errors import DatasetError
from lora_trainer.files import replace_file, temporary_for

log = logging.getLogger(__name__)

QUALITY = 82
_preparing = threading.Lock()
_NUM_THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without Python's lock


def thumbnail(path: Path, cache_dir: Path, side: int) -> bytes | None:
    """Returns a JPEG of at most `side` pixels a side, upright, from the cache where it is there; None when it cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return None
    key = hashlib.sha256(f"{path.resolve()}\n{state.st_mtime_ns}\n{state.st_size}\n{side}".encode("utf-8", "surrogatepass"))
    kept = cache_dir / "thumbnails" / key.hexdigest()[:2] / f"{key.hexdigest()[2:34]}.jpg"
    if kept.is_file():
        return kept.read_bytes()
    try:
        image = open_image(path)
    except DatasetError:
        return None
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    _keep(kept, buffer.getvalue())
    return buffer.getvalue()


def thumbnails(paths: Iterable[Path], cache_dir: Path, side: int) -> list[bytes | None]:
    """Returns `thumbnail` of each, several at a time."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(lambda path: thumbnail(path, cache_dir, side), paths))


def prepare(paths: Sequence[Path], cache_dir: Path, side: int) -> None:
    """Makes the small pictures of a page that will probably be looked at next, meanwhile; one such page at a time."""

    def work() -> None:
        try:
            for path in paths:
                thumbnail(path, cache_dir, side)
        except OSError as error:  # a full disk, or the folder is gone: whoever looks at the page is told
            log.warning("small pictures could not be made: %s", error)
        finally:
            _preparing.release()

    if paths and _preparing.acquire(blocking=False):
        threading.Thread(target=work, name="lora_trainer_thumbnails", daemon=True).start()


def _keep(path: Path, data: bytes) -> None:
    """Writes the file whole, but does not wait for the disk: what a power cut spoils is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_for(path)
    temporary.write_bytes(data)
    replace_file(temporary, path)
