"""Each way that a job can go, with a job that does what the test says."""

from __future__ import annotations

import json
import threading

import pytest

from lora_trainer.errors import ConfigError, JobError
from lora_trainer.jobs import JobQueue, open_queue
from lora_trainer.jobs.queue import THREAD_NAME
from tests.jobs.conftest import wait_for, wait_status
from tests.jobs.host import FolderHost
from tests.jobs.scripted import words

pytestmark = pytest.mark.hosts


def add(queue: JobQueue, title: str = "ink", *, start: bool = True, **settings) -> str:
    return queue.submit("scripted", settings, title=title, start=start)


def titles(queue: JobQueue) -> list[tuple[str, str]]:
    return [(view.title, view.status) for view in queue.list()]


class TestSubmit:
    def test_a_job_runs_in_a_thread_of_its_own_and_finishes(self, queue, host):
        assert THREAD_NAME not in [thread.name for thread in threading.enumerate()]
        words().put("end")
        view = wait_status(queue, add(queue), "finished")
        assert [thread.name for thread in threading.enumerate()].count(THREAD_NAME) == 1
        assert view.result == view.folder / "made.txt"
        assert (view.error, view.diagnosis, view.position) == ("", [], 0)
        assert view.ended >= view.created
        assert host.history == ["lent for ink", "given back"]

    def test_wrong_settings_are_refused_with_every_problem_and_leave_nothing(self, queue):
        with pytest.raises(ConfigError) as caught:
            add(queue, wrong="yes")
        assert [problem.field for problem in caught.value.problems] == ["wrong"]
        assert queue.list() == []
        assert [path.name for path in queue.folder.iterdir()] == ["lock"]

    def test_an_unknown_kind_is_named_with_the_known_ones(self, queue):
        with pytest.raises(JobError, match="'trian' does not exist; did you mean 'train'"):
            queue.submit("trian", {}, title="")

    def test_one_after_the_other_in_order(self, queue):
        ids = [add(queue, title) for title in ("one", "two", "three")]
        wait_status(queue, ids[0], "running")
        assert titles(queue) == [("two", "queued"), ("three", "queued"), ("one", "running")]
        assert [view.position for view in queue.list()] == [1, 2, 0]
        for _ in ids:
            words().put("end")
        wait_status(queue, ids[2], "finished")
        assert titles(queue) == [("three", "finished"), ("two", "finished"), ("one", "finished")]

    def test_without_start_a_job_waits_until_it_is_asked_for(self, queue):
        first, second = add(queue, "one", start=False), add(queue, "two", start=False)
        assert THREAD_NAME not in [thread.name for thread in threading.enumerate()]
        queue.command(second, "continue")
        wait_status(queue, second, "running")
        assert queue.view(first).status == "queued"
        words().put("end")
        wait_status(queue, first, "running")  # once it works, the queue goes on with those behind

    def test_two_jobs_cannot_have_one_folder_at_a_time(self, queue, tmp_path):
        id = add(queue, "one", folder=str(tmp_path / "run"))
        with pytest.raises(JobError, match="is the folder of one, which is"):
            add(queue, "two", folder=str(tmp_path / "run"))
        words().put("end")
        wait_status(queue, id, "finished")
        add(queue, "two", folder=str(tmp_path / "run"), start=False)

    def test_settings_come_back_to_be_cloned(self, queue):
        given = {"script": "other", "numbers": [1, 2.5], "nested": {"a": None}}
        id = add(queue, start=False, **given)
        assert queue.settings(id) == given
        queue.settings(id)["script"] = "changed"
        assert queue.settings(id) == given


class TestOrder:
    @pytest.fixture
    def ids(self, queue):
        return {title: add(queue, title, start=False) for title in "abc"}

    def order(self, queue):
        return "".join(view.title for view in queue.list() if view.status == "queued")

    def test_up_and_down(self, queue, ids):
        queue.command(ids["c"], "up")
        assert self.order(queue) == "acb"
        queue.command(ids["a"], "down")
        assert self.order(queue) == "cab"

    def test_the_ends_stay(self, queue, ids):
        queue.command(ids["a"], "up")
        queue.command(ids["c"], "down")
        assert self.order(queue) == "abc"

    def test_the_order_survives(self, queue, ids, host):
        queue.command(ids["c"], "up")
        queue.command(ids["c"], "up")
        queue.close()
        again = JobQueue(host)
        assert self.order(again) == "cab"
        again.close()

    def test_cancelled_before_it_began(self, queue, ids):
        queue.command(ids["b"], "cancel")
        assert self.order(queue) == "ac"
        assert queue.view(ids["b"]).status == "stopped"
        queue.command(ids["b"], "retry")  # queued again as the next, and the queue works
        assert wait_status(queue, ids["b"], "running").position == 0


