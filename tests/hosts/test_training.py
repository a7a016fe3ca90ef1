"""A real run of the toy family inside the made-up WebUI, in a thread, while people generate."""

from __future__ import annotations

import threading

import pytest
import torch

from lora_trainer.control import TrainControl
from lora_trainer.host.table import find_host
from lora_trainer.training.run import train
from tests.hosts.conftest import until
from tests.training.conftest import pictures, toy_config, toy_family, toy_values  # noqa: F401 - fixtures
from tests.training.test_run import assert_same_file, losses_of, run

pytestmark = pytest.mark.hosts


def train_in_thread(host, config, *, control=None, on_step=lambda step: None):
    """Trains as the queue does, in a thread of its own. Returns the result and the events."""
    events, outcome = [], []

    def watch(event):
        events.append(event)
        if event.kind == "step":
            on_step(event.data["step"])

    def work():
        with host.borrow_device("Training toy") as lease:
            outcome.append(train(config, control=control or TrainControl(), watch=watch, lease=lease))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcome[0], events


@pytest.fixture
def plain(toy_config, tmp_path):  # noqa: F811
    """The same run, outside any WebUI."""
    return run(toy_config(output_dir=str(tmp_path / "plain" / "toy")))


def test_the_patched_layers_of_the_webui_change_no_loss(plain, networks, toy_config, monkeypatch):  # noqa: F811
    networks.patch(monkeypatch.setattr)
    networks.loaded_networks.append("of the user's last prompt")
    result, events = train_in_thread(find_host(), toy_config())
    assert torch.nn.Linear.forward.__name__ == "patched_forward"
    assert losses_of(events) == losses_of(plain[1])
    assert_same_file(result.path, plain[0].path)


@pytest.mark.parametrize("has_room", [True, False])
def test_pictures_are_drawn_in_between_and_the_result_is_the_same(webui, plain, toy_config, has_room):  # noqa: F811
    if not has_room:
        webui.use_card()
    threads = []

    def press_generate(step):
        if step in (3, 9, 10, 20):
            threads.append(webui.generate(f"at {step}"))
            if has_room:
                threads[-1].join()  # at once, without waiting for the training
            else:
                webui.wait_until_queued()

    result, events = train_in_thread(find_host(), toy_config(), on_step=press_generate)
    for thread in threads:
        thread.join()
    assert webui.log == ["at 3", "at 9", "at 10", "at 20"]
    assert losses_of(events) == losses_of(plain[1])
    assert_same_file(result.path, plain[0].path)
    assert webui.model.is_on_device and not webui.is_locked()


def test_a_checkpoint_that_loads_at_the_start_does_not_spoil_the_run(webui, plain, toy_config):  # noqa: F811
    data = webui.sd_models.model_data
    data.sd_model, data.load_seconds = None, 0.5
    data.loaded_sd_models.clear()
    loading = threading.Thread(target=data.get_sd_model)
    loading.start()
    until(data.lock.locked)
    result, _ = train_in_thread(find_host(), toy_config())
    loading.join()
    assert_same_file(result.path, plain[0].path)


def test_while_paused_the_card_belongs_to_the_webui(webui, plain, toy_config):  # noqa: F811
    webui.use_card()
    control = TrainControl()

    def pause(step):
        if step == 5:
            control.request("pause")
            threading.Thread(target=draw_and_continue).start()

    def draw_and_continue():
        for number in range(3):
            webui.generate(f"picture {number}").join()
        control.request("continue")

    result, _ = train_in_thread(find_host(), toy_config(), control=control, on_step=pause)
    assert webui.log == ["picture 0", "picture 1", "picture 2"]
    assert_same_file(result.path, plain[0].path)
