"""The jobs that go through the pictures of a set: the check, and retouching in place."""

from __future__ import annotations

import pytest
from PIL import Image

from lora_trainer.dataset.images import open_image
from lora_trainer.dataset.picture_store import PictureStore
from lora_trainer.dataset.report import QualityReport, report_path
from lora_trainer.errors import ConfigError
from tests.jobs.conftest import wait_status
from tests.training.conftest import pictures  # noqa: F401 - a fixture

pytestmark = pytest.mark.hosts


def finish(queue, kind, **settings):
    view = wait_status(queue, queue.submit(kind, settings, title=kind), "finished", "failed")
    assert view.status == "finished", queue.log_tail(view.id)
    return view


def test_the_check_is_kept_in_the_set(queue, host, pictures):  # noqa: F811
    (pictures / "bad.png").write_bytes(b"no picture")
    view = finish(queue, "report", input_dir=str(pictures), resolution=128)
    report = QualityReport.load(report_path(pictures))
    assert report.num_pictures == 7 and report.resolution == 128 and report.of_kind("unreadable") == {"bad.png"}
    assert (view.phase, view.done, view.total) == ("looking at the pictures", 7, 7)
    assert host.history == []  # no device is borrowed for it
    assert "7 pictures" in queue.log_tail(view.id)


def test_pictures_are_changed_and_taken_back(queue, pictures):  # noqa: F811
    (pictures / "bad.png").write_bytes(b"no picture")
    names = ["0.png", "1.png", "bad.png"]
    view = finish(queue, "retouch", input_dir=str(pictures), names=names, tool="crop", ratio=1, focus=[0.0, 1.0])
    assert [open_image(pictures / name).size for name in ("0.png", "1.png", "3.png")] == [(128, 128), (96, 96), (128, 96)]
    assert len(view.warnings) == 1 and "bad.png" in view.warnings[0]
    assert PictureStore(pictures).undo().changed == ("1.png",)
    assert open_image(pictures / "1.png").size == (128, 96)
    finish(queue, "retouch", input_dir=str(pictures), names=names[:2], tool="resize", side=48)
    assert open_image(pictures / "1.png").size == (64, 48)
    finish(queue, "retouch", input_dir=str(pictures), names=names[:2], tool="trim")


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("report", {"resolution": 3}, "from 64 to 4096"),
        ("report", {"input_dir": "nowhere"}, "'nowhere'"),
        ("report", {"resolutoin": 512}, "resolution"),
        ("retouch", {"tool": "crop", "names": []}, "names no picture"),
        ("retouch", {"tool": "paint", "names": ["0.png"]}, "'paint'"),
        ("retouch", {"tool": "resize", "names": ["0.png"]}, "at least 16"),
        ("retouch", {"tool": "crop", "names": ["0.png"], "focus": [2, 0]}, "inside the picture"),
        ("retouch", {"tool": "crop", "names": ["0.png"], "ratio": "wide"}, "wide"),
        ("retouch", {"tool": "table", "names": ["0.png"], "table": "x.png"}, "cube"),
    ],
)
def test_wrong_settings_are_refused_at_once(queue, pictures, kind, settings, reason):  # noqa: F811
    with pytest.raises(ConfigError, match=reason):
        queue.submit(kind, {"input_dir": str(pictures), **settings}, title="wrong")
    assert Image.open(pictures / "1.png").size == (128, 96)
