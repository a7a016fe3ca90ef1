"""The settings about data, end to end: from the YAML's values to the events and the file."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import safetensors.torch
import torch
from PIL import Image

from lora_trainer.adapters.container import read_header
from lora_trainer.cli import describe_plan
from lora_trainer.config.parse import parse_config
from lora_trainer.control import TrainControl
from lora_trainer.errors import AdapterError, ConfigError, DatasetError, TrainingError
from lora_trainer.plan import make_plan
from lora_trainer.training.run import train
from tests.adapters.webui_rules import apply_lora
from tests.tiny import make_pictures
from tests.training.test_families import article_config
from tests.training.test_run import TOTAL_STEPS, assert_same_file, losses_of, run, tensors_of


def steps_of(events):
    return [event.data for event in events if event.kind == "step"]


def messages_of(events, kind="warning"):
    return [event.data["message"] for event in events if event.kind == kind]


@pytest.fixture
def people(tmp_path):
    """Four captioned pictures for regularisation."""
    return make_pictures(tmp_path / "people", 4, size=(128, 128), repeats=2)


class TestWeights:
    def test_half_the_weight_halves_the_gradient_and_leaves_the_loss_that_is_shown(self, toy_config, tmp_path):
        _, plain = run(toy_config(max_train_steps="1"))
        _, halved = run(toy_config(max_train_steps="1", folder_weights=".=0.5", output_dir=str(tmp_path / "half")))
        (plain,), (halved,) = steps_of(plain), steps_of(halved)
        assert halved["loss"] == plain["loss"]
        assert halved["grad_norm"] == pytest.approx(plain["grad_norm"] / 2, rel=1e-5)

    def test_a_folder_that_is_not_there_is_an_error_before_anything_is_written(self, toy_config, pictures, tmp_path):
        shutil.copytree(pictures, pictures / "5_night")
        with pytest.raises(ConfigError, match=r"folder_weights: .*'5_nigth'; did you mean '5_night'\?"):
            run(toy_config(folder_weights={"5_nigth": 0.5}))
        assert not (tmp_path / "runs").exists()

    def test_regularisation_pictures_are_further_items_of_the_epoch(self, toy_config, people):
        config = toy_config(reg_data_dir=str(people), reg_weight="0.25", epochs="2")
        plan = make_plan(config)
        assert (len(plan.scan.items), len(plan.items)) == (6, 10)
        assert {item.weight for item in plan.items[:6]} == {1} and {item.weight for item in plan.items[6:]} == {0.25}
        assert plan.items[6].name == "people/2_scene/00_astronaut.png"
        text = describe_plan(config, plan)
        assert f"and 4 of 4 used, 8 with repeats, from {people}" in text
        assert "weight 0.25 for 4" in text and "weight 1 for 6" in text and "14 pictures x 2 epochs" in text
        result, _ = run(config)
        metadata = read_header(result.path).metadata
        assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("6", "8")
        assert "people" not in metadata["ss_dataset_dirs"]

    def test_problems_of_regularisation_pictures_are_named(self, toy_config, people):
        (people / "2_scene" / "00_astronaut.txt").unlink()
        _, events = run(toy_config(reg_data_dir=str(people), max_train_steps="1"))
        assert any(message.startswith("people/2_scene/00_astronaut.png: was left out") for message in messages_of(events))
        for path in people.rglob("*.txt"):
            path.unlink()
        with pytest.raises(ConfigError, match="reg_data_dir: None of the 4 pictures"):
            run(toy_config(reg_data_dir=str(people)), fresh=True)


class TestResolutions:
    def test_every_picture_is_trained_at_each(self, toy_config, tmp_path):
        config = toy_config(resolution=[128, 64], epochs="1")
        plan = make_plan(config)
        assert (plan.resolutions, plan.resolution, len(plan.items)) == ((64, 128), 128, 12)
        # The wide ones, 128 x 96, have room for no more than a square of 64 at either.
        assert Counter(map(str, plan.buckets)) == {"64x64": 9, "128x128": 3}
        assert "at 64 and 128 pixels" in describe_plan(config, plan)
        result, events = run(config)
        metadata = read_header(result.path).metadata
        assert metadata["ss_resolution"] == "(128, 128)"
        assert sum(bucket["count"] for bucket in json.loads(metadata["ss_bucket_info"])["buckets"].values()) == 12
        assert len(steps_of(events)) == plan.total_steps

    def test_a_list_of_one_is_that_one(self, toy_config, tmp_path):
        one, _ = run(toy_config())
        listed, _ = run(toy_config(resolution=["128"], output_dir=str(tmp_path / "listed" / "toy")))
        assert_same_file(one.path, listed.path)


@pytest.mark.parametrize("stop_at", [1, 13])
def test_with_everything_on_a_continued_run_ends_with_the_same_bytes(toy_config, tmp_path, people, stop_at):
    changes = {
        "flip": "true",
        "tag_dropout": "0.3",
        "keep_tokens": "1",
        "resolution": [64, 128],
        "reg_data_dir": str(people),
        "reg_weight": "0.5",
        "folder_weights": {".": 0.7},
        "alpha_mask": "true",
    }
    whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
    config = toy_config(cache_dir=str(tmp_path / "other"), **changes)
    run(config, stop_at=stop_at)
    continued, _ = run(config)
    assert_same_file(whole.path, continued.path)


@pytest.mark.parametrize("change", [{"flip": "true"}, {"tag_dropout": "0.5"}, {"folder_weights": {".": 0.5}}])
def test_each_makes_a_difference(toy_config, tmp_path, change):
    plain, _ = run(toy_config())
    changed, _ = run(toy_config(output_dir=str(tmp_path / "changed" / "toy"), **change))
    with pytest.raises(AssertionError):
        assert_same_file(plain.path, changed.path)


class TestAlphaMask:
    @pytest.fixture
    def config(self, tmp_path):
        def make(name, **changes):
            folder = tmp_path / name
            folder.mkdir()
            values = {"save_steps": "0", "max_train_steps": "3", "batch_size": "2", "epochs": "3", **changes}
            return article_config(folder, "sd1", train_data_dir=str(tmp_path / "pictures"), metadata_path="", **values)

        return make

    @pytest.fixture
    def paint(self, tmp_path):
        folder = make_pictures(tmp_path / "pictures", 4, size=(64, 64))

        def paint(alpha):
            for path in folder.glob("*.png"):
                picture = Image.open(path).convert("RGBA")
                picture.putalpha(alpha)
                picture.save(path)

        return paint

    def losses(self, config):
        events = []
        train(config, control=TrainControl(), watch=events.append)
        return losses_of(events), events

    def test_opaque_pictures_train_as_without(self, config, paint):
        paint(255)
        plain, _ = self.losses(config("plain"))
        masked, _ = self.losses(config("masked", alpha_mask="true"))
        assert masked == pytest.approx(plain, rel=1e-4)

    def test_what_is_transparent_is_not_learned(self, config, paint):
        half = Image.new("L", (64, 64), 255)
        half.paste(0, (0, 0, 32, 64))
        paint(half)
        plain, _ = self.losses(config("plain"))
        masked, _ = self.losses(config("masked", alpha_mask="true", flip="true"))
        assert all(map(lambda one, other: abs(one - other) > 1e-3, plain, masked))

    def test_pictures_without_transparency_are_told_of_and_those_of_nothing_left_out(self, config, paint, tmp_path):
        _, events = self.losses(config("none", alpha_mask="true"))
        assert "alpha_mask: has no effect: no picture has transparency." in messages_of(events)
        name = sorted((tmp_path / "pictures").glob("*.png"))[0]
        Image.new("RGBA", (64, 64)).save(name)
        losses, events = self.losses(config("one", alpha_mask="true"))
        assert any(
            message.startswith(f"{name.name}: was left out: it is transparent all over") for message in messages_of(events)
        )
        assert len(losses) == 3


class TestStartFrom:
    def test_the_first_effect_is_the_files_and_training_goes_on_from_it(self, toy_config, tmp_path):
        first, _ = run(toy_config(save_precision="fp32", lora_alpha="8"))
        still = {"max_train_steps": "1", "learning_rate": "1e-30", "weight_decay": "0", "save_precision": "fp32"}
        config = toy_config(start_from=str(first.path), lora_alpha="3", output_dir=str(tmp_path / "second" / "toy"), **still)
        second, events = run(config)
        assert "2 layers start from toy.safetensors." in messages_of(events, "notice")
        given, found = tensors_of(first.path), tensors_of(second.path)
        for key in ("lora_unet_to_q", "lora_unet_to_v"):
            torch.testing.assert_close(effect(found, key), effect(given, key), rtol=1e-5, atol=1e-7)
            assert found[f"{key}.alpha"] == 3 and effect(given, key).any()

    def test_a_run_that_goes_on_does_without_the_file(self, toy_config, tmp_path):
        first, _ = run(toy_config())
        changes = {"start_from": str(first.path), "epochs": "3"}
        whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy"), **changes))
        config = toy_config(output_dir=str(tmp_path / "parted" / "toy"), **changes)
        run(config, stop_at=4)
        first.path.unlink()
        continued, events = run(config)
        assert_same_file(whole.path, continued.path)
        assert not any("start from" in message for message in messages_of(events, "notice"))

    def test_another_rank_says_what_to_set(self, toy_config, tmp_path):
        first, _ = run(toy_config(epochs="1"))
        for changes, message in (
            ({"lora_rank": "16"}, r"start_from: .*has rank 4, and lora_rank is 16\. Set lora_rank to 4\."),
            ({"start_from": str(tmp_path / "none.safetensors")}, r"start_from: .*none\.safetensors"),
            ({"output_dir": str(first.path.parent)}, r"start_from: .*lies in output_dir"),
        ):
            with pytest.raises(ConfigError, match=message):
                run(toy_config(**{"output_dir": str(tmp_path / "second"), "start_from": str(first.path), **changes}))

    def test_a_checkpoint_or_a_foreign_form_is_refused_by_name(self, toy_config, tmp_path):
        path = tmp_path / "peft.safetensors"
        safetensors.torch.save_file({"base_model.model.to_q.lora_A.weight": torch.ones(4, 4)}, path)
        with pytest.raises(ConfigError, match="in the form of PEFT"):
            run(toy_config(start_from=str(path)))
        with pytest.raises(ConfigError, match="holds no LoRA"):
            run(toy_config(start_from=toy_config().base_model))

    def test_layers_that_are_not_trained_are_refused_before_the_pictures_are_encoded(self, tmp_path):
        first = article_config(tmp_path / "a", "sd1", text_encoder_lr="1e-3", max_train_steps="2", save_precision="fp32")
        file = train(first, control=TrainControl(), watch=lambda event: None).path
        events = []
        second = article_config(tmp_path / "b", "sd1", start_from=str(file), max_train_steps="1")
        with pytest.raises(AdapterError, match=r"not trained here: lora_te_.*text_encoder_lr"):
            train(second, control=TrainControl(), watch=events.append)
        assert not any(event.kind == "phase" and event.data["name"].startswith("encoding") for event in events)
        third = article_config(
            tmp_path / "c",
            "sd1",
            start_from=str(file),
            max_train_steps="1",
            learning_rate="1e-30",
            text_encoder_lr="1e-30",
            weight_decay="0",
            lora_alpha="7",
            save_precision="fp32",
        )
        result = train(third, control=TrainControl(), watch=lambda event: None)
        base = {key: tensor.float() for key, tensor in tensors_of(third.base_model).items()}
        given, found = (apply_lora(base, tensors_of(path)).tensors for path in (file, result.path))
        for key, tensor in given.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6)


def effect(tensors, key):
    down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
    return up @ down * tensors[f"{key}.alpha"] / down.shape[0]


class TestFormsOfDataSets:
    def captions_of(self, config):
        result, _ = run(config)
        return json.loads(read_header(result.path).metadata["ss_tag_frequency"])

    def strip(self, pictures):
        for path in pictures.glob("*.txt"):
            path.unlink()

    def test_metadata_jsonl(self, toy_config, pictures):
        self.strip(pictures)
        rows = [{"file_name": f"{number}.png", "text": f"suit {number}, 宇航员"} for number in range(6)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (pictures / "metadata.jsonl").write_text(text, encoding="utf-8")
        assert self.captions_of(toy_config(epochs="1"))["pictures"]["宇航员"] == 6

    def test_imagefolder_names_in_a_sub_folder(self, toy_config, pictures):
        self.strip(pictures)
        (pictures / "train").mkdir()
        for path in pictures.glob("*.png"):
            path.rename(pictures / "train" / path.name)
        lines = ["file_name,text", *(f'train/{number}.png,"suit {number}, orange"' for number in range(6))]
        (pictures / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
        assert self.captions_of(toy_config(epochs="1"))["train"]["orange"] == 6

    def test_of_an_animation_the_first_frame_is_trained_and_it_is_said(self, toy_config, pictures, tmp_path):
        frames = [Image.open(pictures / "0.png").convert("RGB"), Image.open(pictures / "1.png").convert("RGB").resize((128, 128))]
        frames[0].save(pictures / "0.gif", save_all=True, append_images=frames[1:])
        (pictures / "0.png").unlink()
        moving, events = run(toy_config())
        assert any(message == "0.gif: is animated; only its first frame is used." for message in messages_of(events, "notice"))
        Image.open(pictures / "0.gif").convert("RGB").save(pictures / "0.png")
        (pictures / "0.gif").unlink()
        still, _ = run(toy_config(output_dir=str(tmp_path / "still" / "toy")))
        assert_same_file(moving.path, still.path)


class TestFilesThatGoInTheMiddle:
    def damage(self, tmp_path):
        for path in (tmp_path / "cache").glob("*.cache"):
            path.write_bytes(path.read_bytes()[:-7])

    def train_and_do(self, config, step, action):
        events = []

        def watch(event):
            events.append(event)
            if event.kind == "step" and event.data["step"] == step:
                action()

        return train(config, control=TrainControl(), watch=watch), events

    def test_truncated_cache_files_end_the_run_with_a_save_and_it_goes_on_to_the_same_bytes(self, toy_config, tmp_path):
        whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy")))
        config = toy_config()
        with pytest.raises(TrainingError, match=r"cached encoding of \d\.png in .*cache was damaged.*Start again with the same"):
            self.train_and_do(config, 2, lambda: self.damage(tmp_path))
        assert (config.output_dir / "state" / "step-00000002.safetensors").exists()
        continued, events = run(config)
        assert [event.data["step"] for event in events if event.kind == "resumed"] == [2]
        assert_same_file(whole.path, continued.path)

    def test_after_the_first_epoch_the_cache_is_not_needed_any_more(self, toy_config, tmp_path):
        whole, _ = run(toy_config(output_dir=str(tmp_path / "whole" / "toy")))
        damaged, _ = self.train_and_do(toy_config(), 4, lambda: shutil.rmtree(tmp_path / "cache"))
        assert_same_file(whole.path, damaged.path)

    def test_a_picture_deleted_after_encoding_is_missed_only_at_the_next_start(self, toy_config, pictures):
        config = toy_config()
        result, _ = self.train_and_do(config, 2, (pictures / "3.png").unlink)
        assert (result.status, result.step) == ("finished", TOTAL_STEPS)
        extended, events = run(toy_config(epochs="12"))
        assert extended.status == "finished"
        (warning,) = [message for message in messages_of(events) if "changed since" in message]
        assert f"(6 items then, 5 now). It goes on from step {TOTAL_STEPS}" in warning

    def test_a_picture_deleted_while_encoding_ends_the_run_by_name(self, toy_config, pictures):
        config = toy_config()

        def watch(event):
            if event.kind == "phase" and event.data["name"] == "loading the base model":
                (pictures / "3.png").unlink(missing_ok=True)

        with pytest.raises(DatasetError, match=r"3\.png cannot be read: .*Put it back, or start again without it"):
            train(config, control=TrainControl(), watch=watch)
        result, events = run(config)
        assert result.status == "finished"
        assert not any("changed since" in message for message in messages_of(events))


def test_plain_settings_are_as_they_were(toy_config):
    config = toy_config()
    assert parse_config({"train_data_dir": "a", "base_model": "b", "output_dir": "c"}).resolutions == ()
    plan = make_plan(config)
    assert plan.items == plan.scan.items and plan.resolutions == (128,)
