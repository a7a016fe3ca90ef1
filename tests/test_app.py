"""The stand-alone start: who may come in, and what is laid out."""

from __future__ import annotations

import pytest

from lora_trainer import app
from lora_trainer.dataset.library import DatasetLibrary
from lora_trainer.dataset.overview import read_overview
from lora_trainer.entry import HELP
from lora_trainer.host.standalone import Standalone


@pytest.mark.parametrize("words", [["--listen"], ["--auth", "ann"], ["--auth", ":secret"], ["--auth", "ann:"]])
def test_other_computers_are_not_let_in_without_user_and_password(words, capsys):
    with pytest.raises(SystemExit) as ended:
        app._parse(words)
    assert ended.value.code == 2
    assert "USER:PASSWORD" in capsys.readouterr().err


def test_a_password_may_hold_a_colon():
    assert app._parse(["--listen", "--auth", "ann:a:b"]).auth.split(":", 1) == ["ann", "a:b"]


def test_the_next_free_port_is_taken_but_a_named_one_must_be_free():
    import socket

    from lora_trainer.errors import LoraTrainerError

    with socket.socket() as taken:
        taken.bind((app.LOOPBACK, 0))
        port = taken.getsockname()[1]
        with pytest.raises(LoraTrainerError, match=str(port)):
            app._find_port(app._parse(["--port", str(port)]))
    assert app._find_port(app._parse([])) >= app.DEFAULT_PORT


def test_help_begins_with_the_page():
    assert "python -m lora_trainer             opens the page" in HELP


def test_the_first_start_lays_out_the_demo(tmp_path):
    host = Standalone(tmp_path / "data")
    library = DatasetLibrary(host.folders().datasets)
    app._lay_out_demo(host, library)
    assert [model.name for model in host.checkpoints()] == ["miniature.safetensors"]
    overview = read_overview(library.path(app.DEMO_SET))
    assert len(overview.usable) == len(overview.pictures) == 24
