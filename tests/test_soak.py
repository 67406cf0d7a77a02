"""Many random faults, one after another, while sets are distilled on nodes that come and go; slow.

``DASM_SOAK_FAULTS`` (50 unless set) is how many, ``DASM_SOAK_SEED`` repeats a sequence; both are printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from clusters import Autoscaling, autoscaling

RECIPE = """
name: soaked
seed: 3
data: {name: digits}
model: {width: 8, depth: 1}
synthetic: {ipc: 2, segments: 2, group_size: 4}
experts: {count: 2, epochs: 3, batch: 64, cutmix: 0.0}
matcher: {rounds: 12, networks: 6, lr_img: 0.01, scale_lr: false, snapshots: [[0, 3]], probe_share: 0.3,
          context: residual}
score: {early: 1, batch: 100}
probe: {epochs: 10, batch: 20, members: 2}
evaluate: {epochs: 4, full_epochs: 1, batch: 20, seeds: 2, checkpoints: 2, rows: [distilled, random]}
runtime: {compile: false, checkpoint_seconds: 0, page: false, device: cpu, max_lost: 40}
"""

FAULTS = ("worker", "worker", "worker", "node", "node", "driver", "driver stopped")
HANG_SECONDS = 150
"""A run in which nothing happens for so long hangs: nodes take 5 seconds to come and 2 to be missed."""

ACTORS = """
import json, sys
import ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps([actor["State"] for actor in ray._private.state.actors().values()]))
"""

pytestmark = pytest.mark.slow(240)


class Soak:
    """One run after another, and what was done to them."""

    def __init__(self, cluster: Autoscaling, recipe: Path, folder: Path, expected: str, draw: random.Random) -> None:
        self.cluster, self.recipe, self.folder, self.expected, self.draw = cluster, recipe, folder, expected, draw
        self.faults: Counter[str] = Counter()
        self.runs = self.starts = 0
        self.longest_quiet = 0.0

    def distil_once(self, faults: int) -> None:
        """One run to its end, started again whenever it is killed, under faults until there were so many in all."""
        run = self.folder / f"run{self.runs}"
        while True:
            code = self._drive(run, faults)
            if code == 0:
                break
            said = (run.parent / "errors").read_text()
            late = code == -signal.SIGINT and "\ndigest " in said  # all was done, and the interpreter on its way out
            assert late or code in (-signal.SIGKILL, 130), f"exit code {code}: {said[-2000:]}"
        kept = json.loads((run / "synthetic" / "dataset.json").read_text())["digest"]
        assert kept == self.expected, f"after {dict(self.faults)} in run {self.runs}"
        self.runs += 1

    def _drive(self, run: Path, faults: int) -> int:
        """One start of the command, until it ends or is killed."""
        command = [
            sys.executable,
            "-m",
            "dasm_ray.cli",
            "distill",
            str(self.recipe),
            "--run",
            str(run),
            "--workers",
            "2",
        ]
        options = ["--address", self.cluster.address, "--set", "runtime.gpus_per_worker=1"]
        self.starts += 1
        with (run.parent / "errors").open("w") as errors:
            driver = subprocess.Popen([*command, *options], stdout=errors, stderr=errors)
        next_fault, seen, quiet_since = time.monotonic() + self.draw.uniform(1, 12), "", time.monotonic()
        while driver.poll() is None:
            time.sleep(0.1)
            last = _last_event(run)
            if last != seen:
                seen, quiet_since = last, time.monotonic()
            self.longest_quiet = max(self.longest_quiet, time.monotonic() - quiet_since)
            assert self.longest_quiet < HANG_SECONDS, f"nothing for {HANG_SECONDS} s after {seen}"
            if time.monotonic() >= next_fault and self.faults.total() < faults:
                self._break_something(driver)
                next_fault = time.monotonic() + self.draw.uniform(1, 8)
        return driver.returncode

    def _break_something(self, driver: subprocess.Popen[bytes]) -> None:
        kind = self.draw.choice(FAULTS)
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if kind == "driver":
                driver.kill()
            elif kind == "driver stopped":
                driver.send_signal(signal.SIGINT)
            else:
                victims = self.cluster.raylets() if kind == "node" else self.cluster.workers()
                if not victims:
                    return  # none has come yet
                self.draw.choice(victims).kill()
            self.faults[kind] += 1


def _last_event(run: Path) -> str:
    events = run / "events.jsonl"
    return events.read_text()[-300:] if events.exists() else ""


def _digest_alone(recipe: Path, run: Path) -> str:
    command = [sys.executable, "-m", "dasm_ray.cli", "distill", str(recipe), "--run", str(run)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return str(json.loads((run / "synthetic" / "dataset.json").read_text())["digest"])


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def _mine() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.mark.timeout(3600)
def test_no_fault_changes_a_result_hangs_a_run_or_leaves_anything(tmp_path: Path) -> None:
    many = int(os.environ.get("DASM_SOAK_FAULTS", "50"))
    seed = int(os.environ.get("DASM_SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\n{many} faults, seed {seed}")
    recipe = tmp_path / "soaked.yaml"
    recipe.write_text(RECIPE)
    expected = _digest_alone(recipe, tmp_path / "alone")
    processes, files, start = _mine(), _shared_memory(), time.monotonic()
    with autoscaling({"CPU": 1, "GPU": 1}, most=2) as cluster:
        soak = Soak(cluster, recipe, tmp_path, expected, random.Random(seed))
        while soak.faults.total() < many:
            soak.distil_once(many)
        cluster.wait_for(0, 90)  # nothing holds a node any more
        listed = subprocess.run(
            [sys.executable, "-c", ACTORS, cluster.address], check=True, capture_output=True, text=True, timeout=60
        )
        states = Counter(json.loads(listed.stdout.splitlines()[-1]))
        assert set(states) <= {"DEAD"}
        assert cluster.workers() == []
    minutes = (time.monotonic() - start) / 60
    assert {each for each in _mine() - processes if each.is_running() and each.status() != "zombie"} == set()
    assert _shared_memory() - files == set()
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(soak.faults.items()))
    print(f"{soak.faults.total()} faults ({told}) in {minutes:.1f} minutes, {soak.runs} runs in {soak.starts} starts:")
    print(f"every digest {expected}; longest time without an event {soak.longest_quiet:.0f} s; no actor left")
