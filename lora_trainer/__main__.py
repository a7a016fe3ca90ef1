"""The one entry without a WebUI: `python -m lora_trainer COMMAND`. Standard library only.

It sees to it that the packages are there (`bootstrap`), then hands over: to the tests, the demo, or the command line (`cli`).
"""

import sys

# Written so that even a Python far too old can read this file, and says so in words instead of a traceback.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        "Python " + sys.version.split()[0] + " is too old for the LoRA trainer; Python 3.10 to 3.13 can be used.\n"
        "Install one (python.org, or your system's packages) and start it with: python3.12 -m lora_trainer\n"
        "On Windows: py -3.12 -m lora_trainer"
    )

from lora_trainer import entry

if __name__ == "__main__":
    sys.exit(entry.main(sys.argv[1:]))
