"""Recognises SD1, SD2 and SDXL among single files and diffusers folders, and reads the sizes of their parts.

Single files are told apart by their text encoder, as the WebUI does; folders by their pipeline and text encoder. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_trainer.errors import ModelError, UnsupportedModelError
from lora_trainer.models.detect import USABLE, Detection, warn_of_distilled
from lora_trainer.models.header import Header
from lora_trainer.models.sidecar import Sidecar, read_sidecar
from lora_trainer.models.sizes import SD1_HEADS, Shapes, TextSizes, UNetSizes, VaeSizes

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SD1_TEXT = "cond_stage_model.transformer."
SD2_TEXT = "cond_stage_model.model."
SD2_TEXT_SGM = "conditioner.embedders.0.model."
SDXL_TEXTS = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")

SCALE_FACTORS = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
WRONG_INPUTS = {9: "an in-painting model", 8: "an InstructPix2Pix model", 5: "a depth model", 7: "an upscaler"}
WRONG_PARTS = {
    "depth_model.": "a depth model",
    "embedder.model.": "an unCLIP model",
    "noise_augmentor.": "an unCLIP model",
    "cond_stage_model.roberta.": "an AltDiffusion model",
    "control_model.": "a ControlNet",
}


@dataclass(frozen=True)
class StableDiffusionFacts:
    """What the loader of a Stable Diffusion model needs to know.

    Attributes:
        unet, vae, text_encoders: sizes of the parts; `vae` None when the file has none.
        text_prefixes: where a single file keeps each text encoder; empty for folders.
        scale_factor: the latents' scale.
        beta_start, beta_end, num_timesteps: the scaled-linear noise schedule.
        is_zero_terminal_snr: whether the base was trained with its schedule rescaled to end in pure noise.
    """

    unet: UNetSizes
    vae: VaeSizes | None
    text_encoders: tuple[TextSizes, ...]
    text_prefixes: tuple[str, ...]
    scale_factor: float
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    is_zero_terminal_snr: bool = False


def detect_stable_diffusion(path: Path, header: Header | None) -> Detection | None:
    """Returns what is known of an SD1, SD2 or SDXL base, None when the file or folder is something else.

    Raises:
        UnsupportedModelError: a relative of them that cannot be trained here, by name.
        ModelError: a part is missing.
    """
    return _detect_folder(path) if header is None else _detect_file(path, header)


def below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Returns the tensors below a prefix, without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _detect_file(path: Path, header: Header) -> Detection | None:
    unet_shapes = below(header.shapes, UNET_PREFIX)
    if "input_blocks.0.0.weight" not in unet_shapes:
        if any(name.startswith("model_ema.") for name in header.shapes):
            raise UnsupportedModelError(f"{path} holds averaged (EMA) weights only, which the WebUI cannot load either. {USABLE}")
        return None
    _refuse_relatives(path, header, unet_shapes)
    sidecar = read_sidecar(path)
    try:
        family, prefixes, encoders = _read_text_encoders(path, header.shapes, sidecar)
        heads = sidecar.heads or (None if sidecar.head_width or family != "sd1" else SD1_HEADS)
        unet = UNetSizes.from_shapes(unet_shapes, heads, sidecar.head_width)
        vae_shapes = below(header.shapes, VAE_PREFIX)
        vae = VaeSizes.from_shapes(vae_shapes) if vae_shapes else None
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise ModelError(f"{path} is incomplete: {error} is missing or has an unusual shape. Download it again.") from error
    _check_context(path, unet, encoders)
    prediction_type, reason = _prediction_of_file(header, sidecar, family)
    facts = StableDiffusionFacts(
        unet=unet,
        vae=vae,
        text_encoders=encoders,
        text_prefixes=prefixes,
        scale_factor=sidecar.scale_factor or SCALE_FACTORS[family],
        is_zero_terminal_snr="ztsnr" in header.shapes,
    )
    schedule: dict[str, Any] = {
        "beta_start": sidecar.beta_start,
        "beta_end": sidecar.beta_end,
        "num_timesteps": sidecar.num_timesteps,
    }
    return Detection(
        family=family,
        path=path,
        layout="original",
        prediction_type=prediction_type,
        prediction_reason=reason,
        resolution=sidecar.resolution or default_resolution(family, prediction_type),
        notes=warn_of_distilled(path, (header.metadata.get(f"modelspec.{key}", "") for key in ("title", "architecture"))),
        facts=replace(facts, **{name: value for name, value in schedule.items() if value is not None}),
    )


def default_resolution(family: str, prediction_type: str | None) -> int | None:
    """Returns the side that a family's ordinary bases were trained at; None for an SD2 of unknown prediction type."""
    if family == "sd2":
        return {"v_prediction": 768, "epsilon": 512}.get(prediction_type or "")
    return {"sd1": 512, "sdxl": 1024}[family]


def _refuse_relatives(path: Path, header: Header, unet_shapes: Shapes) -> None:
    in_channels = unet_shapes["input_blocks.0.0.weight"][1]
    kind = next((kind for prefix, kind in WRONG_PARTS.items() if any(name.startswith(prefix) for name in header.shapes)), None)
    if kind is None and in_channels != 4:
        kind = WRONG_INPUTS.get(in_channels, f"a model of {in_channels} input channels instead of 4")
    is_refiner = f"{SD2_TEXT_SGM}ln_final.weight" in header.shapes and "label_emb.0.0.weight" in unet_shapes
    if kind is None and is_refiner and f"{SDXL_TEXTS[1]}ln_final.weight" not in header.shapes:
        kind = "an SDXL refiner"
    if kind is not None:
        raise UnsupportedModelError(f"{path} is {kind}, which cannot be trained here. {USABLE}")


