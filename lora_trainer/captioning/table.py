"""The table of captioners. Light: an entry's target is imported when a captioner is loaded.

The target is a function `load(settings: CaptionerSettings) -> Captioner`. `options["model"]` is the model that it takes by
itself: a folder, or an id on the hub, from where `options["size_mb"]` megabytes would be loaded.
"""

from __future__ import annotations

from pathlib import Path

from lora_trainer.registry import Entry, Registry

CAPTIONERS = Registry(
    "captioner",
    (
        Entry(
            "blip",
            "BLIP base",
            "One plain sentence per picture. Small and quick; the one to begin with.",
            "lora_trainer.captioning.blip:load",
            options={"model": "Salesforce/blip-image-captioning-base", "size_mb": 990},
        ),
        Entry(
            "blip-large",
            "BLIP large",
            "Names more of what is there than BLIP base; takes twice the time and memory.",
            "lora_trainer.captioning.blip:load",
            options={"model": "Salesforce/blip-image-captioning-large", "size_mb": 1880},
        ),
        Entry(
            "miniature",
            "The demo's BLIP",
            "Knows the demo's kind of pictures and no others. Comes along: nothing is loaded from the hub.",
            "lora_trainer.captioning.blip:load",
            options={"model": str(Path(__file__).parents[1] / "demo" / "captioner"), "size_mb": 0},
        ),
    ),
)
