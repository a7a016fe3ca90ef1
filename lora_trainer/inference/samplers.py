"""The samplers of `table.SAMPLERS`: diffusers' schedulers, set up to walk the same noise levels as the WebUI's of those names."""

from __future__ import annotations

from typing import Any

from lora_trainer.models.objective import NoiseSchedule

# A schedule that ends in pure noise would divide by zero; the smallest positive number of fp16 is what diffusers takes there.
_LEAST_SIGNAL = 2.0**-24


def build_euler_a(schedule: NoiseSchedule) -> Any:
    """Returns Euler's method with ancestral noise (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(**_common(schedule), timestep_spacing="linspace")


def build_dpmpp_2m_karras(schedule: NoiseSchedule) -> Any:
    """Returns DPM-Solver++ of second order (arXiv 2211.01095) on the noise levels of arXiv 2206.00364, equation 5."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    # The library lowers the order of the last steps of short runs; the WebUI does so for the very last alone.
    return DPMSolverMultistepScheduler(**_common(schedule), use_karras_sigmas=True, lower_order_final=False)


def build_ddim(schedule: NoiseSchedule) -> Any:
    """Returns DDIM (arXiv 2010.02502) with eta 0."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        **_common(schedule), clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading", steps_offset=1
    )


def _common(schedule: NoiseSchedule) -> dict[str, Any]:
    """Returns what every scheduler is told of the base; its noise schedule is taken over as it is, zero terminal SNR included."""
    alphas_cumprod = schedule.alphas_cumprod.cpu().double().clamp(min=_LEAST_SIGNAL)
    alphas = alphas_cumprod.clone()
    alphas[1:] /= alphas_cumprod[:-1]
    return {
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": (1 - alphas).tolist(),
        "prediction_type": schedule.prediction_type,
    }
