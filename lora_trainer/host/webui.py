"""A WebUI as host: what AUTOMATIC1111's has in common with its descendants. How each moves its models is in their own files.

Imported only in a WebUI's process, when its own modules are loaded.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from modules import call_queue, paths, processing, sd_models, sd_vae, shared

from lora_trainer.errors import HostError, free_frames
from lora_trainer.host.base import Folders, HostCaptioner, HostClip, HostOptions, Lease, ModelFile, wait_while
from lora_trainer.host.queue_lock import QueueLock
from lora_trainer.host.settings import read_folders, read_options

CLIP_FILE = "ViT-L-14.pt"  # of `modules.interrogate.clip_model_name`, as the package `clip` stores it
GENERATION_BYTES = 4 * 2**30  # what drawing a picture takes beside the model: SDXL at 1024 pixels, its VAE included


class WebUI(ABC):
    """See `base.Host`. One a process: it knows which thread of ours holds the WebUI's lock."""

    name: str
    label: str
    has_pipeline = True

    def __init__(self) -> None:
        self.lock = QueueLock(call_queue.queue_lock)

    @property
    def title(self) -> str:
        from modules import launch_utils

        return f"{self.label} {launch_utils.git_tag()}"

    def folders(self) -> Folders:
        return read_folders()

    def options(self) -> HostOptions:
        return read_options()

    def checkpoints(self) -> Sequence[ModelFile]:
        current = sd_models.checkpoint_aliases.get(shared.opts.data.get("sd_model_checkpoint"))
        listed = sorted(sd_models.checkpoints_list.values(), key=lambda info: info is not current)  # the others keep their order
        # Not by their titles: a file's hash comes to its title when the WebUI first loads it, and a choice would be lost.
        return [ModelFile(info.name, Path(info.filename).absolute()) for info in listed]

    def vaes(self) -> Sequence[ModelFile]:
        return [ModelFile(name, Path(path).absolute()) for name, path in sd_vae.vae_dict.items()]

    @contextmanager
    def borrow_device(self, title: str) -> Iterator[Lease]:
        self.wait_for_start()
        lease = WebUILease(self, title)
        try:
            with _current_device():
                lease.take()
                yield lease
        except BaseException as error:
            free_frames(error)
            raise
        finally:
            gc.collect()  # what the job left on the device, before the WebUI's models come back
            lease.give_back()

    def lora_changed(self, path: Path) -> None:
        with self.lock:
            self.forget_lora(path)

    def lora_read_at(self, path: Path) -> float | None:
        return None

    def generate(self, prompt: str, **settings: Any) -> Any:
        if self.lock.is_held():
            raise HostError(f"{self.title} cannot draw a picture for the very job that borrowed its device.")
        with self.lock:
            if self.lock.is_waited_for():  # whoever draws picture after picture would else overtake everybody
                self.lock.pass_on()
            try:
                return self.run(lambda: self._draw(prompt, **settings))
            except HostError:
                raise
            except Exception as error:
                raise HostError(f"{self.title} could not draw the picture: {type(error).__name__}: {error}") from error

    def _draw(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        width: int = 512,
        height: int = 512,
        steps: int = 20,
        cfg_scale: float = 7.0,
        seed: int = 0,
        sampler: str = "euler_a",
        base: str = "",
    ) -> Any:
        sampler_name, scheduler = _host_sampler(sampler)
        request = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            steps=steps,
            cfg_scale=cfg_scale,
            seed=seed,
            sampler_name=sampler_name,
            scheduler=scheduler,
            do_not_save_samples=True,
            do_not_save_grid=True,
            # Put back afterwards; the model itself is loaded anew only when somebody draws with another.
            override_settings={"sd_model_checkpoint": base} if base else {},
        )
        shared.state.begin(job="lora_trainer")
        try:
            with closing(request):
                picture = processing.process_images(request).images[0]
            if shared.state.interrupted:
                raise HostError(f"The picture was interrupted in {self.title}. Draw it again.")
            return picture
        finally:
            shared.state.end()

    def has_captioner(self) -> bool:
        return any((Path(paths.models_path) / "BLIP").glob("*.pth"))

    @contextmanager
    def captioner(self) -> Iterator[HostCaptioner]:
        if not self.has_captioner():
            where = Path(paths.models_path) / "BLIP"
            raise HostError(
                f"{self.title} has no captioner on the disk: {where} holds no .pth file. Choose blip, or press Interrogate "
                "CLIP in img2img once, which loads it."
            )
        captioner = WebUICaptioner(self)
        try:
            with self.lock:
                captioner.move(True)
            yield captioner
        finally:
            with self.lock:
                captioner.move(False)

    def clip(self) -> HostClip | None:
        weights = Path(shared.cmd_opts.clip_models_path or "~/.cache/clip").expanduser() / CLIP_FILE
        if not weights.is_file():
            return None
        try:
            with self.lock:  # else another thread that loads a checkpoint would leave it without its weights
                return WebUIClip(weights)
        except Exception as error:
            raise HostError(
                f"{self.title} cannot use its own CLIP ({weights}): {type(error).__name__}: {error}. Delete the file; "
                "Interrogate CLIP in img2img loads it anew."
            ) from error

    def both_fit(self) -> bool:
        """Whether the card has room for the WebUI's model and a generation beside what was used since the job took the device."""
        import torch

        if torch.device(shared.device).type != "cuda":
            # Apple's memory is shared with everything else, so nothing is free for sure.
            return bool(torch.device(shared.device).type == "cpu")
        unused = torch.cuda.memory_reserved() - torch.cuda.max_memory_allocated()
        return bool(torch.cuda.mem_get_info()[0] + unused >= self._model_bytes() + GENERATION_BYTES)

    def _model_bytes(self) -> int:
        model = sd_models.model_data.sd_model
        if hasattr(model, "parameters"):
            return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        info = sd_models.checkpoint_aliases.get(shared.opts.data.get("sd_model_checkpoint"))
        return Path(info.filename).stat().st_size if info else 0

    def run(self, function: Callable[[], Any]) -> Any:
        """Runs something that needs the WebUI's model, in the thread where the WebUI would. The lock is held."""
        return function()

    @abstractmethod
    def load_captioner(self, interrogator: Any) -> None:
        """Loads the WebUI's BLIP, or moves it onto the device; not its CLIP, which may not be on the disk. The lock is held."""

    @abstractmethod
    def wait_for_start(self) -> None:
        """Returns when the model that the WebUI loads at its start is loaded; the lock does not tell."""

    @abstractmethod
    def make_room(self) -> None:
        """Moves the WebUI's models off the device. The lock is held."""

    @abstractmethod
    def bring_back(self) -> None:
        """Moves what `make_room` moved back, if anything is still away. The lock is held."""

    @abstractmethod
    def forget_lora(self, path: Path) -> None:
        """Drops what the WebUI holds of the LoRA file, and lists the files anew. The lock is held."""


