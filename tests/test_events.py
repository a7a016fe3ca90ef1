from __future__ import annotations

import json

import pytest

from lora_trainer.events import KINDS, EventWriter, TrainEvent, fold_steps, parse_line, read_events

pytestmark = pytest.mark.hosts


def step(number: int, loss: float = 0.5) -> TrainEvent:
    return TrainEvent("step", {"step": number, "loss": loss}, time=float(number))


def test_events_come_back_as_they_were_written(tmp_path):
    events = [TrainEvent(kind, dict.fromkeys(names), time=1.5) for kind, names in KINDS.items()]
    writer = EventWriter(tmp_path / "run" / "events.jsonl")
    for event in events:
        writer.write(event)
    writer.close()
    assert list(read_events(tmp_path / "run" / "events.jsonl")) == events


@pytest.mark.parametrize("name", ["水墨 🖌.png", "line\nend", "caf\udce9.png", "\u2028", 'a"b\\c'])
def test_any_file_name_survives(tmp_path, name):
    event = TrainEvent("warning", {"message": name}, time=1.0)
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write(event)
    writer.close()
    assert list(read_events(tmp_path / "events.jsonl")) == [event]
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 1


def test_one_line_is_one_json_object(tmp_path):
    line = TrainEvent("exported", {"step": 3, "path": "a.safetensors"}, time=12.34567).to_line()
    assert json.loads(line) == {"kind": "exported", "time": 12.346, "step": 3, "path": "a.safetensors"}


def test_a_missing_file_has_no_events(tmp_path):
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_an_unfinished_last_line_is_not_read_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write(step(1))
    writer.close()
    with open(path, "ab") as file:
        file.write(b'{"kind": "step", "ti')
    assert list(read_events(path)) == [step(1)]
    writer = EventWriter(path)
    writer.write(step(2))
    writer.close()
    assert list(read_events(path)) == [step(1), step(2)]


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{}\n", b"[1]\n", b"1\n", b"null\n", b'{"kind": "step"}\n', b"\xff\xfe\n", b'{"kind": "a", "time": 1}']
)
def test_a_damaged_line_is_passed_over(line):
    assert parse_line(line) is None


def test_every_line_that_is_cut_short_is_passed_over():
    line = (step(1).to_line() + "\n").encode()
    assert [parse_line(line[:length]) for length in range(len(line))] == [None] * len(line)
    assert parse_line(line) == step(1)


def test_resuming_forgets_the_steps_beyond():
    events = [step(1), step(2), step(3, loss=9.0), TrainEvent("resumed", {"step": 2}), step(3), step(4)]
    assert fold_steps(iter(events)) == [step(1), step(2), step(3), step(4)]


def test_resuming_twice_at_the_start_forgets_all():
    events = [step(1), TrainEvent("resumed", {"step": 0}), step(1), TrainEvent("resumed", {"step": 0})]
    assert fold_steps(iter(events)) == []
