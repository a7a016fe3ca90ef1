"""Every fault is made to happen: memory, disk, numbers that overflow, files that vanish. Nothing saved is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.control import TrainControl
from lora_trainer.dataset.cache import TensorStore
from lora_trainer.errors import DatasetError, TrainingError
from lora_trainer.events import read_events
from lora_trainer.files import leftover_mark
from lora_trainer.run_folder import RunFolder
from lora_trainer.training import disk
from lora_trainer.training.run import train
from tests.training import toy
from tests.training.test_run import assert_same_file, losses_of, run, tensors_of


def warnings_of(events):
    return [event.data["message"] for event in events if event.kind == "warning"]


class FailInBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def fail_forward(losses):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def scarce_memory(monkeypatch):
    """Lets the toy's forward and backward fail for batches that are larger than allowed, unless it checkpoints."""
    real = toy.ToyModel.losses

    def install(fail, max_items, *, checkpointing_helps=False):
        def losses(self, batch, draws, objective):
            values = real(self, batch, draws, objective)
            if len(values) > max_items and not (checkpointing_helps and getattr(self, "checkpoints", False)):
                return fail(values)
            return values

        monkeypatch.setattr(toy.ToyModel, "losses", losses)

    return install


class TestOutOfMemory:
    @pytest.mark.parametrize("fail", [fail_forward, FailInBackward.apply], ids=["forward", "backward"])
    def test_stop_names_the_next_smaller_setting_and_keeps_what_was_learned(self, toy_config, scarce_memory, fail):
        scarce_memory(fail, 1)
        config = toy_config(batch_size="3")
        with pytest.raises(
            TrainingError, match=r"out of memory at step 1 \(.* GiB in use\)\. Set batch_size to 2 and gradient_acc"
        ):
            run(config)
        assert RunFolder(config.output_dir).status == "failed"

    def test_checkpointing_is_named_when_the_batch_is_one(self, toy_config, scarce_memory):
        scarce_memory(fail_forward, 0)
        with pytest.raises(TrainingError, match="Set gradient_checkpointing to true"):
            run(toy_config(batch_size="1"))

    @pytest.mark.parametrize("fail", [fail_forward, FailInBackward.apply], ids=["forward", "backward"])
    def test_adapt_goes_down_the_ladder_and_an_item_keeps_its_noise(self, toy_config, tmp_path, scarce_memory, fail):
        whole, whole_events = run(toy_config(batch_size="3", save_precision="fp32"))
        scarce_memory(fail, 1)
        small, events = run(
            toy_config(
                batch_size="3", save_precision="fp32", on_out_of_memory="adapt", output_dir=str(tmp_path / "small" / "toy")
            )
        )
        said = [message for message in warnings_of(events) if "out of memory" in message]
        assert ["at most 2" in said[0], "at most 1" in said[1], len(said)] == [True, True, 2]
        assert losses_of(events) == pytest.approx(losses_of(whole_events), rel=1e-4)
        one, other = tensors_of(whole.path), tensors_of(small.path)
        assert all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)

    def test_adapt_turns_to_checkpointing_after_the_batches(self, toy_config, scarce_memory):
        scarce_memory(fail_forward, 0, checkpointing_helps=True)
        result, events = run(toy_config(batch_size="2", on_out_of_memory="adapt"))
        assert result.status == "finished"
        assert "going on with gradient checkpointing" in warnings_of(events)[-1] or any(
            "gradient checkpointing" in message for message in warnings_of(events)
        )

    def test_encoding_takes_fewer_at_a_time(self, toy_config, monkeypatch, tmp_path):
        whole, _ = run(toy_config())
        real = toy.ToyModel.encode_pictures

        def encode(self, pixels):
            return fail_forward(None) if len(pixels) > 1 else real(self, pixels)

        monkeypatch.setattr(toy.ToyModel, "encode_pictures", encode)
        changes = {"encode_batch_size": "4", "cache_dir": str(tmp_path / "cache2"), "output_dir": str(tmp_path / "other" / "toy")}
        with pytest.raises(TrainingError, match=r"out of memory while encoding pictures .* Set encode_batch_size to 2"):
            run(toy_config(**changes))
        result, events = run(toy_config(**changes, on_out_of_memory="adapt"))
        assert len([message for message in warnings_of(events) if "while encoding" in message]) == 2
        assert_same_file(whole.path, result.path)


