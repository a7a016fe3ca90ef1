"""The table of captioners. Light: an entry's target is imported when a captioner is loaded.

The target is a function `load(settings: CaptionerSettings) -> Captioner`. `options["model"]` is the model that it takes by
itself: a folder, or an id on the hub, from where `options["size_mb"]` megabytes would be loaded. "" is a captioner that has no
model of ours. `RANKERS` are CLIP models that compare given terms with pictures.
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
            "blip2",
            "BLIP-2",
            "The best sentences; answers a prompt such as “Question: what medium is this? Answer:”. Needs a card of 12 GB.",
            "lora_trainer.captioning.blip2:load",
            options={"model": "Salesforce/blip2-opt-2.7b", "size_mb": 15500},
        ),
        Entry(
            "webui",
            "The WebUI's own BLIP",
            "What Interrogate CLIP begins with, by the lengths and beams of the WebUI's settings. Nothing is loaded.",
            "lora_trainer.captioning.webui:load",
            options={"model": "", "size_mb": 0},
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

RANKERS = Registry(
    "ranker",
    (
        Entry(
            "clip",
            "CLIP large",
            "Tells media and styles apart best; the one that Interrogate CLIP uses.",
            "lora_trainer.captioning.ranking:load",
            options={"model": "openai/clip-vit-large-patch14", "size_mb": 1710},
        ),
        Entry(
            "clip-base",
            "CLIP base",
            "A third of the size and three times as quick; errs more often.",
            "lora_trainer.captioning.ranking:load",
            options={"model": "openai/clip-vit-base-patch32", "size_mb": 605},
        ),
    ),
)
