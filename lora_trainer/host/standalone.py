"""No WebUI: folders of our own, a device that nobody else uses, and pictures drawn by our own pipeline.

The folder of models is laid out as a WebUI's, so that one that is there can be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_trainer import __version__
from lora_trainer.errors import HostError, LoraTrainerError
from lora_trainer.host.base import DEFAULT_DATA_DIR, Folders, HostCaptioner, HostOptions, Lease, ModelFile, OwnDevice, free_memory

MODEL_SUFFIXES = (".safetensors", ".ckpt")
NUMBER = r"-?\d+(?:\.\d+)?"
LORA_TAG = re.compile(rf"<lora:(?P<name>[^:<>]+)(?::(?P<first>{NUMBER}))?(?::(?P<unet>{NUMBER}))?>")


class Standalone:
    """See `base.Host`.

    Args:
        data_dir: where our folders are.
        models_dir: holds `Stable-diffusion`, `VAE` and `Lora`; None for `models` in the data folder.
    """

    name = "standalone"
    has_pipeline = False
    title = f"stand-alone {__version__}"

    def __init__(self, data_dir: Path = DEFAULT_DATA_DIR, models_dir: Path | None = None) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.models_dir = (models_dir or self.data_dir / "models").expanduser().absolute()

    @property
    def checkpoint_dir(self) -> Path:
        """Where base models lie."""
        return self.models_dir / "Stable-diffusion"

    def folders(self) -> Folders:
        return Folders(self.data_dir, self.models_dir / "Lora")

    def options(self) -> HostOptions:
        return HostOptions()

    def checkpoints(self) -> Sequence[ModelFile]:
        folder = self.checkpoint_dir
        diffusers = {path.parent for path in folder.rglob("model_index.json")}
        files = [path for path in _model_files(folder) if diffusers.isdisjoint(path.parents)]
        return [ModelFile(path.relative_to(folder).as_posix(), path) for path in sorted([*diffusers, *files])]

    def vaes(self) -> Sequence[ModelFile]:
        return [ModelFile(path.name, path) for path in sorted(_model_files(self.models_dir / "VAE"))]

    @contextmanager
    def borrow_device(self, title: str) -> Iterator[Lease]:
        try:
            yield OwnDevice()
        finally:
            free_memory()  # the page stays open, and a WebUI beside it may want the card

    def lora_changed(self, path: Path) -> None:
        """Nothing: each picture reads its files anew."""

    def lora_read_at(self, path: Path) -> float | None:
        return None

    def generate(self, prompt: str, **settings: Any) -> Any:
        """See `base.Host.generate`. Draws with the first base model of the list."""
        if not (bases := self.checkpoints()):
            raise HostError(f"There is no base model in {self.checkpoint_dir}; put a checkpoint there to draw pictures.")
        from lora_trainer.inference.generate import generate
        from lora_trainer.inference.loras import applied
        from lora_trainer.inference.settings import GenerateSettings
        from lora_trainer.models.family import ModelSettings
        from lora_trainer.models.table import load_model
        from lora_trainer.training.precision import choose_compute

        try:
            uses, text = self._split_tags(prompt)
            device, dtype = choose_compute()
            model: Any = load_model(ModelSettings(bases[0].path, dtype=dtype, device=device))
            with applied(model, uses):
                return generate(model, GenerateSettings(text, **settings))
        except LoraTrainerError as error:
            raise HostError(f"The picture could not be drawn with {bases[0].name}: {error}") from error

    def clip(self) -> None:
        return None

    def has_captioner(self) -> bool:
        return False

    @contextmanager
    def captioner(self) -> Iterator[HostCaptioner]:
        raise HostError("Without a WebUI there is no captioner of a WebUI. Choose blip.")
        yield

    def _split_tags(self, prompt: str) -> tuple[list[Any], str]:
        """Returns the LoRA files that a prompt names, with their weights, and the prompt without the tags."""
        from lora_trainer.adapters.tags import LoraUse

        files = {path.stem: path for path in _model_files(self.folders().lora_dir)}
        uses = []
        for tag in LORA_TAG.finditer(prompt):
            if tag["name"] not in files:
                raise HostError(f"There is no LoRA file {tag['name']!r} in {self.folders().lora_dir}.")
            first = float(tag["first"] or 1)
            uses.append(LoraUse(files[tag["name"]], float(tag["unet"] or first), first))
        return uses, LORA_TAG.sub("", prompt).strip()


def _model_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in MODEL_SUFFIXES and path.is_file()]
