"""Measures the peak of memory of a run against that of a bare script on the same base.

    python -m benchmarks.memory [--device cuda] [--tiny]

Each runs in a process of its own: the trainer with all that it is, and a script that loads the same base, encodes the same
pictures and captions with it, and runs the bare loop. On a GPU the allocator's peak counts, on a CPU that of the process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Row, format_section

if TYPE_CHECKING:
    from torch import Tensor

    from lora_trainer.models.diffusion import DiffusionModel

NUM_PICTURES = 8
NUM_STEPS = 4
MAX_RATIO = 1.05
CONTESTANTS = ("trainer", "bare", "idle")


def peak_bytes(device: str) -> int:
    """Returns the most memory that was in use at once: of a GPU's allocator, or of this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":  # getrusage would count what the process was before it became Python
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_contestant(name: str, folder: Path, *, is_tiny: bool, device: str) -> int:
    """Does the work of one contestant in this process, and returns its peak in bytes.

    Args:
        name: "trainer", "bare", "idle" (the base loaded and no more) or "prepare" (base and pictures written).
    """
    import torch

    from benchmarks.workload import FULL, TINY, BareLoop, inject_by_peft, load_base, make_config

    torch.set_num_threads(1)
    size = TINY if is_tiny else FULL
    config = make_config(folder, size, num_pictures=NUM_PICTURES, num_steps=NUM_STEPS, device=device)
    if name == "prepare":
        return 0
    if name == "trainer":
        from lora_trainer.control import TrainControl
        from lora_trainer.training.run import train

        train(config, control=TrainControl(), watch=lambda event: None, fresh=True)
        return peak_bytes(device)
    model = load_base(config)
    if name == "bare":
        batches = encode_all(model, config.train_data_dir, size.batch_size)
        for encoder in (model.vae, *model.text_encoders):
            encoder.to("cpu")
        loop = BareLoop(model.unet, inject_by_peft(model.unet), batches)
        for _ in range(NUM_STEPS):
            loop.step()
    return peak_bytes(device)


def encode_all(model: DiffusionModel, pictures: Path, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of latents and embeddings of every picture below a folder, encoded one by one."""
    import torch
    from PIL import Image

    from lora_trainer.dataset.cache import to_pixels

    encoded = []
    with torch.no_grad():
        for path in sorted(pictures.glob("*.png")):
            latents = model.encode_pictures(to_pixels([Image.open(path)]))["latent_mean"]
            encoded.append((latents, model.encode_texts([path.with_suffix(".txt").read_text(encoding="utf-8")])["text"]))
    starts = range(0, len(encoded), batch_size)
    groups = [encoded[start : start + batch_size] for start in starts]
    return [(torch.cat([one for one, _ in group]), torch.cat([text for _, text in group])) for group in groups]


def measure(folder: Path, *, is_tiny: bool, device: str) -> dict[str, int]:
    """Returns the peak of each contestant in bytes, each measured in a new process."""

    def run(name: str) -> int:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name, "--folder", str(folder), "--device", device]
        command += ["--tiny"] if is_tiny else []
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.split()[-1])

    run("prepare")
    return {name: run(name) for name in CONTESTANTS}


def make_rows(peaks: dict[str, int]) -> list[Row]:
    ratio = peaks["trainer"] / peaks["bare"]
    words = {"trainer": "trainer", "bare": "bare script", "idle": "the base loaded, nothing trained"}
    rows = [Row(f"peak, {words[name]}", f"{peaks[name] / 2**20:.0f} MiB") for name in CONTESTANTS]
    return [*rows, Row("trainer / bare script", f"{ratio:.3f}", f"at most {MAX_RATIO}", ratio <= MAX_RATIO)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a model of no weight, to see that the script works")
    parser.add_argument("--child", choices=("prepare", *CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(run_contestant(options.child, options.folder, is_tiny=options.tiny, device=options.device))
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = measure(Path(folder), is_tiny=options.tiny, device=options.device)
    from benchmarks.workload import FULL, TINY, count_parameters

    size = TINY if options.tiny else FULL
    conditions = (
        f"UNet of {count_parameters(size) / 1e6:.0f} million parameters in SD1's shape, {size.picture_side} px, batch "
        f"{size.batch_size}, fp32, {NUM_STEPS} steps, on {options.device}; a process each."
    )
    print(format_section("Peak memory", conditions, make_rows(peaks)))


if __name__ == "__main__":
    main()
