"""Makes wheels of a few bytes, so that installing can be tested for real without a network."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, *, needs: str = "", files: Mapping[str, str] | None = None) -> Path:
    """Writes a wheel of a package that can be imported.

    Args:
        folder: made when missing.
        name: of distribution and package.
        version: of the distribution.
        needs: a distribution that it depends on.
        files: further files of the package, text by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (f"Requires-Dist: {needs}\n" if needs else "")
    members = {
        f"{name}/__init__.py": "",
        **{f"{name}/{file}": text for file, text in (files or {}).items()},
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in {**members, f"{info}/RECORD": record}.items():
            wheel.writestr(member, text)
    return path