class TestCommands:
    @pytest.fixture
    def id(self, queue):
        id = add(queue)
        wait_status(queue, id, "running")
        return id

    def test_pause_and_continue(self, queue, id):
        queue.command(id, "pause")
        assert queue.view(id).status == "paused"
        queue.command(id, "continue")
        assert queue.view(id).status == "running"

    @pytest.mark.parametrize("command", ["stop", "discard", "cancel"])
    def test_stopped_and_continued(self, queue, id, command):
        queue.command(id, command)
        view = wait_status(queue, id, "stopped")
        assert view.result is None
        queue.command(id, "continue")
        wait_status(queue, id, "running")
        words().put("end")
        assert wait_status(queue, id, "finished").result is not None

    def test_a_stop_in_progress_is_shown(self, queue, host):
        asked, go_on = threading.Event(), threading.Event()

        def owner_works() -> None:
            asked.set()
            go_on.wait()

        host.on_wait = owner_works
        words().put("yield")
        id = add(queue)
        asked.wait()
        queue.command(id, "stop")
        assert queue.view(id).status == "stopping"
        go_on.set()
        wait_status(queue, id, "stopped")

    @pytest.mark.parametrize(("command", "request_name"), [("save", "save"), ("sample", "sample"), ("stop", "stop")])
    def test_requests_reach_the_job(self, queue, id, command, request_name):
        control = queue._jobs[id].control
        queue.command(id, command)
        assert control.is_requested(request_name)

    @pytest.mark.parametrize("command", ["up", "retry", "explode", ""])
    def test_what_does_not_fit_is_refused_with_what_does(self, queue, id, command):
        with pytest.raises(JobError, match=r"which is active\. Allowed: stop, discard, pause, continue, save, sample"):
            queue.command(id, command)

    def test_a_finished_job_takes_no_commands(self, queue, id):
        words().put("end")
        wait_status(queue, id, "finished")
        for command in ("stop", "continue", "retry", "up"):
            with pytest.raises(JobError, match="which is finished"):
                queue.command(id, command)

    def test_an_unknown_job(self, queue):
        for ask in (queue.view, queue.events, queue.settings, queue.log_tail, lambda id: queue.command(id, "stop")):
            with pytest.raises(JobError, match="there is no job"):
                ask("../../etc/passwd")


class TestDevice:
    def test_waiting_is_shown_while_the_owner_has_the_device(self, queue, host):
        asked, go_on = threading.Event(), threading.Event()

        def owner_works() -> None:
            asked.set()
            go_on.wait()

        host.on_wait = owner_works
        words().put("yield")
        id = add(queue)
        asked.wait()
        assert queue.view(id).status == "waiting"
        queue.command(id, "pause")
        assert queue.view(id).status == "paused"  # what the user asked for comes first
        queue.command(id, "continue")
        go_on.set()
        wait_status(queue, id, "running")

    def test_the_device_is_given_back_however_a_job_ends(self, queue, host):
        for end in ("end", RuntimeError("broken"), "exit"):
            words().put(end)
            wait_status(queue, add(queue), "finished", "failed")
        assert host.history == ["lent for ink", "given back"] * 3

    def test_the_frames_of_a_failed_job_keep_nothing_alive_when_the_device_goes_back(self, queue, host, monkeypatch):
        """A traceback holds the locals of every frame: models and tensors, which must be gone before the host's return."""
        import gc
        import weakref

        from tests.jobs import scripted

        class Tensor:
            pass

        def build() -> None:
            tensor = Tensor()
            held.append(weakref.ref(tensor))
            raise RuntimeError("CUDA out of memory")

        held, alive = [], []
        give_back = host.history.append

        def look(line: str) -> None:
            gc.collect()
            alive.append(held[0]() is not None)
            give_back(line)

        def run(settings, context):
            with context.borrow():
                host.history = type("History", (list,), {"append": lambda self, line: look(line)})()
                build()

        monkeypatch.setattr(scripted, "run", run)
        wait_status(queue, add(queue), "failed")
        assert alive == [False]


