"""Places and run directories: whole files or none, one driver and one configuration per folder."""

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from pyarrow import fs

from dasm_ray import config as configuration
from dasm_ray.errors import RunDirError
from dasm_ray.store import rundir
from dasm_ray.store.rundir import Place, RunDir


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path):
    """A folder that does not exist yet: by path, by file URI (with a space in it), and on another file system."""
    if request.param == "local":
        return Place(tmp_path / "some where")
    if request.param == "file":
        return Place((tmp_path / "some where").as_uri())
    return Place(f"mock://{tmp_path.name}/some/where")


def config_of(**changes):
    return configuration.parse_config(changes)


# --- Place -------------------------------------------------------------------------------------------------------


def test_files_come_back_as_they_were_written(place):
    (place / "a" / "x.bin").write_bytes(b"\0\1\2")
    (place / "a/x.txt").write_text("naïve ×")
    (place / "x.json").write_json({"é": [1, 2.5, None]})
    assert (place / "a" / "x.bin").read_bytes() == b"\0\1\2"
    assert (place / "a" / "x.txt").read_text() == "naïve ×"
    assert (place / "x.json").read_json() == {"é": [1, 2.5, None]}


def test_names_and_walk_are_sorted_and_relative(place):
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "top.txt"):
        (place / name).write_bytes(b"x")
    assert place.names() == ["a", "b", "top.txt"]
    assert place.walk() == (["a", "a/deep", "b"], ["a/deep/3.png", "b/1.png", "b/2.png", "top.txt"])


def test_existence_and_kind(place):
    assert not place.exists()
    assert place.names() == []
    place.make_dir()
    place.make_dir()
    (place / "file").write_bytes(b"")
    assert place.is_dir()
    assert (place / "file").exists()
    assert not (place / "file").is_dir()


def test_delete_takes_files_folders_and_nothing(place):
    (place / "folder" / "file").write_bytes(b"x")
    (place / "file").write_bytes(b"x")
    (place / "file").delete()
    (place / "folder").delete()
    (place / "never").delete()
    assert place.names() == []


def test_a_rewrite_replaces_the_file_and_leaves_nothing_aside(place):
    (place / "f").write_bytes(b"old")
    (place / "f").write_bytes(b"new")
    assert (place / "f").read_bytes() == b"new"
    assert [info.base_name for info in place._fs.get_file_info(fs.FileSelector(place._at))] == ["f"]


def test_open_reads_at_any_offset(place):
    (place / "f").write_bytes(b"0123456789")
    with (place / "f").open() as file:
        file.seek(7)
        assert file.read(2) == b"78"


def test_a_place_travels_by_pickle_and_by_text(place):
    (place / "f").write_bytes(b"x")
    for copy in (pickle.loads(pickle.dumps(place)), Place(str(place))):
        assert copy == place
        assert hash(copy) == hash(place)
        assert (copy / "f").read_bytes() == b"x"
    assert place != place / "f"


def test_a_relative_path_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place("here")
    monkeypatch.chdir("/")
    assert place.local == tmp_path / "here"
    assert place.name == "here"


def test_the_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Place("~/x").local == tmp_path / "x"


def test_a_uri_keeps_its_options():
    place = Place("s3://bucket/a/?region=us-east-1") / "b"
    assert str(place) == "s3://bucket/a/b?region=us-east-1"
    assert place.local is None
    assert place._at == "bucket/a/b"


def test_an_unknown_kind_of_uri_is_a_sentence():
    with pytest.raises(RunDirError, match=r"nope://x/y cannot be read \(Unrecognized filesystem type"):
        Place("nope://x/y").exists()


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(RunDirError, match=r"file/f cannot be written \(a file stands where"):
        (Place(tmp_path / "file") / "f").write_bytes(b"x")
    with pytest.raises(RunDirError, match="cannot be made"):
        (Place(tmp_path / "file") / "folder").make_dir()


def test_a_missing_file_is_named(place):
    with pytest.raises(RunDirError, match=r"where/none.json cannot be read"):
        (place / "none.json").read_json()


def test_damaged_text_and_json_are_named(place):
    (place / "t").write_bytes(b"\xff\xfe")
    (place / "j").write_bytes(b'{"half": ')
    with pytest.raises(RunDirError, match="where/t cannot be read: it is not text"):
        (place / "t").read_text()
    with pytest.raises(RunDirError, match="where/j cannot be read: it is not JSON"):
        (place / "j").read_json()


def test_a_failed_write_leaves_the_old_file_and_nothing_aside(tmp_path, monkeypatch):
    place = Place(tmp_path)
    (place / "f").write_bytes(b"old")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir, "_flush_to_disk", full)
    with pytest.raises(RunDirError, match=r"f cannot be written \(No space left on device\)"):
        (place / "f").write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_write_that_is_killed_leaves_only_a_hidden_file(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from dasm_ray.store import rundir\n"
        "rundir._flush_to_disk = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "(rundir.Place(sys.argv[1]) / 'f').write_bytes(b'new')\n"
    )
    (tmp_path / "f").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    assert Place(tmp_path).names() == ["f"]
    assert Place(tmp_path).walk() == ([], ["f"])


# --- RunDir ------------------------------------------------------------------------------------------------------


def test_a_new_run_writes_its_configuration_and_a_record(place):
    config = config_of(seed=7, synthetic={"ipc": 4})
    with RunDir.open(str(place), config) as run:
        assert run.config == config
    assert configuration.parse_config(yaml.safe_load((place / "config.yaml").read_text())) == config
    record = (place / "run.json").read_json()
    assert record["digest"] == configuration.digest_of(configuration.what(config))
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
    [("seed: [", "it is not YAML"), ("sed: 3", "not for this version of dasm_ray: sed: .*did you mean 'seed'")],
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
        "from dasm_ray import config\n"
        "from dasm_ray.store.rundir import RunDir\n"
        "run = RunDir.open(sys.argv[1], config.RunConfig())\n"
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


def test_the_folder_above() -> None:
    assert Place("/a/b/c").parent == Place("/a/b")
    assert Place("/a/b/").parent == Place("/a")
    assert Place("/a").parent == Place("/")
    assert str((Place("s3://bucket/one/two")).parent) == "s3://bucket/one"
