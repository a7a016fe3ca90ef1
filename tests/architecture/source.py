"""The project's Python files, and what they import, read from their syntax trees; nothing is imported for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lora_trainer"


@dataclass(frozen=True)
class Import:
    """One import of a module.

    Attributes:
        module: its full name; for `from a import b` both "a" and, where that is a module of ours, "a.b".
        line: in the file.
        is_delayed: stands in a function, so it runs when that is called.
    """

    module: str
    line: int
    is_delayed: bool


def python_files(*folders: Path) -> list[Path]:
    """Returns the Python files below the folders, by default those of the project and of its tests."""
    roots = folders or tuple(ROOT / name for name in ("lora_trainer", "tests", "benchmarks", "scripts", "requirements"))
    return sorted(path for root in roots if root.is_dir() for path in root.rglob("*.py"))


def module_name(path: Path) -> str:
    """Returns the name under which Python imports a file of the package; a folder's `__init__.py` is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> list[Import]:
    """Returns all imports of a file except those that only a type checker sees."""
    return list(_imports_below(parse(path), path, is_delayed=False))


def _imports_below(node: ast.AST, path: Path, *, is_delayed: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, is_delayed)
        elif isinstance(child, ast.ImportFrom):
            for module in _from_modules(child, path):
                yield Import(module, child.lineno, is_delayed)
        else:
            in_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports_below(child, path, is_delayed=is_delayed or in_function)


def _from_modules(node: ast.ImportFrom, path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parent.parts
    base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module]))) if node.level else node.module
    assert base
    submodules = [f"{base}.{alias.name}" for alias in node.names if _is_module(f"{base}.{alias.name}")]
    yield from submodules or [base]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
