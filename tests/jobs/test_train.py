"""Real trainings of the toy family in the worker's thread."""

from __future__ import annotations

import threading

import pytest
import safetensors.torch
import torch
from PIL import Image

from lora_trainer.errors import ConfigError
from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.jobs import JobQueue
from lora_trainer.jobs.queue import THREAD_NAME
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.samples import GAP
from tests.jobs.conftest import wait_for, wait_status
from tests.jobs.host import FolderHost
from tests.training import toy
from tests.training.conftest import pictures, toy_family, toy_values  # noqa: F401 - fixtures

TOTAL_STEPS = 24


@pytest.fixture
def settings(toy_values):  # noqa: F811
    """What a page gives: no folders that are written to."""
    return {name: value for name, value in toy_values.items() if name not in ("output_dir", "cache_dir")}


def add(queue: JobQueue, settings, *, title: str = "toy", **changes) -> str:
    return queue.submit("train", {**settings, **changes}, title=title)


def test_from_settings_to_a_file_in_the_lora_folder(queue, host, settings):
    id = add(queue, settings, trigger_words="ink wash")
    view = wait_status(queue, id, "finished")
    assert view.result == host.folders().lora_dir / "toy.safetensors"
    assert view.result.with_suffix(".json").exists()
    assert view.folder == host.folders().runs / "toy"
    assert (view.step, view.total_steps, view.phase) == (TOTAL_STEPS, TOTAL_STEPS, "training")
    assert host.history == ["lent for toy", "given back", "new file toy.safetensors"]
    assert host.thread_names == {THREAD_NAME}
    assert threading.current_thread().name != THREAD_NAME
    assert "step 24: wrote" in queue.log_tail(id)
    assert [event.kind for event in queue.events(id)][-1] == "finished"


def test_cloned_settings_make_another_run_with_a_name_of_its_own(queue, host, settings):
    first = add(queue, settings)
    wait_status(queue, first, "finished")
    second = queue.submit("train", queue.settings(first), title="toy")
    view = wait_status(queue, second, "finished")
    assert view.folder == host.folders().runs / "toy-2"
    assert view.result.name == "toy-2.safetensors"


def test_pause_save_and_continue_while_the_owner_has_the_device(queue, host, settings):
    seen = []

    def look() -> None:
        seen.append(queue.view(id).status)
        queue.command(id, "continue")

    def pause() -> None:
        queue.command(id, "save")
        queue.command(id, "pause")
        host.on_wait = look

    host.on_step[7] = pause
    id = add(queue, settings)
    view = wait_status(queue, id, "finished")
    assert seen == ["paused"]
    assert [event.data["step"] for event in queue.events(id) if event.kind == "paused"] == [7]
    assert view.step == TOTAL_STEPS


@pytest.mark.parametrize(("command", "kept"), [("stop", 7), ("discard", 5)])
def test_stopped_and_continued_ends_with_the_bytes_of_an_undisturbed_run(queue, host, settings, command, kept):
    whole = wait_status(queue, add(queue, settings, title="whole", output_name="toy"), "finished")
    host.on_step[7] = lambda: queue.command(id, command)
    id = add(queue, settings)
    wait_status(queue, id, "stopped")
    assert RunFolder(queue.view(id).folder).read_job()["step"] == kept
    queue.command(id, "continue")
    view = wait_status(queue, id, "finished")
    resumed = [event.data["step"] for event in queue.events(id) if event.kind == "resumed"]
    assert resumed == [kept]
    one, other = (safetensors.torch.load(path.read_bytes()) for path in (whole.result, view.result))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failed_job_continues_from_its_last_save(queue, host, settings, monkeypatch):
    def run_out(model, batch, draws, objective):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def break_model() -> None:
        monkeypatch.setattr(toy.ToyModel, "losses", run_out)

    losses = toy.ToyModel.losses
    host.on_step[12] = break_model
    id = add(queue, settings, gradient_checkpointing="true", on_out_of_memory="stop")
    view = wait_status(queue, id, "failed")
    assert "out of memory at step 13" in view.error
    assert [problem.field for problem in view.diagnosis] == ["batch_size"]
    assert "Traceback" in queue.log_tail(id)
    assert host.history[-1] == "given back"
    monkeypatch.setattr(toy.ToyModel, "losses", losses)
    queue.command(id, "retry")
    assert wait_status(queue, id, "finished").step == TOTAL_STEPS
    assert [event.data["step"] for event in queue.events(id) if event.kind == "resumed"] == [12]


