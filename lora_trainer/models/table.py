"""The table of model families, and loading a base model by what it is.

An entry's target is `load(settings, detection) -> TrainableModel`; its option `detect` names the light function
`(path, header or None for a folder) -> Detection | None` that recognises the family's files, and "footprint" the light function
`(detection, use) -> Footprint` that counts the memory of a training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_trainer.models.detect import detect
from lora_trainer.registry import Entry, Registry

if TYPE_CHECKING:
    from lora_trainer.models.family import ModelSettings, TrainableModel

_STABLE_DIFFUSION = {
    "detect": "lora_trainer.models.recognise:detect_stable_diffusion",
    "footprint": "lora_trainer.models.footprint:measure",
}

FAMILIES = Registry(
    "model family",
    (
        Entry(
            name="sd1",
            label="Stable Diffusion 1",
            help="Stable Diffusion 1.4, 1.5 and the models made from them: 512 pixels, 4 GB and more of GPU memory.",
            target="lora_trainer.models.sd1:load",
            options=_STABLE_DIFFUSION,
        ),
        Entry(
            name="sd2",
            label="Stable Diffusion 2",
            help="Stable Diffusion 2.0 and 2.1: 512 pixels, or 768 for those with v-prediction.",
            target="lora_trainer.models.sd2:load",
            options=_STABLE_DIFFUSION,
        ),
        Entry(
            name="sdxl",
            label="Stable Diffusion XL",
            help="Stable Diffusion XL base and the models made from it: 1024 pixels, 12 GB and more of GPU memory.",
            target="lora_trainer.models.sdxl:load",
            options=_STABLE_DIFFUSION,
        ),
    ),
)


def load_model(settings: ModelSettings) -> TrainableModel:
    """Detects the base model's family and loads it.

    Raises:
        ModelError: the file is missing, damaged, incomplete, or of a kind that cannot be trained here.
    """
    detection = detect(settings.base_model)
    model: TrainableModel = FAMILIES.get(detection.family).load()(settings, detection)
    return model
