"""The installer, run for real in environments made of tiny wheels that bear the names and versions of each WebUI's set."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_wheels import make_wheel

ROOT = Path(__file__).resolve().parents[2]
BROKEN = "class StableDiffusionPipeline:\n    pass\nraise ImportError('SiglipImageProcessor')\n"

# What each WebUI has of what matters to us, and what must be added.
SETS = {
    "a1111": (
        "torch==2.1.2 transformers==4.30.2 accelerate==0.21.0 huggingface_hub==0.25.2 safetensors==0.4.2",
        "diffusers peft",
    ),
    "reforge": ("torch==2.9.0 transformers==4.48.1 accelerate==0.21.0 safetensors==0.5.2 diffusers==0.32.2", "peft"),
    "forge": ("torch==2.3.1 transformers==4.46.1 accelerate==0.31.0 safetensors==0.4.2 diffusers==0.31.0 peft==0.13.2", ""),
    "forge_neo": ("torch==2.9.1 transformers==4.56.2 accelerate==1.13.0 safetensors==0.7.0 diffusers==0.37.1 peft==0.17.1", ""),
}


class Extension:
    """A copy of the extension's `install.py`, and an environment that stands for a WebUI's."""

    def __init__(self, folder: Path, shop: Path, packages: str) -> None:
        self.folder, self.shop = folder, shop
        self.python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.site = Path(self.ask("import sysconfig; print(sysconfig.get_path('purelib'))"))
        pip = Path(importlib.util.find_spec("pip").origin).parent
        (self.site / "pip.pth").write_text(str(lend(pip, folder / "pip")), encoding="utf-8")
        subprocess.run(
            [self.python, "-m", "pip", "install", "--quiet", "--no-deps", *packages.split()], check=True, env=self.environment()
        )
        self.extension = folder / "extensions" / "lora-trainer"
        self.extension.mkdir(parents=True)
        shutil.copy(ROOT / "install.py", self.extension)

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.shop), "PYTHONDONTWRITEBYTECODE": "1", **more}

    def ask(self, code: str) -> str:
        return subprocess.run([self.python, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout.strip()

    def run(self, *arguments: str, **variables: str) -> str:
        """Runs it as the WebUI does; returns what it says."""
        command = [self.python, self.extension / "install.py", *arguments]
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment(**variables), capture_output=True, encoding="utf-8", check=True
        )
        assert result.stderr == ""
        return result.stdout

    def packages(self) -> dict[str, str]:
        code = (
            "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions(path=[r'%s'])}))"
        )
        return json.loads(self.ask(code % self.site))

    def stamp(self) -> dict:
        return json.loads((self.extension / ".installed.json").read_text(encoding="utf-8"))


def lend(package: Path, folder: Path) -> Path:
    """Returns a folder that holds a copy of the package alone, so that nothing else of this environment is seen."""
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder of wheels: every set, ours, and newer ones that a careless installation would take."""
    folder = tmp_path_factory.mktemp("shop")
    wanted = {word for packages, _ in SETS.values() for word in packages.split()}
    newer = {f"{name}==99.0" for name in ("torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "zipp")}
    for word in sorted(wanted | newer | {"zipp==3.20.0", "tqdm==4.66.0"}):
        name, _, version = word.partition("==")
        if name not in ("diffusers", "peft"):
            make_wheel(folder, name, version)
    pipeline = {"__init__.py": "class StableDiffusionPipeline:\n    pass\n"}
    for version in ("0.31.0", "0.32.2", "0.37.1"):
        make_wheel(folder, "diffusers", version, needs="zipp", files=pipeline)
    for version in ("0.13.2", "0.17.1", "99.0"):
        make_wheel(folder, "peft", version, needs="transformers")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_only_what_is_missing_is_added_and_nothing_else_changes(tmp_path, shop, name):
    packages, missing = SETS[name]
    extension = Extension(tmp_path, shop, packages)
    before = extension.packages()
    said = extension.run()
    added = {package: version for package, version in extension.packages().items() if package not in before}
    ours = {"diffusers": "0.31.0", "peft": "0.13.2"}
    dependencies = {"zipp"} if "diffusers" in missing else set()
    assert {package: added[package] for package in missing.split()} == {package: ours[package] for package in missing.split()}
    assert set(added) == {*missing.split(), *dependencies}
    assert extension.packages() == before | added
    assert ("installing" in said) == bool(missing)
    assert extension.stamp()["versions"]["peft"] == extension.packages()["peft"]
    assert extension.run() == ""


@pytest.mark.slow
class TestInA1111:
    @pytest.fixture
    def extension(self, tmp_path, shop):
        return Extension(tmp_path, shop, SETS["a1111"][0])

    def test_with_a_stamp_nothing_is_tried_until_a_version_changes(self, extension):
        extension.run()
        (extension.site / "diffusers" / "__init__.py").write_text(BROKEN, encoding="utf-8")
        assert extension.run() == ""  # not even imported
        for path in extension.site.glob("transformers-*"):
            path.rename(path.with_name("transformers-4.31.0.dist-info"))
            (extension.site / "transformers-4.31.0.dist-info" / "METADATA").write_text(
                "Metadata-Version: 2.1\nName: transformers\nVersion: 4.31.0\n", encoding="utf-8"
            )
        said = extension.run()
        assert "do not work together (ImportError: SiglipImageProcessor)" in said
        assert "transformers 4.31.0" in said and "diffusers 0.31.0" in said
        assert extension.run() == said  # tried again, as what is to blame may be none of the watched ones
        (extension.site / "diffusers" / "__init__.py").write_text("StableDiffusionPipeline = 1\n", encoding="utf-8")
        assert extension.run() == ""
        (extension.site / "diffusers" / "__init__.py").write_text(BROKEN, encoding="utf-8")
        assert extension.run() == ""  # known to be good again

    def test_offline_it_says_what_is_missing_and_how_to_get_it(self, extension, tmp_path):
        (tmp_path / "empty").mkdir()
        before = extension.packages()
        said = extension.run(PIP_FIND_LINKS=str(tmp_path / "empty"))
        assert "diffusers==0.31.0 and peft==0.13.2 could not be installed" in said
        assert re.search(r"pip download --no-deps --dest wheels diffusers==0\.31\.0 peft==0\.13\.2", said)
        assert f'"{extension.python}" -m pip install --no-deps --no-index' in said
        assert extension.packages() == before
        assert not (extension.extension / ".installed.json").exists()
        assert "installing" in extension.run()  # the next start tries again

    @pytest.mark.parametrize(
        ("arguments", "variables"), [(["--skip-install"], {}), ([], {"COMMANDLINE_ARGS": "--api --skip-install"})]
    )
    def test_skip_install_is_honoured(self, extension, arguments, variables):
        assert extension.run(*arguments, **variables) == ""
        assert "peft" not in extension.packages()

    def test_the_remains_of_an_interrupted_uninstallation_do_no_harm(self, extension):
        for name, version in (("~ransformers", "4.29.0"), ("old", "unknown")):
            folder = extension.site / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        assert "could not" not in extension.run()
        assert extension.stamp()["versions"]["peft"] == "0.13.2"

    @pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
    def test_a_damaged_stamp_is_written_anew(self, extension, content):
        extension.run()
        (extension.extension / ".installed.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert extension.run() == ""
        assert extension.stamp()["versions"]["peft"] == "0.13.2"

    def test_in_a_chinese_windows_the_help_is_not_lost(self, extension):
        """There, programs print in cp936, which has no character for what cannot be read; the WebUI reads UTF-8."""
        stand_in = extension.folder / "pip" / "pip" / "__main__.py"
        stand_in.write_text(
            "import sys\nprint('错误：没有网络', flush=True)\nsys.stdout.buffer.write('找不到主机'.encode('gbk'))\nsys.exit(1)\n",
            encoding="utf-8",
        )
        said = extension.run(PYTHONIOENCODING="gbk")
        assert "错误：没有网络" in said
        assert "python -m pip download" in said

    def test_it_never_raises(self, extension):
        (extension.extension / ".installed.json").mkdir()  # cannot be written
        assert "could not be looked after" in extension.run()
