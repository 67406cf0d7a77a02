"""The whole command in a process of its own, watched, killed and begun again: what tests of whole runs share."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

LIMIT = 240
"""Seconds after which a command counts as hanging."""

SMALL = """
name: small
seed: 7
data: {name: digits}
model: {width: 8, depth: 1}
synthetic: {ipc: 2, segments: 2, factor: 2, group_size: 4}
experts: {count: 2, epochs: 2, batch: 64, cutmix: 0.5}
matcher: {rounds: 3, networks: 4, lr_img: 0.01, scale_lr: false, snapshots: [[0, 3]], perturb: 0.1,
          probe_share: 0.3, context: residual}
score: {early: 1, batch: 100}
probe: {epochs: 10, batch: 20, members: 2}
evaluate: {epochs: 4, full_epochs: 1, batch: 20, seeds: 1, checkpoints: 2, rows: [distilled, random]}
runtime: {compile: false, checkpoint_seconds: 0, page: false}
"""

TRAJECTORIES = """
name: walks
seed: 5
data: {name: digits, zca: 0.1}
model: {width: 8, depth: 1}
synthetic: {ipc: 2, segments: 2}
experts: {count: 3, epochs: 4, batch: 64, rho: 0.01, cutmix: 0.0}
matcher: {name: datm, rounds: 4, augment: crop_flip, context: residual}
trajectory: {steps: 4, epochs: 1, batch: 10, lanes: 3, starts: [[0, 1, 3]], expansion: 2, lr_img: 1, threshold: 100}
score: {early: 1, batch: 100}
probe: {epochs: 10, batch: 20, members: 1}
evaluate: {epochs: 4, full_epochs: 1, batch: 20, seeds: 1, checkpoints: 2, rows: [distilled, initial, random, full]}
runtime: {compile: false, checkpoint_seconds: 0, page: false}
"""


def command(recipe: Path, run: Path | str, *options: str) -> list[str]:
    return [sys.executable, "-m", "dasm_ray.cli", "distill", str(recipe), "--run", str(run), *options]


def started(recipe: Path, run: Path | str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(recipe, run, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What the command printed on stdout; it must have succeeded."""
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return out


def digest_in(run: Path) -> str:
    return str(json.loads((run / "synthetic" / "dataset.json").read_text())["digest"])


def wait_for(process: subprocess.Popen[str], found: Callable[[], object], what: str) -> None:
    """Until ``found``; a command that ended before is told with what it said."""
    deadline = time.monotonic() + LIMIT
    while not found():
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"never saw {what}"
        time.sleep(0.05)


def workers_of(process: subprocess.Popen[str], doing: str) -> list[psutil.Process]:
    """The driver's worker processes that are at a method now: Ray names a process after it."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(f"Worker.{doing}" in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_a_worker(process: subprocess.Popen[str], doing: str) -> None:
    """The first that is seen at a method, at once: in the next moment it may be at another."""

    def struck() -> bool:
        for worker in workers_of(process, doing)[:1]:
            worker.kill()
            return True
        return False

    wait_for(process, struck, f"a worker at {doing}")


def killed(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Kills the driver, as a machine out of memory would; what Ray leaves behind, which ends itself within a minute."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    return children


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
