from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_trainer.errors import ConfigError
from lora_trainer.host.base import ModelFile
from lora_trainer.jobs.settings import train_config
from tests.jobs.host import FolderHost

pytestmark = pytest.mark.hosts
GIVEN = {"train_data_dir": "pictures", "base_model": "base.safetensors"}


def fields_of(settings, host) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        train_config({**GIVEN, **settings}, host)
    return [problem.field for problem in caught.value.problems]


def test_the_host_fills_in_what_it_knows(host):
    config = train_config(GIVEN, host, title="水墨: ink/wash?")
    folders = host.folders()
    assert config.output_dir == folders.runs / "水墨- ink-wash"
    assert (config.cache_dir, config.lora_dir) == (folders.cache, folders.lora_dir)
    assert config.save_steps == 100


def test_empty_counts_as_left_out(host):
    config = train_config({**GIVEN, "output_dir": " ", "cache_dir": None, "lora_dir": "", "output_name": "ink"}, host, title="x")
    assert (config.output_dir, config.lora_dir) == (host.folders().runs / "ink", host.folders().lora_dir)


def test_a_run_never_gets_the_folder_of_another(host):
    (host.folders().runs / "ink").mkdir(parents=True)
    (host.folders().runs / "ink-2").mkdir()
    assert train_config(GIVEN, host, title="ink").output_dir.name == "ink-3"


def test_the_settings_page_gives_the_save_interval_unless_it_is_given(tmp_path):
    host = FolderHost(tmp_path, save_steps=33)
    assert train_config(GIVEN, host).save_steps == 33
    assert train_config({**GIVEN, "save_steps": "7"}, host).save_steps == 7


def test_a_base_model_by_the_name_that_the_host_shows(tmp_path):
    host = FolderHost(tmp_path, models=[ModelFile("v1-5.safetensors [abc]", tmp_path / "v1-5.safetensors")])
    assert train_config({**GIVEN, "base_model": "v1-5.safetensors [abc]"}, host).base_model == tmp_path / "v1-5.safetensors"


def test_folders_inside_are_taken_relative_ones_from_their_root(host):
    folders = host.folders()
    config = train_config({**GIVEN, "output_dir": "./output/guofeng", "lora_dir": "styles", "cache_dir": "c"}, host)
    assert config.output_dir == folders.runs / "output" / "guofeng"
    assert config.lora_dir == folders.lora_dir / "styles"
    assert config.cache_dir == folders.data_dir / "c"
    assert train_config({**GIVEN, "lora_dir": str(folders.lora_dir)}, host).lora_dir == folders.lora_dir


@pytest.mark.parametrize("field", ["output_dir", "cache_dir", "lora_dir"])
@pytest.mark.parametrize("path", ["/etc", "../../x", "a/../../../x", "~/../x/..", "a\0b", "{root}/data2", "{root}"])
def test_nothing_is_written_outside(host, field, path):
    if path.startswith("~"):
        path = str(Path.home())
    assert fields_of({field: path.replace("{root}", str(host.root))}, host) == [field]


@pytest.mark.skipif(sys.platform == "win32", reason="drives and shares")
@pytest.mark.parametrize("path", ["C:\\Windows", "\\\\server\\share"])
def test_windows_paths_are_plain_names_elsewhere(host, path):
    assert host.folders().runs in train_config({**GIVEN, "output_dir": path}, host).output_dir.parents


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_that_leads_out_is_seen(host, tmp_path):
    host.folders().runs.mkdir(parents=True)
    (host.folders().runs / "out").symlink_to(tmp_path)
    assert fields_of({"output_dir": "out/run"}, host) == ["output_dir"]


def test_the_root_itself_is_no_run(host):
    assert fields_of({"output_dir": str(host.folders().runs)}, host) == ["output_dir"]


def test_all_problems_come_at_once(host):
    assert fields_of({"output_dir": "/etc", "seed": "x", "typo": 1}, host) == ["output_dir", "seed", "typo"]


def test_a_queued_job_keeps_its_folder(host):
    folder = host.folders().runs / "ink"
    folder.mkdir(parents=True)
    assert train_config({**GIVEN, "output_name": "other"}, host, folder=folder).output_dir == folder
