"""What the part Test answers: sensible values after a training, the grid as its cells come, and a weight that is picked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from lora_trainer.adapters.container import model_hash
from lora_trainer.adapters.folder import Card
from lora_trainer.adapters.library import edit_card, list_trash, read_card
from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.errors import AdapterError, ConfigError, JobError, LoraInUseError
from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.host.standalone import Standalone
from lora_trainer.jobs.queue import JobQueue
from lora_trainer.jobs.record import Record
from lora_trainer.ui import grid_view
from lora_trainer.ui.page import Page
from lora_trainer.ui.services import Services
from tests.adapters.test_shelf import make
from tests.test_files import InUse

pytestmark = pytest.mark.hosts


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Real services after a training, with one saved step, and a grid of two rows that was stopped before its last cell."""
    host = Standalone(tmp_path / "data")
    folders = host.folders()
    jobs, run = folders.data_dir / "jobs", folders.runs / "ink"
    lora, step = make(folders.lora_dir / "ink.safetensors"), make(run / "ink-step00000100.safetensors", 0.5)
    pictures = folders.datasets / "boats"
    pictures.mkdir(parents=True)
    base = host.checkpoint_dir / "base.safetensors"
    base.parent.mkdir(parents=True)
    base.touch()
    settings = {
        "trigger_words": "guofeng",
        "sample_prompts": ["a boat on a lake"],
        "base_model": str(base),
        "train_data_dir": str(pictures),
        "clip_skip": 2,
    }
    Record("20260101-000000-aaaaaa", "train", "ink", settings, run, 1.0, status="finished", ended=2.0, result=lora).save(jobs)
    grid = jobs / "20260102-000000-bbbbbb"
    Record(grid.name, "grid", "Test of ink", {}, grid, 3.0, status="stopped", ended=4.0).save(jobs)
    writer = EventWriter(grid / "events.jsonl")
    uses = [[{"path": str(path), "unet": 1.0, "text": 1.0}] for path in (lora, step)]
    rows = [{"label": f"row {n}", "prompt": "a boat", "seed": 7, "loras": use, "companions": []} for n, use in enumerate(uses)]
    writer.write(TrainEvent("grid", {"rows": rows, "weights": [0, 0.5], "base": "base", "pipeline": ""}))
    for row, column in ((0, 0), (1, 0), (1, 1)):
        path = grid / f"{row}-{column}.png"
        Image.new("RGB", (64, 64), (90 * row, 0, 90 * column)).save(path)
        data = {"row": row, "column": column, "path": str(path), "parameters": "a boat <lora:x:0.5>\nSteps: 20"}
        writer.write(TrainEvent("cell", data))
    near = {"row": 1, "column": 1, "path": "p.png", "similarity": 0.9, "base_similarity": 0.1, "is_copied": True}
    figure = {"rows": [1], "column": 1, "weight": 0.5, "moved": 0.2, "nearness": 0.6, "kept": 0.7, "score": 0.6}
    advice = {"figures": [figure], "best": 0, "reason": "<because>", "nearest": [near], "by": "colours"}
    writer.write(TrainEvent("advice", advice))
    writer.close()
    queue = JobQueue(host)
    yield Services(host, queue, DatasetLibrary(folders.datasets))
    queue.close()


@pytest.fixture
def page(services: Services) -> Page:
    with gr.Blocks():
        page = Page(services)
        page.build()
    return page


def values_of(page: Page, **changes: object) -> dict[str, object]:
    test = page.parts["test"]
    card = {f"runs.{name}": getattr(widget, "value", None) for name, widget in page.parts["runs"].library.live.items()}
    fields = {name: getattr(widget, "value", None) for name, widget in test.live.items()}
    return {**fields, **card, "loras": [], "filled": {}} | changes


def test_after_a_training_sensible_values_stand_there(page: Page) -> None:
    test = page.parts["test"]
    shown = test.refresh(values_of(page))
    assert shown["loras"]["value"] == ["ink"] and shown["loras"]["choices"] == ["ink"]
    assert shown["prompts"] == "guofeng, a boat on a lake"
    assert shown["base_model"]["value"] == "base.safetensors" and shown["train_data_dir"]["value"] == "boats"
    values = values_of(page, loras=["ink"], prompts="mine", filled=shown["filled"], base_model="base.safetensors")
    assert "prompts" not in test.refresh(values)  # what the user wrote stays