class TestOverflow:
    """fp16's scaler: only a scaled gradient overflows, so the same batch is repeated at half the scale."""

    def make_losses(self, limit):
        real = toy.ToyModel.losses

        def losses(self, batch, draws, objective):
            return Overflow.apply(real(self, batch, draws, objective).float(), limit)

        return losses

    def test_the_batch_is_repeated_and_nothing_is_counted(self, toy_config, monkeypatch):
        monkeypatch.setattr(toy.ToyModel, "losses", self.make_losses(3000.0))
        result, events = run(toy_config(precision="fp16"))
        assert result.status == "finished"
        assert not [message for message in warnings_of(events) if "skipped" in message]
        assert len(losses_of(events)) == result.step and None not in losses_of(events)

    def test_at_the_floor_it_counts(self, toy_config, monkeypatch):
        monkeypatch.setattr(toy.ToyModel, "losses", self.make_losses(0.0))
        with pytest.raises(TrainingError, match="5 steps in a row"):
            run(toy_config(precision="fp16"))


class Overflow(torch.autograd.Function):
    """Gives an infinite gradient where the scaled one is above a limit."""

    @staticmethod
    def forward(context, values, limit):
        context.limit = limit
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.where(gradient.abs() > context.limit, torch.inf, gradient), None


class TestFullDisk:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(disk, "POLL_SECONDS", 0.05)

    @pytest.mark.parametrize("what", ["state", "toy-step", "toy.safetensors", "job.json"])
    def test_a_write_that_finds_no_room_waits_and_is_done_again(self, toy_config, tmp_path, monkeypatch, what):
        whole, _ = run(toy_config())
        real, failures = os.fsync, []
        steps = [f"toy-step{step:08d}.safetensors" for step in range(1, 25)]
        marks = tuple(leftover_mark(name) for name in (steps if what == "toy-step" else [what]))

        def fsync(descriptor):
            name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            is_meant = Path(name).name.startswith(marks) or Path(name).parent.name == what
            if is_meant and len(failures) < 2 and started and "full" in name:
                failures.append(name)
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        started = []
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(disk, "WORTHWHILE_BYTES", 0)  # room again at the first look
        events = []

        def watch(event):
            events.append(event)
            if event.kind == "step":
                started.append(1)

        config = toy_config(output_dir=str(tmp_path / "full" / "toy"))
        result = train(config, control=TrainControl(), watch=watch)
        assert len(failures) == 2
        assert_same_file(whole.path, result.path)
        assert any("is full" in message and "Nothing saved" in message for message in warnings_of(events))

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small file system needs root")
    def test_on_a_small_file_system_the_run_waits_and_goes_on_when_there_is_room(self, toy_config, tmp_path):
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=True)
        try:
            whole, _ = run(toy_config())
            events, freed = [], threading.Event()

            def watch(event):
                events.append(event)
                if event.kind == "step" and event.data["step"] == 7:
                    fill(small)
                if event.kind == "warning" and "is full" in event.data["message"]:
                    threading.Timer(0.3, lambda: ((small / "ballast").unlink(), freed.set())).start()

            result = train(toy_config(output_dir=str(small / "toy")), control=TrainControl(), watch=watch)
            assert freed.is_set()
            assert_same_file(whole.path, result.path)
            kinds = [event.kind for event in read_events(RunFolder(small / "toy").events_path)]
            assert kinds.count("step") == result.step  # those held back were written when there was room
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_a_cache_that_finds_no_room_waits_and_is_filled_again(self, toy_config, tmp_path, monkeypatch):
        whole, _ = run(toy_config())
        real, failures = TensorStore.put, []

        def put(self, key, tensors):
            if len(failures) < 2:
                failures.append(key)
                raise OSError(errno.ENOSPC, "No space left on device")
            real(self, key, tensors)

        monkeypatch.setattr(TensorStore, "put", put)
        monkeypatch.setattr(disk, "WORTHWHILE_BYTES", 0)
        result, events = run(toy_config(output_dir=str(tmp_path / "full" / "toy"), cache_dir=str(tmp_path / "cache2")))
        assert len(failures) == 2
        assert any("the cache could not be written" in message for message in warnings_of(events))
        assert_same_file(whole.path, result.path)

    def test_a_stop_while_waiting_ends_at_the_last_save(self, toy_config, monkeypatch):
        config, control, saves = toy_config(), TrainControl(), []
        real = os.fsync

        def fsync(descriptor):
            if "state" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                saves.append(1)
                if len(saves) > 1:
                    control.request("stop")
                    raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        result = train(config, control=control, watch=lambda event: None)
        assert (result.status, result.step) == ("stopped", 5)
        monkeypatch.setattr(os, "fsync", real)
        assert run(config)[0].status == "finished"

    def test_too_little_room_is_said_before_the_start(self, toy_config, monkeypatch):
        monkeypatch.setattr(disk, "_free_bytes", lambda folder: 1000)
        with pytest.raises(TrainingError, match=r"has 1000 bytes free; this run writes .*: .* for .*\. Free some space"):
            run(toy_config())


