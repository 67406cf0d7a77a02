"""Whole commands through faults of storage and of processes: the same command again gives the undisturbed set.

After each fault: the exit code that is documented, one sentence, nothing left running, no temporary file left.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import digest_in, end, finished, kill_a_worker, killed, started, wait_for
from outages import Proxy, age

import dasm_ray
from dasm_ray.store import claims
from dasm_ray.store.artifact import digest
from dasm_ray.store.place import Place

pytestmark = [pytest.mark.slow(65), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def expected(reference: Path) -> str:
    """The digest of an undisturbed run."""
    return digest_in(reference)


@pytest.fixture(scope="module")
def half(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second segment."""
    run = tmp_path_factory.mktemp("half") / "run"
    process = started(recipe, run, "--workers", "2")
    wait_for(process, lambda: list(run.glob("segments/segment_001_*")), "a checkpoint of the second segment")
    end(killed(process))
    return run


def gone_on(recipe: Path, run: Path) -> str:
    """The digest after the same command, which leaves neither a process nor a temporary file."""
    process = started(recipe, run)
    family = psutil.Process(process.pid)
    seen: set[psutil.Process] = set()
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            seen.update(family.children(recursive=True))
        time.sleep(0.5)
    finished(process)
    nothing_runs(list(seen))
    assert Place(run).temporaries() == {}
    return digest_in(run)


def nothing_runs(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=60)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []


def ended(process: subprocess.Popen[str], code: int, *parts: str) -> None:
    """The command has ended with this code and a sentence that holds these parts."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    for part in parts:
        assert part in err, err
    assert "Traceback" not in err


# --- at rest: what somebody or a failing disk did to a run that was killed -------------------------------------------


def emptied(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text("")


def removed(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def first(run: Path, pattern: str) -> Path:
    return min(run.glob(pattern))


def half_a_line(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 17')


def temporaries(run: Path) -> None:
    for folder in (run, run / "segments"):
        (folder / f".config.yaml.{'0' * 32}.tmp").write_text("half")


AT_REST: dict[str, Callable[[Path], None]] = {
    "run.json emptied": emptied("run.json"),
    "run.json removed": removed("run.json"),
    "config.yaml removed": removed("config.yaml"),
    "events.jsonl removed": removed("events.jsonl"),
    "events.jsonl cut in a line": half_a_line,
    "a score file removed": lambda run: first(run, "scores/*").unlink(),
    "an expert removed": lambda run: first(run, "experts/*/expert_*").unlink(),
    "a finished group removed": lambda run: first(run, "segments/segment_000_*").unlink(),
    "temporary files of killed writes": temporaries,
}


@pytest.mark.slow(35)
@pytest.mark.parametrize("fault", AT_REST.values(), ids=AT_REST.keys())
def test_a_run_that_lost_something_goes_on_to_the_same_set(
    recipe: Path, half: Path, expected: str, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half, run)
    fault(run)
    assert gone_on(recipe, run) == expected


@pytest.mark.parametrize("pattern", ["segments/segment_000_*", "scores/*", "experts/*/expert_*"])
def test_a_damaged_file_is_named_and_without_it_the_run_goes_on(
    recipe: Path, half: Path, expected: str, tmp_path: Path, pattern: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(half, run)
    file = first(run, pattern)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))
    ended(started(recipe, run), 2, file.name)
    file.unlink()
    assert gone_on(recipe, run) == expected


# --- at work ---------------------------------------------------------------------------------------------------------

STAGES = {
    "as it begins": "run.json",
    "while experts are trained": "experts/*/expert_0000*",
    "in the first segment": "segments/segment_000_*",
    "in the second segment": "segments/segment_001_*",
    "while the set is evaluated": "synthetic/dataset.json",
}
"""What lies in a run directory from each stage on."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of six megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Nothing fits on it any more."""
    file = disk / "filler"
    with file.open("ab", buffering=0) as full, contextlib.suppress(OSError):
        while True:
            full.write(bytes(4096))
    return file


