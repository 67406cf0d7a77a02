"""What is refused before Ray starts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasm_ray.config.digests import config_digest
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import DataError, ResourceError
from dasm_ray.runtime import opening
from dasm_ray.runtime.opening import open_checked, settled
from dasm_ray.store.rundir import RunDir


def test_a_set_that_can_be_used() -> None:
    assert open_checked(parse_config({})).found.lines()[0] == "data digits: built in"


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at"):
        open_checked(parse_config({"data": {"name": "folder", "path": str(tmp_path / "x")}}))


def test_a_whitening_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 grey: 4096 values, 128 MiB a matrix."""
    config = parse_config({"data": {"zca": 0.1, "image_size": 64}})
    monkeypatch.setattr(opening, "read_memory", lambda: 2 * 2**30)
    with pytest.raises(ResourceError, match=r"data\.zca: whitening 4096 values .* 2\.1 GiB, and there are 2\.0 GiB"):
        open_checked(config)
    monkeypatch.setattr(opening, "read_memory", lambda: 3 * 2**30)
    assert open_checked(config).shape == (1, 64, 64)
    assert open_checked(parse_config({"data": {"image_size": 64}})).shape == (1, 64, 64)


@pytest.mark.parametrize("how", ["key", "environment"])
def test_a_cluster_elsewhere_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(opening, "read_memory", lambda: 1)
    runtime = {"address": "10.0.0.5:6379"} if how == "key" else {}
    if how == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    open_checked(parse_config({"data": {"zca": 0.1}, "runtime": runtime}))


def many(folder: Path, classes: int) -> RunConfig:
    """Folders of a few images each."""
    for label in range(classes):
        (folder / f"{label:02}").mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 4), 20 * label + number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{label:02}" / f"{number}.png")
    return parse_config({"data": {"name": "folder", "path": str(folder)}})


@pytest.mark.parametrize(("classes", "size"), [(2, None), (10, None), (11, 5)])
def test_the_size_of_groups_follows_from_the_number_of_classes(tmp_path: Path, classes: int, size: int | None) -> None:
    config = many(tmp_path / "set", classes)
    found = settled(config, tmp_path / "run")
    assert found.synthetic.group_size == size
    assert config_digest(found) == config_digest(config) or size
    said = parse_config({**config.model_dump(), "synthetic": {"group_size": 7}})
    assert settled(said, tmp_path / "run") == said


def test_a_run_that_was_begun_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """By an older version, or on images that are not there any more."""
    config = parse_config({"data": {"name": "folder", "path": str(tmp_path / "gone")}})
    for name, kept in (("older", config), ("newer", config.for_classes(100))):
        RunDir.open(tmp_path / name, kept).close()
        assert settled(config, tmp_path / name) == kept
    RunDir.open(tmp_path / "other", parse_config({**config.model_dump(), "synthetic": {"group_size": 7}})).close()
    with pytest.raises(DataError):
        settled(config, tmp_path / "other")


def test_where_there_are_no_groups_nothing_is_looked_up(tmp_path: Path) -> None:
    config = parse_config({"data": {"name": "folder", "path": "/nowhere"}, "matcher": {"name": "cafe"}})
    assert settled(config, tmp_path) == config


def test_neither_ray_nor_torch_is_waited_for() -> None:
    script = (
        "import sys\nfrom dasm_ray.config.parsing import parse_config\n"
        "from dasm_ray.runtime.opening import open_checked\n"
        "open_checked(parse_config({'data': {'zca': 0.1}}))\nprint(sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
