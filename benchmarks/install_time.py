"""How long `install.py` takes at each start of the WebUI, once its verdict is known: it must be under 0.3 seconds.

    python benchmarks/install_time.py

Run it with the WebUI's own Python, in which all packages are there. It uses a copy, with a stamp file of its own.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 15


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "install.py")
        shutil.copy(Path(__file__).resolve().parents[1] / "install.py", script)
        first = measure([sys.executable, script])
        if not script.with_name(".installed.json").exists():
            sys.exit("The packages are not all there, so there is nothing to measure: start the WebUI once.")
        times = sorted(measure([sys.executable, script]) for _ in range(STARTS))
        bare = sorted(measure([sys.executable, "-c", "pass"]) for _ in range(STARTS))
    print(f"| first start, which tries the packages | {first:.2f} s |\n|---|---|")
    print(f"| start with a stamp, median of {STARTS} | {statistics.median(times):.3f} s |")
    print(f"| slowest | {times[-1]:.3f} s |")
    print(f"| of it, Python itself | {statistics.median(bare):.3f} s |")


def measure(command: list[str | Path]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