def test_a_lora_that_the_user_chose_stays_and_brings_nothing_of_the_one_before(page: Page, services: Services) -> None:
    test = page.parts["test"]
    shown = test.refresh(values_of(page))
    make(services.host.folders().lora_dir / "found.safetensors")
    values = {"prompts": shown["prompts"], "train_data_dir": "boats", "filled": shown["filled"]}
    chosen = test.fields._choose_loras(values_of(page, loras=["found"], **values))
    assert chosen["prompts"] == "" and chosen["train_data_dir"] is None
    values = values_of(page, loras=["found"], prompts="", filled=chosen["filled"], base_model="base.safetensors")
    assert "value" not in test.refresh(values)["loras"]
    assert test.test(values_of(page, prompts="guofeng, a boat"), "found")["prompts"] == ""


def test_saved_steps_are_rows_before_the_finished_file(page: Page, services: Services) -> None:
    test = page.parts["test"]
    values = values_of(
        page, loras=["ink"], prompts="a boat", steps_too=True, train_data_dir="boats", base_model="base.safetensors"
    )
    settings = test.fields.settings(values)
    assert [Path(lora).stem for lora in settings["loras"]] == ["ink-step00000100", "ink"]
    assert settings["clip_skip"] == 2 and settings["train_data_dir"] == str(services.library.path("boats"))
    assert settings["weights"] == "0, 0.3, 0.5, 0.7, 0.9, 1" and settings["sampler"] == "euler_a" and "width" not in settings


def test_the_tags_of_the_prompt_are_told(page: Page) -> None:
    form = page.parts["test"].fields
    told = form.look({"prompts": "a <lora:ink:0.5:0.8>\nb"})["stack"]
    assert "ink" in told and "UNet 0.8" in told and "0.5" in told
    assert "&#x27;seal&#x27;" in form.look({"prompts": "a <lora:seal:1>"})["stack"]


def test_the_grid_shows_what_is_drawn_the_proposal_and_copies(page: Page) -> None:
    shown = page.parts["test"].show(values_of(page, chosen="1-1"))
    assert shown["cells"].count("data-cell=") == 3 and shown["cells"].count("is_blank") == 1
    assert "is_best" in shown["cells"] and "90%" in shown["cells"]
    assert "&lt;because&gt;" in shown["advice"] and "ink, step 100" in shown["advice"]
    assert "over-trained" in shown["large"] and "60%" in shown["large"] and "no prompt finds it" in shown["large"]
    assert shown["prompt"] == "a boat <lora:x:0.5>" and shown["button_pick"]["visible"]
    again = page.parts["test"].show(values_of(page, chosen="1-1", drawn=shown["drawn"]))
    assert list(again) == ["drawn"]  # a tick sends only what changed
    assert not page.parts["test"].show(values_of(page, chosen="0-0"))["button_pick"]["visible"]


def test_a_picked_step_is_the_lora_with_weight_and_preview(page: Page, services: Services) -> None:
    test = page.parts["test"]
    run = services.host.folders().runs / "ink"
    (run / "job.json").write_text(json.dumps({"published": ["ink.safetensors"]}), encoding="utf-8")
    updates = test._pick(values_of(page, chosen="1-1"), page.parts["runs"])
    lora = services.host.folders().lora_dir / "ink.safetensors"
    assert read_card(lora).preferred_weight == 0.5 and lora.with_suffix(".png").is_file()
    assert "ink, step 100" in updates["message"] and "data-lora" in updates["runs.items"]
    with pytest.raises(AdapterError, match="for one LoRA"):
        test._pick(values_of(page, chosen="0-0"), page.parts["runs"])
    with pytest.raises(JobError, match="No picture is chosen"):
        test._pick(values_of(page, chosen=""), page.parts["runs"])


