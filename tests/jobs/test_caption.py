"""Captioning as a job, with a captioner made in the test: it says how bright a picture is."""

from __future__ import annotations

import pytest
from PIL import ImageStat

from lora_trainer.captioning.table import CAPTIONERS
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.jobs.kinds import caption
from lora_trainer.registry import Entry, Registry
from tests.jobs.conftest import wait_for, wait_status
from tests.training.conftest import pictures  # noqa: F401 - a fixture

pytestmark = pytest.mark.hosts
ENTRY = Entry("meter", "Light meter", "For tests.", f"{__name__}:load", options={"model": "none"})
on_batch = []


class LightMeter:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def caption(self, images):
        if on_batch:
            on_batch.pop(0)()
        return [f"brightness {ImageStat.Stat(image.convert('L')).mean[0]:.0f}" for image in images]


def load(settings):
    if settings.model == "missing":
        raise ModelError("the captioner missing is nowhere.")
    return LightMeter()


@pytest.fixture(autouse=True)
def meter(monkeypatch):
    on_batch.clear()
    monkeypatch.setattr(caption, "CAPTIONERS", Registry("captioner", (ENTRY, *CAPTIONERS)))


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
    view = wait_status(queue, add(queue, folder, model="missing"), "failed")
    assert [problem.field for problem in view.diagnosis] == ["captioner"]
