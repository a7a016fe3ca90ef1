"""The kind "caption": first captions for the pictures of a folder, by a captioner of the table.

They go where the folder's captions already are, through its store, so that the whole run can be taken back as one change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_trainer.captioning.options import CaptionOptions, check_download, default_captioner, read_options
from lora_trainer.captioning.weights import HUB_ID
from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.errors import ConfigError
from lora_trainer.host.base import Host
from lora_trainer.host.places import judge_places
from lora_trainer.jobs.context import JobContext


def prepare(settings: Mapping[str, Any], host: Host, title: str) -> None:
    """Judges the settings, see `captioning.options.CaptionOptions`.

    Raises:
        ConfigError: with every problem found, or because weights are missing and nobody agreed to load them.
    """
    check_download(read(settings, host), host.folders().captioners)


def read(settings: Mapping[str, Any], host: Host) -> CaptionOptions:
    """Returns the settings; where no captioner is named, with `default_captioner`, or the first of the table.

    Raises:
        ConfigError: with every problem found; the host may let nobody of its page name a folder.
    """
    models = [(name, settings.get(name)) for name in ("model", "ranker_model")]
    folders = [(name, value) for name, value in models if not HUB_ID.fullmatch(str(value).strip())]
    if problems := judge_places(host, [("input_dir", settings.get("input_dir")), *folders]):
        raise ConfigError(problems)
    return read_options(settings, default_captioner=default_captioner(host))


def run(settings: Mapping[str, Any], context: JobContext) -> None:
    """Writes the captions; what is written stays when it is stopped, and the same job goes on from there."""
    from lora_trainer.captioning.places import StorePlace
    from lora_trainer.captioning.work import CaptionWork
    from lora_trainer.training.precision import choose_compute

    options = read(settings, context.host)
    place = StorePlace(
        CaptionStore(Path(options.input_dir)),
        options.wording,
        title=f"captions by {options.entry.label}",
        run=context.folder.name,
        emit=context.emit,
    )
    work = CaptionWork(
        options, context.host.folders().captioners, lambda: choose_compute(options.device, options.precision), context.host
    )
    result = work.run(place, borrow=context.borrow, control=context.control, emit=context.emit)
    message = f"{result.num_written} captions written; {result.num_kept} that were there are kept."
    context.emit("notice", message=message)
