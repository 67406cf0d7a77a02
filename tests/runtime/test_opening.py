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
from dasm_ray.errors import ConfigError, DataError, ResourceError
from dasm_ray.runtime import opening
from dasm_ray.runtime.opening import (
    check_run,
    check_settled,
    open_checked,
    settled,
    size_of,
    with_compiling,
    with_precision,
)
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


def test_the_set_is_looked_up_once_whatever_must_be_decided_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precision by the shape, compiling by the number of images, groups by that of classes; then it is settled."""
    looked: list[str] = []
    by_itself = opening.open_source
    monkeypatch.setattr(opening, "open_source", lambda data: looked.append(data.path) or by_itself(data))
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: True)
    runtime = {"device": "cpu", "precision": "auto", "compile": "auto"}
    tree = many(tmp_path / "set", 11).model_dump() | {"matcher": {"name": "dm"}}
    config = parse_config({**tree, "model": {"width": 2048}, "runtime": runtime})
    found = check_run(config, str(tmp_path / "run"))
    assert looked == [str(tmp_path / "set")]
    assert (found.runtime.precision, found.runtime.compile, found.synthetic.group_size) == ("bf16", "trainings", 5)
    assert settled(found, tmp_path / "run") == found
    assert len(looked) == 1


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


# --- precision ---------------------------------------------------------------------------------------------------


AUTO = {"model": {"width": 256}, "matcher": {"name": "dm"}, "runtime": {"precision": "auto"}}


@pytest.mark.parametrize(
    ("width", "computes", "expected"), [(256, True, "bf16"), (256, False, "float32"), (255, True, "float32")]
)
def test_auto_is_bf16_where_it_is_computed_and_the_network_is_large(
    monkeypatch: pytest.MonkeyPatch, width: int, computes: bool, expected: str
) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: computes)
    config = parse_config({**AUTO, "model": {"width": width}})
    assert with_precision(config).runtime.precision == expected
    assert with_precision(config).model_copy(update={"runtime": config.runtime}) == config, "nothing else is changed"


@pytest.mark.parametrize("computes", [True, False])
def test_auto_is_what_a_run_was_begun_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, computes: bool) -> None:
    """On another machine, or where this one does not tell for a moment, it goes on as it was begun."""
    config = parse_config(AUTO)
    begun = config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": "bf16"})})
    RunDir.open(tmp_path / "run", begun).close()
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: computes)
    assert with_precision(config, run=tmp_path / "run").runtime.precision == "bf16"
    assert settled(config, tmp_path / "run").runtime.precision == "bf16"
    assert with_precision(config, run=tmp_path / "new") == with_precision(config)


@pytest.mark.parametrize("name", ["mtt", "datm", "dc", "dsa", "idc"])
def test_auto_is_float32_for_trajectories_and_gradients(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: True)
    config = parse_config({**AUTO, "matcher": {"name": name}})
    assert with_precision(config).runtime.precision == "float32"
    said = parse_config({"runtime": {"precision": "bf16"}, "matcher": {"name": name}})
    assert with_precision(said).runtime.precision == "bf16", "who asks for it has it"


@pytest.mark.parametrize(
    ("runtime", "by_gpu"), [({}, True), ({"device": "cpu"}, False), ({"gpus_per_worker": 0}, False)]
)
def test_auto_asks_for_what_workers_compute_on(
    monkeypatch: pytest.MonkeyPatch, runtime: dict[str, object], by_gpu: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: bool(asked.append(by_gpu)))
    with_precision(parse_config({**AUTO, "runtime": {"precision": "auto", **runtime}}))
    assert asked == [by_gpu]


def test_what_is_said_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "computes_bf16", lambda by_gpu: pytest.fail("was asked"))
    config = parse_config({"runtime": {"precision": "bf16"}})
    assert with_precision(config) is config


def test_auto_is_for_one_machine_and_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = parse_config({"runtime": {"precision": "auto", "address": "10.0.0.5:6379"}})
    with pytest.raises(ConfigError, match=r"runtime\.precision: auto is decided by the machine .* say bf16 or float32"):
        with_precision(elsewhere)
    with pytest.raises(ConfigError, match="say bf16 or float32 here"):
        check_settled(parse_config(AUTO))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(ConfigError, match="the work is done elsewhere"):
        with_precision(parse_config(AUTO))


# --- compiling ---------------------------------------------------------------------------------------------------


HERE = {"device": "cpu", "compile": "auto"}
FEW = {"evaluate": {"epochs": 100}, "runtime": HERE}


@pytest.mark.parametrize(
    ("epochs", "networks", "expected"),
    [(100, 10, False), (100_000, 10, "trainings"), (100_000, 10_000, True), (100, 10_000, True)],
)
def test_auto_compiles_where_there_are_steps_enough(
    tmp_path: Path, epochs: int, networks: int, expected: bool | str
) -> None:
    longer = {"evaluate": {"epochs": epochs}, "matcher": {"networks": networks}}
    config = parse_config({**longer, "runtime": HERE})
    found = settled(config, tmp_path / "run")
    assert found.runtime.compile == expected
    assert found.model_copy(update={"runtime": config.runtime}) == config, "nothing else is changed"
    by_hand = parse_config({**longer, "runtime": {"device": "cpu", "compile": expected}})
    assert config_digest(found) == config_digest(by_hand), "as if it had been said"


def test_what_auto_has_decided_once_stands(tmp_path: Path) -> None:
    """Whatever a later version would decide, a run goes on as it was begun."""
    for kept in (True, "trainings", False):
        RunDir.open(tmp_path / str(kept), parse_config({"runtime": {"device": "cpu", "compile": kept}})).close()
        assert settled(parse_config(FEW), tmp_path / str(kept)).runtime.compile == kept
    RunDir.open(tmp_path / "unset", parse_config({"runtime": {"device": "cpu"}})).close()
    assert settled(parse_config(FEW), tmp_path / "unset").runtime.compile is False


@pytest.mark.parametrize(
    ("runtime", "has", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"device": "cuda"}, False, True),
        ({"gpus_per_worker": 0.5}, False, True),
        ({"gpus_per_worker": 0}, True, False),
        ({"device": "cpu"}, True, False),
    ],
)
def test_on_gpus_steps_are_compiled(
    monkeypatch: pytest.MonkeyPatch, runtime: dict[str, object], has: bool, expected: bool
) -> None:
    monkeypatch.setattr(opening, "has_gpus", lambda: has)
    config = parse_config({"evaluate": {"epochs": 1}, "runtime": {"compile": "auto", **runtime}})
    assert with_compiling(config).runtime.compile is expected


def test_auto_does_not_guess_what_other_machines_have(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {"compile": "auto", "address": "10.0.0.5:6379"}
    with pytest.raises(ConfigError, match=r"runtime\.compile: auto depends on .* set runtime\.device to cpu or cuda"):
        with_compiling(parse_config({"runtime": elsewhere}))
    assert with_compiling(parse_config({**FEW, "runtime": {**elsewhere, "device": "cpu"}})).runtime.compile is False
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(ConfigError, match="the work is done elsewhere"):
        with_compiling(parse_config({"runtime": {"compile": "auto"}}))


def test_many_runs_say_whether_they_compile() -> None:
    with pytest.raises(ConfigError, match="say true, trainings or false here, or leave it out"):
        check_settled(parse_config({"runtime": HERE}))


def test_the_size_of_a_set_is_known_before_it_is_decoded(tmp_path: Path) -> None:
    """Cut by content, so about; where a set has splits, exactly."""
    size = size_of(open_checked(many(tmp_path / "set", 10)))
    assert (size.train + size.val + size.test, size.classes, size.shape) == (30, 10, (1, 4, 4))
    assert (size.test, size.val) == (6, round(0.08 * 30))
