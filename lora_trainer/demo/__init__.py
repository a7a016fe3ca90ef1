"""The demo: a small LoRA trained on pictures that come along, and a sheet that shows what it does. Runs anywhere, offline."""

from lora_trainer.demo.command import main

__all__ = ["main"]
