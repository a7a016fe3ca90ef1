"""The command that writes first captions, to be corrected by hand."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.captioning.options import PRECISIONS, CaptionOptions, check_download, read_options
from lora_trainer.captioning.wording import MODES
from lora_trainer.cli import DONE, STOPPED, stop_on_ctrl_c
from lora_trainer.commands.lora_files import AddCommand
from lora_trainer.control import TrainControl
from lora_trainer.events import TrainEvent
from lora_trainer.host.base import DEFAULT_DATA_DIR, Folders, OwnDevice

if TYPE_CHECKING:
    from lora_trainer.captioning.places import Place
    from lora_trainer.events import Emit

TABLE = "metadata.csv"
_NO_RUN = ("input_dir", "batch_size", "device", "precision", "download")  # of the options that do not make another run


def register(add: AddCommand) -> None:
    """Adds the command to the parser."""
    command = add("caption", _caption, "Write first captions for a folder of pictures, to be corrected by you.")
    command.add_argument("--input", type=Path, required=True, metavar="DIR", help="the folder with the pictures")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE.csv",
        help=f"another table to write, .csv or .jsonl (default: where the folder's captions are, new ones in its {TABLE})",
    )
    command.add_argument("--captioner", default="blip", metavar="NAME", help="see: list captioners (default: blip)")
    command.add_argument("--model", metavar="DIR", help="a folder with the captioner's files, or its id on the hub")
    command.add_argument(
        "--download", action="store_true", help="load weights that are not here; without it you are told what and how large"
    )
    command.add_argument(
        "--mode",
        choices=MODES,
        help="missing leaves captions that are there alone, overwrite writes all anew, prepend and append put the new words "
        "before or behind them (default: missing)",
    )
    command.add_argument("--overwrite", action="store_const", const="overwrite", dest="mode", help="the same as --mode overwrite")
    command.add_argument("--trigger", metavar="WORD", help="comes first in every caption that is written, once")
    command.add_argument("--ban", nargs="+", action="extend", default=[], metavar="WORD", help="words to remove: beautiful")
    command.add_argument(
        "--replace",
        nargs="+",
        action="extend",
        default=[],
        metavar="WORD=OTHER",
        help='words to replace: "watercolor painting=ink wash painting"',
    )
    command.add_argument("--prompt", metavar="WORDS", help='words that every caption begins with: "a painting of"')
    command.add_argument(
        "--words",
        nargs="+",
        action="extend",
        default=[],
        metavar="LIST",
        help='terms of which CLIP appends the best: "medium: ink wash, oil painting", or a .txt file with one on each line',
    )
    command.add_argument("--terms", metavar="N", help="how many of each list (default: 1)")
    command.add_argument("--ranker", metavar="NAME", help="the CLIP for that: clip or clip-base (default: clip)")
    command.add_argument("--ranker-model", metavar="DIR", help="a folder with a CLIP, or its id on the hub")
    command.add_argument("--beams", metavar="N", help="more is slower and a little better (default: 3)")
    command.add_argument("--min-tokens", metavar="N", help="of a caption; a word is one or two (default: 0)")
    command.add_argument("--max-tokens", metavar="N", help="of a caption (default: 50)")
    command.add_argument("--batch-size", metavar="N", help="pictures looked at together (default: 8)")
    command.add_argument("--precision", choices=PRECISIONS, help="of the weights (default: auto, half on a graphics card)")
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _caption(options: argparse.Namespace) -> int:
    from lora_trainer.captioning.work import CaptionWork
    from lora_trainer.progress import ProgressView
    from lora_trainer.training.precision import choose_compute

    asked = read_options(_values(options))
    root = Folders(DEFAULT_DATA_DIR.absolute(), Path()).captioners
    check_download(asked, root)
    compute = choose_compute(asked.device, asked.precision)
    work = CaptionWork(asked, root, lambda: compute)
    control = TrainControl()
    with stop_on_ctrl_c(control), ProgressView() as view:

        def emit(kind: str, **data: Any) -> None:
            view.show(TrainEvent(kind, data))

        place, where = _place(asked, options.output, emit)
        result = work.run(place, borrow=_own_device, control=control, emit=emit)
    print(f"{result.num_written} captions written to {where}, {result.num_kept} that were there are kept.")
    if result.was_stopped:
        print("Stopped. The same command goes on from there.")
        return STOPPED
    print("Read every line, and correct it: the captions decide what is learned.")
    return DONE


@contextmanager
def _own_device() -> Iterator[OwnDevice]:
    yield OwnDevice()


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what was asked by the names of `CaptionOptions`."""
    lists: list[str] = []
    for words in options.words:
        path = Path(words)
        if words.lower().endswith(".txt") and path.is_file():
            terms = path.read_text(encoding="utf-8-sig").splitlines()
            lists.append(f"{path.stem}: {', '.join(term.strip() for term in terms if term.strip())}")
        else:
            lists.append(words)
    return {
        "input_dir": str(options.input),
        "captioner": options.captioner,
        "model": options.model,
        "mode": options.mode,
        "trigger": options.trigger,
        "banned": options.ban,
        "replacements": options.replace,
        "prompt": options.prompt,
        "word_lists": lists,
        "terms": options.terms,
        "ranker": options.ranker,
        "ranker_model": options.ranker_model,
        "num_beams": options.beams,
        "min_tokens": options.min_tokens,
        "max_tokens": options.max_tokens,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": options.device,
        "download": options.download,
    }


def _place(asked: CaptionOptions, output: Path | None, emit: Emit) -> tuple[Place, Path]:
    """Returns where the captions go, and that in a word for people."""
    from lora_trainer.captioning.places import StorePlace, TablePlace
    from lora_trainer.captioning.run import TableFile
    from lora_trainer.dataset.caption_store import CaptionStore
    from lora_trainer.dataset.table_writing import format_table
    from lora_trainer.files import write_bytes

    folder = Path(asked.input_dir)
    if output is not None and output.resolve() != (folder / TABLE).resolve():
        return TablePlace(TableFile(output, folder), folder, asked.wording), output
    store = CaptionStore(folder)
    if not any(store.read().captions.values()) and not (folder / TABLE).exists():
        write_bytes(folder / TABLE, format_table({}, ".csv"))  # new captions go to the nearest table
    same = {name: str(value) for name, value in vars(asked).items() if name not in _NO_RUN}
    run = f"command {hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]}"
    title = f"captions by {asked.entry.label}"
    return StorePlace(store, asked.wording, title=title, run=run, emit=emit), folder
