from __future__ import annotations

import threading

import pytest

from lora_trainer.control import COMMANDS, TrainControl

pytestmark = pytest.mark.hosts


def test_nothing_is_requested_at_first():
    control = TrainControl()
    assert not any(control.is_requested(name) for name in COMMANDS if name != "continue")


@pytest.mark.parametrize("command", ["stop", "discard", "pause", "save", "sample"])
def test_a_request_is_taken_once(command):
    control = TrainControl()
    control.request(command)
    control.request(command)
    assert control.is_requested(command)
    assert control.take(command)
    assert not control.take(command)


def test_continue_takes_back_a_pause_and_nothing_else():
    control = TrainControl()
    control.request("pause")
    control.request("save")
    control.request("continue")
    assert not control.is_requested("pause")
    assert control.is_requested("save")


def test_to_discard_is_to_stop():
    control = TrainControl()
    control.request("discard")
    assert control.is_requested("stop")


def test_an_unknown_command_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'stpo' is unknown; allowed: stop, discard, pause"):
        TrainControl().request("stpo")


def test_a_request_from_another_thread_is_seen():
    control = TrainControl()
    thread = threading.Thread(target=control.request, args=("stop",))
    thread.start()
    thread.join()
    assert control.take("stop")