def test_a_lora_that_the_host_itself_holds_can_be_replaced_by_a_step(
    page: Page, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Forge does on Windows, until it is told."""
    lora = services.host.folders().lora_dir / "ink.safetensors"
    run = services.host.folders().runs / "ink"
    (run / "job.json").write_text(json.dumps({"published": ["ink.safetensors"]}), encoding="utf-8")
    program = InUse(monkeypatch, lora, times=99)
    with pytest.raises(LoraInUseError, match=r"ink\.safetensors is in use"):
        page.parts["test"]._pick(values_of(page, chosen="1-1"), page.parts["runs"])

    def let_go(path: Path) -> None:
        program.times = 0

    monkeypatch.setattr(services.host, "lora_changed", let_go)
    page.parts["test"]._pick(values_of(page, chosen="1-1"), page.parts["runs"])
    assert read_card(lora).preferred_weight == 0.5 and not list(lora.parent.glob("*.new-*"))


def test_after_a_step_was_picked_the_finished_file_can_be_picked_again(page: Page, services: Services) -> None:
    test, folders = page.parts["test"], services.host.folders()
    lora, run = folders.lora_dir / "ink.safetensors", folders.runs / "ink"
    final = Path(shutil.copyfile(lora, run / "ink.safetensors"))
    (run / "job.json").write_text(json.dumps({"published": {"ink.safetensors": model_hash(lora)}}), encoding="utf-8")
    use = {"path": str(lora), "hash": model_hash(lora)}
    assert test._source_of(use) == lora
    test._pick(values_of(page, chosen="1-1"), page.parts["runs"])
    assert model_hash(lora) != use["hash"] and test._source_of(use) == final
    values = values_of(page, loras=["ink"], prompts="a boat", steps_too=True, base_model="base.safetensors")
    assert test.fields.settings(values)["loras"][-1] == str(final)  # and it is drawn beside the steps, not what took its place
    final.unlink()
    with pytest.raises(AdapterError, match=r"ink\.safetensors was replaced"):
        test._source_of(use)


def test_a_grid_drawn_anew_begins_anew() -> None:
    first = TrainEvent("grid", {"rows": [], "weights": [0], "base": "b", "pipeline": ""})
    cell = TrainEvent("cell", {"row": 0, "column": 0, "path": "x", "parameters": ""})
    assert grid_view.fold([first, cell, first]).cells == {}


def test_what_a_grid_warns_of_is_told(page: Page, services: Services) -> None:
    grid = services.host.folders().data_dir / "jobs" / "20260102-000000-bbbbbb"
    writer = EventWriter(grid / "events.jsonl")
    writer.write(TrainEvent("warning", {"message": "3 of its <layers> are left out"}))
    writer.close()
    assert "3 of its &lt;layers&gt; are left out" in page.parts["test"].show(values_of(page))["advice"]


def test_a_grid_that_waits_says_so(page: Page, services: Services) -> None:
    test = page.parts["test"]
    waiting = replace(services.queue.list()[0], status="queued", kind="grid")
    assert "waits in the queue" in test._describe(waiting, grid_view.GridView(), None)["cells"]


def test_errors_name_the_labels_of_the_page(page: Page) -> None:
    test = page.parts["test"]
    with pytest.raises(ConfigError, match=r"^Prompts: is empty"):
        test._draw(values_of(page, loras=["ink"], prompts="", base_model="base.safetensors"))
    with pytest.raises(ConfigError, match=r"^Prompts: .*<lora:ink:x>"):
        test._draw(values_of(page, prompts="a <lora:ink:x>", base_model="base.safetensors"))
    make(test.services.host.folders().lora_dir / "found.safetensors")
    with pytest.raises(ConfigError, match=r"^The saved steps of its run, too: .*no saved step of found"):
        test._draw(values_of(page, loras=["found"], prompts="a", steps_too=True, base_model="base.safetensors"))


def test_opening_the_part_lists_what_is_in_the_folder_now_and_touches_no_value(page: Page, services: Services) -> None:
    make(services.host.folders().lora_dir / "late.safetensors")
    opened = page.parts["test"]._open(values_of(page))
    assert opened["loras"]["choices"] == ["late", "ink"] and opened["base_model"]["choices"] == ["base.safetensors"]
    assert "prompts" not in opened and all("value" not in opened[name] for name in ("loras", "base_model", "train_data_dir"))


def test_a_picture_of_two_weights_cannot_be_kept(page: Page, services: Services) -> None:
    test, folder = page.parts["test"], services.host.folders()
    writer = EventWriter(folder.data_dir / "jobs" / "20260102-000000-bbbbbb" / "events.jsonl")
    use = {"path": str(folder.lora_dir / "ink.safetensors"), "unet": 0.0, "text": 0.7}
    row = {"label": "", "prompt": "a", "seed": 7, "loras": [use], "companions": []}
    writer.write(TrainEvent("grid", {"rows": [row], "weights": [0, 0.5], "base": "base", "pipeline": ""}))
    path = str(folder.data_dir / "jobs" / "20260102-000000-bbbbbb" / "1-1.png")
    writer.write(TrainEvent("cell", {"row": 0, "column": 1, "path": path, "parameters": ""}))
    writer.close()
    with pytest.raises(AdapterError, match=r"0\.7 of it for the text encoder and 0 for the UNet"):
        test._pick(values_of(page, chosen="0-1"), page.parts["runs"])


def test_every_press_for_the_large_picture_has_an_answer_of_its_own(page: Page) -> None:
    test = page.parts["test"]
    first, second = (json.loads(test._enlarge(values_of(page, chosen="1-1"), "full")["enlarged"]) for _ in range(2))
    assert first["uri"] == second["uri"] and first["press"] != second["press"]
    with pytest.raises(JobError, match="The sheet is made"):
        test._enlarge(values_of(page), "sheet")


class TestLibrary:
    """`form` stands for what the browser holds: what the handlers answer, and what is typed over it."""

    @staticmethod
    def form(page: Page, **typed: object) -> dict[str, object]:
        return {name: getattr(component, "value", None) for name, component in page.parts["runs"].library.live.items()} | typed

    @staticmethod
    def after(form: dict[str, object], updates: Mapping[str, object]) -> dict[str, object]:
        changed = {name: new["value"] if isinstance(new, dict) and "value" in new else new for name, new in updates.items()}
        return {**form, **changed}

    def test_an_answer_that_is_late_does_not_take_the_choice_back(self, page: Page, services: Services) -> None:
        library = page.parts["runs"].library
        late = library.show(self.form(page))  # asked for before the choice
        form = self.after(self.choose(page, self.form(page), "ink"), late)
        assert form["chosen"] == "ink" and form["name"] == "ink" and 'aria-pressed="true"' not in form["items"]
        again = self.choose(page, form, "ink")  # as the script then asks
        assert 'aria-pressed="true"' in again["items"] and "24 pictures" in again["detail"]

    def choose(self, page: Page, form: dict[str, object], name: str) -> dict[str, object]:
        chosen = {**form, "chosen": name}
        return self.after(chosen, page.parts["runs"].library.show(chosen))

    def test_the_card_is_edited_and_the_file_goes_to_the_trash_and_back(self, page: Page, services: Services) -> None:
        library, folder = page.parts["runs"].library, services.host.folders().lora_dir
        form = self.choose(page, self.form(page), "ink")
        assert "24 pictures" in form["detail"] and form["new_name"] == "ink-2" and form["stack"] == "<lora:ink:1>"
        form |= {"activation_text": "guofeng", "preferred_weight": 0.6}
        form = self.after(form, library._save(form))
        assert read_card(folder / "ink.safetensors").preferred_weight == 0.6
        renamed = library._rename({**form, "name": "brush", "notes": "being typed"})
        form = self.after(form, renamed)
        assert (folder / "brush.safetensors").is_file() and read_card(folder / "brush.safetensors").activation_text == "guofeng"
        assert "notes" not in renamed and form["new_name"] == "brush-2"
        deleted = library._delete(form)
        assert not (folder / "brush.safetensors").exists() and deleted["restore"]["visible"]
        assert deleted["activation_text"] == "" and deleted["chosen"] == ""
        library._restore(self.after(form, deleted))
        assert (folder / "brush.safetensors").is_file()

    def test_two_presses_delete_for_good_what_is_marked(self, page: Page, services: Services) -> None:
        library, folder = page.parts["runs"].library, services.host.folders().lora_dir
        for name in ("seal", "boat"):
            make(folder / f"{name}.safetensors")
            form = self.choose(page, self.form(page), name)
            form = self.after(form, library._delete(form))
        marked, other_one = sorted(library.show(form)["trash"]["choices"], key=lambda choice: choice != form["trash"])
        form = self.after(form, library._delete_for_good(form))
        assert form["trash"] == marked and form["empty"] == "Really delete: press again"
        other = self.after(form, library.show({**form, "trash": other_one}))  # another is marked between the two presses
        assert other["empty"] == "Delete for good"
        assert len(list_trash(folder)) == 2
        pressed = self.after(other, library._delete_for_good(other))
        assert len(list_trash(folder)) == 2
        done = library._delete_for_good(pressed)
        (left,) = list_trash(folder)
        assert other_one in done["message"] and marked.startswith(left.path.name)
        assert self.after(pressed, done)["empty"] == "Delete for good"

    def test_what_is_typed_stays_when_the_list_is_drawn_anew(self, page: Page, services: Services) -> None:
        folder, runs = services.host.folders().lora_dir, page.parts["runs"]
        form = self.choose(page, self.form(page), "ink") | {"notes": "being typed"}
        edit_card(folder / "ink.safetensors", replace(read_card(folder / "ink.safetensors"), preferred_weight=0.4))
        make(folder / "ink-2.safetensors")
        whole = {name: getattr(component, "value", None) for name, component in runs.live.items()}
        updates = runs.refresh(whole | {f"library.{name}": value for name, value in form.items()})
        assert "library.notes" not in updates and "library.description" not in updates
        assert updates["library.preferred_weight"] == 0.4  # a field that was not touched follows the file
        assert updates["library.new_name"] == "ink-3"
        form = self.after(form, {name.removeprefix("library."): new for name, new in updates.items() if "library." in name})
        runs.library._save(form)
        assert read_card(folder / "ink.safetensors") == Card(preferred_weight=0.4, notes="being typed")

    def test_a_card_is_never_written_onto_another_lora(self, page: Page, services: Services) -> None:
        library, folder = page.parts["runs"].library, services.host.folders().lora_dir
        make(folder / "seal.safetensors")
        form = self.choose(page, self.form(page), "ink") | {"notes": "of ink"}
        for handler in (library._save, library._delete, library._repair, library._rename):
            with pytest.raises(AdapterError, match="card of seal is just being loaded"):
                handler({**form, "chosen": "seal", "base": None})  # pressed before the answer to the choice arrived
        assert not (folder / "seal.json").exists() and (folder / "seal.safetensors").is_file()

    def test_two_of_one_name_can_be_told_apart_and_renamed(self, page: Page, services: Services) -> None:
        library, folder = page.parts["runs"].library, services.host.folders().lora_dir
        make(folder / "old" / "ink.safetensors", 0.5)
        form = self.choose(page, self.form(page), "old/ink.safetensors")
        assert 'data-lora="ink.safetensors"' in form["items"] and form["name"] == "ink"
        library._rename({**form, "name": "older"})
        assert (folder / "old" / "older.safetensors").is_file() and (folder / "ink.safetensors").is_file()

    def test_a_new_file_is_made_by_a_job(self, page: Page, services: Services) -> None:
        library = page.parts["runs"].library
        form = self.choose(page, self.form(page), "ink")
        values = {**form, "tool": "Lower the rank", "new_name": "small", "rank": "2", "precision": "none", "stack": ""}
        with pytest.raises(ConfigError, match=r"^Name of the new file: \(ink\) is taken"):
            library._make({**values, "new_name": "ink"})
        library._make(values)
        job = next(job for job in services.queue.list() if job.kind == "lora_files")
        assert services.queue.settings(job.id) == {"tool": "resize", "name": "small", "lora": "ink", "rank": 2}
