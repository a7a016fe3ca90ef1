from __future__ import annotations

import subprocess
import sys

import pytest

from lora_trainer.config.parse import parse_config
from lora_trainer.control import TrainControl
from lora_trainer.errors import RunFolderError
from lora_trainer.run_folder import RunFolder, open_run


def make_config(tmp_path, **values):
    return parse_config({"train_data_dir": "p", "base_model": "b", "output_dir": str(tmp_path / "ink"), **values})


def start(config, *, fresh=False, total_steps=10):
    folder, decision = open_run(config, fresh=fresh, total_steps=lambda: total_steps)
    folder.unlock()
    return folder, decision


def test_an_empty_folder_is_new_and_gets_the_settings(tmp_path):
    folder, decision = start(make_config(tmp_path))
    assert decision == "new"
    assert "lora_rank: 16" in folder.config_path.read_text(encoding="utf-8")


def test_equal_settings_continue_an_unfinished_run(tmp_path):
    folder, _ = start(make_config(tmp_path))
    folder.update_job(status="running", step=4)
    assert start(make_config(tmp_path))[1] == "continue"


def test_a_finished_run_is_finished_and_more_steps_extend_it(tmp_path):
    folder, _ = start(make_config(tmp_path))
    folder.update_job(status="finished", step=10)
    assert start(make_config(tmp_path))[1] == "finished"
    assert start(make_config(tmp_path, epochs="30"), total_steps=20)[1] == "continue"
    assert "epochs: 30" in folder.config_path.read_text(encoding="utf-8")


def test_other_settings_are_named_and_refused(tmp_path):
    folder, _ = start(make_config(tmp_path))
    folder.update_job(status="running", step=4)
    with pytest.raises(RunFolderError, match=r"other settings: lora_rank, seed\. .*--fresh"):
        start(make_config(tmp_path, seed="7", lora_rank="8"))
    assert start(make_config(tmp_path))[1] == "continue"


def test_fresh_moves_the_old_run_aside_and_loses_nothing(tmp_path):
    folder, _ = start(make_config(tmp_path))
    (folder.path / "ink.safetensors").write_bytes(b"precious")
    for number in (1, 2):
        assert start(make_config(tmp_path, seed=str(number)), fresh=True)[1] == "new"
    assert (tmp_path / "ink.old-1" / "ink.safetensors").read_bytes() == b"precious"
    assert (tmp_path / "ink.old-2" / "config.yaml").exists()


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"holiday\.jpg"):
        start(make_config(tmp_path))


@pytest.mark.hosts
def test_a_second_process_is_kept_out_and_told_by_whom(tmp_path):
    code = f"""
from lora_trainer.run_folder import RunFolder
from pathlib import Path
folder = RunFolder(Path({str(tmp_path / "ink")!r}))
folder.lock(); print("locked", flush=True); input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match=f"in use by process {holder.pid} since"):
            RunFolder(tmp_path / "ink").lock()
        holder.kill()
    RunFolder(tmp_path / "ink").lock()


def test_commands_reach_the_control_in_order_and_are_deleted(tmp_path):
    folder, control = RunFolder(tmp_path), TrainControl()
    for command in ("pause", "save", "continue"):
        folder.post_command(command)
    (folder.commands_dir / "9-nonsense").write_text("", encoding="utf-8")
    folder.take_commands(control)
    assert (control.is_requested("pause"), control.take("save"), control.take("save")) == (False, True, False)
    assert list(folder.commands_dir.iterdir()) == []
    with pytest.raises(ValueError, match="explode"):
        folder.post_command("explode")


def test_a_damaged_job_file_counts_as_none(tmp_path):
    folder = RunFolder(tmp_path)
    folder.job_path.write_bytes(b'{"status": "fin')
    assert (folder.read_job(), folder.status) == ({}, "new")


def test_fresh_does_not_move_a_folder_of_something_else(tmp_path):
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "diary.txt").write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"diary\.txt"):
        start(make_config(tmp_path), fresh=True)
    assert not (tmp_path / "ink.old-1").exists()


def test_a_start_forgets_old_commands_and_unfinished_files(tmp_path):
    folder, _ = start(make_config(tmp_path))
    folder.post_command("stop")
    folder.state_dir.mkdir()
    (folder.state_dir / ".step-00000001.safetensors.77.tmp").write_bytes(b"x")
    folder, _ = start(make_config(tmp_path))
    control = TrainControl()
    folder.take_commands(control)
    assert not control.is_requested("stop")
    assert list(folder.state_dir.iterdir()) == []


def test_a_folder_tells_whether_a_process_trains_in_it(tmp_path):
    folder = RunFolder(tmp_path / "ink")
    assert not folder.is_locked()
    folder.lock()
    assert RunFolder(tmp_path / "ink").is_locked()
    folder.unlock()
    assert not RunFolder(tmp_path / "ink").is_locked()
