"""Run by test_kill.py in a process of its own: trains, and kills itself at the n-th touch of a file of the run.

The audit hook sees every opening, renaming and deleting, so the kill lands in the middle of caching, saving and exporting.
"""

from __future__ import annotations

import os
import signal
import sys

from lora_trainer import cli

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir")


def main(folder: str, config: str, kill_at: int) -> int:
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
    print(f"touched {touched}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
