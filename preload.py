"""Our flag of the WebUI's command line; the WebUI runs this before it reads its own."""

from __future__ import annotations

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Adds `--lora-trainer-dir`."""
    parser.add_argument(
        "--lora-trainer-dir",
        type=str,
        default=None,
        help="folder of the LoRA Trainer's data sets, runs and cache (default: lora_trainer in the data folder)",
    )
