"""Train LoRA files for AUTOMATIC1111's Stable Diffusion WebUI and its descendants."""

__version__ = "0.1.0"
