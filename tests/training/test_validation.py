"""Validation: fixed noise, pictures held back, the recommended step, and nothing of it in the LoRA's bytes."""

from __future__ import annotations

import csv

import pytest
import torch

from lora_trainer.cli import _describe_validation, describe_plan
from lora_trainer.config.check import check_config
from lora_trainer.dataset.losses import read_losses, write_losses
from lora_trainer.dataset.sampler import stable_order
from lora_trainer.errors import ConfigError
from lora_trainer.events import TrainEvent, fold_steps, read_events
from lora_trainer.plan import make_plan
from lora_trainer.progress import draw_curve
from lora_trainer.run_folder import RunFolder
from lora_trainer.training.validation import find_unlearned, recommend
from tests.training import toy
from tests.training.test_families import article_config
from tests.training.test_families import run as run_family
from tests.training.test_run import TOTAL_STEPS, assert_same_file, run


def validated(events):
    return [event.data for event in events if event.kind == "validated"]


def names_of(plan):
    return {item.name for item in plan.scan.items}


@pytest.fixture
def more_pictures(pictures):
    """The six pictures and two copies of each, under other captions."""
    for path in list(pictures.glob("*.png")):
        for copy in "ab":
            (pictures / f"{path.stem}{copy}.png").write_bytes(path.read_bytes())
            (pictures / f"{path.stem}{copy}.txt").write_text(f"copy {copy}", encoding="utf-8")
    return pictures


@pytest.mark.hosts
@pytest.mark.parametrize("changes", [{}, {"lora_dropout": "0.3", "shuffle_tags": "true", "caption_dropout": "0.3"}])
def test_a_run_with_validation_ends_with_the_same_bytes_as_one_without(toy_config, tmp_path, changes):
    without, events = run(toy_config(**changes))
    assert validated(events) == []
    watched, events = run(toy_config(validation_pictures="6", output_dir=str(tmp_path / "watched" / "toy"), **changes))
    assert [data["step"] for data in validated(events)] == [0, TOTAL_STEPS]
    assert_same_file(without.path, watched.path)


def test_pictures_of_a_validation_folder_change_no_bytes_either(toy_config, tmp_path, pictures):
    without, _ = run(toy_config())
    others = tmp_path / "others"
    others.mkdir()
    for path in pictures.iterdir():
        (others / path.name).write_bytes(path.read_bytes())
    watched, events = run(toy_config(validation_dir=str(others), output_dir=str(tmp_path / "watched" / "toy")))
    assert_same_file(without.path, watched.path)
    assert all(data["held_out"] for data in validated(events))


def test_the_same_weights_have_the_same_loss_at_every_look(toy_config):
    """A learning rate too small to matter leaves the loss where it was, to the last bit, although training draws on."""
    _, events = run(toy_config(learning_rate="1e-30", validation_share="0.5", max_train_steps="24"))
    losses = [data["loss"] for data in validated(events)]
    assert len(losses) == 6 and len(set(losses)) == 1
    _, other_events = run(toy_config(learning_rate="1e-30", validation_share="0.5", seed="7"), fresh=True)
    assert validated(other_events)[0]["loss"] != losses[0]


def test_held_out_pictures_are_chosen_by_seed_shown_and_not_trained(toy_config, more_pictures):
    config = toy_config(validation_share="0.25")
    plan = make_plan(config)
    held_out = {item.name for item in plan.held_out}
    assert len(held_out) == 4 and not held_out & names_of(plan) and len(plan.scan.items) == 14
    assert len(plan.held_out_buckets) == 4 and len(plan.buckets) == 14
    assert {item.name for item in make_plan(config).held_out} == held_out
    assert {item.name for item in make_plan(toy_config(validation_share="0.25", seed="2")).held_out} != held_out
    assert f"Held out  4: {', '.join(sorted(held_out))}" in describe_plan(config, plan)
    seen, real = set(), toy.ToyModel.encode_texts

    def encode_texts(self, captions):
        if torch.is_grad_enabled():
            seen.update(captions)
        return real(self, captions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.ToyModel, "encode_texts", encode_texts)
        run(toy_config(validation_share="0.25", text_encoder_lr="1e-4", epochs="1"))
    assert seen == {item.caption for item in plan.scan.items}


