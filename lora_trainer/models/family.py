"""What the training loop knows of a model: one Protocol, and the settings that it is loaded with.

A family is one file in this room and one line in `models/table.py`, whose entry's target is a function
`load(settings: ModelSettings, detection: Detection) -> TrainableModel`. Nothing outside this room asks which family it is.

Shapes: B items, H and W the picture's size in pixels, T tokens (77 for each chunk of 75), C the width of the text embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ModelSettings:
    """How a checkpoint is loaded.

    Attributes:
        base_model: a single file, or a diffusers folder.
        vae: another VAE file, or None for the checkpoint's own.
        prediction_type: "auto", "epsilon" or "v_prediction".
        clip_skip: 1 takes the text encoder's last layer, 2 the last but one, as the WebUI counts. SDXL ignores it.
        dtype: of the frozen weights of denoiser and text encoders. SDXL's VAE is always fp32.
        device: where the parts are put.
        gradient_checkpointing: whether the denoiser recomputes its activations in the backward pass.
        zero_terminal_snr: whether the noise schedule is rescaled to end in pure noise. Bases that predict v only.
        denoiser_waits: whether the denoiser stays in memory until `release_encoders`, which leaves its room on the device to
            the encoding of pictures.
    """

    base_model: Path
    vae: Path | None = None
    prediction_type: str = "auto"
    clip_skip: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    gradient_checkpointing: bool = False
    zero_terminal_snr: bool = False
    denoiser_waits: bool = False


@dataclass(frozen=True)
class Objective:
    """How the loss of a diffusion model is weighed. The defaults are the plain mean squared error.

    Attributes:
        min_snr_gamma: clamp of the signal-to-noise ratio (Min-SNR, arXiv 2303.09556), or None. 5 is usual.
        debiased_estimation: weighs by 1 / sqrt(SNR) (arXiv 2310.08442). Instead of `min_snr_gamma`, not with it.
        loss_type: "mse", or "huber", which counts large errors less.
        huber_delta: the error from which on Huber counts less, in standard deviations of the noise. 0.1 is usual.
        noise_offset: share of per-channel constant noise added, 0 for none. 0.05 is usual.
    """

    min_snr_gamma: float | None = None
    debiased_estimation: bool = False
    loss_type: str = "mse"
    huber_delta: float = 0.1
    noise_offset: float = 0.0


class TrainableModel(Protocol):
    """A loaded base model.

    Attributes:
        family: its name in the table.
        parts: the modules that a LoRA can go into, by part name: "unet", "text_encoder", "text_encoder_2".
        modules: all that it holds on the device or did: the parts, and what encodes pictures.
        resolution: the picture side that the base was trained at, in pixels.
        picture_key, text_key: hashes of everything that changes what `encode_pictures`, `encode_texts` return (weights, clip
            skip, ...); keys of the cache.
        notes: what detection decided and why, one sentence each, shown at the start of a run.
    """

    family: str
    parts: dict[str, nn.Module]
    modules: tuple[nn.Module, ...]
    resolution: int
    picture_key: str
    text_key: str
    notes: tuple[str, ...]

    def encode_pictures(self, pixels: Tensor) -> Tensors:
        """Encodes pictures for the cache. `pixels` [B, 3, H, W] in [-1, 1]; every tensor returned has B first. No gradient."""

    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        """Encodes captions; every tensor has B first. Keeps gradients when they are on, for trained text encoders.

        Captions of more than 75 tokens take further chunks; all of one call are padded to the same number of chunks.
        """

    def size_condition(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensors:
        """Returns what the denoiser is told of a picture's (width, height), crop (left, top) and training (width, height).

        Tensors without a batch dimension; an empty dict for families that are told nothing.
        """

    def collate(self, examples: Sequence[Tensors]) -> Tensors:
        """Stacks single examples (tensors without the batch dimension) to a batch, padding texts to the longest's chunks."""

    def make_draws(
        self, example: Tensors, generator: torch.Generator, objective: Objective, *, level: float | None = None
    ) -> Tensors:
        """Draws the random numbers of one example (noise, timestep, ...) from its own CPU generator, no batch dimension.

        Args:
            level: how noisy the example gets, from 0 (hardly) to below 1 (noise alone), instead of a drawn timestep. Families
                without noise levels pass it over.
        """

    def losses(self, batch: Tensors, draws: Tensors, objective: Objective) -> Tensor:
        """Returns one loss per item, fp32 [B], weighed by the objective. Runs under the caller's autocast.

        Where the batch has a "mask" [B, 1, H/8, W/8], the share of each place that counts, the mean is over its area.
        """

    def lora_targets(self, part: str, selection: Sequence[str]) -> list[str]:
        """Returns the names of the modules of a part that the selection means, in the module's own order.

        Args:
            selection: one of the presets ("attention",), ("attention_ff",), ("all_linear",), or projection names such as
                "to_q", "q_proj", "to_out.0", "ff.net.0.proj", "conv"; names of one convention are understood in the
                other's modules (q_proj is to_q in a UNet).

        Raises:
            ConfigError: a name matches no module of any part; the message lists the names that would.
        """

    def webui_layers(self) -> dict[str, tuple[int, ...]]:
        """Returns every key that the WebUI finds a layer for in this base, with the shape of the layer's weight."""

    def webui_key(self, part: str, module_name: str) -> str:
        """Returns the WebUI's key of a module, such as "lora_unet_down_blocks_0_attentions_0_..._attn1_to_q"."""

    def metadata(self) -> dict[str, str]:
        """Returns the `ss_` and `modelspec.` facts of the base that belong in the LoRA file."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Has the denoiser recompute its activations in the backward pass, or keep them."""

    def release_encoders(self, *, keep_text: bool) -> None:
        """Moves the VAE, and unless `keep_text` the text encoders, off the device once everything is cached.

        Then it puts a denoiser that waited onto the device.
        """