def _read_text_encoders(path: Path, shapes: Shapes, sidecar: Sidecar) -> tuple[str, tuple[str, ...], tuple[TextSizes, ...]]:
    """Returns the family, and prefix and sizes of each text encoder."""
    if f"{SDXL_TEXTS[1]}ln_final.weight" in shapes:
        first = TextSizes.from_clip_shapes(_with_text_model(below(shapes, SDXL_TEXTS[0])), sidecar.text_heads)
        second = TextSizes.from_open_clip_shapes(below(shapes, SDXL_TEXTS[1]), is_projected=True)
        return "sdxl", SDXL_TEXTS, (first, second)
    for prefix in (SD2_TEXT, SD2_TEXT_SGM):
        if f"{prefix}ln_final.weight" in shapes:
            return "sd2", (prefix,), (TextSizes.from_open_clip_shapes(below(shapes, prefix), is_projected=False),)
    clip = _with_text_model(below(shapes, SD1_TEXT))
    if not clip:
        raise ModelError(f"{path} holds a denoiser without its text encoder. Give a complete checkpoint. {USABLE}")
    return "sd1", (SD1_TEXT,), (TextSizes.from_clip_shapes(clip, sidecar.text_heads),)


def _with_text_model(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Some SD1 files leave out the "text_model." level."""
    return {name if name.startswith("text_model.") else f"text_model.{name}": shape for name, shape in shapes.items()}


def _check_context(path: Path, unet: UNetSizes, encoders: tuple[TextSizes, ...]) -> None:
    width = sum(encoder.width for encoder in encoders)
    if width != unet.context_width:
        raise ModelError(
            f"{path}: the denoiser expects text embeddings {unet.context_width} wide, its text encoders give {width}. "
            "The file was put together from parts that do not fit; take another base."
        )


def _prediction_of_file(header: Header, sidecar: Sidecar, family: str) -> tuple[str | None, str]:
    if sidecar.prediction_type:
        return sidecar.prediction_type, f"its {sidecar.path.name if sidecar.path else 'yaml'} says so"
    declared = header.metadata.get("modelspec.prediction_type", "").lower()
    if declared in ("v", "v_prediction", "v-prediction"):
        return "v_prediction", "its metadata modelspec.prediction_type says so"
    if declared in ("epsilon", "eps"):
        return "epsilon", "its metadata modelspec.prediction_type says so"
    if "v_pred" in header.shapes:
        return "v_prediction", "it holds a v_pred key"
    if family == "sd2":
        return None, "told by a trial forward when it is loaded"
    return "epsilon", "nothing in the file says otherwise"


def _detect_folder(path: Path) -> Detection | None:
    index = _read_json(path / "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    if not pipeline.startswith("StableDiffusion"):
        return None
    if pipeline not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise UnsupportedModelError(f"{path} is {pipeline}, which cannot be trained here. {USABLE}")
    is_xl = pipeline == "StableDiffusionXLPipeline"
    names = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    if is_xl and not (path / "text_encoder" / "config.json").is_file():
        raise UnsupportedModelError(f"{path} is an SDXL refiner, which cannot be trained here. {USABLE}")
    try:
        encoders = tuple(
            TextSizes.from_transformers(_read_json(path / name / "config.json"), is_projected=name == "text_encoder_2")
            for name in names
        )
        unet_config, vae_config = (_read_json(path / name / "config.json") for name in ("unet", "vae"))
        unet, vae = UNetSizes.from_diffusers(unet_config), VaeSizes.from_diffusers(vae_config)
    except KeyError as error:
        raise ModelError(f"{path}: a part's config.json is missing or lacks {error}. Download the folder again.") from error
    if unet.in_channels != 4:
        kind = WRONG_INPUTS.get(unet.in_channels, f"a model of {unet.in_channels} input channels instead of 4")
        raise UnsupportedModelError(f"{path} is {kind}, which cannot be trained here. {USABLE}")
    _check_context(path, unet, encoders)
    family = "sdxl" if is_xl else "sd2" if encoders[0].activation == "gelu" else "sd1"
    scheduler = _read_json(path / "scheduler" / "scheduler_config.json")
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UnsupportedModelError(f"{path} predicts {prediction_type!r}; allowed are 'epsilon' and 'v_prediction'. {USABLE}")
    side = unet_config.get("sample_size")
    return Detection(
        family=family,
        path=path,
        layout="diffusers",
        prediction_type=prediction_type,
        prediction_reason="its scheduler_config.json says so" if scheduler else "nothing in the folder says otherwise",
        resolution=side * 8 if isinstance(side, int) else default_resolution(family, prediction_type),
        notes=warn_of_distilled(path, (str(index.get("_name_or_path", "")),)),
        facts=StableDiffusionFacts(
            unet=unet,
            vae=vae,
            text_encoders=encoders,
            text_prefixes=(),
            scale_factor=vae_config.get("scaling_factor") or SCALE_FACTORS[family],
            beta_start=scheduler.get("beta_start", 0.00085),
            beta_end=scheduler.get("beta_end", 0.012),
            num_timesteps=scheduler.get("num_train_timesteps", 1000),
            is_zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
        ),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object, an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        return content
    except ValueError as error:
        raise ModelError(f"{path} is damaged: it is not JSON ({error}). Download it again.") from error