def test_another_picture_moves_no_two_others():
    names = [f"{number}.png" for number in range(20)]
    order = [names[index] for index in stable_order(names, 3, "held out")]
    more = [*names[:7], "new.png", *names[7:]]
    assert [name for name in (more[index] for index in stable_order(more, 3, "held out")) if name != "new.png"] == order
    assert [names[index] for index in stable_order(names, 4, "held out")] != order


def test_a_held_out_run_is_looked_at_at_each_save_and_a_saved_step_is_recommended(toy_config):
    result, events = run(toy_config(validation_share="0.34", max_train_steps="24"))
    folder = RunFolder(result.path.parent)
    assert [data["step"] for data in validated(events)] == [0, 5, 10, 15, 20, 24]
    assert {data["held_out"] for data in validated(events)} == {True}
    assert {data["base_loss"] for data in validated(events)} == {validated(events)[0]["loss"]}
    (recommended,) = [event.data for event in events if event.kind == "recommended"]
    assert folder.read_job()["recommended"] == recommended
    lowest = min(validated(events)[1:], key=lambda data: data["loss"])
    assert recommended["step"] == lowest["step"]
    assert recommended["path"] == str(folder.step_path("toy", lowest["step"]) if lowest["step"] < 24 else result.path)
    assert [event.kind for event in events][-2:] == ["recommended", "finished"]
    report = _describe_validation(toy_config(validation_share="0.34", max_train_steps="24"))
    assert report.isascii() and "held-out" in report and f"Recommended: {recommended['path']}" in report


def test_training_pictures_show_progress_only(toy_config):
    result, events = run(toy_config(validation_pictures="6"))
    assert "recommended" not in RunFolder(result.path.parent).read_job()
    assert {data["held_out"] for data in validated(events)} == {False}
    assert "show progress only" in _describe_validation(toy_config())


def test_looking_at_training_pictures_on_the_way_waits_until_it_is_cheap(toy_config):
    _, events = run(toy_config(validation_pictures="6", epochs="60", batch_size="6", save_steps="1", max_train_steps="70"))
    # 6 pictures at 4 levels are 24 forwards; a step of 6 items is worth 18, of which a twentieth may go here: every 27 steps.
    assert [data["step"] for data in validated(events)] == [0, 27, 54, 70]


@pytest.mark.parametrize("stop_at", [3, 10, 13])
def test_a_run_that_was_stopped_goes_on_with_its_curve_and_table(toy_config, tmp_path, stop_at):
    changes = {"validation_share": "0.34", "max_train_steps": "24", "lora_dropout": "0.2"}
    whole, whole_events = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
    run(toy_config(**changes), stop_at=stop_at)
    continued, _ = run(toy_config(**changes))
    assert_same_file(whole.path, continued.path)
    history = fold_steps(read_events(RunFolder(continued.path.parent).events_path), "validated")
    curve = {event.data["step"]: event.data for event in history}
    assert curve.pop(stop_at)["step"] == stop_at
    expected = {data["step"]: data for data in validated(whole_events) if data["step"] != stop_at}
    assert curve == expected
    tables = [(path.parent / "picture_losses.csv").read_bytes() for path in (whole.path, continued.path)]
    assert tables[0] == tables[1]


def test_the_table_has_every_watched_picture(toy_config):
    result, _ = run(toy_config(validation_pictures="6", epochs="20", learning_rate="3e-2"))
    text = (result.path.parent / "picture_losses.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["picture"] for row in rows} == {f"{number}.png" for number in range(6)}
    assert all(float(row["last"]) != float(row["first"]) for row in rows)
    changes = [float(row["change"]) for row in rows]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] == pytest.approx(float(rows[0]["last"]) / float(rows[0]["first"]) - 1, abs=1e-4)


@pytest.mark.parametrize("name", ["plain.png", 'with "quotes", commas.png', "水墨 竹.png", "line\nend.png"])
def test_the_table_keeps_any_name_and_every_bit(tmp_path, name):
    table = read_losses(tmp_path / "none.csv")
    assert table == {}
    (tmp_path / "a.csv").write_text("picture,first,last,change\nold.png,0.1,0.30000000000000004,2\n", encoding="utf-8")
    table = read_losses(tmp_path / "a.csv")
    table[name] = table["old.png"]
    write_losses(tmp_path / "b.csv", table)
    assert read_losses(tmp_path / "b.csv") == table
    (tmp_path / "b.csv").write_text("nonsense\n1,2\n", encoding="utf-8")
    assert read_losses(tmp_path / "b.csv") == {}


