from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.container import read_header
from lora_trainer.control import TrainControl
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import ConfigError, RunFolderError, TrainingError
from lora_trainer.events import fold_steps, read_events
from lora_trainer.run_folder import RunFolder
from lora_trainer.training import session
from lora_trainer.training.run import determinism_problem, deterministic_algorithms, train
from tests.test_files import InUse
from tests.training import toy

TOTAL_STEPS = 24  # 3 pictures in each of 2 buckets: 4 batches of at most 2; 6 epochs


def run(config, *, fresh=False, stop_at=None, control=None):
    """Trains, and stops after a step when asked."""
    events, control = [], control or TrainControl()

    def watch(event):
        events.append(event)
        if event.kind == "step" and event.data["step"] == stop_at:
            control.request("stop")

    return train(config, control=control, watch=watch, fresh=fresh), events


def tensors_of(path):
    return safetensors.torch.load(path.read_bytes())


def assert_same_file(one, other):
    one, other = tensors_of(one), tensors_of(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def losses_of(events):
    return [event.data["loss"] for event in events if event.kind == "step"]


@pytest.mark.hosts
def test_a_run_learns_and_leaves_every_file(toy_config):
    result, events = run(toy_config())
    assert (result.status, result.step) == ("finished", TOTAL_STEPS)
    losses = losses_of(events)
    folder = RunFolder(result.path.parent)
    assert {path.name for path in folder.path.iterdir()} >= {
        "config.yaml",
        "job.json",
        "events.jsonl",
        "toy.safetensors",
        *(f"toy-step{step:08d}.safetensors" for step in (5, 10, 15, 20)),
    }
    assert folder.read_job() | {"status": "finished", "step": TOTAL_STEPS, "name": "toy"} == folder.read_job()
    assert losses_of(read_events(folder.events_path)) == losses
    assert [path.name for path in sorted(folder.state_dir.iterdir())] == [
        "step-00000020.safetensors",
        "step-00000024.safetensors",
    ]


def test_the_loss_falls(toy_config):
    _, events = run(toy_config(epochs="60", lora_rank="32", save_steps="0"))
    losses = losses_of(events)
    assert sum(losses[-40:]) < 0.75 * sum(losses[:40])


@pytest.mark.parametrize("stop_at", [1, 5, 13])
@pytest.mark.parametrize(
    "changes", [{}, {"lora_dropout": "0.3", "shuffle_tags": "true", "caption_dropout": "0.3", "lr_scheduler": "cosine"}]
)
def test_stopped_and_continued_ends_with_the_same_bytes(toy_config, tmp_path, stop_at, changes):
    whole, whole_events = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
    config = toy_config(**changes)
    stopped, _ = run(config, stop_at=stop_at)
    assert (stopped.status, stopped.step, stopped.path) == ("stopped", stop_at, None)
    continued, events = run(config)
    assert_same_file(whole.path, continued.path)
    assert [event.data["step"] for event in events if event.kind == "resumed"] == [stop_at]
    history = fold_steps(read_events(RunFolder(config.output_dir).events_path))
    assert losses_of(history) == losses_of(whole_events)


def test_a_finished_run_says_so_and_more_epochs_extend_it(toy_config, tmp_path):
    run(toy_config())
    again, events = run(toy_config())
    assert (again.was_done_before, again.step, events) == (True, TOTAL_STEPS, [])
    extended, _ = run(toy_config(epochs="9"))
    at_once, _ = run(toy_config(epochs="9", output_dir=str(tmp_path / "once" / "toy")))
    assert extended.step == 36
    assert_same_file(extended.path, at_once.path)


def test_other_settings_are_refused_and_fresh_starts_over(toy_config):
    first, _ = run(toy_config())
    with pytest.raises(RunFolderError, match="other settings: seed"):
        run(toy_config(seed="1"))
    result, _ = run(toy_config(seed="1"), fresh=True)
    assert result.status == "finished"
    assert (first.path.parent.with_name("toy.old-1") / "toy.safetensors").exists()


def test_text_that_is_trained_ahead_is_the_same_as_cached(toy_config, tmp_path):
    cached, _ = run(toy_config())
    varied, _ = run(toy_config(shuffle_tags="true", keep_tokens="3", output_dir=str(tmp_path / "varied" / "toy")))
    assert_same_file(cached.path, varied.path)


def test_a_picture_that_changed_is_encoded_anew(toy_config, pictures):
    first, _ = run(toy_config())
    (pictures / "0.png").write_bytes((pictures / "2.png").read_bytes())
    second, _ = run(toy_config(), fresh=True)
    with pytest.raises(AssertionError):
        assert_same_file(first.path.parent.with_name("toy.old-1") / "toy.safetensors", second.path)


def test_save_pause_continue_and_stop_reach_a_running_training(toy_config):
    config, control, seen = toy_config(), TrainControl(), []
    folder = RunFolder(config.output_dir)

    def watch(event):
        seen.append(event.kind)
        if event.kind == "step" and event.data["step"] == 2:
            folder.post_command("save")
        if event.kind == "step" and event.data["step"] == 3:
            folder.post_command("pause")
        if event.kind == "paused":
            folder.post_command("continue")
        if event.kind == "step" and event.data["step"] == 7:
            folder.post_command("stop")

    result = train(config, control=control, watch=watch)
    assert (result.status, result.step) == ("stopped", 7)
    assert "paused" in seen
    assert folder.step_path("toy", 3).exists()
    assert folder.status == "stopped"


def test_discard_stops_at_the_last_save_and_the_run_goes_on_from_there(toy_config):
    control = TrainControl()

    def watch(event):
        if event.kind == "step" and event.data["step"] == 7:
            control.request("discard")

    result = train(toy_config(), control=control, watch=watch)
    assert (result.status, result.step) == ("stopped", 5)
    folder = RunFolder(toy_config().output_dir)
    assert folder.read_job()["step"] == 5
    assert [path.name for path in folder.path.glob("*-step*")] == ["toy-step00000005.safetensors"]
    _, events = run(toy_config())
    assert [event.data["step"] for event in events if event.kind == "resumed"] == [5]


def test_a_stop_while_caching_is_a_stop(toy_config):
    control = TrainControl()
    result = train(toy_config(), control=control, watch=lambda event: control.request("stop"))
    assert (result.status, result.step) == ("stopped", 0)
    assert run(toy_config())[0].status == "finished"


class TestNotFinite:
    @pytest.fixture
    def poison(self, monkeypatch):
        """Makes the loss of chosen steps NaN, after the model has been asked."""
        real, calls = toy.ToyModel.losses, []

        def install(bad_calls):
            def losses(self, batch, draws, objective):
                calls.append(1)
                values = real(self, batch, draws, objective)
                return values * float("nan") if len(calls) in bad_calls else values

            monkeypatch.setattr(toy.ToyModel, "losses", losses)

        return install

    def test_a_bad_step_is_skipped_counted_and_named(self, toy_config, poison):
        poison({4})
        result, events = run(toy_config())
        assert result.status == "finished"
        warnings = [event.data["message"] for event in events if event.kind == "warning"]
        (warning,) = [message for message in warnings if message.startswith("step")]
        assert warning.startswith("step 4: the loss of ") and ".png" in warning
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(result.path).values())

    def test_five_in_a_row_end_the_run_with_its_last_good_state(self, toy_config, poison):
        poison(set(range(8, 100)))
        config = toy_config()
        with pytest.raises(TrainingError, match=r"5 steps in a row .* precision to fp32"):
            run(config)
        folder = RunFolder(config.output_dir)
        assert folder.status == "failed"
        assert "5 steps in a row" in folder.read_job()["error"]
        assert (folder.state_dir / "step-00000005.safetensors").exists()


