"""The noise schedule of a diffusion model: noising, what the denoiser should predict, and how losses are weighed.

Sources: DDPM (arXiv 2006.11239) for noising and epsilon, progressive distillation (arXiv 2202.00512, appendix D) for v, Min-SNR
(arXiv 2303.09556, section 3.4) for the weights, and arXiv 2305.08891, algorithm 1 for the schedule that ends in pure noise.

Shapes: B items; C, h, w the latents' channels, height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


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

    def loss_weights(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Returns the weight of each item's loss, fp32 [B]; ones without Min-SNR.

        The weight min(SNR, gamma) of the loss on the clean latents becomes min(SNR, gamma) / SNR on the noise and
        min(SNR, gamma) / (SNR + 1) on v.
        """
        if min_snr_gamma is None:
            return torch.ones(timesteps.shape, dtype=torch.float32, device=timesteps.device)
        alphas_cumprod = self.alphas_cumprod[timesteps]
        snr = alphas_cumprod / (1 - alphas_cumprod)
        clamped = snr.clamp(max=min_snr_gamma)
        return clamped / snr if self.prediction_type == "epsilon" else clamped / (snr + 1)

    def _roots(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the factors of signal and noise, each [B, 1, 1, 1]."""
        alphas_cumprod = self.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def _rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
