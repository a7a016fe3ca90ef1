"""What kohya's scripts call a setting and what is written here instead: people bring such names along.

Names that are the same there and here are not listed. Source: the options of sd-scripts' `train_network.py`.
"""

from __future__ import annotations

_CACHED = "what stays the same is always encoded once and kept"
_ATTENTION = "PyTorch's own fast attention is always used"
_SAVED = "each save keeps a state to continue from; the same command goes on from it"
_DRAWN = "samples are drawn at each save"
_LOADING = "pictures are encoded beforehand, so none are loaded while training"

RENAMED = {
    "pretrained_model_name_or_path": "base_model",
    "network_dim": "lora_rank",
    "network_alpha": "lora_alpha",
    "network_dropout": "lora_dropout",
    "network_weights": "start_from",
    "train_batch_size": "batch_size",
    "vae_batch_size": "encode_batch_size",
    "text_encoder_batch_size": "encode_batch_size",
    "max_train_epochs": "epochs",
    "mixed_precision": "precision",
    "optimizer_type": "optimizer",
    "lr_scheduler_num_cycles": "lr_restarts",
    "lr_scheduler_min_lr_ratio": "lr_min_ratio",
    "huber_c": "huber_delta",
    "in_json": "metadata_path",
    "shuffle_caption": "shuffle_tags",
    "caption_dropout_rate": "caption_dropout",
    "caption_tag_dropout_rate": "tag_dropout",
    "flip_aug": "flip",
    "prior_loss_weight": "reg_weight",
    "validation_split": "validation_share",
    "save_every_n_steps": "save_steps",
    "training_comment": "comment",
}

WRITTEN_AS = {
    "network_train_unet_only": "text_encoder_lr: 0",
    "network_train_text_encoder_only": "unet_lr: 0",
    "use_8bit_adam": "optimizer: adamw8bit",
    "use_lion_optimizer": "optimizer: lion",
    "v_parameterization": "prediction_type: v_prediction",
    "masked_loss": "alpha_mask: true",
}

NOT_NEEDED = {
    "enable_bucket": "pictures are always sorted into buckets",
    "bucket_no_upscale": "small pictures are only enlarged with upscale_small",
    "random_crop": "pictures are cropped from the middle, so that they can be kept encoded",
    "cache_latents": _CACHED,
    "cache_latents_to_disk": _CACHED,
    "cache_text_encoder_outputs": _CACHED,
    "cache_text_encoder_outputs_to_disk": _CACHED,
    "xformers": _ATTENTION,
    "sdpa": _ATTENTION,
    "mem_eff_attn": _ATTENTION,
    "max_token_length": "captions of up to 225 tokens are always read",
    "caption_extension": ".txt and .caption are both read",
    "num_repeats": "name the folder 10_name instead, and its pictures are seen ten times per epoch",
    "class_tokens": "the captions say it; trigger_words only go on the LoRA's card",
    "network_module": "the adapter is a LoRA",
    "dim_from_weights": "start_from brings its rank along",
    "v2": "it is read from the base model",
    "no_half_vae": "the VAE always works in fp32",
    "save_model_as": "the file is always .safetensors",
    "save_state": _SAVED,
    "save_state_on_train_end": _SAVED,
    "resume": _SAVED,
    "save_every_n_epochs": "save_steps counts steps",
    "sample_every_n_steps": _DRAWN,
    "sample_every_n_epochs": _DRAWN,
    "logging_dir": "with log_with: tensorboard the logs are in the run folder",
    "max_data_loader_n_workers": _LOADING,
    "persistent_data_loader_workers": _LOADING,
}

# Those that resemble a setting here with which they have nothing to do.
NOT_OFFERED = (
    "base_weights",
    "caption_dropout_every_n_epochs",
    "caption_prefix",
    "caption_suffix",
    "conditioning_data_dir",
    "huber_schedule",
    "ip_noise_gamma",
    "lr_scheduler_args",
    "lr_scheduler_power",
    "lr_scheduler_type",
    "max_timestep",
    "min_timestep",
    "network_args",
    "noise_offset_random_strength",
    "optimizer_args",
    "sample_sampler",
    "save_last_n_epochs",
    "save_last_n_steps",
    "scale_weight_norms",
    "validation_seed",
)


def describe_name(name: str) -> str:
    """Returns what to write instead of a setting of kohya's scripts, to follow "is not a setting"; "" for other names."""
    if name in RENAMED:
        return f"; what kohya's scripts call so is {RENAMED[name]!r} here."
    if name in WRITTEN_AS:
        return f"; write {WRITTEN_AS[name]!r} instead."
    if name in NOT_NEEDED:
        return f" here; leave it out: {NOT_NEEDED[name]}."
    return " here, though kohya's scripts have it; leave it out." if name in NOT_OFFERED else ""
