"""The noise schedule of a diffusion model: noising, what the denoiser should predict, and how losses are weighed.

Sources: DDPM (arXiv 2006.11239) for noising and epsilon, progressive distillation (arXiv 2202.00512, appendix D) for v, Min-SNR
(arXiv 2303.09556, section 3.4) and debiased estimation (arXiv 2310.08442) for the weights, arXiv 2403.16728 for the Huber loss,
and arXiv 2305.08891, algorithm 1 for the schedule that ends in pure noise.

Shapes: B items; C, h, w the latents' channels, height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_trainer.models.family import Objective

TINY_AREA = 1e-6
PREDICTION_TYPES = ("epsilon", "v_prediction")
DEBIASED_LIMIT = 20.0
"""Largest weight of debiased estimation. Stable Diffusion's last timestep has 14.6, so it acts only on noisier schedules."""


class NoiseSchedule:
    """A scaled-linear schedule and the prediction type that goes with a base model.

    Args:
        prediction_type: "epsilon" (the noise) or "v_prediction".
        beta_start, beta_end: noise variance of the first and last step; their roots grow linearly.
        num_timesteps: number of steps.
        is_zero_terminal_snr: whether the schedule is rescaled so that the last step is noise alone. Needs v-prediction.
        device: where `alphas_cumprod` is kept.

    Attributes:
        alphas_cumprod: share of the signal's variance left at each timestep, fp32 [num_timesteps].
    """

    def __init__(
        self,
        prediction_type: str,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_timesteps: int = 1000,
        is_zero_terminal_snr: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type ({prediction_type!r}) must be one of {', '.join(PREDICTION_TYPES)}.")
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if is_zero_terminal_snr and prediction_type == "v_prediction":
            alphas_cumprod = _rescale_to_zero_terminal_snr(alphas_cumprod)
        self.prediction_type = prediction_type
        self.num_timesteps = num_timesteps
        self.alphas_cumprod = alphas_cumprod.to(device=device, dtype=torch.float32)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns latents [B, C, h, w] noised to their timesteps [B]."""
        signal, share = self._roots(timesteps)
        return signal * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser should predict, [B, C, h, w]."""
        if self.prediction_type == "epsilon":
            return noise
        signal, share = self._roots(timesteps)
        return signal * noise - share * latents

    def loss_weights(self, timesteps: Tensor, objective: Objective) -> Tensor:
        """Returns the weight of each item's loss, fp32 [B]; ones for the plain objective.

        The papers weigh the loss on the clean latents: by min(SNR, gamma), or by sqrt(SNR) for debiased estimation. That is
        divided by SNR for a loss on the noise, and by SNR + 1 for one on v.
        """
        alphas_cumprod = self.alphas_cumprod[timesteps]
        snr = alphas_cumprod / (1 - alphas_cumprod)
        scale = snr if self.prediction_type == "epsilon" else snr + 1
        if objective.debiased_estimation:
            return (snr.sqrt() / scale).clamp(max=DEBIASED_LIMIT)
        if objective.min_snr_gamma is not None:
            return snr.clamp(max=objective.min_snr_gamma) / scale
        return torch.ones_like(snr)

    def _roots(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the factors of signal and noise, each [B, 1, 1, 1]."""
        alphas_cumprod = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def element_losses(prediction: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """Returns the loss of each element, in the shape and dtype of both tensors.

    The Huber loss is the smooth one of arXiv 2403.16728, 2 delta (sqrt(error^2 + delta^2) - delta), with the same delta at every
    timestep. It is the squared error for small errors and 2 delta |error| for large ones, so learning rates keep their meaning.
    """
    squares = (prediction - target).square()
    if objective.loss_type == "mse":
        return squares
    delta = objective.huber_delta
    # The same value without the difference of two nearly equal numbers.
    return 2 * delta * squares / ((squares + delta**2).sqrt() + delta)


def mean_error(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean error of each item [B], over the area of its mask.

    Args:
        errors: [B, C, h, w].
        mask: share of each place that counts, 0 to 1, [B, 1, any height and width]; None for everything. An item whose mask is
            empty has 0.
    """
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    height, width = errors.shape[-2:]
    if mask.shape[-2:] != (height, width):
        mask = nn.functional.adaptive_avg_pool2d(mask, (height, width))
    area = mask.sum(dim=(1, 2, 3)) * errors.shape[1]
    return (errors * mask).sum(dim=(1, 2, 3)) / area.clamp(min=TINY_AREA)


def _rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
