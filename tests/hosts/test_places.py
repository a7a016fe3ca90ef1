"""A WebUI that was started with --hide-ui-dir-config: nobody of its page names a folder outside of its own."""

from __future__ import annotations

import pytest
from PIL import Image

from lora_trainer.errors import ConfigError, DatasetError
from lora_trainer.host.places import judge_places, may_name
from lora_trainer.host.table import find_host
from lora_trainer.jobs.kinds import caption, grid_settings, report, retouch
from lora_trainer.jobs.settings import train_config


@pytest.fixture
def host(webui):
    webui.shared.cmd_opts.hide_ui_dir_config = True
    return find_host()


@pytest.fixture
def inside(webui):
    folder = webui.folder / "lora_trainer" / "datasets" / "ink"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "1.png")
    return folder


@pytest.fixture
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    Image.new("RGB", (64, 64)).save(folder / "1.png")
    return folder


def refused(function, *arguments):
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return {problem.field: str(problem) for problem in caught.value.problems}


class TestMayName:
    def test_without_the_flag_every_folder(self, webui, outside):
        assert may_name(find_host(), outside)

    def test_with_it_data_models_and_lora_folder(self, webui, host, inside, outside):
        webui.shared.cmd_opts.lora_dir = str(webui.folder / "elsewhere" / "Lora")
        assert may_name(host, inside)
        assert may_name(host, webui.folder / "models" / "VAE" / "best.vae.pt")
        assert may_name(host, webui.folder / "elsewhere" / "Lora" / "ink.safetensors")
        for path in (outside, outside / "not there", webui.folder, "/", "~", "..", "\0"):
            assert not may_name(host, path)

    def test_not_by_a_way_round(self, host, inside, outside):
        assert not may_name(host, inside / ".." / ".." / ".." / ".." / outside.name)
        (inside / "link").symlink_to(outside, target_is_directory=True)
        assert not may_name(host, inside / "link")

    def test_a_model_of_the_list_lies_anywhere(self, webui, host, outside):
        listed = webui.sd_models.CheckpointInfo("far", str(outside / "far.safetensors"))
        webui.sd_models.checkpoints_list["far"] = listed
        assert may_name(host, outside / "far.safetensors")
        assert not may_name(host, outside / "other.safetensors")

    def test_the_message_says_why_and_what_to_do(self, host, outside):
        (problem,) = judge_places(host, [("input_dir", outside), ("vae", None), ("clip", "")])
        assert problem.field == "input_dir"
        assert str(outside) in problem.message
        assert "--hide-ui-dir-config" in problem.message
        assert "data folder" in problem.hint


class TestJobs:
    def test_no_path_of_a_training_leads_out(self, host, inside, outside):
        settings = {"base_model": "b.safetensors", "train_data_dir": str(inside), "validation_share": 0}
        places = ("train_data_dir", "metadata_path", "reg_data_dir", "base_model", "vae", "start_from", "validation_dir")
        problems = refused(train_config, {**settings, **{name: str(outside / name) for name in places}}, host)
        assert set(problems) == set(places)
        assert all("--hide-ui-dir-config" in problem for problem in problems.values())

    def test_a_training_of_our_own_set_on_a_listed_base_is_fine(self, webui, host, inside):
        webui.add_checkpoints("b.safetensors")
        config = train_config({"base_model": "b.safetensors", "train_data_dir": str(inside)}, host)
        assert config.base_model == webui.folder / "b.safetensors"

    def test_captions(self, host, inside, outside):
        settings = {"input_dir": str(outside), "model": str(outside), "ranker_model": f" {outside}"}
        assert set(refused(caption.read, settings, host)) == set(settings)
        options = caption.read({"input_dir": str(inside), "captioner": "blip", "model": "Salesforce/blip-large"}, host)
        assert options.model == "Salesforce/blip-large"

    def test_whether_a_folder_is_there_is_not_told(self, host, outside):
        there, not_there = ({"input_dir": str(path)} for path in (outside, outside / "no"))
        for read in (caption.read, report.read):
            one, other = refused(read, there, host)["input_dir"], refused(read, not_there, host)["input_dir"]
            assert one.replace(str(outside), "") == other.replace(str(outside / "no"), "")

    def test_picture_check_and_retouching(self, host, inside, outside):
        assert set(refused(report.read, {"input_dir": str(outside)}, host)) == {"input_dir"}
        assert report.read({"input_dir": str(inside)}, host)[0] == inside
        table = {"input_dir": str(inside), "names": ["1.png"], "tool": "table", "table": str(outside / "tone.cube")}
        assert set(refused(retouch.read, table, host)) == {"table"}

    def test_a_grid(self, host, inside, outside):
        (outside / "ink.safetensors").write_bytes(b"")
        settings = {"train_data_dir": str(outside), "clip": str(outside), "vae": str(outside / "v.safetensors")}
        lora = str(outside / "ink.safetensors")
        assert set(refused(grid_settings.read, {**settings, "loras": [lora], "prompts": "ink"}, host)) == {*settings, "loras"}
        job = grid_settings.read({"train_data_dir": str(inside), "loras": ["ink"], "prompts": "ink"}, host)
        assert job.train_data_dir == str(inside)


class TestPage:
    def test_it_looks_into_no_folder_outside(self, webui, host, inside, outside):
        services = services_of(host)
        assert services.folder_of("ink") == services.folder_of(str(inside)) == inside
        assert services.folder_of("") is None
        with pytest.raises(DatasetError, match="--hide-ui-dir-config"):
            services.folder_of(str(outside))

    def test_it_reads_no_base_outside(self, webui, host, outside):
        pytest.importorskip("gradio")
        from lora_trainer.ui.estimate import find_base

        assert find_base(str(outside / "b.safetensors"), host) is None
        assert find_base(str(webui.folder / "models" / "b.safetensors"), host) is not None

    def test_our_folders_are_not_among_the_settings(self, webui, host):
        pytest.importorskip("gradio")
        from lora_trainer.host.settings import DATA_DIR, SECOND_LORA_DIR, add_settings

        def shown():
            add_settings(["blip"])
            return [
                (webui.shared.opts.data_labels[name].component_args or {}).get("visible", True)
                for name in (DATA_DIR, SECOND_LORA_DIR)
            ]

        assert shown() == [False, False]
        webui.shared.cmd_opts.hide_ui_dir_config = False
        assert shown() == [True, True]


def services_of(host):
    pytest.importorskip("gradio")
    from lora_trainer.dataset.library import DatasetLibrary
    from lora_trainer.ui.services import Services

    return Services(host, None, DatasetLibrary(host.folders().datasets))