class WebUICaptioner:
    """See `base.HostCaptioner`: `shared.interrogator`, as the WebUI's own Interrogate uses it, without the artists' names."""

    def __init__(self, host: WebUI) -> None:
        self._host = host

    def describe(self, picture: Any) -> str:
        with self._host.lock:
            return str(self._try(lambda: shared.interrogator.generate_caption(picture)))

    def move(self, is_back: bool) -> None:
        interrogator = shared.interrogator
        self._try(lambda: self._host.load_captioner(interrogator) if is_back else interrogator.send_blip_to_ram())

    def _try(self, function: Callable[[], Any]) -> Any:
        try:
            return self._host.run(function)
        except Exception as error:
            raise HostError(
                f"{self._host.title} cannot use its own captioner: {type(error).__name__}: {error}. Choose blip instead, or "
                "press Interrogate CLIP in img2img, which shows what is wrong."
            ) from error


class WebUIClip:
    """See `base.HostClip`: the file of the WebUI's Interrogate, read by the same package, in a copy of our own on the CPU.

    So `shared.interrogator`, which may be at work on the device, is left alone.
    """

    def __init__(self, weights: Path) -> None:
        import clip

        self._tokenize = clip.tokenize
        # By the path of the file: by the name of the model a damaged one would be downloaded anew.
        self._model, self._prepare = clip.load(str(weights), device="cpu")
        self._model.eval()

    def embed_picture(self, picture: Any) -> Any:
        return self._embed(self._model.encode_image, self._prepare(picture)[None])

    def embed_text(self, text: str) -> Any:
        return self._embed(self._model.encode_text, self._tokenize([text], truncate=True))

    def _embed(self, encode: Callable[[Any], Any], values: Any) -> Any:
        import torch

        with torch.no_grad():
            return encode(values)[0].double().numpy()


