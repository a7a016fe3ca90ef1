"""The run folder: the database of one run, and the rules by which a run is started, continued, extended or refused.

    config.yaml  job.json  events.jsonl  commands/  state/  samples/  logs/  captions.csv  picture_losses.csv
    <name>.safetensors  <name>-step00000100.safetensors

The process that holds the lock is the only writer, except for `commands/`, where anyone may put a request.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lora_trainer.config.parse import dump_config, load_config
from lora_trainer.config.schema import TrainConfig, changed_fields
from lora_trainer.control import COMMANDS, TrainControl
from lora_trainer.errors import RunFolderError
from lora_trainer.files import RETRY_SECONDS, TEMPORARY_SUFFIX, lock_byte, unlock_byte, write_text

Status = Literal["new", "running", "paused", "stopped", "failed", "finished"]


class RunFolder:
    """Paths and small files of one run. Building it touches nothing.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def job_path(self) -> Path:
        return self.path / "job.json"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def captions_path(self) -> Path:
        """The captions that were trained, as a table that a data set can take back."""
        return self.path / "captions.csv"

    @property
    def losses_path(self) -> Path:
        return self.path / "picture_losses.csv"

    @property
    def state_dir(self) -> Path:
        return self.path / "state"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    @property
    def logs_dir(self) -> Path:
        return self.path / "logs"

    @property
    def commands_dir(self) -> Path:
        return self.path / "commands"

    def export_path(self, name: str) -> Path:
        """Returns the path of the finished LoRA file."""
        return self.path / f"{name}.safetensors"

    def step_path(self, name: str, step: int) -> Path:
        """Returns the path of the LoRA file saved at a step."""
        return self.path / f"{name}-step{step:08d}.safetensors"

    def read_job(self) -> dict[str, Any]:
        """Returns the content of `job.json`, {} where there is none or it is damaged.

        Raises:
            OSError: it cannot be read, not even after some tries; on Windows another program may hold it for a moment.
        """
        for seconds in (*RETRY_SECONDS, None):
            try:
                return dict(json.loads(self.job_path.read_text(encoding="utf-8")))
            except (FileNotFoundError, ValueError):
                return {}
            except PermissionError:
                if seconds is None:
                    raise
                time.sleep(seconds)
        return {}

    def update_job(self, **values: Any) -> None:
        """Changes keys of `job.json`."""
        job = {**self.read_job(), **values}
        write_text(self.job_path, json.dumps(job, ensure_ascii=False, indent=2) + "\n")

    @property
    def status(self) -> Status:
        """What the last writer said of the run; "running" of a dead process means that it was interrupted."""
        status: Status = self.read_job().get("status", "new")
        return status

    def lock(self) -> None:
        """Keeps other processes out until `unlock` or the end of this process.

        Raises:
            RunFolderError: another process has it; names the holder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / "lock", "a+b")  # noqa: SIM115 - held as long as the run
        try:
            lock_byte(file)
        except OSError as error:
            holder = _read_holder(file)
            file.close()
            raise RunFolderError(
                f"{self.path} is in use by {holder}. Wait until it ends, stop it, or choose another output_dir."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Lets others in. Without a lock it does nothing."""
        if self._lock is not None:
            unlock_byte(self._lock)
            self._lock.close()
            self._lock = None

    def post_command(self, command: str) -> None:
        """Asks the process that runs the training for one of `control.COMMANDS`; works from any process.

        Raises:
            ValueError: the command is unknown.
        """
        if command not in COMMANDS:
            raise ValueError(f"command {command!r} is unknown; allowed: {', '.join(COMMANDS)}.")
        write_text(self.commands_dir / f"{time.time_ns()}-{command}", "")

    def take_commands(self, control: TrainControl) -> None:
        """Hands waiting commands to the control, oldest first, and deletes them."""
        if not self.commands_dir.is_dir():
            return
        for path in sorted(path for path in self.commands_dir.iterdir() if path.suffix != TEMPORARY_SUFFIX):
            command = path.name.partition("-")[2]
            path.unlink(missing_ok=True)
            if command in COMMANDS:
                control.request(command)

    def forget_commands(self) -> None:
        """Deletes waiting commands: what is there before a start was meant for a run that had ended."""
        self.take_commands(TrainControl())

    def remove_leftovers(self) -> None:
        """Deletes unfinished files of a process that was killed while writing. Only for who holds the lock."""
        for folder in (self.path, self.state_dir, self.samples_dir):
            for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)

    def is_locked(self) -> bool:
        """Whether a process trains here now."""
        try:
            with open(self.path / "lock", "r+b") as file:
                lock_byte(file)
                unlock_byte(file)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


Start = Literal["new", "continue", "finished"]


def open_run(config: TrainConfig, *, fresh: bool, total_steps: Callable[[], int]) -> tuple[RunFolder, Start]:
    """Locks the run folder of a configuration and decides what a start means there.

    Args:
        config: the settings of this start.
        fresh: moves an old run aside and starts anew.
        total_steps: the number of steps that these settings plan; asked only of a run that finished before.

    Returns:
        The locked folder and "new", "continue" (unfinished, or extended by more steps) or "finished" (nothing left to do).

    Raises:
        RunFolderError: the folder is in use, holds a run with other settings (names them), or holds files of something else.
    """
    folder = RunFolder(config.output_dir)
    if fresh and folder.config_path.exists():  # a folder of something else is refused below, not moved
        _move_aside(folder)
    folder.lock()
    folder.forget_commands()
    folder.remove_leftovers()
    try:
        start = _decide(folder, config, total_steps)
    except BaseException:
        folder.unlock()
        raise
    if start != "finished":
        dump_config(config, folder.config_path)
    return folder, start


def _decide(folder: RunFolder, config: TrainConfig, total_steps: Callable[[], int]) -> Start:
    if not folder.config_path.exists():
        ours = ("lock", "commands")
        strangers = [path.name for path in folder.path.iterdir() if path.name not in ours and path.suffix != TEMPORARY_SUFFIX]
        if strangers:
            raise RunFolderError(
                f"output_dir ({folder.path}) already holds {len(strangers)} files that are not of a run, such as {strangers[0]}. "
                "Choose a new or empty folder."
            )
        return "new"
    job = folder.read_job()
    if not job.get("step") and not any(folder.state_dir.glob("step-*.safetensors")):
        folder.job_path.unlink(missing_ok=True)  # it ended before its first save: nothing would be lost by other settings
        return "new"
    changed = changed_fields(load_config(folder.config_path), config)
    if changed:
        raise RunFolderError(
            f"{folder.path} holds a run with other settings: {', '.join(changed)}. "
            "Set them back to continue it, choose another output_dir, or start over with --fresh, which moves the old run aside."
        )
    if job.get("status") == "finished" and job.get("step", 0) >= total_steps():
        return "finished"
    return "continue"


def _move_aside(folder: RunFolder) -> None:
    folder.lock()
    folder.unlock()
    number = 1
    while (target := folder.path.with_name(f"{folder.path.name}.old-{number}")).exists():
        number += 1
    try:
        os.replace(folder.path, target)
    except OSError as error:
        raise RunFolderError(
            f"{folder.path} could not be moved to {target.name}: {error.strerror}. Close programs that show its files, such as "
            "TensorBoard or the file manager, or choose another output_dir."
        ) from error


def _read_holder(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(200).decode("utf-8", "replace") or "another process"
