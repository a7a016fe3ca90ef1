"""What the three Stable Diffusion families have in common: the `TrainableModel` that the loop and the caches work with.

`sd1.py`, `sd2.py` and `sdxl.py` say how each encodes texts, what it is told of sizes, and how it is named in files.

Shapes: B items, H and W the picture's size in pixels, h and w an eighth of it, T tokens (77 for each chunk), C the width of the
text embedding.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_trainer.config.check import needs_v_prediction
from lora_trainer.errors import ConfigError
from lora_trainer.models import webui
from lora_trainer.models.checkpoint import hash_file, hash_tensors
from lora_trainer.models.detect import Detection
from lora_trainer.models.family import ModelSettings, Objective, Tensors
from lora_trainer.models.objective import NoiseSchedule, element_losses, mean_error
from lora_trainer.models.parts import list_layers, load_text_encoder, load_unet, load_vae, recompute_blocks
from lora_trainer.models.recognise import StableDiffusionFacts, default_resolution
from lora_trainer.models.targets import select_layers

PICTURE_ENCODING = "latents-1"
TEXT_ENCODING = "texts-1"
"""Names of the ways of encoding; another one makes every cached entry stale."""

TRIAL_TIMESTEP = 999
TRIAL_VALUE = 0.5


class DiffusionModel(ABC):
    """A loaded Stable Diffusion model; see `family.TrainableModel`.

    Args:
        settings: how it is loaded.
        detection: what its header says.

    Attributes:
        unet, vae, text_encoders: the modules; `parts` holds the first and the last by part name.
        schedule: noise schedule and prediction type.
        scale_factor: latents are the VAE's output times this.
    """

    is_clip_skip_used = False

    def __init__(self, settings: ModelSettings, detection: Detection) -> None:
        self.settings = settings
        self.family = detection.family
        self.detection = detection
        self.facts: StableDiffusionFacts = detection.facts
        self.scale_factor = self.facts.scale_factor
        self.unet = load_unet(settings, detection)
        self.vae = load_vae(settings, detection)
        self.text_encoders = [load_text_encoder(settings, detection, index) for index in range(len(self.facts.text_encoders))]
        self._prepare_text_encoders()
        names = ("unet", "text_encoder", "text_encoder_2")
        self.parts: dict[str, nn.Module] = dict(zip(names, (self.unet, *self.text_encoders), strict=False))
        self.modules: tuple[nn.Module, ...] = (*self.parts.values(), self.vae)
        # Listed now, while no LoRA is in the modules.
        self._layers = {part: list_layers(part, module) for part, module in self.parts.items()}
        prediction_type, reason = self._decide_prediction_type()
        if settings.zero_terminal_snr and prediction_type == "epsilon":
            raise ConfigError([needs_v_prediction(f"{detection.path.name} predicts epsilon ({reason})")])
        self.schedule = NoiseSchedule(
            prediction_type,
            beta_start=self.facts.beta_start,
            beta_end=self.facts.beta_end,
            num_timesteps=self.facts.num_timesteps,
            is_zero_terminal_snr=self.facts.is_zero_terminal_snr or settings.zero_terminal_snr,
            device=settings.device,
        )
        self.resolution = detection.resolution or default_resolution(self.family, prediction_type) or 512
        self.notes = (*self._describe(prediction_type, reason), *detection.notes)
        self.picture_key = hash_tensors(self.vae.state_dict().items(), PICTURE_ENCODING, self.scale_factor)
        self.text_key = self._hash_text_encoders()

    @abstractmethod
    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        """Returns "text" [B, T, C], and what else the family's denoiser is told of the caption."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Returns the `ss_` and `modelspec.` facts of the base that belong in the LoRA file."""

    @abstractmethod
    def _prepare_text_encoders(self) -> None:
        """Cuts the text encoders off behind the layer whose output is used."""

    def size_condition(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensors:
        """Returns nothing: SD1 and SD2 are not told of sizes."""
        return {}

    def added_conditions(self, batch: Tensors) -> dict[str, Tensor] | None:
        """Returns diffusers' `added_cond_kwargs` for the denoiser, None for none."""
        return None

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> Tensors:
        """Returns mean and standard deviation of the latents, "latent_mean" and "latent_std", fp32 [B, 4, h, w], scaled.

        The latents themselves are drawn per item and epoch, in `losses`.
        """
        device = self.vae.device
        with without_autocast(device):
            posterior = self.vae.encode(pixels.to(device=device, dtype=torch.float32)).latent_dist
        return {"latent_mean": posterior.mean * self.scale_factor, "latent_std": posterior.std * self.scale_factor}

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Returns the pictures of latents [B, 4, h, w], fp32 [B, 3, H, W] in about [-1, 1]."""
        device = self.vae.device
        with without_autocast(device):
            pictures: Tensor = self.vae.decode(latents.to(device=device, dtype=torch.float32) / self.scale_factor).sample
        return pictures

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, batch: Tensors) -> Tensor:
        """Returns the denoiser's prediction [B, 4, h, w] for latents at timesteps [B], in its own dtype.

        Args:
            batch: what `encode_texts` and `size_condition` returned, batched.
        """
        dtype = self.settings.dtype
        # All of it is in one dtype, LoRA layers included. Autocast would have a GPU do every norm, and what follows it up to the
        # next convolution, in fp32: more time, and twice the memory for what the backward pass keeps of it.
        with without_autocast(noisy_latents.device):
            prediction: Tensor = self.unet(
                noisy_latents.to(dtype),
                timesteps,
                encoder_hidden_states=batch["text"].to(dtype),
                added_cond_kwargs=self.added_conditions(batch),
            ).sample
        return prediction

    def make_draws(
        self, example: Tensors, generator: torch.Generator, objective: Objective, *, level: float | None = None
    ) -> Tensors:
        """Draws "timestep" [], "latent_noise" [4, h, w] for the VAE's sample, and "noise" [4, h, w], in this order.

        A `level` is the timestep as a share of their number.
        """
        shape = example["latent_mean"].shape
        timestep = torch.randint(0, self.schedule.num_timesteps, (), generator=generator)
        if level is not None:
            timestep = torch.tensor(int(level * self.schedule.num_timesteps))
        latent_noise = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        if objective.noise_offset:
            noise += objective.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
        return {"timestep": timestep, "latent_noise": latent_noise, "noise": noise}

    def losses(self, batch: Tensors, draws: Tensors, objective: Objective) -> Tensor:
        """Returns one loss per item, fp32 [B]: the mean error over the batch's "mask" if any, weighed by the objective."""
        latents = batch["latent_mean"].float() + batch["latent_std"].float() * draws["latent_noise"]
        timesteps, noise = draws["timestep"], draws["noise"]
        prediction = self.denoise(self.schedule.add_noise(latents, noise, timesteps), timesteps, batch)
        target = self.schedule.target(latents, noise, timesteps)
        errors = mean_error(element_losses(prediction.float(), target, objective), batch.get("mask"))
        return errors * self.schedule.loss_weights(timesteps, objective)

    def collate(self, examples: Sequence[Tensors]) -> Tensors:
        """Stacks single examples; texts of fewer chunks are followed by the encoding of empty ones, as in the WebUI."""
        batch = {name: [example[name] for example in examples] for name in examples[0]}
        if "text" in batch:
            longest = max(text.shape[0] for text in batch["text"])
            batch["text"] = [self._pad_text(text, longest) for text in batch["text"]]
        return {name: torch.stack(tensors) for name, tensors in batch.items()}

    def lora_targets(self, part: str, selection: Sequence[str]) -> list[str]:
        """See `family.TrainableModel.lora_targets`."""
        return select_layers(part, self._layers, selection)

    def webui_layers(self) -> dict[str, tuple[int, ...]]:
        """Returns every key that the WebUI finds a layer for in this base, with the shape of the layer's weight."""
        return webui.webui_layers(self.detection.path)

    def webui_key(self, part: str, module_name: str) -> str:
        """Returns the WebUI's key of a module, such as "lora_unet_down_blocks_0_attentions_0_..._attn1_to_q"."""
        if part == "unet":
            return webui.unet_key(self.family, self.facts.unet, module_name)
        return webui.text_key(self.family, list(self.parts).index(part) - 1, module_name)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Has the denoiser recompute its activations in the backward pass, or keep them."""
        recompute_blocks(self.unet, enabled)

    def release_encoders(self, *, keep_text: bool) -> None:
        """Moves the VAE, and unless `keep_text` the text encoders, to the CPU, and the denoiser to where it works."""
        released: list[nn.Module] = [self.vae]
        if not keep_text:
            _ = self._empty_chunk
            released += self.text_encoders
        for module in released:
            module.to("cpu")
        self.unet.to(self.settings.device)

    def base_metadata(self, version: str, architecture: str) -> dict[str, str]:
        """Returns the facts that all families write; `version` is `ss_base_model_version`."""
        prediction = "v" if self.schedule.prediction_type == "v_prediction" else "epsilon"
        facts = {
            "ss_base_model_version": version,
            "ss_v2": str(self.family == "sd2"),
            "ss_sd_model_name": self.detection.path.name,
            "ss_clip_skip": str(self.settings.clip_skip) if self.is_clip_skip_used else "None",
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.prediction_type": prediction,
        }
        return facts | self._file_hashes

    @functools.cached_property
    def _file_hashes(self) -> dict[str, str]:
        path = self.detection.path
        if not path.is_file():
            return {}
        return {"ss_sd_model_hash": _legacy_hash(path), "ss_new_sd_model_hash": hash_file(path)}

    @functools.cached_property
    def _empty_chunk(self) -> Tensor:
        """The encoding of a chunk without tokens, [77, C], on the CPU."""
        with torch.no_grad():
            return self.encode_texts([""])["text"][0].cpu()

    def _pad_text(self, text: Tensor, length: int) -> Tensor:
        num_missing = (length - text.shape[0]) // 77
        if not num_missing:
            return text
        return torch.cat([text, *[self._empty_chunk.to(device=text.device, dtype=text.dtype)] * num_missing])

    def _decide_prediction_type(self) -> tuple[str, str]:
        if self.settings.prediction_type != "auto":
            return self.settings.prediction_type, "set by prediction_type"
        if self.detection.prediction_type:
            return self.detection.prediction_type, self.detection.prediction_reason
        mean = self._trial_mean()
        prediction_type = "v_prediction" if mean < -1 else "epsilon"
        return prediction_type, f"told by a trial forward, whose mean is {mean:.2f}: below -1 means v-prediction"

    @torch.no_grad()
    def _trial_mean(self) -> float:
        """Returns the mean of prediction less input at the last timestep, by which the WebUI tells SD2 with v-prediction."""
        settings, width = self.settings, self.facts.unet.context_width
        latents = torch.full((1, 4, 8, 8), TRIAL_VALUE, device=settings.device, dtype=settings.dtype)
        text = torch.full((1, 2, width), TRIAL_VALUE, device=settings.device, dtype=settings.dtype)
        timestep = torch.tensor([TRIAL_TIMESTEP], device=settings.device)
        self.unet.to(settings.device)
        mean = (self.denoise(latents, timestep, {"text": text}) - latents).float().mean().item()
        if settings.denoiser_waits:
            self.unet.to("cpu")
        return mean

    def _describe(self, prediction_type: str, reason: str) -> tuple[str, ...]:
        notes = [f"{self.detection.path.name} is {self.family} and predicts {prediction_type} ({reason})."]
        if self.facts.is_zero_terminal_snr and prediction_type == "v_prediction":
            notes.append("Its noise schedule ends in pure noise (zero terminal SNR), as the file says.")
        elif self.settings.zero_terminal_snr:
            notes.append("Its noise schedule is made to end in pure noise, as zero_terminal_snr asks.")
        if self.settings.clip_skip != 1 and not self.is_clip_skip_used:
            notes.append(f"clip_skip ({self.settings.clip_skip}) has no effect: the WebUI ignores it for {self.family}.")
        return tuple(notes)

    def _hash_text_encoders(self) -> str:
        tensors = (
            (f"{part}.{name}", tensor)
            for part, module in self.parts.items()
            if part != "unet"
            for name, tensor in module.state_dict().items()
            if not name.endswith("position_ids")
        )
        return hash_tensors(tensors, TEXT_ENCODING, [encoder.heads for encoder in self.facts.text_encoders])


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within it a caller's autocast is off."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # Apple's GPU before torch 2.5 has no autocast, so none is on
        return nullcontext()


def _legacy_hash(path: Path) -> str:
    """Returns the WebUI's older model hash: 8 hex digits of sha256 over 64 KiB at offset 1 MiB."""
    with open(path, "rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
