"""Which files of a LoRA folder a run put there, and how it puts another there: known by what is in them, not by their names.

A user may put another file under a name that a run once published. `job.json` therefore holds, by file name, a fingerprint
of what was written: of a LoRA that of its weights, so that mended metadata leave it the run's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lora_trainer.adapters.container import model_hash, read_header
from lora_trainer.adapters.folder import Card, choose_name, publish
from lora_trainer.adapters.library import put_aside
from lora_trainer.errors import AdapterError
from lora_trainer.run_folder import RunFolder

PUBLISHED = "published"  # the key in `job.json`; another folder has another
IN_DOUBT = ""  # the fingerprint of a file that may be replaced, and that goes to the trash then


def publish_for(
    run: RunFolder, source: Path, lora_dir: Path, name: str, *, card: Card, preview: bytes | None = None, key: str = PUBLISHED
) -> Path:
    """Copies a run's file into a LoRA folder, in place of what the run put there. Returns where it is.

    Where the file there is not the run's any more, the next free name is taken; where that is in doubt, it goes to the trash of
    the folder first.

    Args:
        source, name, card, preview: as in `folder.publish`.
        key: under which the run keeps what is in this folder.

    Raises:
        AdapterError: see `folder.publish`.
    """
    owned = owned_files(run, lora_dir, key)
    chosen = choose_name(lora_dir, name, owned)
    target = lora_dir / f"{chosen}.safetensors"
    is_doubtful = read_published(run, key).get(target.name) == IN_DOUBT
    if is_doubtful and target.is_file() and fingerprint(target) != fingerprint(source):
        put_aside(target, lora_dir)
    published = publish(source, lora_dir, chosen, card=card, preview=preview, owned=owned)
    record(run, [lora_dir / file for file in published.files], key)
    return lora_dir / f"{published.name}.safetensors"


def owned_files(run: RunFolder, lora_dir: Path, key: str = PUBLISHED) -> list[str]:
    """Returns the names that a run may replace in a folder: not those of a LoRA that is another's by now."""
    published = read_published(run, key)
    foreign = {Path(file).stem for file in published if file.endswith(".safetensors") and not is_ours(run, lora_dir / file, key)}
    return [file for file in published if Path(file).stem not in foreign]


def is_ours(run: RunFolder, path: Path, key: str = PUBLISHED) -> bool:
    """Whether a run may replace a file of a LoRA folder, be it in doubt; where there is none, it may write one."""
    mark = read_published(run, key).get(path.name)
    return mark is not None and (mark == IN_DOUBT or not path.is_file() or mark == fingerprint(path))


def read_published(run: RunFolder, key: str = PUBLISHED) -> dict[str, str]:
    """Returns the fingerprints of what a run put into a folder by file name, the last written last."""
    published = run.read_job().get(key, {})
    return dict(published) if isinstance(published, dict) else dict.fromkeys(map(str, published), IN_DOUBT)


def record(run: RunFolder, paths: Iterable[Path], key: str = PUBLISHED) -> None:
    """Keeps what a run has just written into a LoRA folder. A file outside of any run's folder has no run that could."""
    if not run.job_path.is_file():
        return
    written = {path.name: fingerprint(path) for path in paths}
    before = {name: mark for name, mark in read_published(run, key).items() if name not in written}
    run.update_job(**{key: before | written})


def fingerprint(path: Path) -> str:
    """Returns a hash of a LoRA's weights, of any other file that of all its bytes."""
    if path.suffix == ".safetensors":
        with suppress(AdapterError):  # of a damaged one the bytes
            read_header(path)
            return model_hash(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
