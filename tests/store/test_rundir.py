"""Places and run directories: whole files or none, one driver and one configuration per folder."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import RunDirError
from dasm_ray.store.rundir import RunDir


def config_of(**changes):
    return parse_config(changes)


# --- RunDir ------------------------------------------------------------------------------------------------------


def test_a_new_run_writes_its_configuration_and_a_record(place):
    config = config_of(seed=7, synthetic={"ipc": 4})
    with RunDir.open(str(place), config) as run:
        assert run.config == config
    assert parse_config(yaml.safe_load((place / "config.yaml").read_text())) == config
    record = (place / "run.json").read_json()
    assert record["digest"] == digest_of(what(config))
    assert {"python", "numpy", "torch", "ray"} <= record["versions"].keys()


def test_the_same_configuration_enters_again_and_read_sees_it(place):
    config = config_of(seed=7)
    RunDir.open(str(place), config).close()
    RunDir.open(str(place), config).close()
    assert RunDir.read(str(place)).config == config


def test_what_only_says_how_may_change(place):
    RunDir.open(str(place), config_of(runtime={"workers": 1})).close()
    RunDir.open(str(place), config_of(runtime={"workers": 2}, data={"path": "elsewhere"})).close()
    assert RunDir.read(str(place)).config.runtime.workers == 2


def test_another_configuration_is_refused_by_its_keys(place):
    RunDir.open(str(place), config_of(seed=7)).close()
    before = (place / "config.yaml").read_text()
    with pytest.raises(
        RunDirError, match=r"another configuration \(matcher.lr_img, seed differ\); choose another --run"
    ):
        RunDir.open(str(place), config_of(seed=8, matcher={"lr_img": 0.5}))
    assert (place / "config.yaml").read_text() == before
    RunDir.open(str(place), config_of(seed=7)).close()


def test_a_record_that_its_configuration_does_not_explain_is_refused(place):
    RunDir.open(str(place), config_of()).close()
    (place / "run.json").write_json({"digest": "0" * 16, "versions": {}})
    with pytest.raises(RunDirError, match="another version of the configuration"):
        RunDir.open(str(place), config_of())


def test_a_folder_of_something_else_is_refused(place):
    (place / "thesis.tex").write_text("...")
    with pytest.raises(RunDirError, match=r"holds thesis.tex and no run.json"):
        RunDir.open(str(place), config_of())
    assert not (place / "config.yaml").exists()


def test_a_start_that_was_killed_half_way_is_taken_up(place):
    (place / "config.yaml").write_text("seed: 3\n")
    RunDir.open(str(place), config_of(seed=7)).close()
    assert RunDir.read(str(place)).config.seed == 7


def test_reading_what_is_no_run_directory(place):
    with pytest.raises(RunDirError, match="is no run directory"):
        RunDir.read(str(place))


@pytest.mark.parametrize(
    ("text", "message"),
    [("seed: [", "is not YAML"), ("sed: 3", "not for this version of dasm_ray: sed: .*did you mean 'seed'")],
)
def test_a_configuration_that_cannot_be_read_is_named(place, text, message):
    RunDir.open(str(place), config_of()).close()
    (place / "config.yaml").write_text(text)
    with pytest.raises(RunDirError, match=f"config.yaml .*{message}"):
        RunDir.read(str(place))


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"file/run cannot be made \(Not a directory\)"):
        RunDir.open(tmp_path / "file" / "run", config_of())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a read-only file system")
def test_a_run_directory_on_a_read_only_file_system():
    with pytest.raises(RunDirError, match="/proc/run cannot be made"):
        RunDir.open("/proc/run", config_of())


def test_two_runs_cannot_share_a_directory(tmp_path):
    with RunDir.open(tmp_path / "run", config_of()):
        with pytest.raises(RunDirError, match="run is in use by another run"):
            RunDir.open(tmp_path / "run", config_of())
        assert RunDir.read(tmp_path / "run").config == config_of()
    RunDir.open(tmp_path / "run", config_of()).close()


def test_a_refused_run_lets_go_of_the_lock(tmp_path):
    RunDir.open(tmp_path / "run", config_of()).close()
    with pytest.raises(RunDirError, match="differ"):
        RunDir.open(tmp_path / "run", config_of(seed=1))
    RunDir.open(tmp_path / "run", config_of()).close()


def test_a_directory_in_use_is_waited_for(tmp_path):
    first = RunDir.open(tmp_path / "run", config_of())
    began = time.monotonic()
    with pytest.raises(RunDirError, match="in use"):
        RunDir.open(tmp_path / "run", config_of(), patience=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    leaving = threading.Timer(0.5, first.close)
    leaving.start()
    with RunDir.open(tmp_path / "run", config_of(), patience=60):
        assert first._lock is None, "two drivers in one directory"
    leaving.join()


def test_a_killed_driver_leaves_no_lock_behind(tmp_path):
    code = (
        "import sys, time\n"
        "from dasm_ray.config.keys import RunConfig\n"
        "from dasm_ray.store.rundir import RunDir\n"
        "run = RunDir.open(sys.argv[1], RunConfig())\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE)
    try:
        assert driver.stdout.readline() == b"open\n"
        with pytest.raises(RunDirError, match="in use"):
            RunDir.open(tmp_path / "run", config_of())
    finally:
        driver.kill()
        driver.communicate()
    RunDir.open(tmp_path / "run", config_of()).close()


def test_events_are_lines_in_order_and_survive_a_second_run(place):
    import numpy as np

    with RunDir.open(str(place), config_of()) as run:
        run.event(kind="start", workers=2)
        run.event(kind="loss", value=np.float32(0.5), several=np.arange(2), where=Path("x"))
    with RunDir.open(str(place), config_of()) as run:
        run.event(kind="again")
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["start", "loss", "again"]
    assert events[1]["value"] == 0.5
    assert events[1]["several"] == [0, 1]
    assert events[1]["where"] == "x"
    assert all(event["time"] > 1.6e9 for event in events)


def test_local_events_are_on_disk_at_once(tmp_path):
    with RunDir.open(tmp_path / "run", config_of()) as run:
        run.event(kind="start")
        assert "start" in (tmp_path / "run" / "events.jsonl").read_text()
