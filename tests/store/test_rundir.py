"""Places and run directories: whole files or none, one driver and one configuration per folder."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import RunDirError, StorageError
from dasm_ray.store.events import read_events
from dasm_ray.store.place import Place
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
    assert record["digest"] == digest_of(result_keys(config))
    assert {"python", "numpy", "torch", "ray"} <= record["versions"].keys()


def test_the_same_configuration_enters_again_and_read_sees_it(place):
    config = config_of(seed=7)
    RunDir.open(str(place), config).close()
    RunDir.open(str(place), config).close()
    assert RunDir.read(str(place)).config == config


def test_a_run_that_goes_on_under_other_versions_says_so(place):
    config = config_of(seed=7)
    with RunDir.open(str(place), config) as run:
        assert list(run.cautions()) == []
    record = (place / "run.json").read_json()
    now, record["versions"]["torch"] = record["versions"]["torch"], "1.2.3"
    (place / "run.json").write_json(record)
    with RunDir.open(str(place), config) as run:
        (said,) = run.cautions()
    assert said.startswith(f"begun with torch 1.2.3 (now {now}): what is still to come may differ")
    for odd in (None, [], {"torch": 3}, {}):
        (place / "run.json").write_json({**record, "versions": odd})
        with RunDir.open(str(place), config) as run:
            assert len(list(run.cautions())) == (odd == {"torch": 3})


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
    with pytest.raises(RunDirError, match=r"there is nothing at .*where; name a directory"):
        RunDir.read(place)
    (place / "notes.txt").write_text("mine")
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
        assert first._claim is None, "two drivers in one directory"
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
    events = list(read_events(place))
    assert [event["kind"] for event in events] == ["start", "loss", "again"]
    assert events[1]["value"] == 0.5
    assert events[1]["several"] == [0, 1]
    assert events[1]["where"] == "x"
    assert all(event["time"] > 1.6e9 for event in events)


def test_local_events_are_on_disk_at_once(tmp_path):
    with RunDir.open(tmp_path / "run", config_of()) as run:
        run.event(kind="start")
        assert "start" in (tmp_path / "run" / "events.jsonl").read_text()


# --- run.json that is lost or damaged ----------------------------------------------------------------------------


def spoil(place: Place, how: str) -> None:
    if how == "removed":
        (place / "run.json").delete()
    else:
        (place / "run.json").write_text({"emptied": "", "cut": '{"digest": "a', "a list": "[]", "no digest": "{}"}[how])


DAMAGE = ["removed", "emptied", "cut", "a list", "no digest"]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_run_whose_record_is_lost_goes_on_from_what_is_there(place, how) -> None:
    config = config_of(seed=7)
    with RunDir.open(place, config) as run:
        (run.place / "experts" / "key" / "expert_0000.safetensors").write_text("a checkpoint")
        (run.place / "segments" / "segment_000.safetensors").write_text("a checkpoint")
        run.event(kind="before")
    spoil(place, how)
    with RunDir.open(place, config) as run:
        run.event(kind="after")
    assert (place / "run.json").read_json()["digest"] == digest_of(result_keys(config))
    assert (place / "segments" / "segment_000.safetensors").read_text() == "a checkpoint"
    assert [event["kind"] for event in read_events(place)] == ["before", "after"]
    assert RunDir.read(place).config == config


@pytest.mark.parametrize("how", DAMAGE)
def test_a_run_of_another_configuration_whose_record_is_lost_is_refused_by_its_keys(place, how) -> None:
    with RunDir.open(place, config_of(seed=7)) as run:
        (run.place / "scores" / "s").write_text("x")
    spoil(place, how)
    before = place.walk()
    with pytest.raises(RunDirError, match=r"another configuration \(seed differ\); choose another --run"):
        RunDir.open(place, config_of(seed=8))
    assert place.walk() == before


@pytest.mark.parametrize("text", [None, "", "seed: [", "seed: 7\n", "sed: 7\n", b"\xff\xfe"])
def test_a_run_that_nothing_tells_of_any_more_is_refused(place, text) -> None:
    """A recipe that somebody put there does not count: it would be overwritten."""
    with RunDir.open(place, config_of(seed=7)) as run:
        (run.place / "scores" / "s").write_text("x")
    (place / "run.json").write_text("")
    if text is None:
        (place / "config.yaml").delete()
    else:
        (place / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = place.walk()
    with pytest.raises(RunDirError, match=r"a damaged run.json, .*choose another --run"):
        RunDir.open(place, config_of(seed=7))
    assert place.walk() == before


def test_reading_a_run_whose_record_is_lost_says_how_to_get_it_back(place) -> None:
    RunDir.open(place, config_of()).close()
    (place / "run.json").delete()
    with pytest.raises(RunDirError, match="the command that made it writes it again"):
        RunDir.read(place)


# --- a run that could not begin ----------------------------------------------------------------------------------


def test_what_a_start_has_made_is_taken_away(place) -> None:
    run = RunDir.open(place, config_of())
    run.event(kind="note")
    run.discard()
    run.close()
    assert place.names() == []
    assert place.local is None or not place.exists()


def test_what_was_there_before_stays(place) -> None:
    with RunDir.open(place, config_of()) as run:
        run.event(kind="before")
        (run.place / "segments" / "s").write_text("x")
    before = place.walk()
    RunDir.open(place, config_of()).discard()
    assert place.walk() == before


def test_what_somebody_has_laid_into_it_meanwhile_stays(tmp_path) -> None:
    run = RunDir.open(tmp_path / "run", config_of())
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run.discard()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_an_empty_folder_that_was_made_for_the_run_stays(tmp_path) -> None:
    RunDir.open(tmp_path, config_of()).discard()
    assert list(tmp_path.iterdir()) == []


def enter(root: Path, barrier: object, answers: object) -> None:
    """One of two drivers of which the loser does as a command does that could not begin."""
    for number in range(25):
        place, run = root / f"{number}", None
        barrier.wait()
        try:
            run = RunDir.open(place, config_of())
            run.event(kind="by", pid=os.getpid())
        except RunDirError as error:
            answers.put((number, "" if "in use by another run" in str(error) else str(error)))
        barrier.wait()
        if run is not None:
            kept = sorted(name for name in os.listdir(place) if not name.startswith("."))
            pids = [event["pid"] for event in read_events(Place(place))]
            answers.put((number, f"{kept} {pids == [os.getpid()]}"))
            run.close()


def test_of_two_runs_that_start_at_once_one_enters_and_loses_nothing(tmp_path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, answers = context.Barrier(2, timeout=60), context.Queue()
    drivers = [context.Process(target=enter, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    found = [answers.get(timeout=60) for _ in range(50)]
    for driver in drivers:
        driver.join(60)
    entered = "['config.yaml', 'events.jsonl', 'run.json'] True"
    assert sorted(found) == sorted([*((n, "") for n in range(25)), *((n, entered) for n in range(25))])


# --- a run directory that goes away, and leftovers ---------------------------------------------------------------


def test_a_run_directory_that_is_removed_while_it_runs_is_not_made_anew(tmp_path) -> None:
    run = RunDir.open(tmp_path / "run", config_of())
    worker = pickle.loads(pickle.dumps(run.place / "segments" / "segment_000.safetensors"))
    shutil.rmtree(tmp_path / "run")
    for write in (lambda: worker.write_bytes(b"x"), lambda: run.event(kind="on")):
        with pytest.raises(StorageError, match="run is not there any more") as caught:
            write()
        assert caught.value.exit_code == 1
    run.close()
    assert list(tmp_path.iterdir()) == []
    RunDir.open(tmp_path / "run", config_of()).close()


def test_what_killed_writes_left_is_removed_at_the_next_start(tmp_path) -> None:
    RunDir.open(tmp_path / "run", config_of()).close()
    left = [tmp_path / "run" / folder / f".f.{'0' * 32}.tmp" for folder in ("", "segments", "scores")]
    fresh, old = (tmp_path / "run" / "experts" / "key" / f".e.{digit * 32}.tmp" for digit in "ab")
    of_a_table = tmp_path / "run" / "report" / "cells" / f".f.{'0' * 32}.tmp"  # perhaps of an `evaluate` at work
    own = tmp_path / "run" / "segments" / ".mine.tmp"
    for file in (*left, fresh, of_a_table, old, own):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    RunDir.open(tmp_path / "run", config_of()).close()
    assert [file for file in (*left, fresh, of_a_table, old, own) if file.exists()] == [fresh, of_a_table, own]


def test_what_another_run_may_be_writing_stays_where_nobody_tells_how_old_it_is(timeless) -> None:
    RunDir.open(timeless, config_of()).close()
    own, shared = (timeless / folder / f".f.{'0' * 32}.tmp" for folder in ("segments", "experts/key"))
    for file in (own, shared):
        file.write_text("half")
    RunDir.open(timeless, config_of()).close()
    assert list(timeless.temporaries()) == [f"experts/key/{shared.name}"]


def test_a_start_that_fails_half_way_leaves_nothing_that_keeps_others_out(tmp_path, monkeypatch) -> None:
    def full(self: Place, text: str) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_text", full)
        with pytest.raises(StorageError):
            RunDir.open(tmp_path / "run", config_of())
    RunDir.open(tmp_path / "run", config_of()).close()


# --- in an object store ------------------------------------------------------------------------------------------


def test_a_run_in_an_s3(bucket) -> None:
    with RunDir.open(bucket, config_of(seed=7)) as run:
        run.event(kind="start")
        with pytest.raises(RunDirError, match=r"in use by another run \(process \d+ on "):
            RunDir.open(bucket, config_of(seed=7))
        (run.place / "segments" / "s").write_text("x")
    assert [event["kind"] for event in read_events(bucket)] == ["start"]
    assert sorted(bucket.walk()[1]) == ["config.yaml", "events/00000.jsonl", "run.json", "segments/s"]
    with pytest.raises(RunDirError, match="seed differ"):
        RunDir.open(bucket, config_of(seed=8))
    assert RunDir.read(bucket).config.seed == 7


def test_a_run_in_an_s3_that_could_not_begin_leaves_nothing(bucket) -> None:
    run = RunDir.open(bucket, config_of())
    run.event(kind="note")
    run.discard()
    assert bucket.walk()[1] == []


def test_a_start_during_an_outage(bucket, s3_proxy) -> None:
    with s3_proxy.failing("busy", seconds=0.4):
        RunDir.open(bucket, config_of()).close()
    with s3_proxy.failing("busy"), pytest.raises(StorageError, match="the same command goes on"):
        RunDir.open(bucket, config_of())


# --- where there is no POSIX -------------------------------------------------------------------------------------


def test_reading_a_set_needs_nothing_that_windows_lacks(tmp_path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'pwd', 'grp', 'resource', 'termios')))\n"
        "import numpy as np\n"
        "import dasm_ray, dasm_ray.synthetic\n"
        "from dasm_ray.store.artifact import Artifact, write_artifact\n"
        "from dasm_ray.store.place import Place\n"
        "from dasm_ray.store import rundir\n"
        "made = Artifact(np.full((2, 1, 8, 8), 0.5, np.float32), np.arange(2), np.zeros(2, np.int32), None,\n"
        "    ('a', 'b'), (0.3,), (0.4,), 1, None, {'model': {}, 'training': {'epochs': 1, 'lr': 0.01}}, {})\n"
        "write_artifact(Place(sys.argv[1]), made)\n"
        "print(len(dasm_ray.load(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2\n"
