"""Copies the miniature base into a WebUI, as any checkpoint is put there, with what the WebUI would else ask the hub for."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from lora_trainer.demo.assets import BASE, CLIP
from lora_trainer.errors import ModelError
from lora_trainer.files import write_text, write_whole

CLIP_NAME = "miniature_clip"


def copy_base(webui: Path) -> Path:
    """Copies checkpoint, yaml and the text encoder's folder into a WebUI's models. Returns where the checkpoint is.

    The WebUI looks for the folder that the yaml names from wherever it was started, so there it stands in full.

    Raises:
        ModelError: the folder is no WebUI's, is that of one which refuses the miniature, or cannot be written.
    """
    models = _models_folder(webui) / "Stable-diffusion"
    if (webui / "modules_forge").is_dir():
        raise ModelError(
            f"{webui} is Forge or a relative of it. They know base models by their exact sizes and refuse the demo's, which is "
            "smaller ('Failed to recognize model type!'). Give the folder of an AUTOMATIC1111 WebUI. Training on your own "
            "base works in all of them."
        )
    target, clip = models / BASE.name, models / CLIP_NAME
    content = yaml.safe_load(BASE.with_suffix(".yaml").read_text(encoding="utf-8"))
    content["model"]["params"]["cond_stage_config"]["params"]["version"] = str(clip)
    try:
        shutil.copytree(CLIP, clip, dirs_exist_ok=True)
        write_text(target.with_suffix(".yaml"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_whole(target, lambda path: shutil.copyfile(BASE, path))
    except OSError as error:
        raise ModelError(f"{models} cannot be written: {error.strerror or error}.") from error
    return target


def copy_lora(lora: Path, webui: Path) -> Path:
    """Copies the demo's LoRA into a WebUI's LoRA folder; an earlier copy is replaced. Returns where it is."""
    target = _models_folder(webui) / "Lora" / lora.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(target, lambda path: shutil.copyfile(lora, path))
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}.") from error


def _models_folder(webui: Path) -> Path:
    models = webui / "models"
    if not (models / "Stable-diffusion").is_dir():
        raise ModelError(
            f"{webui} is no WebUI's folder: it has no models/Stable-diffusion. Give the folder that the WebUI is started from."
        )
    return models