def test_problems_are_shown_before_anything_is_written(toy_config, tmp_path):
    with pytest.raises(ConfigError, match=r"train_data_dir: \(nowhere\)"):
        run(toy_config(train_data_dir="nowhere"))
    assert not (tmp_path / "runs").exists()


def test_job_file_is_json_with_what_a_page_needs(toy_config):
    result, _ = run(toy_config())
    job = json.loads((result.path.parent / "job.json").read_text(encoding="utf-8"))
    assert job["status"] == "finished" and job["step"] == TOTAL_STEPS and job["started_at"] > 0


def test_a_run_keeps_its_captions_and_a_set_takes_them_back(toy_config, pictures):
    config = toy_config(validation_share="0.34", max_train_steps="1")
    folder = RunFolder(run(config)[0].path.parent)
    store = CaptionStore(pictures)
    trained = store.read().captions
    store.save_all(dict.fromkeys(trained, "spoilt"), None, title="spoil")
    store.take_table(folder.captions_path)
    assert store.read().captions == trained


def test_an_extended_run_keeps_the_file_that_it_had_finished_with(toy_config):
    first, _ = run(toy_config())
    before = safetensors.torch.load(first.path.read_bytes())
    run(toy_config(epochs="9"))
    kept = safetensors.torch.load(first.path.with_name(f"toy-step{TOTAL_STEPS:08d}.safetensors").read_bytes())
    assert kept.keys() == before.keys()
    assert all(torch.equal(kept[key], before[key]) for key in kept)


