"""What is refused before Ray starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError, DataError, ResourceError
from dasm_ray.runtime import opening
from dasm_ray.runtime.opening import check_settled, open_checked, settled


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


# --- precision ---------------------------------------------------------------------------------------------------


AUTO = {"model": {"width": 256}, "runtime": {"precision": "auto"}}


@pytest.mark.parametrize(
    ("width", "computes", "expected"), [(256, True, "bf16"), (256, False, "float32"), (255, True, "float32")]
)
def test_auto_is_bf16_where_it_is_computed_and_the_network_is_large(
    monkeypatch: pytest.MonkeyPatch, width: int, computes: bool, expected: str
) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: computes)
    config = parse_config({**AUTO, "model": {"width": width}})
    assert settled(config).runtime.precision == expected
    assert settled(config).model_copy(update={"runtime": config.runtime}) == config, "nothing else is changed"


@pytest.mark.parametrize(
    ("runtime", "by_gpu"), [({}, True), ({"device": "cpu"}, False), ({"gpus_per_worker": 0}, False)]
)
def test_auto_asks_for_what_workers_compute_on(
    monkeypatch: pytest.MonkeyPatch, runtime: dict[str, object], by_gpu: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: bool(asked.append(by_gpu)))
    settled(parse_config({**AUTO, "runtime": {"precision": "auto", **runtime}}))
    assert asked == [by_gpu]


def test_what_is_said_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: pytest.fail("was asked"))
    config = parse_config({"runtime": {"precision": "bf16"}})
    assert settled(config) is config


def test_auto_is_for_one_machine_and_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = parse_config({"runtime": {"precision": "auto", "address": "10.0.0.5:6379"}})
    with pytest.raises(ConfigError, match=r"runtime\.precision: auto is decided by the machine .* say bf16 or float32"):
        settled(elsewhere)
    with pytest.raises(ConfigError, match="say bf16 or float32 here"):
        check_settled(parse_config(AUTO))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(ConfigError, match="the work is done elsewhere"):
        settled(parse_config(AUTO))
