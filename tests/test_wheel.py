"""What a wheel holds: all that the package reads of itself, and nothing of the checkout beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("dasm_ray", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy, since building writes beside what is built."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, timeout=200)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_it_holds_the_package_its_recipes_and_its_templates_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    of_package = [path for path in (ROOT / "dasm_ray").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {path.relative_to(ROOT).as_posix() for path in of_package}
    expected |= {f"dasm_ray/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"dasm_ray/py.typed", "dasm_ray/report/templates/report.html", "dasm_ray/configs/digits.yaml"} <= held


def test_it_says_what_it_is_and_under_which_licence(wheel: zipfile.ZipFile) -> None:
    facts = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(facts["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert wheel.read(facts["entry_points.txt"]).decode().split() == [
        "[console_scripts]",
        "dasm-ray",
        "=",
        "dasm_ray.cli:main",
    ]
    said = message_from_string(wheel.read(facts["METADATA"]).decode())
    assert (said["Name"], said["License-Expression"], said["Requires-Python"]) == ("dasm-ray", "Apache-2.0", ">=3.11")
    assert said.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_recipes_are_found_in_it(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    words = "import dasm_ray.cli as cli; print(cli.__file__); cli.main(['recipes'], prog_name='dasm-ray')"
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    first, *lines = done.stdout.splitlines()
    assert Path(first) == tmp_path / "installed" / "dasm_ray" / "cli.py"
    assert any(line.startswith("digits ") for line in lines)