class TestRecommendation:
    @pytest.fixture
    def files(self, tmp_path):
        return {step: tmp_path / f"ink-step{step:08d}.safetensors" for step in (100, 200, 300)} | {
            400: tmp_path / "ink.safetensors"
        }

    def test_a_rise_after_the_lowest_point_is_over_training(self, files):
        step, reason = recommend({0: 1.0, 100: 0.9, 200: 0.8, 300: 0.75, 400: 0.78}, files)
        assert step == 300
        assert reason == (
            "held-out loss was lowest at step 300, 25.0% below the base's, and rose by 4.0% since: over-training; "
            "use ink-step00000300.safetensors"
        )

    def test_a_fall_to_the_end_says_so(self, files):
        step, reason = recommend({0: 1.0, 100: 0.9, 400: 0.7}, files)
        assert (step, "fell to the last step" in reason, "use ink.safetensors" in reason) == (400, True, True)

    def test_a_rise_that_hardly_matters_is_not_called_over_training(self, files):
        step, reason = recommend({0: 1.0, 200: 0.7, 400: 0.701}, files)
        assert (step, "hardly changed since" in reason) == (200, True)

    def test_a_loss_that_never_fell_below_the_bases_is_said(self, files):
        step, reason = recommend({0: 1.0, 100: 1.01, 200: 1.2}, files)
        assert (step, "never fell below the base's (1)" in reason) == (100, True)

    def test_only_saved_steps_count(self, files):
        del files[300]
        assert recommend({0: 1.0, 100: 0.9, 300: 0.5, 400: 0.8}, files)[0] == 400
        assert recommend({0: 1.0, 50: 0.5}, files) is None
        assert recommend({}, files) is None


class TestUnlearnedPictures:
    def test_the_ones_that_stand_out_are_found_worst_first(self):
        changes = {f"{number}.png": -0.2 - 0.005 * number for number in range(10)} | {"a.png": 0.01, "b.png": 0.04}
        assert list(find_unlearned(changes)) == ["b.png", "a.png"]

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [-0.3, 0.1],
            [-0.2, -0.25, -0.3, -0.15, -0.22],  # all learned
            [-0.001, 0.0, -0.002, 0.3],  # nothing learned, so nothing to compare with
            [-0.3, -0.3, -0.3, 0.0, 0.0],  # too many to be exceptions
            [-0.3, -0.1, -0.5, 0.0, -0.6, -0.2],  # as different as they all are
        ],
    )
    def test_nobody_is_named_without_need(self, values):
        assert find_unlearned({f"{number}.png": value for number, value in enumerate(values)}) == {}


def test_out_of_memory_while_looking_takes_less_at_once_and_never_ends_the_run(toy_config, tmp_path, monkeypatch):
    plain, events = run(toy_config(validation_share="0.34"))
    real, limit = toy.ToyModel.losses, [2]

    def losses(self, batch, draws, objective):
        if not torch.is_grad_enabled() and len(batch["latents"]) > limit[0]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, draws, objective)

    monkeypatch.setattr(toy.ToyModel, "losses", losses)
    halved, halved_events = run(toy_config(validation_share="0.34", output_dir=str(tmp_path / "halved" / "toy")))
    expected = [data["loss"] for data in validated(events)]
    assert [data["loss"] for data in validated(halved_events)] == pytest.approx(expected, rel=1e-6)
    limit[0] = 0
    blind, blind_events = run(toy_config(validation_share="0.34", output_dir=str(tmp_path / "blind" / "toy")))
    assert validated(blind_events) == []
    warnings = [event.data["message"] for event in blind_events if event.kind == "warning"]
    assert any("out of memory while validating" in message for message in warnings)
    assert_same_file(plain.path, halved.path)
    assert_same_file(plain.path, blind.path)


def test_a_stop_ends_a_look_and_loses_nothing(toy_config):
    _, events = run(toy_config(validation_share="0.34"), stop_at=7)
    assert [data["step"] for data in validated(events)] == [0, 5]
    assert events[-1].kind == "stopped"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_real_families_are_looked_at_the_same_with_trained_text(tmp_path, family):
    changes = {"text_encoder_lr": "1e-3", "max_train_steps": "3", "save_steps": "2", "lora_dropout": "0.2"}
    _, _, events = run_family(article_config(tmp_path / "a", family, validation_share="0.25", **changes))
    losses = [data["loss"] for data in validated(events)]
    assert [data["step"] for data in validated(events)] == [0, 2, 3] and len(set(losses)) == 3
    one, _, _ = run_family(article_config(tmp_path / "b", family, validation_pictures="0", **changes))
    two, _, _ = run_family(article_config(tmp_path / "c", family, **changes))
    assert_same_file(one.path, two.path)


