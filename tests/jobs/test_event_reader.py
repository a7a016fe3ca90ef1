"""Looking at a run once a second costs what is new in it: bytes are counted, not seconds."""

from __future__ import annotations

import pytest

from lora_trainer.events import EventWriter, TrainEvent
from lora_trainer.jobs.event_reader import EventReader
from tests.jobs.conftest import wait_for
from tests.jobs.scripted import words

pytestmark = pytest.mark.hosts
STEPS = 10_000


def step(number: int) -> TrainEvent:
    data = {"step": number, "epoch": number / 100, "loss": 0.123456, "learning_rate": 1e-4}
    return TrainEvent("step", {**data, "grad_norm": 0.5, "seconds": 0.25, "memory_gib": 11.2}, time=float(number))


@pytest.fixture
def writer(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    yield writer
    writer.close()


@pytest.fixture
def reader(tmp_path):
    return EventReader(tmp_path / "events.jsonl")


def test_a_tick_late_in_a_long_run_reads_one_event(writer, reader):
    for number in range(STEPS):
        writer.write(step(number))
    assert len(reader.read_new()) == STEPS
    whole = reader.bytes_read
    assert whole > 1_000_000
    for number in range(STEPS, STEPS + 60):  # a minute of ticks
        writer.write(step(number))
        assert reader.read_new() == [step(number)]
        assert reader.read_from(number) == [step(number)]
    assert reader.bytes_read - whole < 60 * 2 * 250


def test_a_tick_with_nothing_new_reads_nothing(writer, reader):
    writer.write(step(1))
    reader.read_new()
    before = reader.bytes_read
    assert reader.read_new() == reader.read_from(1) == []
    assert reader.bytes_read == before


def test_an_unfinished_line_is_left_until_it_is_whole(tmp_path, reader):
    line = (step(1).to_line() + "\n").encode()
    with open(tmp_path / "events.jsonl", "wb", buffering=0) as file:
        for start in range(0, len(line), 7):
            assert reader.read_new() == []
            file.write(line[start : start + 7])
        assert reader.read_new() == [step(1)]


def test_damaged_lines_are_passed_over_and_not_counted(tmp_path, reader):
    lines = [step(1).to_line(), '{"kind": "st', "\r", "[]", step(2).to_line()]
    (tmp_path / "events.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert reader.read_new() == [step(1), step(2)]
    assert reader.read_from(1) == [step(2)]
    assert len(reader) == 2


def test_no_file_yet(reader):
    assert reader.read_new() == reader.read_from(0) == []


def test_ticks_of_the_queue_are_as_cheap(queue, tmp_path):
    """list(), view() and events() of a job that continues a run of 10,000 steps."""
    run = tmp_path / "run"
    writer = EventWriter(run / "events.jsonl")
    for number in range(STEPS):
        writer.write(step(number))
    writer.close()
    id = queue.submit("scripted", {"folder": str(run)}, title="long")
    count = wait_for(queue, id, lambda view: view.num_events > STEPS).num_events
    reader = queue._jobs[id].reader
    before = reader.bytes_read
    for number in range(60):
        words().put(0.5)
        wait_for(queue, id, lambda view, number=number: view.num_events == count + number + 1)
        queue.list()
        assert len(queue.events(id, count + number)) == 1
    assert reader.bytes_read - before < 60 * 2 * 250
    words().put("end")
