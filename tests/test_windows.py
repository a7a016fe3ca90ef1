"""What Windows asks of a program, tested anywhere. That no held file is moved or deleted is checked in `conftest`."""

from __future__ import annotations

import ast
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import PACKAGE, ROOT, parse, python_files

FILES = python_files()
PROGRAM_FILES = python_files(PACKAGE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
def test_help_can_be_printed_in_any_code_page(encoding):
    result = run_program("--help", encoding=encoding)
    assert result.returncode == 0, result.stderr
    assert b"train" in result.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "ascii"])
@pytest.mark.parametrize("name", ["水墨 🖌.yaml", "café\u2028.yaml", "naïve ¥.yaml"])
def test_any_file_name_can_stand_in_a_message(encoding, name):
    """The name goes through our entry into an error message, on the error stream and on the normal one."""
    result = run_program("test", f"--host={name}", encoding=encoding)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"Error" not in result.stderr.replace(b"error:", b"")
    code = f"from lora_trainer.entry import make_output_safe; make_output_safe(); print({name!r})"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(encoding), capture_output=True, check=True)
    assert printed.stdout.rstrip() == name.encode(encoding, "backslashreplace")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_file_name_that_is_no_text_can_be_printed():
    code = "import sys; from lora_trainer.entry import make_output_safe; make_output_safe(); print(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", code, b"caf\xe9.png"], cwd=ROOT, env=environment("utf-8"), capture_output=True, check=True
    )
    assert result.stdout.rstrip() == b"caf\\udce9.png"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_text_files_name_their_encoding(path):
    nameless = [f"{name_of(path)}:{call.lineno}: {ast.unparse(call)}" for call in calls(path) if lacks_encoding(call)]
    assert not nameless, "\n".join(nameless)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode)", True),
        ("open(p, 'rb')", False),
        ("open(p, mode='ab', buffering=0)", False),
        ("open(p, encoding='utf-8')", False),
        ("p.open()", True),
        ("p.open('wb')", False),
        ("p.read_text()", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(t)", True),
        ("p.write_text(t, 'utf-8')", False),
        ("p.write_text(t, encoding='utf-8')", False),
        ("files.write_text(p, t)", False),
        ("Image.open(p)", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, text=True, encoding='utf-8')", False),
        ("subprocess.run(c)", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("io.TextIOWrapper(f)", True),
        ("gzip.open(p, 'rt')", True),
        ("gzip.open(p)", False),
        ("logging.FileHandler(p)", True),
    ],
)
def test_the_search_for_nameless_encodings_itself(code, expected):
    assert any(lacks_encoding(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)) is expected


def test_ruff_finds_nameless_encodings_too(tmp_path):
    pytest.importorskip("ruff")
    (tmp_path / "a.py").write_text("from pathlib import Path\n\nopen('a')\nPath('a').read_text()\n", encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--output-format", "concise", tmp_path]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert result.stdout.count("unspecified-encoding") + result.stdout.count("PLW1514") >= 2, result.stdout


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=name_of)
def test_nothing_that_windows_lacks_is_used(path):
    used = [(node, words) for node, words in names_used(path) if (name_of(path), words) not in ALLOWED]
    found = [f"{name_of(path)}:{node.lineno}: {words}" for node, words in used if words in FORBIDDEN]
    assert not found, "\n".join(found)


FORBIDDEN = {
    "os.fork": "Windows has none, and CUDA does not survive it",
    "os.symlink": "needs a privilege",
    "symlink_to": "needs a privilege",
    "hardlink_to": "not on every file system",
    "os.link": "not on every file system",
    "multiprocessing": "its processes start the program anew on Windows, WebUI and all",
    "torch.multiprocessing": "the same",
    "ProcessPoolExecutor": "the same",
    "DataLoader": "its workers are such processes; batches here come from memory",
    "signal.SIGKILL": "Windows has none",
    "os.kill": "on Windows it ends the process at once",
    "os.getuid": "Windows has none",
    "os.uname": "Windows has none",
}

ALLOWED = {("lora_trainer/adapters/lent.py", "os.link")}  # copies where there are no hard links


def names_used(path: Path) -> list[tuple[ast.AST, str]]:
    """Returns names, dotted names, their last parts, and imported modules and names, with where they stand."""
    used: list[tuple[ast.AST, str]] = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            used += [(node, ast.unparse(node)), (node, node.attr)]
        elif isinstance(node, ast.Name):
            used.append((node, node.id))
        elif isinstance(node, ast.Import):
            used += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            used += [(node, node.module or ""), *((node, alias.name) for alias in node.names)]
    return used


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("hold", ["open", "memory-mapped"])
def test_the_suite_refuses_to_replace_a_held_file(tmp_path, hold):
    """The check in `conftest` that stands for Windows does refuse."""
    target, source = tmp_path / "水墨.bin", tmp_path / "new"
    target.write_bytes(b"old")
    source.write_bytes(b"new")
    file = open(target, "rb")  # noqa: SIM115
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if hold == "memory-mapped" else file
    if hold == "memory-mapped":
        file.close()
    with pytest.raises(pytest.fail.Exception, match="Windows refuses"):
        os.replace(source, target)
    with pytest.raises(pytest.fail.Exception, match="Windows refuses"):
        target.unlink()
    held.close()
    os.replace(source, target)
    assert target.read_bytes() == b"new"


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]


# Where the mode is an argument: its position, its default, and whether that default is text.
MODE_POSITION = {"open": 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0, "SpooledTemporaryFile": 1}
ENCODING_POSITION = {"read_text": 0, "write_text": 1, "TextIOWrapper": 1, "FileHandler": 2}
OTHER_OPENERS = ("Image", "webbrowser", "browser", "safetensors", "os", "zipfile", "tarfile", "archive", "opener")


def lacks_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the machine that it happens to run on."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named or None in named:
        return False
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if owner in OTHER_OPENERS:
        return False
    if name in ENCODING_POSITION:
        is_ours = owner in ("", "files") and name == "write_text"
        return not is_ours and len(call.args) <= ENCODING_POSITION[name]
    if owner == "subprocess":
        return any(
            isinstance(named.get(word), ast.Constant) and named[word].value is True for word in ("text", "universal_newlines")
        )
    if name in MODE_POSITION:
        is_method = name == "open" and owner not in ("", "io", "gzip", "bz2", "lzma")
        position = MODE_POSITION[name] - is_method
        mode = named.get("mode") or (call.args[position] if len(call.args) > position else None)
        default_is_binary = name.endswith("File") or owner in ("gzip", "bz2", "lzma")
        if mode is None:
            return not default_is_binary
        text = mode.value if isinstance(mode, ast.Constant) else ""
        return ("t" in text) if default_is_binary and "w" not in text else "b" not in str(text)
    return False


def environment(encoding: str) -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"}


def run_program(*arguments: str, encoding: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lora_trainer", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(encoding), capture_output=True, check=False)
