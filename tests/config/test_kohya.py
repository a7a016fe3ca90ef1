from __future__ import annotations

import pytest

from lora_trainer.config import kohya, parse
from lora_trainer.config.schema import field_infos
from lora_trainer.errors import ConfigError

TABLES = (kohya.RENAMED, kohya.WRITTEN_AS, kohya.NOT_NEEDED, dict.fromkeys(kohya.NOT_OFFERED))


def test_every_name_of_ours_that_is_told_is_a_setting():
    infos = field_infos()
    assert set(kohya.RENAMED.values()) <= infos.keys()
    for line in kohya.WRITTEN_AS.values():
        name, _, value = line.partition(": ")
        parse.read_value(infos[name], value)


def test_no_name_of_kohyas_is_listed_twice_or_is_a_setting_here():
    names = [name for table in TABLES for name in table]
    assert len(names) == len(set(names))
    assert not set(names) & field_infos().keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_train_epochs", "is not a setting; what kohya's scripts call so is 'epochs' here."),
        ("mixed_precision", "is not a setting; what kohya's scripts call so is 'precision' here."),
        ("network_train_unet_only", "is not a setting; write 'text_encoder_lr: 0' instead."),
        ("enable_bucket", "is not a setting here; leave it out: pictures are always sorted into buckets."),
        ("scale_weight_norms", "is not a setting here, though kohya's scripts have it; leave it out."),
    ],
)
def test_a_name_of_kohyas_scripts_is_told_by_what_it_is_here(name, message):
    with pytest.raises(ConfigError) as caught:
        parse.parse_config({"train_data_dir": "p", "base_model": "b", "output_dir": "o", name: "1"})
    assert [problem.message for problem in caught.value.problems] == [message]