def fill(folder: Path) -> None:
    with open(folder / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


class TestFilesThatVanish:
    def test_a_picture_deleted_between_scan_and_encoding_is_named(self, toy_config, pictures):
        def watch(event):
            if event.kind == "started":
                (pictures / "3.png").unlink()

        with pytest.raises(DatasetError, match=r"3\.png"):
            train(toy_config(), control=TrainControl(), watch=watch)

    def test_a_picture_deleted_while_training_is_not_missed(self, toy_config, pictures, tmp_path):
        whole, _ = run(toy_config())

        def watch(event):
            if event.kind == "step" and event.data["step"] == 3:
                (pictures / "3.png").unlink()

        result = train(toy_config(output_dir=str(tmp_path / "b" / "toy")), control=TrainControl(), watch=watch)
        assert_same_file(whole.path, result.path)

    def test_a_damaged_cache_entry_is_encoded_anew_at_the_next_start(self, toy_config, tmp_path):
        first, _ = run(toy_config())
        for path in sorted((tmp_path / "cache").rglob("*")):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-3])
        second, _ = run(toy_config(), fresh=True)
        assert_same_file(first.path.parent.with_name("toy.old-1") / "toy.safetensors", second.path)


def test_non_finite_weights_are_never_exported(toy_config, monkeypatch):
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        real(self, *arguments)
        with torch.no_grad():
            self.param_groups[0]["params"][0][0, 0] = float("nan")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = toy_config(epochs="1", save_steps="1")
    with pytest.raises(Exception, match=r"not finite|non-finite"):
        run(config)
    exported = list(config.output_dir.glob("*.safetensors"))
    assert all(torch.isfinite(tensor).all() for path in exported for tensor in safetensors.torch.load(path.read_bytes()).values())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_saves_and_ends_with_130(toy_config, tmp_path):
    # In a process of its own, as a person would meet it.
    import signal

    from lora_trainer.config.parse import dump_config
    from tests.training.test_families import article_config

    config = article_config(tmp_path / "in", "sd1", output_dir=str(tmp_path / "run"), max_train_steps="400", save_steps="0")
    dump_config(config, tmp_path / "c.yaml")
    with subprocess.Popen(
        [sys.executable, "-m", "lora_trainer", "train", "--config", str(tmp_path / "c.yaml")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        folder = RunFolder(tmp_path / "run")
        while process.poll() is None and not any(event.kind == "step" for event in read_events(folder.events_path)):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "Stopped and saved at step" in output
    assert folder.status == "stopped" and list(folder.state_dir.glob("step-*"))
