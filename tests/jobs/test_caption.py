"""Captioning as a job, with a captioner made in the test: it says how bright a picture is."""

from __future__ import annotations

import pytest
from PIL import ImageStat

from lora_trainer.captioning import options
from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.registry import Entry, Registry
from lora_trainer.training import precision
from tests.jobs.conftest import wait_for, wait_status
from tests.training.conftest import pictures  # noqa: F401 - a fixture

pytestmark = pytest.mark.hosts
ENTRY = Entry("meter", "Light meter", "For tests.", f"{__name__}:load", options={"model": ""})
on_batch, moves = [], []


class LightMeter:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def move(self, device):
        moves.append(device.type)

    def caption(self, images):
        if on_batch:
            on_batch.pop(0)()
        return [f"brightness {ImageStat.Stat(image.convert('L')).mean[0]:.0f}" for image in images]


def load(settings):
    if settings.prompt == "fail":
        raise ModelError("the captioner is nowhere.")
    return LightMeter()


@pytest.fixture(autouse=True)
def meter(monkeypatch):
    on_batch.clear()
    moves.clear()
    monkeypatch.setattr(options, "CAPTIONERS", Registry("captioner", (ENTRY, *CAPTIONERS)))


@pytest.fixture
def folder(pictures):  # noqa: F811
    for path in pictures.glob("*.txt"):
        if path.stem != "0":
            path.unlink()
    return pictures


def add(queue, folder, **settings):
    return queue.submit("caption", {"input_dir": str(folder), "device": "cpu", "batch_size": 2, **settings}, title="captions")


def captions(folder):
    return CaptionStore(folder).read().captions


def test_missing_captions_are_written_and_taken_back_as_one(queue, host, folder):
    view = wait_status(queue, add(queue, folder), "finished", "failed")
    assert view.status == "finished", queue.log_tail(view.id)
    written = captions(folder)
    assert written.pop("0.png").startswith("astronaut, part 0")
    assert all(text.startswith("brightness") for text in written.values())
    assert (view.phase, view.done, view.total) == ("writing captions", 5, 5)
    assert host.history == ["lent for captions", "given back"]
    CaptionStore(folder).undo()
    assert sorted(filter(None, captions(folder).values())) == ["astronaut, part 0, orange suit"]


def test_the_device_is_chosen_while_it_is_borrowed(queue, host, folder, monkeypatch):
    """With several cards the host makes its own the current one only then."""
    chosen, choose = [], precision.choose_device
    monkeypatch.setattr(precision, "choose_device", lambda name: chosen.append(host.num_borrowers) or choose(name))
    wait_status(queue, add(queue, folder), "finished")
    assert chosen == [1]


def test_overwrite_writes_all_anew(queue, folder):
    wait_status(queue, add(queue, folder, mode="overwrite"), "finished")
    assert captions(folder)["0.png"].startswith("brightness")


def test_a_caption_that_the_user_writes_meanwhile_stays(queue, folder):
    on_batch.append(lambda: (folder / "1.txt").write_text("mine", encoding="utf-8"))
    wait_status(queue, add(queue, folder), "finished")
    assert captions(folder)["1.png"] == "mine"
    assert captions(folder)["2.png"].startswith("brightness")


def test_stopped_and_continued(queue, folder):
    on_batch.append(lambda: queue.command(id, "stop"))
    id = add(queue, folder)
    wait_status(queue, id, "stopped")
    assert len([text for text in captions(folder).values() if text.startswith("brightness")]) == 2
    queue.command(id, "continue")
    wait_status(queue, id, "finished")
    assert all(captions(folder).values())


def test_paused_and_continued(queue, folder):
    on_batch.append(lambda: queue.command(id, "pause"))
    id = add(queue, folder)
    wait_for(queue, id, lambda view: view.status == "paused" and view.done == 0 and len(captions(folder)) == 6)
    queue.command(id, "continue")
    wait_status(queue, id, "finished")


def test_settings_are_judged_when_queued(queue, folder):
    with pytest.raises(ConfigError) as caught:
        add(queue, "/nowhere", captioner="blop", mode="some", num_beams=0, batch_size=True, promt="x")
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["batch_size", "captioner", "input_dir", "mode", "num_beams", "promt"]


def test_a_captioner_that_is_not_there_is_diagnosed(queue, folder):
    view = wait_status(queue, add(queue, folder, prompt="fail"), "failed")
    assert [problem.field for problem in view.diagnosis] == ["captioner"]


def test_words_are_cleaned_and_put_to_those_that_are_there(queue, folder):
    options = {"mode": "append", "trigger": "shuimo", "banned": "brightness", "replacements": "suit = robe"}
    wait_status(queue, add(queue, folder, **options), "finished")
    text = captions(folder)["0.png"]
    assert text.startswith("shuimo, astronaut, part 0, orange suit, ") and text.rpartition(", ")[2].isdigit()
    assert all(text.startswith("shuimo, ") for text in captions(folder).values())


@pytest.mark.parametrize("mode", ["overwrite", "prepend", "append"])
def test_a_stopped_run_goes_on_and_does_nothing_twice(queue, folder, mode):
    on_batch.append(lambda: queue.command(id, "stop"))
    id = add(queue, folder, mode=mode)
    wait_status(queue, id, "stopped")
    written = {name: text for name, text in captions(folder).items() if "brightness" in text}
    assert len(written) == 2
    queue.command(id, "continue")
    wait_status(queue, id, "finished")
    after = captions(folder)
    assert {name: after[name] for name in written} == written
    assert [text.count("brightness") for text in after.values()] == [1] * 6
    (run,) = CaptionStore(folder).runs()
    assert run.run == id and len(run.values) == 6
    CaptionStore(folder).undo()
    assert sorted(filter(None, captions(folder).values())) == ["astronaut, part 0, orange suit"]


def test_the_captions_of_a_past_run_come_back(queue, folder):
    wait_status(queue, add(queue, folder, mode="overwrite"), "finished")
    first = captions(folder)
    wait_status(queue, add(queue, folder, mode="overwrite", trigger="shuimo"), "finished")
    assert all(text.startswith("shuimo") for text in captions(folder).values())
    store = CaptionStore(folder)
    store.restore(store.runs()[-1].id)
    assert captions(folder) == first
    store.undo()
    assert all(text.startswith("shuimo") for text in captions(folder).values())


def test_what_the_user_writes_meanwhile_is_added_to(queue, folder):
    on_batch.append(lambda: (folder / "1.txt").write_text("mine", encoding="utf-8"))
    wait_status(queue, add(queue, folder, mode="prepend"), "finished")
    assert captions(folder)["1.png"].startswith("brightness") and captions(folder)["1.png"].endswith(", mine")


def test_the_device_is_lent_between_two_batches(queue, host, folder):
    def generate():
        host.history.append("generated")

    on_batch.append(lambda: setattr(host, "on_wait", generate))
    wait_status(queue, add(queue, folder), "finished")
    assert moves == ["cpu", "cpu"] and "generated" in host.history


def test_weights_that_are_not_here_are_asked_for_and_queue_nothing(queue, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    with pytest.raises(ConfigError, match=r"blip-image-captioning-base is not .* 990 MB") as caught:
        add(queue, folder, captioner="blip")
    (problem,) = caught.value.problems
    assert problem.field == "download" and "captioners" in problem.hint
    assert queue.list() == []