def test_an_extended_run_whose_lora_is_in_use_takes_another_name_and_says_so(toy_config, tmp_path, monkeypatch):
    lora_dir = tmp_path / "Lora"
    lora_dir.mkdir()
    run(toy_config(lora_dir=lora_dir, max_train_steps=2))
    before = (lora_dir / "toy.safetensors").read_bytes()
    InUse(monkeypatch, lora_dir / "toy.safetensors", times=99)
    extended, events = run(toy_config(lora_dir=lora_dir, max_train_steps=3))
    assert extended.status == "finished" and (lora_dir / "toy.safetensors").read_bytes() == before
    assert sorted(path.name for path in lora_dir.glob("*.safetensors")) == ["toy-2.safetensors", "toy.safetensors"]
    assert read_header(lora_dir / "toy-2.safetensors").metadata["ss_output_name"] == "toy-2"
    (warning,) = [text for event in events if "in use" in (text := str(event.data.get("message")))]
    assert warning.endswith("toy.safetensors is in use by a program and stays as it was; this run's LoRA is named toy-2 there.")


def test_a_finished_file_that_was_moved_away_is_written_again(toy_config):
    first, _ = run(toy_config())
    first.path.rename(first.path.with_name("moved.bin"))
    again, _ = run(toy_config())
    assert not again.was_done_before
    assert again.path.exists()


def test_a_device_that_is_not_there_is_told_before_anything_is_written(toy_config):
    config = toy_config(device="cuda:77")
    with pytest.raises(ConfigError, match=r"device: \(cuda:77\) cannot be used here"):
        run(config)
    assert not config.output_dir.exists()


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("before", [(False, False), (True, True)])
def test_determinism_leaves_no_trace_whatever_happens(monkeypatch, before, workspace, is_strict):
    """With `warn_only` attention's backward pass is not deterministic on a GPU."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        with pytest.raises(TrainingError), deterministic_algorithms(True, is_strict=is_strict):
            assert determinism() == (True, not is_strict, workspace or ":4096:8")
            raise TrainingError("stopped")
        assert determinism() == (*before, workspace)
        with deterministic_algorithms(False, is_strict=is_strict):
            assert determinism() == (*before, workspace)
    finally:
        torch.use_deterministic_algorithms(False)


def determinism():
    """Returns whether torch is deterministic, whether it only warns, and the workspace of its matrix products."""
    is_enabled, only_warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return is_enabled, only_warns, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_a_host_s_gpu_is_told_to_be_nearly_deterministic(toy_config):
    config, gpu = toy_config(deterministic="true"), torch.device("cuda", 0)
    assert "may differ" in str(determinism_problem(config, gpu, is_strict=False))
    assert determinism_problem(config, gpu, is_strict=True) is None
    assert determinism_problem(config, torch.device("cpu"), is_strict=False) is None
    assert determinism_problem(toy_config(), gpu, is_strict=False) is None


def test_memory_that_runs_out_while_loading_is_explained(toy_config, monkeypatch):
    def load(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "load_model", load)
    with pytest.raises(TrainingError, match=r"out of memory .*Lower resolution"):
        run(toy_config())


@pytest.mark.parametrize(("replace_lora", "name"), [(False, "toy-2"), (True, "toy")])
def test_a_lora_of_the_same_name_is_replaced_only_when_asked(toy_config, tmp_path, replace_lora, name):
    lora_dir = tmp_path / "Lora"
    lora_dir.mkdir()
    for suffix in (".safetensors", ".json", ".png"):
        (lora_dir / f"toy{suffix}").write_bytes(b"somebody's")
    config = toy_config(lora_dir=lora_dir, replace_lora=replace_lora, max_train_steps=2)
    train(config, control=TrainControl(), watch=lambda event: None)
    assert (lora_dir / f"{name}.safetensors").stat().st_size > 100
    assert ((lora_dir / "toy.safetensors").read_bytes() == b"somebody's") is not replace_lora
    assert json.loads((lora_dir / f"{name}.json").read_text(encoding="utf-8"))["preferred weight"] == 0.7
