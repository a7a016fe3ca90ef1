from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.registry import Entry, Registry, did_you_mean

pytestmark = pytest.mark.hosts

FRUIT = Registry(
    "fruit",
    (
        Entry("pear", "Pear", "Soft.", "json:dumps"),
        Entry("apple", "Apple", "Hard.", "json.decoder:JSONDecoder", package="cider"),
    ),
)


def test_entries_keep_their_order():
    assert FRUIT.names() == ("pear", "apple")
    assert [entry.label for entry in FRUIT] == ["Pear", "Apple"]


def test_load_returns_what_the_target_names():
    assert FRUIT.get("pear").load() is json.dumps
    assert FRUIT.get("apple").load() is json.decoder.JSONDecoder


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(KeyError) as caught:
        FRUIT.get("aple")
    assert caught.value.args[0] == "fruit 'aple' does not exist; did you mean 'apple'? Known: pear, apple."


def test_a_name_near_to_none_gets_no_suggestion():
    assert did_you_mean("xyzzy", ("pear", "apple")) == "."


def test_listing_a_table_imports_none_of_its_targets():
    code = (
        "import sys; from lora_trainer.registry import Entry, Registry\n"
        "table = Registry('format', (Entry('wave', 'Wave', 'Sound.', 'wave:open'),))\n"
        "table.names(), list(table), table.get('wave')\n"
        "assert 'wave' not in sys.modules\n"
        "table.get('wave').load()\n"
        "assert 'wave' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