def test_noise_levels_of_a_picture_are_spread_over_the_schedule(tmp_path, monkeypatch):
    from lora_trainer.models.diffusion import DiffusionModel

    real, seen = DiffusionModel.losses, []

    def losses(self, batch, draws, objective):
        if not torch.is_grad_enabled():
            seen.append(draws["timestep"].tolist())
        return real(self, batch, draws, objective)

    monkeypatch.setattr(DiffusionModel, "losses", losses)
    run_family(article_config(tmp_path, "sd1", max_train_steps="1"))
    assert len(seen) == 8 and seen[:4] == seen[4:]
    assert all([timestep // 250 for timestep in timesteps] == [0, 1, 2, 3] for timesteps in seen)
    assert len({timesteps[0] for timesteps in seen}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_dir": "nowhere"}, r"validation_dir: \(nowhere\) is not a folder"),
        ({"validation_share": "0.6"}, r"validation_share: \(0.6\) must be at least 0 and at most 0.5"),
    ],
)
def test_values_that_cannot_be_used_are_refused(toy_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(toy_config(**changes))


def test_a_validation_folder_must_lie_outside_the_training_pictures(toy_config, pictures, tmp_path):
    (pictures / "held").mkdir()
    for folder in (pictures, pictures / "held"):
        (problem,) = [found for found in check_config(toy_config(validation_dir=str(folder))) if found.severity == "error"]
        assert "would be trained" in str(problem)
    (tmp_path / "other").mkdir()
    both = toy_config(validation_dir=str(tmp_path / "other"), validation_share="0.1")
    assert any("exclude each other" in str(problem) for problem in check_config(both))


def test_one_picture_cannot_be_held_back(toy_config, pictures):
    for path in pictures.iterdir():
        if not path.name.startswith("0"):
            path.unlink()
    with pytest.raises(ConfigError, match=r"validation_share: \(0.1\) leaves nothing of 1 pictures"):
        make_plan(toy_config(validation_share="0.1"))


def test_few_held_out_pictures_are_remarked(toy_config):
    problems = [str(problem) for problem in make_plan(toy_config(validation_share="0.34")).problems]
    assert (
        "validation_share: gives only 2 held-out pictures, so the recommended step rests on little. 4 or more are better."
        in problems
    )


def test_tensorboard_gets_the_curve(toy_config):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result, events = run(toy_config(validation_share="0.34", log_with="tensorboard"))
    board = accumulator.EventAccumulator(str(RunFolder(result.path.parent).logs_dir))
    board.Reload()
    scalars = [(scalar.step, scalar.value) for scalar in board.Scalars("validation/loss")]
    assert scalars == [(data["step"], pytest.approx(data["loss"])) for data in validated(events)]


def test_the_curve_is_plain_text_with_its_lowest_point():
    def event(step, loss):
        return TrainEvent("validated", {"step": step, "loss": loss, "held_out": True, "base_loss": 0.5})

    lines = draw_curve([event(0, 0.5), event(100, 0.4), event(200, 0.45)]).splitlines()
    assert lines[1] == "  step    100  0.4000   -20.0%  # <- lowest"
    assert [line.count("#") for line in lines] == [40, 1, 20] or [line.count("#") for line in lines] == [40, 1, 21]
    many = draw_curve([event(step, 1.0 - (step == 77)) for step in range(200)])
    assert many.isascii() and len(many.splitlines()) <= 16 and "step     77  0.0000" in many
    assert draw_curve([event(0, 0.5)]) == "  step      0  0.5000    +0.0%   <- lowest"


def test_a_short_run_watches_few_pictures_and_a_longer_one_more(toy_config, more_pictures):
    def num_watched(**changes):
        result, _ = run(toy_config(**{"validation_pictures": "", "batch_size": "6", "save_steps": "0", **changes}), fresh=True)
        return len(read_losses(result.path.parent / "picture_losses.csv"))

    # 6 items a step, three forwards' time each; a twentieth of that, over two looks at 4 levels.
    assert num_watched(max_train_steps="10") == 8
    assert num_watched(max_train_steps="100") == int(0.05 * 3 * 100 * 6 / 8) == 11
    assert num_watched(max_train_steps="10", validation_pictures="14") == 14
