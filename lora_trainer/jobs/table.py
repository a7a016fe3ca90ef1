"""The table of kinds of jobs. An entry is light; another kind is one line here and one module in `kinds`.

An entry's target is `run(settings, context) -> Path | None`, called in the worker's thread: it returns the file that it made.
Its option "prepare" names `prepare(settings, host, title) -> Path | None`, called when the job is queued: it raises a
`ConfigError` for settings that cannot work, and returns the folder of the job's events where the job has one of its own.
"recover", where there is one, names `recover(settings, host)`: it clears what a process that was killed left behind.
"""

from __future__ import annotations

from lora_trainer.registry import Entry, Registry

_KINDS = "lora_trainer.jobs.kinds"


def _kind(name: str, label: str, help: str, **options: str) -> Entry:
    return Entry(name, label, help, f"{_KINDS}.{name}:run", options={"prepare": f"{_KINDS}.{name}:prepare", **options})


JOBS = Registry(
    "kind of job",
    (
        _kind("train", "Training", "Trains a LoRA by the settings."),
        _kind("caption", "Captions", "Writes first captions for the pictures of a folder."),
        _kind("report", "Picture check", "Looks for pictures that spoil a training, and says why."),
        _kind("retouch", "Retouching", "Crops, resizes, trims or grades pictures; what they were is kept."),
        _kind("grid", "Test", "Draws LoRAs at rising weights beside the base.", recover=f"{_KINDS}.grid:recover"),
        _kind("lora_files", "LoRA files", "Makes new LoRA files from old ones: merge, resize, split, another precision."),
    ),
)
