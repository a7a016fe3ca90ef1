"""The metadata as the WebUI's card and editor read it: strings, with JSON text for dicts and lists."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lora_trainer.adapters.metadata import TrainingFacts, count_tags, metadata

FACTS = TrainingFacts(
    rank=16,
    alpha=32,
    learning_rate=2e-4,
    optimizer="adamw",
    lr_scheduler="cosine",
    num_train_images=48,
    num_epochs=15,
    max_train_steps=180,
    batch_size=4,
    resolution=(512, 768),
    seed=42,
    started_at=1700000000.5,
    gradient_accumulation_steps=2,
    clip_skip=2,
    min_snr_gamma=5.0,
    target_modules=("q_proj", "v_proj"),
    dataset_dirs={"10_墨": {"n_repeats": 10, "img_count": 24}},
    tag_frequency={"10_墨": {"mountain": 3}},
    buckets={(512, 768): 20, (512, 512): 4},
    trigger_phrase="guofeng",
)
BASE = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"}


def made(facts: TrainingFacts = FACTS, **base: str) -> dict[str, str]:
    return metadata(facts, BASE | base, network_module="networks.lora", step=100, epoch=9, finished_at=1700000600.0)


def test_every_value_is_text_and_the_base_is_in_it() -> None:
    values = made()
    assert all(isinstance(value, str) for value in values.values())
    assert BASE.items() <= values.items()


def test_what_the_metadata_editor_shows_is_there() -> None:
    values = made()
    assert float(values["ss_training_started_at"]) == 1700000000.5
    assert json.loads(values["ss_dataset_dirs"]) == {"10_墨": {"n_repeats": 10, "img_count": 24}}
    assert json.loads(values["ss_tag_frequency"]) == {"10_墨": {"mountain": 3}}
    buckets = json.loads(values["ss_bucket_info"])["buckets"]
    assert sorted((tuple(bucket["resolution"]), bucket["count"]) for bucket in buckets.values()) == [
        ((512, 512), 4),
        ((512, 768), 20),
    ]
    assert (values["ss_clip_skip"], values["ss_network_module"]) == ("2", "networks.lora")


def test_what_other_tools_read_is_there() -> None:
    values = made()
    expected = {
        "ss_network_dim": "16",
        "ss_network_alpha": "32",
        "ss_learning_rate": "0.0002",
        "ss_optimizer": "adamw",
        "ss_lr_scheduler": "cosine",
        "ss_steps": "100",
        "ss_epoch": "9",
        "ss_num_epochs": "15",
        "ss_num_train_images": "48",
        "ss_batch_size_per_device": "4",
        "ss_total_batch_size": "8",
        "ss_resolution": "(512, 768)",
        "ss_seed": "42",
        "ss_min_snr_gamma": "5.0",
        "ss_training_finished_at": "1700000600.0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.date": "2023-11-14T22:23:20",
        "modelspec.resolution": "512x768",
        "modelspec.trigger_phrase": "guofeng",
    }
    assert expected.items() <= values.items()
    assert json.loads(values["ss_network_args"]) == {"dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def test_what_is_not_known_is_left_out() -> None:
    values = made(dataclasses.replace(FACTS, clip_skip=None, min_snr_gamma=None, trigger_phrase="", buckets={}))
    assert (
        not {"ss_clip_skip", "ss_min_snr_gamma", "modelspec.trigger_phrase", "ss_bucket_info", "modelspec.thumbnail"}
        & values.keys()
    )


@pytest.mark.parametrize(("picture", "kind"), [(b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff", "jpeg")])
def test_thumbnail_is_a_data_url(picture: bytes, kind: str) -> None:
    assert made(dataclasses.replace(FACTS, thumbnail=picture))["modelspec.thumbnail"].startswith(f"data:image/{kind};base64,")


def test_names_that_are_not_valid_text_can_be_written() -> None:
    made(dataclasses.replace(FACTS, dataset_dirs={"a\udc80": {"n_repeats": 1, "img_count": 1}}))["ss_dataset_dirs"].encode(
        "utf-8"
    )


def test_tags_are_split_at_commas_lowered_and_counted() -> None:
    assert count_tags(["Ink, mountain ,", "mountain, ink", "mountain"]) == {"mountain": 3, "ink": 2}
