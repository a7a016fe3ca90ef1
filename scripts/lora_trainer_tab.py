"""Where the WebUI finds us: it runs this file at its start, and again at every "Reload UI"."""

from __future__ import annotations

from lora_trainer.extension import register

register()
