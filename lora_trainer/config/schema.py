"""Every setting, declared once: type, default, range, unit, label, help and section.

The YAML keys, `--set`, the page's widgets and the documentation all come from here. A `TrainConfig` is what was asked for and is
never changed; numbers derived from it are in `plan.TrainPlan`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lora_trainer.training.table import OPTIMIZERS, SCHEDULES

VERSION = 1
SECTIONS = ("Data", "Base model", "LoRA", "Training", "Validation and samples", "Memory and speed", "Saving")
PROJECTIONS_HELP = (
    "attention, attention_ff, all_linear, or names of projections such as q_proj, v_proj. Names mean projections: "
    "q_proj is the UNet's to_q too."
)

Kind = Literal["int", "float", "bool", "text", "path", "choice", "names", "texts", "sizes", "weights"]


@dataclass(frozen=True)
class FieldInfo:
    """What is declared of one setting, beside its name, type and default.

    Attributes:
        kind: how its text is read; "names" are words between commas, "texts" whole lines, "sizes" a whole number or a list
            of them, "weights" numbers by name.
        label: a few words for a form.
        help: what it does and when to change it.
        section: one of `SECTIONS`.
        minimum, maximum: the allowed range, both inside; None for none.
        exclusive_minimum: whether `minimum` itself is not allowed.
        unit: of the number, such as "pixels"; "" for none.
        usual: what most people take, for messages.
        choices: the allowed words of a "choice".
        optional: whether it may be left empty (None).
        matters: whether a change makes it another run. What only says how long, where to, or how fast, does not.
    """

    kind: Kind
    label: str
    help: str
    section: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    unit: str = ""
    usual: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    matters: bool = True


def _setting(section: str, kind: Kind, label: str, help: str, *, default: Any = MISSING, **info: Any) -> Any:
    optional = default is None
    metadata = {"info": FieldInfo(kind, label, help, section, optional=optional, **info)}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def _in_section(section: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: _setting(section, *args, **kwargs)


_data, _model, _lora, _training, _watching, _speed, _saving = (_in_section(section) for section in SECTIONS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run, as the user gave them. Build it with `parse.parse_config`, which checks every value."""

    train_data_dir: Path = _data("path", "Picture folder", "Folder with the training pictures; sub-folders count too.")
    metadata_path: Path | None = _data(
        "path",
        "Caption table",
        "CSV or JSONL with file name and caption. Empty: .txt beside each picture, then a metadata file in the folder.",
        default=None,
    )
    resolution: int | tuple[int, ...] | None = _data(
        "sizes",
        "Resolution",
        "Side of a square picture; others get the same area. Of a list, every picture is trained at each. Empty: the base's own.",
        default=None,
        minimum=64,
        maximum=4096,
        unit="pixels",
        usual="512 for SD1, 768 for SD2, 1024 for SDXL",
    )
    upscale_small: bool = _data(
        "bool",
        "Enlarge small pictures",
        "Enlarges pictures below the resolution instead of training them at their own size. Enlarged pictures teach blur.",
        default=False,
    )
    alpha_mask: bool = _data(
        "bool",
        "Transparency as mask",
        "Transparent parts are not learned, half-transparent ones half as much. Otherwise they are learned as white.",
        default=False,
    )
    flip: bool = _data(
        "bool",
        "Mirror pictures",
        "Shows each picture mirrored half of the time. Not for faces, writing or anything else that has a left and a right.",
        default=False,
    )
    folder_weights: Mapping[str, float] | None = _data(
        "weights",
        "Weights of folders",
        "How strongly a sub-folder's pictures pull, by its name: {sketches: 0.5}. The nearest folder named counts; others: 1.",
        default=None,
        minimum=0,
        exclusive_minimum=True,
        maximum=100,
        usual="0.3 to 1",
    )
    reg_data_dir: Path | None = _data(
        "path",
        "Regularisation folder",
        "Ordinary captioned pictures of the same kind of thing, trained besides, so that the LoRA does not change those too.",
        default=None,
    )
    reg_weight: float = _data(
        "float",
        "Regularisation weight",
        "How strongly the pictures of the regularisation folder pull, against 1 of the others.",
        default=1.0,
        minimum=0,
        exclusive_minimum=True,
        maximum=100,
        usual="0.3 to 1",
    )
    shuffle_tags: bool = _data(
        "bool", "Shuffle tags", "Puts the comma-separated parts of a caption into a new order each epoch.", default=False
    )
    keep_tokens: int = _data(
        "int",
        "Keep first tags",
        "This many comma-separated parts stay in front, neither shuffled nor dropped: the trigger word, say.",
        default=0,
        minimum=0,
        maximum=75,
    )
    tag_dropout: float = _data(
        "float",
        "Tag dropout",
        "Share of the comma-separated parts that are left out of a caption, others each epoch, so that none is indispensable.",
        default=0.0,
        minimum=0.0,
        maximum=1.0,
        usual="0 to 0.1",
    )
    caption_dropout: float = _data(
        "float",
        "Caption dropout",
        "Share of pictures that are shown without their caption, which lets a style work without its trigger word.",
        default=0.0,
        minimum=0.0,
        maximum=1.0,
        usual="0 to 0.1",
    )

    base_model: Path = _model("path", "Base model", "The checkpoint to train on: .safetensors, .ckpt or a diffusers folder.")
    vae: Path | None = _model(
        "path",
        "VAE",
        "Another VAE file, for a base whose own gives black or washed-out pictures. Empty: the checkpoint's own.",
        default=None,
    )
    prediction_type: str = _model(
        "choice",
        "Prediction type",
        "What the base predicts. auto reads it from the checkpoint and says what it found. Change it only if the "
        "base is not recognised rightly.",
        default="auto",
        choices=("auto", "epsilon", "v_prediction"),
    )
    clip_skip: int = _model(
        "int",
        "Clip skip",
        "1 takes the text encoder's last layer, 2 the last but one. Use what you generate with; SD2 and SDXL ignore it.",
        default=1,
        minimum=1,
        maximum=12,
        usual="1; 2 for anime bases",
    )

    adapter: str = _lora("choice", "Kind of LoRA", "lora works in every WebUI.", default="lora", choices=("lora",))
    start_from: Path | None = _lora(
        "path",
        "Start from",
        "A LoRA file to go on from, with its rank. The optimizer starts anew; a run that is continued has its own state instead.",
        default=None,
    )
    lora_rank: int = _lora(
        "int",
        "Rank",
        "Room for what is learned: 8 for a face, 16 for a style with fine tones. More needs more memory and over-fits sooner.",
        default=16,
        minimum=1,
        maximum=1024,
        usual="8 to 64",
    )
    lora_alpha: float | None = _lora(
        "float",
        "Alpha",
        "The LoRA's effect is multiplied by alpha / rank, in training too: doubling it acts much like a higher "
        "learning rate. Empty: twice the rank (kohya's scripts: 1). From a kohya configuration copy both numbers.",
        default=None,
        minimum=0,
        exclusive_minimum=True,
        usual="half of, equal to or twice the rank",
    )
    lora_dropout: float = _lora(
        "float",
        "Dropout",
        "Share of the LoRA's inputs that are dropped while training, against over-fitting of small sets.",
        default=0.0,
        minimum=0.0,
        maximum=0.95,
        usual="0 to 0.1",
    )
    target_modules: tuple[str, ...] = _lora(
        "names",
        "Trained layers",
        f"attention for a style or a face, attention_ff for new shapes. {PROJECTIONS_HELP}",
        default=("attention",),
    )

    batch_size: int = _training(
        "int",
        "Batch size",
        "Pictures trained at once. Lower it when memory runs out, and raise gradient accumulation instead.",
        default=1,
        minimum=1,
        maximum=1024,
        usual="1 to 4",
    )
    gradient_accumulation_steps: int = _training(
        "int",
        "Gradient accumulation",
        "Batches that are added up to one step: the effect of a larger batch without its memory.",
        default=1,
        minimum=1,
        maximum=1024,
    )
    epochs: int = _training(
        "int",
        "Epochs",
        "How often the whole set is seen. 20 pictures need about 100 epochs, 150 need 15 to 20; divide by the repeats where "
        "folders are named like 10_name.",
        default=10,
        minimum=1,
        maximum=100000,
        matters=False,
    )
    max_train_steps: int | None = _training(
        "int",
        "Steps",
        "Ends the run at this step, whatever the epochs say. Empty: by epochs.",
        default=None,
        minimum=1,
        maximum=10_000_000,
        matters=False,
    )
    learning_rate: float = _training(
        "float",
        "Learning rate",
        "How far each step goes. With AdamW most runs become unstable above 5e-4 and learn little below 2e-5; "
        "other optimizers differ.",
        default=1e-4,
        minimum=0,
        exclusive_minimum=True,
        maximum=100,
        usual="1e-4 to 2e-4 with AdamW",
    )
    unet_lr: float | None = _training(
        "float",
        "UNet learning rate",
        "Empty: the learning rate. 0 leaves the UNet untouched.",
        default=None,
        minimum=0,
        maximum=100,
    )
    text_encoder_lr: float = _training(
        "float",
        "Text encoder learning rate",
        "0 leaves the text encoders untouched, which is best for styles and small sets.",
        default=0.0,
        minimum=0,
        maximum=100,
        usual="0, or a quarter to half of the learning rate",
    )
    optimizer: str = _training(
        "choice",
        "Optimizer",
        "adamw is right for almost everything. The learning rate goes with it: lion takes a third to a tenth, prodigy takes 1.",
        default="adamw",
        choices=OPTIMIZERS.names(),
    )
    weight_decay: float = _training(
        "float", "Weight decay", "Pull of the LoRA's weights towards zero. Leave it.", default=0.01, minimum=0, maximum=10
    )
    lr_scheduler: str = _training(
        "choice",
        "Learning-rate schedule",
        "How the learning rate moves over the run: cosine when the length is settled, constant to compare step files.",
        default="constant",
        choices=SCHEDULES.names(),
    )
    lr_restarts: int = _training(
        "int",
        "Restarts",
        "How many times cosine_with_restarts falls to zero.",
        default=3,
        minimum=1,
        maximum=1000,
        usual="2 to 4",
    )
    lr_min_ratio: float = _training(
        "float",
        "Lowest rate",
        "Share of the learning rate that the schedule does not go below.",
        default=0.0,
        minimum=0,
        maximum=1,
        usual="0 to 0.1",
    )
    lr_warmup_steps: int = _training(
        "int",
        "Warm-up",
        "Steps over which the learning rate rises from zero. 0 for AdamW; 5 % of the steps with prodigy or high rates.",
        default=0,
        minimum=0,
        maximum=1_000_000,
        unit="steps",
    )
    max_grad_norm: float = _training(
        "float",
        "Gradient clipping",
        "Longest gradient that is let through, by its norm over all LoRA weights. 0: none. Leave it.",
        default=1.0,
        minimum=0,
        maximum=1e6,
    )
    min_snr_gamma: float | None = _training(
        "float",
        "Min-SNR gamma",
        "Evens out how much each noise level counts, which learns faster. Empty: off.",
        default=None,
        minimum=0,
        exclusive_minimum=True,
        maximum=1000,
        usual="5",
    )
    debiased_estimation: bool = _training(
        "bool",
        "Debiased estimation",
        "Another way of evening out the noise levels, more strongly than Min-SNR and with more weight on composition. "
        "Not together with it.",
        default=False,
    )
    loss_type: str = _training(
        "choice",
        "Loss",
        "huber counts large errors less: for sets with some spoilt or odd pictures. mse is the usual one.",
        default="mse",
        choices=("mse", "huber"),
    )
    huber_delta: float = _training(
        "float",
        "Huber delta",
        "The error from which on huber counts less; the smaller, the less odd pictures count.",
        default=0.1,
        minimum=0,
        exclusive_minimum=True,
        maximum=100,
        unit="standard deviations of the noise",
        usual="0.1 to 1",
    )
    zero_terminal_snr: bool = _training(
        "bool",
        "Zero terminal SNR",
        "Trains on pure noise too, for really dark and bright pictures. For bases that predict v; generate with the WebUI's "
        "noise schedule Zero Terminal SNR.",
        default=False,
    )
    noise_offset: float = _training(
        "float",
        "Noise offset",
        "Helps very dark and very bright pictures: 0.03 to 0.05 where pictures come out grey and flat. Not with "
        "zero terminal SNR.",
        default=0.0,
        minimum=0,
        maximum=1,
        usual="0 to 0.1",
    )
    seed: int = _training(
        "int", "Seed", "The same seed and settings give the same LoRA. Leave it.", default=42, minimum=0, maximum=2**32 - 1
    )

    validation_share: float = _watching(
        "float",
        "Held-out share",
        "Share of the pictures that is not trained: their loss tells which saved step is best. 0: all are trained, and the loss "
        "on some of them shows progress only.",
        default=0.0,
        minimum=0.0,
        maximum=0.5,
        usual="0 for few pictures, 0.1 from 40 on",
    )
    validation_dir: Path | None = _watching(
        "path",
        "Validation folder",
        "Captioned pictures that are not trained, instead of a held-out share.",
        default=None,
    )
    validation_pictures: int | None = _watching(
        "int",
        "Pictures to watch",
        "How many training pictures picture_losses.csv follows when none are held out. Empty: what a twentieth of the time "
        "allows. 0: none.",
        default=None,
        minimum=0,
        maximum=100_000,
        matters=False,
    )
    sample_prompts: tuple[str, ...] = _watching(
        "texts",
        "Sample prompts",
        "At each save a picture is drawn for each, without and with the LoRA side by side. Empty: none.",
        default=(),
        matters=False,
    )
    sample_steps: int = _watching(
        "int", "Sample steps", "Of drawing one sample.", default=20, minimum=2, maximum=150, usual="20", matters=False
    )
    sample_cfg_scale: float = _watching(
        "float",
        "Sample CFG scale",
        "How closely a sample follows its prompt.",
        default=7.0,
        minimum=1,
        maximum=30,
        usual="7",
        matters=False,
    )

    device: str = _speed(
        "text", "Device", "auto takes the GPU where there is one; else cpu, cuda, cuda:1, mps.", default="auto", matters=False
    )
    precision: str = _speed(
        "choice",
        "Precision",
        "Of the frozen base and the arithmetic; the LoRA itself is always fp32. auto: bf16 or fp16 on a GPU, fp32 on a CPU "
        "and on a GTX 16xx, which fails in fp16. Take fp32 only if steps are skipped.",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = _speed(
        "bool",
        "Gradient checkpointing",
        "Less memory for about a third more time. The result is the same. Turn it on for SDXL below 12 GB.",
        default=False,
        matters=False,
    )
    on_out_of_memory: str = _speed(
        "choice",
        "When memory runs out",
        "stop ends the run and names the next smaller setting; adapt takes it by itself: smaller batches, then checkpointing.",
        default="stop",
        choices=("stop", "adapt"),
        matters=False,
    )
    encode_batch_size: int = _speed(
        "int", "Encoding batch size", "Pictures encoded at once.", default=1, minimum=1, maximum=256, matters=False
    )
    cache_dir: Path | None = _speed(
        "path",
        "Cache folder",
        "Where encoded pictures and captions are kept. Empty: cache beside the run folder.",
        default=None,
        matters=False,
    )
    deterministic: bool = _speed(
        "bool",
        "Deterministic",
        "On a GPU: the same bytes each time, somewhat slower; inside a WebUI only nearly. A CPU always is.",
        default=False,
    )

    output_dir: Path = _saving("path", "Run folder", "Everything about this run is kept here.", matters=False)
    output_name: str | None = _saving(
        "text", "Name", "Name of the LoRA, as in <lora:name:0.7>. Empty: the run folder's name.", default=None
    )
    save_steps: int = _saving(
        "int",
        "Save every",
        "A LoRA file and a state to continue from, each this many steps. 0: at the end only.",
        default=100,
        minimum=0,
        maximum=1_000_000,
        unit="steps",
        matters=False,
    )
    save_precision: str = _saving(
        "choice",
        "File precision",
        "Of the numbers in the LoRA file.",
        default="fp16",
        choices=("fp16", "bf16", "fp32"),
        matters=False,
    )
    lora_dir: Path | None = _saving(
        "path", "LoRA folder", "The finished file is copied here: the WebUI's models/Lora.", default=None, matters=False
    )
    replace_lora: bool = _saving(
        "bool",
        "Replace the LoRA of this name",
        "A LoRA of this name in the LoRA folder is replaced, with its card and picture. Otherwise this one is named name-2.",
        default=False,
        matters=False,
    )
    trigger_words: str = _saving(
        "text",
        "Trigger words",
        "A rare word that calls the LoRA, such as ohwx. It must stand in the captions: fill it in before pressing Caption. "
        "It also goes onto the LoRA's card. For a style it may stay empty.",
        default="",
        matters=False,
    )
    comment: str = _saving("text", "Comment", "A note kept in the file.", default="", matters=False)
    log_with: str | None = _saving(
        "choice",
        "Log with",
        "tensorboard also writes logs/ for TensorBoard.",
        default=None,
        choices=("tensorboard",),
        matters=False,
    )

    @property
    def name(self) -> str:
        """The LoRA's name: `output_name`, else the run folder's."""
        return self.output_name or self.output_dir.resolve().name

    @property
    def alpha(self) -> float:
        """`lora_alpha`, else twice the rank."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.lora_rank

    @property
    def resolutions(self) -> tuple[int, ...]:
        """`resolution` as a list, the smallest first; () when it is left to the base."""
        if self.resolution is None:
            return ()
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, else "cache" beside the run folder, which runs of one output folder share."""
        return self.cache_dir or self.output_dir.resolve().parent / "cache"


def field_infos() -> dict[str, FieldInfo]:
    """Returns what is declared of every setting, by YAML key, in the order shown to people."""
    return {entry.name: entry.metadata["info"] for entry in fields(TrainConfig)}


def default_of(name: str) -> Any:
    """Returns the default of a setting, or `dataclasses.MISSING` when it must be given."""
    return TrainConfig.__dataclass_fields__[name].default


def required_names() -> tuple[str, ...]:
    """Returns the settings without a default."""
    return tuple(name for name in field_infos() if default_of(name) is dataclasses.MISSING)


def changed_fields(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Returns the settings that differ in two configurations and make them different runs."""
    return [name for name, info in field_infos().items() if info.matters and getattr(one, name) != getattr(other, name)]