class TestFailure:
    def test_error_diagnosis_and_log_are_there_and_the_next_job_runs(self, queue):
        words().put(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        failed, next_one = add(queue, "one", batch_size=4), add(queue, "two")
        view = wait_status(queue, failed, "failed")
        assert "Tried to allocate 2.00 GiB" in view.error
        assert [problem.field for problem in view.diagnosis] == ["batch_size"]
        assert "Set batch_size to 2" in view.diagnosis[0].hint
        log = queue.log_tail(failed)
        assert "Traceback" in log
        assert log.splitlines()[-1].endswith("Tried to allocate 2.00 GiB")
        words().put("end")
        wait_status(queue, next_one, "finished")

    @pytest.mark.parametrize("end", ["exit", KeyboardInterrupt("no"), GeneratorExit(), MemoryError()])
    def test_not_even_an_exit_ends_the_thread(self, queue, end):
        words().put(end)
        wait_status(queue, add(queue), "failed")
        words().put("end")
        wait_status(queue, add(queue), "finished")

    def test_a_result_that_cannot_be_kept_does_not_end_the_thread(self, queue):
        id = add(queue)
        wait_for(queue, id, lambda view: view.num_events)
        kept = queue.folder / id / "job.json"
        kept.unlink()
        kept.mkdir()
        words().put("end")
        wait_status(queue, id, "finished")
        words().put("end")
        wait_status(queue, add(queue, "two"), "finished")

    def test_retried(self, queue):
        words().put(OSError(28, "No space left on device"))
        id = add(queue)
        assert wait_status(queue, id, "failed").diagnosis[0].field == "save_steps"
        words().put("end")
        queue.command(id, "retry")
        view = wait_status(queue, id, "finished")
        assert (view.error, view.diagnosis) == ("", [])


class TestEvents:
    def test_the_view_is_folded_from_the_events(self, queue):
        id = add(queue)
        for loss in (0.5, 0.4):
            words().put(loss)
        view = wait_for(queue, id, lambda view: view.step == 2)
        assert (view.phase, view.done, view.total, view.total_steps) == ("training", 2, 10, 10)
        assert view.loss == pytest.approx(0.495)
        assert (view.seconds_per_step, view.seconds_left, view.memory_gib) == (2, 16, 1.5)
        words().put("end")
        after = wait_status(queue, id, "finished")
        assert (after.step, after.loss, after.seconds_per_step, after.seconds_left) == (2, view.loss, 2, None)

    def test_events_after_an_index(self, queue):
        id = add(queue)
        for loss in (0.5, 0.4, 0.3):
            words().put(loss)
        wait_for(queue, id, lambda view: view.num_events == 4)
        assert [event.data["loss"] for event in queue.events(id, 2)] == [0.4, 0.3]
        assert [event.kind for event in queue.events(id)] == ["started", "step", "step", "step"]
        assert queue.events(id, 4) == queue.events(id, 99) == []
        assert len(queue.events(id, -5)) == 4

    def test_events_of_a_past_job_after_a_restart(self, queue, host):
        id = add(queue)
        for word in (0.5, "end"):
            words().put(word)
        wait_status(queue, id, "finished")
        queue.close()
        again = JobQueue(host)
        assert [event.kind for event in again.events(id, 1)] == ["step"]
        again.close()

    def test_the_tail_of_a_log(self, queue):
        words().put("end")
        id = add(queue)
        wait_status(queue, id, "finished")
        assert queue.log_tail(id, 1).endswith("ink is finished")
        assert queue.log_tail(id, 0) == ""
        assert queue.log_tail(add(queue, start=False)) == ""


class TestRestart:
    def test_closing_interrupts_and_continuing_goes_on(self, queue, host):
        running, queued = add(queue, "one"), add(queue, "two")
        wait_status(queue, running, "running")
        queue.close()
        again = JobQueue(host)
        assert titles(again) == [("two", "queued"), ("one", "interrupted")]
        words().put("end")
        words().put("end")
        assert THREAD_NAME not in [thread.name for thread in threading.enumerate()]  # nothing starts by itself
        again.command(running, "continue")
        wait_status(again, running, "finished")
        wait_status(again, queued, "finished")
        again.close()

    def test_reload_ui_keeps_the_queue_and_its_thread(self, host):
        queue = open_queue(host)
        id = add(queue)
        wait_status(queue, id, "running")
        new_host = FolderHost(host.root)  # made anew by the script of the page
        assert open_queue(new_host) is queue
        assert queue.host is new_host
        words().put("end")
        wait_status(queue, id, "finished")
        queue.close()
        other = open_queue(host)
        assert other is not queue
        other.close()

    def test_a_second_process_is_told_who_has_the_queue(self, queue, host):
        with pytest.raises(JobError, match=r"in use by process \d+ since"):
            JobQueue(host)

    def test_a_closed_queue_takes_nothing(self, queue):
        queue.close()
        with pytest.raises(JobError, match="closed"):
            add(queue)

    def test_damaged_records_are_passed_over(self, queue, host, caplog):
        good, bad = add(queue, "good", start=False), add(queue, "bad", start=False)
        moved = add(queue, "moved", start=False)
        queue.close()
        (queue.folder / bad / "job.json").write_text('{"id": ', encoding="utf-8")
        values = json.loads((queue.folder / moved / "job.json").read_text(encoding="utf-8"))
        (queue.folder / moved / "job.json").write_text(json.dumps({**values, "id": "../../x"}), encoding="utf-8")
        again = JobQueue(host)
        assert [view.id for view in again.list()] == [good]
        assert bad in caplog.text
        again.close()
