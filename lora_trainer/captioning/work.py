"""A caption run from its options to its end: weights brought here, captioner loaded, captions saved as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_trainer.captioning.captioner import CPU, Captioner, CaptionerSettings
from lora_trainer.captioning.download import download_model
from lora_trainer.captioning.options import CaptionOptions, check_download
from lora_trainer.captioning.places import Place
from lora_trainer.captioning.run import CaptionResult, caption_folder
from lora_trainer.captioning.table import RANKERS
from lora_trainer.captioning.weights import find_folder, folder_of
from lora_trainer.control import TrainControl
from lora_trainer.events import Emit
from lora_trainer.host.base import Host, Lease

TELL_SECONDS = 0.5


@dataclass(frozen=True)
class CaptionWork:
    """A run that can be started.

    Attributes:
        options: what is asked for.
        root: the folder of downloads.
        compute: returns where the captioner runs, and the dtype of its frozen weights. Asked while the device is borrowed: a
            host with several cards makes its own the current one then.
        host: the program that we live in, None on the command line.
    """

    options: CaptionOptions
    root: Path
    compute: Callable[[], tuple[torch.device, torch.dtype]]
    host: Host | None = None

    def run(
        self, place: Place, *, borrow: Callable[[], AbstractContextManager[Lease]], control: TrainControl, emit: Emit
    ) -> CaptionResult:
        """Writes the captions of the folder.

        Args:
            place: where they go.
            borrow: borrows the device.
            control: "stop" ends it after the batch, or in the middle of a download; "pause" gives the device back meanwhile.
            emit: is told phases and warnings.

        Raises:
            ConfigError: weights are missing, and nobody agreed to load them.
            ModelError: they cannot be loaded.
            DatasetError: the folder cannot be read or has no picture, or a caption cannot be saved.
        """
        check_download(self.options, self.root)
        folders = self._bring(control, emit)
        if folders is None:
            return CaptionResult(0, len(place.kept), (), True)
        emit("phase", name="loading the captioner", done=0, total=1)
        with borrow() as lease, ExitStack() as stack:
            device, dtype = self.compute()
            with lease.building():
                captioner = stack.enter_context(self._captioner(folders, device, dtype))

            def save(written: Mapping[str, str]) -> None:
                place.save(written)
                lease.give_way(lambda: captioner.move(CPU), lambda: captioner.move(device), is_paused=is_paused)

            def is_paused() -> bool:
                return control.is_requested("pause") and not control.is_requested("stop")

            def tell(kind: str, **data: object) -> None:
                emit(kind, **data)
                if kind == "phase":
                    lease.show(int(str(data["done"])), int(str(data["total"])))

            folder, size = Path(self.options.input_dir), self.options.batch_size
            result = caption_folder(captioner, folder, save, kept=place.kept, batch_size=size, control=control, emit=tell)
        if not result.was_stopped:
            place.end()
        return result

    def _bring(self, control: TrainControl, emit: Emit) -> dict[str, Path] | None:
        """Returns the folder of each model, loaded where it was missing; None when it was stopped meanwhile."""
        folders = {}
        for part, (model, _) in self.options.models.items():
            folder = find_folder(model, self.root)
            if folder is None and Path(model).is_dir():  # not whole: whoever reads it says what is missing
                folder = Path(model)
            if folder is None:
                folder = folder_of(model, self.root)
                if not _download(model, folder, control, emit):
                    return None
            folders[part] = folder
        return folders

    def _captioner(self, folders: dict[str, Path], device: torch.device, dtype: torch.dtype) -> Captioner:
        options = self.options
        settings = CaptionerSettings(
            str(folders.get("captioner", "")),
            prompt=options.prompt,
            num_beams=options.num_beams,
            max_new_tokens=options.max_tokens,
            min_new_tokens=options.min_tokens,
            device=device,
            dtype=dtype,
            host=self.host,
        )
        captioner: Captioner = options.entry.load()(settings)
        if not options.word_lists:
            return captioner
        clip = CaptionerSettings(str(folders["ranker"]), device=device, dtype=dtype)
        load = RANKERS.get(options.ranker).load()
        ranked: Captioner = load(clip, captioner, options.word_lists, num_terms=options.terms)
        return ranked


def _download(model: str, folder: Path, control: TrainControl, emit: Emit) -> bool:
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS or done == total:
            last = time.monotonic()
            emit("phase", name=f"downloading {model} (MB)", done=done // 10**6, total=total // 10**6)

    return download_model(model, folder, tell=tell, is_stopped=lambda: control.is_requested("stop"))
