"""The table of adapters: the LoRA variants that can be trained. A variant is one file in this room and one line here."""

from __future__ import annotations

from lora_trainer.registry import Entry, Registry

ADAPTERS = Registry(
    "adapter",
    (
        Entry(
            "lora",
            "LoRA",
            "Two small matrices beside each chosen layer, convolutions included. Works in every WebUI; the one to begin with.",
            "lora_trainer.adapters.lora:LoraAdapter",
        ),
    ),
)
