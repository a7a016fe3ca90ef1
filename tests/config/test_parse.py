from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.config import parse
from lora_trainer.config.schema import SECTIONS, TrainConfig, changed_fields, field_infos, required_names
from lora_trainer.errors import ConfigError

ARTICLE = """
train_data_dir: "./data/guofeng_shuimo"
metadata_path: "./data/guofeng_shuimo/metadata.csv"
base_model: "./models/Stable-diffusion/v1-5-pruned.safetensors"
lora_rank: 16
lora_alpha: 32
lora_dropout: 0.1
target_modules: ["q_proj", "v_proj"]
batch_size: 4
epochs: 15
learning_rate: 2e-4
output_dir: "./output/guofeng_ink_lora"
save_steps: 100
log_with: tensorboard
"""
REQUIRED = {"train_data_dir": "pictures", "base_model": "base.safetensors", "output_dir": "out/ink"}


def problems_of(values: dict) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse.parse_config(values)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.mark.hosts
def test_the_article_file_works_as_it_is(tmp_path):
    path = tmp_path / "ink.yaml"
    path.write_text(ARTICLE, encoding="utf-8")
    config = parse.load_config(path)
    assert config.learning_rate == 2e-4
    assert config.target_modules == ("q_proj", "v_proj")
    assert (config.lora_rank, config.alpha, config.lora_dropout) == (16, 32.0, 0.1)
    assert config.metadata_path == Path("data/guofeng_shuimo/metadata.csv")
    assert config.name == "guofeng_ink_lora"
    assert config.log_with == "tensorboard"


def test_a_misspelt_key_is_an_error_with_the_nearest_one():
    found = problems_of({**REQUIRED, "lerning_rate": "1e-4"})
    assert found == {"lerning_rate": "lerning_rate: is not a setting; did you mean 'learning_rate'?"}


def test_all_problems_come_at_once_with_value_and_rule():
    found = problems_of({"base_model": "x", "lora_rank": "0", "batch_size": "2.5", "precision": "fp8", "shuffle_tags": "maybe"})
    assert set(found) == {"lora_rank", "batch_size", "precision", "shuffle_tags", "train_data_dir", "output_dir"}
    assert found["lora_rank"] == "lora_rank: (0) must be at least 1 and at most 1024; 8 to 64 is usual."
    assert "(2.5) must be a whole number" in found["batch_size"]
    assert "(fp8) must be one of auto, fp32, bf16, fp16" in found["precision"]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "zero", [1], True])
def test_a_learning_rate_that_is_no_positive_number_is_refused(value):
    assert "learning_rate" in problems_of({**REQUIRED, "learning_rate": value})


@pytest.mark.parametrize("value", ["", None, "none"])
def test_an_optional_field_may_be_left_empty(value):
    assert parse.parse_config({**REQUIRED, "resolution": value}).resolution is None


def test_a_key_given_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nseed: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="seed: is given twice"):
        parse.load_config(path)