def test_settings_are_judged_when_queued(queue, host, settings):
    with pytest.raises(ConfigError) as caught:
        add(queue, settings, base_model="nowhere.safetensors", output_name="a:b", optimizer="sgd", seed="x")
    assert {problem.field for problem in caught.value.problems} == {"optimizer", "seed"}  # what cannot be read comes first
    with pytest.raises(ConfigError) as caught:
        add(queue, settings, base_model="nowhere.safetensors", output_name="a:b")
    errors = {problem.field for problem in caught.value.problems if problem.severity == "error"}
    assert errors == {"base_model", "output_name"}
    assert queue.list() == []


def test_no_pictures_and_a_wrong_base_are_diagnosed_by_their_fields(queue, settings, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.safetensors").write_bytes(b"no model at all")
    id = add(queue, settings, train_data_dir=str(tmp_path / "empty"), base_model=str(tmp_path / "wrong.safetensors"))
    view = wait_status(queue, id, "failed")
    assert {problem.field for problem in view.diagnosis} == {"train_data_dir", "base_model"}


def test_the_last_sample_becomes_the_card_and_the_second_folder_gets_all(tmp_path, settings):
    host = FolderHost(tmp_path, second=True)
    queue = JobQueue(host)
    picture = tmp_path / "pair.png"
    pair = Image.new("RGB", (2 * 64 + GAP, 64), "white")
    pair.paste("black", (64 + GAP, 0, 2 * 64 + GAP, 64))
    pair.save(picture)

    def draw() -> None:  # the toy family draws no pictures itself
        writer = EventWriter(queue.view(id).folder / "events.jsonl")
        writer.write(TrainEvent("sampled", {"step": 20, "path": str(picture)}))
        writer.close()

    host.on_step[20] = draw
    id = add(queue, settings, trigger_words="ink wash")
    view = wait_status(queue, id, "finished")
    assert view.samples == [(20, picture)]
    with Image.open(view.result.with_suffix(".png")) as card:
        assert (card.size, card.getcolors()) == ((64, 64), [(64 * 64, (0, 0, 0))])
    second = host.folders().second_lora_dir
    assert sorted(path.name for path in second.iterdir()) == ["toy.json", "toy.png", "toy.safetensors"]
    assert "ink wash" in (second / "toy.json").read_text(encoding="utf-8")
    queue.close()


def test_a_picture_that_is_the_users_is_not_replaced(queue, host, settings, tmp_path):
    lora_dir = host.folders().lora_dir
    lora_dir.mkdir(parents=True)
    (lora_dir / "toy.png").write_bytes(b"the user's")
    view = wait_status(queue, add(queue, settings), "finished")
    assert view.result.name == "toy-2.safetensors"
    assert (lora_dir / "toy.png").read_bytes() == b"the user's"


def test_a_view_of_a_run_in_progress(queue, host, settings):
    reached, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        reached.set()
        go_on.wait()

    host.on_step[10] = stand_still
    id = add(queue, settings)
    reached.wait()
    view = wait_for(queue, id, lambda view: view.step == 10)
    assert (view.status, view.done, view.total) == ("running", 10, TOTAL_STEPS)
    assert view.loss > 0
    assert view.seconds_left == pytest.approx(view.seconds_per_step * 14)
    go_on.set()
    wait_status(queue, id, "finished")
