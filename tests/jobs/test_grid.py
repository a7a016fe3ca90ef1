"""Grids as jobs: drawn by ourselves with a tiny base, and by a WebUI's pipeline; what they tell, and what they leave behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.lent import FOLDER
from lora_trainer.adapters.tags import LoraUse
from lora_trainer.errors import AdapterError, ConfigError, HostError
from lora_trainer.events import TrainEvent
from lora_trainer.host.base import ModelFile
from lora_trainer.inference.generate import generate
from lora_trainer.inference.loras import applied
from lora_trainer.inference.settings import GenerateSettings
from lora_trainer.jobs import JobQueue
from tests.inference.conftest import checkpoints, make_lora, sd1  # noqa: F401 - fixtures
from tests.jobs.conftest import wait_status
from tests.jobs.host import FolderHost
from tests.training.conftest import pictures  # noqa: F401 - a fixture

pytestmark = pytest.mark.hosts
SMALL = {"width": 64, "height": 64, "steps": 2, "cfg_scale": 5, "weights": "0, 0.5, 1", "seeds": "9"}


class DrawingHost(FolderHost):
    """A host that draws itself: a colour for each prompt, and it notes what it was asked for and what the folder held."""

    title, has_pipeline = "Painter 1.0", True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.listed: list[set[str]] = []
        self.num_drawn_at_most = 99
        self.own_clip: Any = None

    def clip(self) -> Any:
        if isinstance(self.own_clip, HostError):
            raise self.own_clip
        return self.own_clip

    def generate(self, prompt: str, **settings: Any) -> Image.Image:
        if len(self.asked) == self.num_drawn_at_most:
            raise HostError(f"The picture was interrupted in {self.title}. Draw it again.")
        self.asked.append((prompt, settings))
        self.listed.append({path.stem for path in self.folders().lora_dir.rglob("*.safetensors")})
        color = (20 * prompt.count(":0.5>"), 90 * prompt.count(":1>"), 40)
        picture = Image.new("RGB", (settings["width"], settings["height"]), color)
        picture.info["parameters"] = f"{prompt.partition(' <')[0]} \nNegative prompt: \nSteps: 2"  # as AUTOMATIC1111: no tags
        return picture


class MeanColour:
    """Embeds pictures by their colour, texts as one colour."""

    def embed_picture(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture).reshape(-1, 3).mean(axis=0) + 1

    def embed_text(self, text: str) -> np.ndarray:
        return np.array([1.0, 2.0, 3.0])


def events(queue: JobQueue, id: str, kind: str) -> list[TrainEvent]:
    return [event for event in queue.events(id) if event.kind == kind]


def finish(queue: JobQueue, **settings: Any) -> Any:
    view = wait_status(queue, queue.submit("grid", SMALL | settings, title="test"), "finished", "failed", "stopped")
    assert view.status == "finished", queue.log_tail(view.id)
    return view


@pytest.fixture
def base(checkpoints: dict[str, Path]) -> ModelFile:  # noqa: F811
    return ModelFile("tiny", checkpoints["sd1"])


@pytest.fixture
def ink(host: FolderHost, sd1: Any, make_lora: Any) -> Path:  # noqa: F811
    target = host.folders().lora_dir / "ink.safetensors"
    target.parent.mkdir(parents=True)
    return Path(shutil.copyfile(make_lora(sd1), target))


def test_cells_come_one_by_one_and_the_sheet_at_the_end(host, queue, base, ink, sd1, pictures) -> None:  # noqa: F811
    host.models = [base]
    prompts = "a boat\na red house <lora:ink:0.3>"
    view = finish(queue, loras=["ink"], prompts=prompts, train_data_dir=str(pictures))
    (grid,), cells = events(queue, view.id, "grid"), events(queue, view.id, "cell")
    assert grid.data["weights"] == [0, 0.5, 1] and grid.data["pipeline"] == ""
    assert [row["label"] for row in grid.data["rows"]] == ["a boat", "a red house"]
    assert grid.data["rows"][1]["loras"] == [{"path": str(ink), "hash": model_hash(ink), "unet": 1.0, "text": 1.0}]
    assert [(cell.data["row"], cell.data["column"]) for cell in cells] == [(r, c) for c in range(3) for r in range(2)]
    settings = GenerateSettings("a boat", width=64, height=64, steps=2, cfg_scale=5, seed=9)
    with applied(sd1, [LoraUse(ink, 0.5)]):
        expected = generate(sd1, settings)
    with Image.open(cells[2].data["path"]) as cell, Image.open(view.result) as sheet:
        assert cell.convert("RGB").tobytes() == expected.tobytes()
        assert (
            cell.info["parameters"].startswith("a boat <lora:ink:0.5>\n")
            and cell.info["parameters"] == cells[2].data["parameters"]
        )
        assert "Sheet weights" in sheet.info["parameters"]
    (advice,) = events(queue, view.id, "advice")
    assert [(figure["rows"], figure["weight"]) for figure in advice.data["figures"]] == [([0, 1], 0.5), ([0, 1], 1)]
    assert len(advice.data["nearest"]) == 4 and Path(advice.data["nearest"][0]["path"]).parent == pictures
    assert (view.phase, host.history) == ("comparing with the training pictures", ["lent for test", "given back"])


def test_a_stop_keeps_what_is_drawn(host, queue, base, ink, monkeypatch) -> None:
    from lora_trainer.inference import grid

    host.models = [base]
    drawn: list[int] = []

    def stopping(*args: Any, **options: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 2:
            queue.command(id, "stop")
        return generate(*args, **options)

    monkeypatch.setattr(grid, "generate", stopping)
    id = queue.submit("grid", SMALL | {"loras": ["ink"], "prompts": ["a boat", "a house"]}, title="test")
    view = wait_status(queue, id, "stopped", "finished", "failed")
    assert view.status == "stopped" and len(events(queue, id, "cell")) == 1
    assert (view.folder / "sheet.png").is_file()


def test_a_lora_without_effect_is_said_with_what_its_file_tells(host, queue, base, ink, sd1) -> None:  # noqa: F811
    from safetensors.torch import load_file, save_file

    host.models = [base]
    save_file({key: tensor * 0 if "lora_up" in key else tensor for key, tensor in load_file(ink).items()}, ink)
    view = finish(queue, loras=["ink"], prompts=["a boat"])
    (findings,) = events(queue, view.id, "findings")
    messages = " ".join(problem["message"] for problem in findings.data["problems"])
    assert "at weight 1 are those of the base: it has no effect" in messages
    assert any(problem["field"] == "effect" for problem in findings.data["problems"])


class TestByTheHost:
    @pytest.fixture
    def host(self, tmp_path: Path) -> DrawingHost:
        return DrawingHost(tmp_path)

    def test_the_tags_stand_in_its_prompt_and_steps_stand_in_its_folder(self, host, queue, base, ink, tmp_path) -> None:
        host.models = [ModelFile("other", tmp_path / "other.safetensors"), base]
        step = Path(shutil.copyfile(ink, tmp_path / "ink-step00000010.safetensors"))
        view = finish(queue, loras=["ink", str(step)], prompts=["a boat"], base_model="tiny")
        assert [prompt for prompt, _ in host.asked] == [
            "a boat",
            "a boat <lora:ink:0.5>",
            "a boat <lora:ink:1>",
            "a boat <lora:ink-step00000010:0.5>",
            "a boat <lora:ink-step00000010:1>",
        ]
        assert host.asked[0][1] == {
            "base": "tiny", "negative_prompt": "", "width": 64, "height": 64, "steps": 2, "cfg_scale": 5.0, "seed": 9,
            "sampler": "euler_a",
        }  # fmt: skip
        assert host.listed[-1] == {"ink", "ink-step00000010"} and not (host.folders().lora_dir / FOLDER).exists()
        assert host.history == ["new file ink-step00000010.safetensors"]  # no device was borrowed; the list is up to date
        (grid,), cells = events(queue, view.id, "grid"), events(queue, view.id, "cell")
        assert grid.data["pipeline"] == "Painter 1.0" and len(cells) == 6
        assert cells[-1].data["parameters"] == "a boat <lora:ink-step00000010:1>\nNegative prompt: \nSteps: 2"
        with Image.open(view.result) as sheet:
            assert "ink-step00000010:1>" in sheet.info["parameters"]

    def test_every_cell_names_the_base_since_another_may_be_loaded_meanwhile(self, host, queue, base, ink) -> None:
        host.models = [base]
        finish(queue, prompts=["a boat <lora:ink:0.5:1>"])
        assert {settings["base"] for _, settings in host.asked} == {"tiny"}
        assert host.asked[-1][0] == "a boat  <lora:ink:0.5:1>".replace("  ", " ")

    def test_its_own_clip_compares_the_pictures_where_it_has_one(self, host, queue, base, ink, pictures) -> None:  # noqa: F811
        host.models, host.own_clip = [base], MeanColour()
        view = finish(queue, loras=["ink"], prompts=["a boat"], train_data_dir=str(pictures))
        (advice,) = events(queue, view.id, "advice")
        assert advice.data["by"] == "CLIP (Painter 1.0)" and len(advice.data["figures"]) == 2
        host.own_clip = HostError("its file is damaged.")
        view = finish(queue, loras=["ink"], prompts=["a boat"], train_data_dir=str(pictures))
        assert "colours" in events(queue, view.id, "advice")[0].data["by"] and "is damaged" in view.warnings[0]

    def test_an_interrupted_grid_has_a_sheet_of_what_is_drawn(self, host, queue, base, ink) -> None:
        host.models, host.num_drawn_at_most = [base], 2
        id = queue.submit("grid", SMALL | {"loras": ["ink"], "prompts": ["a boat"]}, title="test")
        view = wait_status(queue, id, "finished", "failed", "stopped")
        assert view.status == "failed" and "was interrupted in Painter" in view.error
        with Image.open(view.folder / "sheet.png") as sheet:
            assert "Sheet weights" in sheet.info["parameters"]
        assert len(events(queue, id, "cell")) == 2 and not (host.folders().lora_dir / FOLDER).exists()


def test_what_a_killed_process_left_is_cleared_at_the_next_start(host, queue) -> None:
    from lora_trainer.jobs.record import Record

    left = host.folders().lora_dir / FOLDER / "ink-step00000010.safetensors"
    left.parent.mkdir(parents=True)
    left.touch()
    queue.close()
    Record("20260101-000000-aaaaaa", "grid", "test", {}, queue.folder / "x", 1.0, status="active").save(queue.folder)
    again = JobQueue(host)
    assert again.view("20260101-000000-aaaaaa").status == "interrupted" and not left.exists()
    again.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prompts": []}, "prompts: is empty"),
        ({"prompts": ["a boat"]}, "names no LoRA"),
        ({"prompts": ["a boat <lora:ink:x>"]}, "'x' in <lora:ink:x>"),
        ({"weights": "0, half"}, r"weights: \(0, half\) must be numbers"),
        ({"weights": "99"}, r"\(99.0\) must be from -10 to 10"),
        ({"width": 70}, r"width: \(70\)"),
        ({"promts": ["a"]}, "promts"),
        ({"base_model": "nowhere"}, r"base_model: \(nowhere\) is not there"),
        ({"train_data_dir": "nowhere"}, "'nowhere'"),
        ({"seeds": list(range(300))}, "come to 900 pictures"),
    ],
)
def test_wrong_settings_are_refused_at_once(host, queue, base, ink, settings, reason) -> None:
    host.models = [base]
    given = SMALL | ({} if "prompts" in settings else {"prompts": ["a boat"], "loras": ["ink"]}) | settings
    with pytest.raises(ConfigError, match=reason):
        queue.submit("grid", given, title="wrong")


def test_a_lora_that_is_not_there_is_refused_at_once(host, queue, base, ink) -> None:
    host.models = [base]
    with pytest.raises(AdapterError, match=r"'inc'.*ink"):
        queue.submit("grid", SMALL | {"prompts": ["a boat"], "loras": ["inc"]}, title="wrong")
