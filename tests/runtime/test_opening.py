"""What is refused before Ray starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import DataError, ResourceError
from dasm_ray.runtime import opening
from dasm_ray.runtime.opening import open_checked


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


def test_neither_ray_nor_torch_is_waited_for() -> None:
    script = (
        "import sys\nfrom dasm_ray.config.parsing import parse_config\n"
        "from dasm_ray.runtime.opening import open_checked\n"
        "open_checked(parse_config({'data': {'zca': 0.1}}))\nprint(sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