@pytest.mark.parametrize("seen", STAGES.values(), ids=STAGES.keys())
def test_a_full_disk(recipe: Path, expected: str, small_disk: Path, seen: str) -> None:
    run = small_disk / "run"
    process = started(recipe, run)
    family = psutil.Process(process.pid)
    wait_for(process, lambda: list(run.glob(seen)), seen)
    filler = fill(small_disk)
    children = family.children(recursive=True)
    ended(process, 1, "No space left on device", "the same command goes on")
    nothing_runs(children)
    filler.unlink()
    assert gone_on(recipe, run) == expected


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_run_directory_that_is_gone(recipe: Path, expected: str, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    process = started(recipe, run)
    wait_for(process, lambda: list(run.glob("segments/segment_000_*")), "a checkpoint")
    run.rename(tmp_path / "elsewhere")
    ended(process, 1, str(run))
    assert not run.exists(), "it was made anew"
    if how == "moved":
        (tmp_path / "elsewhere").rename(run)
    assert gone_on(recipe, run) == expected


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a disk is mounted; ``mounted`` and ``unmounted`` put it there and take it away."""
    point = tmp_path / "point"
    (tmp_path / "disk").mkdir()
    point.mkdir()
    if mounted(point):
        pytest.skip("needs the right to mount a disk")
    yield point
    unmounted(point)


def mounted(point: Path) -> int:
    return subprocess.run(["mount", "--bind", str(point.with_name("disk")), str(point)], check=False).returncode


def unmounted(point: Path) -> None:
    """Also while files on it are open, as a cable that is pulled does."""
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_disk_that_is_unmounted(recipe: Path, expected: str, disk: Path) -> None:
    process = started(recipe, disk / "run")
    wait_for(process, lambda: list(disk.glob("run/segments/segment_000_*")), "a checkpoint")
    children = psutil.Process(process.pid).children(recursive=True)
    unmounted(disk)
    ended(process, 1, str(disk / "run"))
    nothing_runs(children)
    assert not list(disk.iterdir()), "something was made below the mount point"
    assert mounted(disk) == 0
    assert gone_on(recipe, disk / "run") == expected


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 130), (signal.SIGINT, 130)], ids=["HUP", "TERM", "INT"]
)
def test_a_signal(recipe: Path, expected: str, tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    process = started(recipe, run)
    wait_for(process, lambda: list(run.glob("segments/segment_000_*")), "a checkpoint")
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    ended(process, code, "the same command goes on from the last checkpoint")
    nothing_runs(children)
    assert gone_on(recipe, run) == expected


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_signal_while_ray_starts(recipe: Path, expected: str, tmp_path: Path, name: str) -> None:
    """Ray puts handlers of its own while it starts, and forks, in which what a handler raises is lost."""
    run = tmp_path / "run"
    process = started(recipe, run)
    family = psutil.Process(process.pid)
    wait_for(process, lambda: name in {child.name() for child in family.children()}, name)
    children = family.children(recursive=True)
    process.terminate()
    ended(process, 130, "the same command goes on from the last checkpoint")
    nothing_runs(children)
    assert gone_on(recipe, run) == expected


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_process_of_ray_is_killed(recipe: Path, expected: str, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    process = started(recipe, run)
    wait_for(process, lambda: list(run.glob("segments/segment_000_*")), "a checkpoint")
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if child.name() == name).kill()
    then = time.monotonic()
    ended(process, 1, f"({name}) has died")
    assert time.monotonic() - then < 60
    nothing_runs(children)
    assert gone_on(recipe, run) == expected


@pytest.mark.slow(45)
def test_a_worker_is_killed_in_each_stage_of_one_run(recipe: Path, expected: str, tmp_path: Path) -> None:
    process = started(recipe, tmp_path / "run")
    for doing in ("expert", "distil"):
        kill_a_worker(process, doing)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert digest_in(tmp_path / "run") == expected


@pytest.mark.slow(140)
def test_a_driver_is_killed_in_each_stage_of_one_run(recipe: Path, expected: str, tmp_path: Path) -> None:
    run, left = tmp_path / "run", []
    for seen in STAGES.values():
        process = started(recipe, run)
        wait_for(process, lambda seen=seen: list(run.glob(seen)), seen)  # type: ignore[misc]
        left += killed(process)
    end(left)
    assert gone_on(recipe, run) == expected


@pytest.mark.slow(30)
def test_nobody_reads_what_is_said(recipe: Path, expected: str, tmp_path: Path) -> None:
    """Neither stdout nor stderr has a reader: the run is done, and the loss of its table is its exit code."""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "dasm_ray", "distill", str(recipe), "--run", str(tmp_path / "run")]
    done = subprocess.run(words, stdout=write, stderr=write, timeout=240, check=False)
    os.close(write)
    assert done.returncode in (0, 1)
    assert digest_in(tmp_path / "run") == expected


@pytest.mark.slow(25)
def test_two_drivers_on_one_directory(recipe: Path, expected: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    both = [started(recipe, run, "--workers", "1") for _ in range(2)]
    outcomes = [(process.communicate(timeout=240)[1], process.returncode) for process in both]
    assert sorted(code for _, code in outcomes) == [0, 2], outcomes
    assert any("in use by another run" in err for err, code in outcomes if code == 2)
    assert digest_in(run) == expected


# --- an object store -------------------------------------------------------------------------------------------------


@pytest.fixture
def uri(s3_proxy: Proxy, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}?endpoint_override=127.0.0.1:{s3_proxy.server_port}&scheme=http"


def at(uri: str, name: str) -> str:
    """A place below a URI with options."""
    head, _, options = uri.partition("?")
    return f"{head}/{name}?{options}"


def stored_digest(uri: str) -> Any:
    return (Place(uri) / "synthetic" / "dataset.json").read_json()["digest"]


def seen_in(uri: str, pattern: str) -> bool:
    return bool(fnmatch.filter(Place(uri).walk()[1], pattern))


def said(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "dasm_ray", *words], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow(130)
def test_a_run_on_an_object_store(recipe: Path, expected: str, uri: str, tmp_path: Path) -> None:
    """Distilled, killed, gone on with, evaluated, loaded: one digest."""
    run = at(uri, "run")
    process = started(recipe, run)
    wait_for(process, lambda: seen_in(run, "segments/segment_001_*"), "a checkpoint of the second segment")
    end(killed(process))
    ended(started(recipe, run), 2, "in use by another run")  # nobody can see from elsewhere that it is dead
    assert age(f"{tmp_path.name}/run/.claim-", claims.STALE_SECONDS) == 1
    finished(started(recipe, run))
    assert stored_digest(run) == expected
    assert expected in said("evaluate", run, "--set", "evaluate.seeds=2").stdout
    assert digest(dasm_ray.load(run).artifact) == expected
    assert Place(run).temporaries() == {}


@pytest.mark.slow(150)
def test_a_comparison_and_a_sweep_on_an_object_store(recipe: Path, expected: str, uri: str, tmp_path: Path) -> None:
    compared = at(uri, "compared")
    said("compare", str(recipe), "--run", compared, "--select", "random", "--set", "evaluate.rows=[distilled, random]")
    assert (Place(compared) / "sets" / "small_ipc2" / "synthetic" / "dataset.json").read_json()["digest"] == expected

    plan = tmp_path / "sweep.yaml"
    plan.write_text(f"name: two\nrecipe: {recipe}\nspace: {{matcher.rounds: {{grid: [1, 3]}}}}\n")
    said("sweep", str(plan), "--run", at(uri, "swept"))
    found = {
        json.loads((Place(at(uri, "swept")) / "trials" / trial / "synthetic" / "dataset.json").read_bytes())["digest"]
        for trial in ("000", "001")
        if (Place(at(uri, "swept")) / "trials" / trial / "synthetic" / "dataset.json").exists()
    }
    assert expected in found
    assert Place(uri).temporaries() == {}


@pytest.mark.slow(95)
@pytest.mark.parametrize("seen", STAGES.values(), ids=STAGES.keys())
def test_an_outage_of_forty_seconds(recipe: Path, expected: str, uri: str, s3_proxy: Proxy, seen: str) -> None:
    """The storage answers 503 from this stage on; the command waits for it."""
    process = started(recipe, uri)
    wait_for(process, lambda: seen_in(uri, seen), seen)
    with s3_proxy.failing("busy", 40):
        time.sleep(40)
        assert process.poll() is None, process.communicate()
    finished(process)
    assert stored_digest(uri) == expected