class WebUILease:
    """See `base.Lease`. Until the first step the lock is held; then it is known whether both models fit.

    If they do, the WebUI has its model and its lock back, and the lock is taken only to build and to move. If not, or if memory
    runs out later, it is held to the end, but for the moments in which we give way.
    """

    def __init__(self, host: WebUI, title: str) -> None:
        self._host, self._title, self._lock = host, title, host.lock
        self._holds = False
        self._num_shown = 0

    def take(self) -> None:
        """Takes lock and device."""
        self._lock.__enter__()
        self._holds = True
        self._start()
        self._forget_peak()

    def give_back(self) -> None:
        """Gives both back, where they are held."""
        if not self._holds:
            return
        self._holds = False
        try:
            self._end()
        finally:
            self._lock.__exit__()

    @contextmanager
    def building(self) -> Iterator[None]:
        with self._lock:
            yield

    def is_waited_for(self) -> bool:
        return self._holds and self._lock.is_waited_for()

    def claim(self) -> bool:
        if self._holds:
            return False
        self.take()
        return True

    def show(self, done: int, total: int) -> None:
        self._num_shown += 1
        if self._num_shown == 2 and self._host.both_fit():
            self.give_back()
        if self._holds:
            shared.state.job_no, shared.state.job_count = done, total
            shared.state.textinfo = f"{self._title}: {done} of {total}"

    def give_way(self, away: Callable[[], None], back: Callable[[], None], *, is_paused: Callable[[], bool]) -> None:
        is_wanted = self.is_waited_for() and self._host.options().gives_way
        if not is_wanted and not is_paused():
            return
        with self.building():
            away()
            if self._holds:
                self._lend(is_paused)
                back()
                return
        wait_while(is_paused)
        with self.building():
            back()

    def _lend(self, is_paused: Callable[[], bool]) -> None:
        self._end()
        if is_paused():
            with self._lock.released():
                wait_while(is_paused)
        else:
            self._lock.pass_on()
        self._start()

    def _start(self) -> None:
        shared.state.begin(job=self._title)
        shared.state.textinfo = self._title
        self._host.make_room()

    def _end(self) -> None:
        try:
            self._host.bring_back()
        finally:
            shared.state.end()

    def _forget_peak(self) -> None:
        """From here on the peak of the memory is that of the job."""
        import torch

        if torch.device(shared.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()


def _current_device() -> AbstractContextManager[object]:
    """Within it the WebUI's card, which --device-id chooses, is this thread's current one, which "auto" means in training."""
    import torch

    device = torch.device(shared.device)
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _host_sampler(name: str) -> tuple[str, str]:
    """Returns the WebUI's words for a sampler of ours, or the name itself where it is the WebUI's."""
    from lora_trainer.inference.table import SAMPLERS

    if name not in SAMPLERS.names():
        return name, "Automatic"
    options = SAMPLERS.get(name).options
    return options["sampler"], options["schedule_type"]