def test_broken_yaml_names_line_and_column(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("seed: 1\nbatch_size: [1, 2\nepochs: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3, column \d+"):
        parse.load_config(path)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "gbk.yaml"
    path.write_bytes(b"comment: \xb9\xfa\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        parse.load_config(path)


def test_an_override_without_equals_sign_is_an_error():
    with pytest.raises(ConfigError, match="'epochs' has no '='"):
        parse.parse_overrides(["epochs"])


def test_target_modules_read_from_a_comma_list():
    config = parse.parse_config({**REQUIRED, **parse.parse_overrides(["target_modules=to_q, to_v"])})
    assert config.target_modules == ("to_q", "to_v")


def test_a_newer_file_is_refused():
    assert "another version" in problems_of({**REQUIRED, "config_version": "99"})["config_version"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("512", 512), (512, 512), (["512"], 512), ("768, 512", (512, 768)), ([768, "512", 768], (512, 768))],
)
def test_resolution_is_a_number_or_a_list(value, expected):
    config = parse.parse_config({**REQUIRED, "resolution": value})
    assert config.resolution == expected
    assert config.resolutions == (expected if isinstance(expected, tuple) else (expected,))


def test_a_wrong_resolution_in_a_list_is_named():
    assert "(32) must be at least 64" in problems_of({**REQUIRED, "resolution": [512, 32]})["resolution"]


@pytest.mark.parametrize(
    "word", ["folder_weights={10_a: 0.5, b=c: 2}", "folder_weights=10_a=0.5, b=c=2", "folder_weights=[10_a=0.5, b=c=2]"]
)
def test_folder_weights_are_read_from_a_mapping_or_words(tmp_path, word):
    config = parse.parse_config({**REQUIRED, **parse.parse_overrides([word])})
    assert config.folder_weights == {"10_a": 0.5, "b=c": 2.0}
    assert parse.load_config(parse.dump_config(config, tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [({"a": "much"}, r"of a (much) must be a number"), ({"a": 0}, "of a (0) must be above 0"), ("a", "(a) must be name=number")],
)
def test_wrong_folder_weights_are_named(value, message):
    assert message in problems_of({**REQUIRED, "folder_weights": value})["folder_weights"]


unicode_text = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30).map(str.strip)


@given(
    rank=st.integers(1, 1024),
    learning_rate=st.floats(1e-12, 100),
    shuffle=st.booleans(),
    comment=unicode_text,
    steps=st.none() | st.integers(1, 10_000_000),
)
def test_what_is_written_is_read_back(tmp_path_factory, rank, learning_rate, shuffle, comment, steps):
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    config = parse.parse_config(
        {
            **REQUIRED,
            "lora_rank": rank,
            "learning_rate": learning_rate,
            "shuffle_tags": shuffle,
            "comment": comment,
            "max_train_steps": steps,
        }
    )
    parse.dump_config(config, path)
    assert parse.load_config(path) == config


def test_every_field_is_declared_in_full():
    for name, info in field_infos().items():
        assert info.label and info.help.endswith("."), name
        assert info.section in SECTIONS, name
        assert (info.kind == "choice") == bool(info.choices), name
    assert set(required_names()) == set(REQUIRED)
    assert len({info.label for info in field_infos().values()}) == len(field_infos())


def test_every_default_passes_its_own_rule():
    parsed = parse.parse_config(REQUIRED)
    as_text = {name: getattr(parsed, name) for name in field_infos()}
    assert parse.parse_config(as_text) == parsed


def test_longer_is_the_same_run_and_another_seed_is_not():
    one = parse.parse_config(REQUIRED)
    assert changed_fields(one, parse.parse_config({**REQUIRED, "epochs": 99, "device": "cpu"})) == []
    assert changed_fields(one, parse.parse_config({**REQUIRED, "seed": 7})) == ["seed"]
    assert isinstance(one, TrainConfig)


@pytest.mark.parametrize(
    ("path", "message"),
    [('"C:\\new\\pictures"', "single quotes"), ('"C:\\models"', "single quotes"), ("~nobody-here/x", "Write the whole path")],
)
def test_paths_that_yaml_or_the_system_misreads_are_explained(path, message):
    with pytest.raises(ConfigError, match=message):
        parse.parse_config({**REQUIRED, **parse.parse_yaml(f"vae: {path}", "ink.yaml")})


@pytest.mark.parametrize("text", ["take #1: calm", "@studio", "C:\\new", "it's"])
def test_a_plain_override_is_taken_to_the_letter(text):
    assert parse.parse_overrides([f"comment={text}"]) == {"comment": text}


def test_quoted_and_empty_overrides_are_read_as_yaml():
    words = ["comment='a # b'", "sample_prompts=[one, two]", "vae=null", "output_name="]
    expected = {"comment": "a # b", "sample_prompts": ["one", "two"], "vae": None, "output_name": None}
    assert parse.parse_overrides(words) == expected
