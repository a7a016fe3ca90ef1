"""Run by test_kill.py in a process of its own: trains, and kills itself at the n-th touch of a file of the run.

The audit hook sees every opening, renaming and deleting, so the kill lands in the middle of caching, saving and exporting. Each
run is a fork of a process that has imported what they all need, which takes longer than they do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile

from lora_trainer import cli, libraries
from lora_trainer.training import run  # noqa: F401 - for the forks

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir")


def train(folder: str, config: str, kill_at: int) -> int:
    """Returns the exit code of the training; prints how often files below `folder` were touched."""
    touched = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in EVENTS and str(arguments[0]).startswith(folder):
            touched += 1
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = cli.main(["train", "--config", config])
    print(f"touched {touched}", flush=True)
    return code


def main() -> None:
    """Answers each line of standard input, `train`'s arguments as JSON, with the exit code and what was said."""
    libraries.load_ahead()
    libraries.wait_for_libraries()
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os._exit(train(*json.loads(line)))
            _, status = os.waitpid(child, 0)
            said.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), said.read()]), flush=True)


if __name__ == "__main__":
    main()
