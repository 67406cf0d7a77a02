"""The whole command on a cluster that grows from nothing: Ray's own autoscaler, with nodes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Autoscaling, autoscaling

RECIPE = """
name: growing
seed: 7
data: {name: digits}
model: {width: 8, depth: 1}
synthetic: {ipc: 2, segments: 2, group_size: 4}
experts: {count: 3, epochs: 2, batch: 64, cutmix: 0.0}
matcher: {rounds: 4, networks: 4, lr_img: 0.01, scale_lr: false, snapshots: [[0, 3]], context: residual}
score: {early: 1, batch: 100}
probe: {epochs: 10, batch: 20, members: 2}
evaluate: {epochs: 4, full_epochs: 1, batch: 20, seeds: 2, checkpoints: 2, rows: [distilled, random]}
runtime: {compile: false, checkpoint_seconds: 0, page: false, device: cpu, idle_seconds: 5}
"""

pytestmark = pytest.mark.slow(40)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "growing.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Autoscaling]:
    """Nodes of four cores and one GPU, which nobody has: what counts is that Ray gives it to one worker at a time."""
    with autoscaling({"CPU": 4, "GPU": 1}, most=3) as found:
        yield found


@pytest.fixture(scope="module")
def local(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the same recipe on this machine alone."""
    run = tmp_path_factory.mktemp("local") / "run"
    process = begun(recipe, run, "--workers", "2")
    assert process.wait(180) == 0, process.stderr.read() if process.stderr else ""
    return digest_of(run)


def begun(recipe: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dasm_ray.cli", "distill", str(recipe), "--run", str(run), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def on(cluster: Autoscaling) -> tuple[str, ...]:
    return ("--address", cluster.address, "--workers", "3", "--set", "runtime.gpus_per_worker=1")


def digest_of(run: Path) -> str:
    return str(json.loads((run / "synthetic" / "dataset.json").read_text())["digest"])


def rounds_of(run: Path) -> int:
    """Rounds done so far in the first segment."""
    events = run / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return max((line["done"] for line in lines if line["kind"] == "progress" and line["stage"] == "distil"), default=0)


def test_nodes_come_for_a_run_and_go_after_it(cluster: Autoscaling, recipe: Path, local: str, tmp_path: Path) -> None:
    cluster.wait_for(0, 30)
    cluster.counts.clear()
    process = begun(recipe, tmp_path / "run", *on(cluster))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert digest_of(tmp_path / "run") == local
    cluster.wait_for(0, 60)
    time.sleep(1)
    # A node has cores for four workers but one GPU, so that three workers are three nodes.
    assert cluster.counts[0] == cluster.counts[-1] == 0
    assert max(cluster.counts) == 3
    print(f"\nnodes over time: {cluster.counts}")


def test_a_node_killed_in_the_middle_changes_nothing(
    cluster: Autoscaling, recipe: Path, local: str, tmp_path: Path
) -> None:
    process = begun(recipe, tmp_path / "run", *on(cluster))
    end = time.monotonic() + 120
    while not rounds_of(tmp_path / "run"):
        assert time.monotonic() < end, "no round was done in time"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(cluster.raylets()[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert digest_of(tmp_path / "run") == local
    cluster.wait_for(0, 60)


@pytest.mark.slow(85)
def test_a_sweep_is_what_the_cluster_grows_by(cluster: Autoscaling, recipe: Path, local: str, tmp_path: Path) -> None:
    """Three trials of one worker with a GPU: three placement groups that wait, so three nodes, and none afterwards."""
    cluster.wait_for(0, 60)
    cluster.counts.clear()
    space = "space: {matcher.lr_img: {grid: [0.01, 1.0e-6, 2.0e-6]}}"
    (tmp_path / "sweep.yaml").write_text(f"name: three\nrecipe: {recipe}\n{space}\n")
    command = [
        sys.executable,
        "-m",
        "dasm_ray.cli",
        "sweep",
        str(tmp_path / "sweep.yaml"),
        "--run",
        str(tmp_path / "run"),
    ]
    command += ["--address", cluster.address, "--set", "runtime.gpus_per_worker=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    found = [json.loads(file.read_text()) for file in sorted((tmp_path / "run" / "found").iterdir())]
    assert [(each["done"], each["begun"]) for each in found] == [(True, 1)] * 3
    assert max(cluster.counts) == 3
    config = ["--address", cluster.address, "--workers", "1", "--set", "runtime.gpus_per_worker=1"]
    trial = begun(recipe, tmp_path / "run" / "trials" / "000", *config)
    assert trial.wait(240) == 0, trial.stderr.read() if trial.stderr else ""
    assert digest_of(tmp_path / "run" / "trials" / "000") == local, "another digest than of a run alone"
    cluster.wait_for(0, 60)


@pytest.mark.slow(10)
@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (["runtime.gpus_per_worker=4"], "4 GPUs"),
        (["runtime.gpus_per_worker=0", "runtime.memory_per_worker=10000"], "10000 GiB"),
        (["runtime.gpus_per_worker=0", "runtime.cpus_per_worker=64"], "64 cores"),
    ],
    ids=["GPUs", "memory", "cores"],
)
def test_what_no_node_can_have_is_refused_in_seconds(
    cluster: Autoscaling, recipe: Path, tmp_path: Path, wanted: list[str], named: str
) -> None:
    start = time.monotonic()
    options = ["--address", cluster.address, "--workers", "2"]
    process = begun(recipe, tmp_path / "run", *options, *(word for key in wanted for word in ("--set", key)))
    _, errors = process.communicate(timeout=60)
    print(f"\n{wanted[-1]}: refused in {time.monotonic() - start:.1f} s, of which Python and Ray's client take some")
    assert process.returncode == 2, errors
    last = errors.splitlines()[-1]
    assert last.startswith("dasm-ray: ")
    assert named in last
    assert not (tmp_path / "run").exists()
