"""A whole run of the embedded default as a command, by stage: wall seconds as its own log has them.

What must stay true: it is the command that a user types, in a fresh process and a run directory of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

QUICK = ("matcher.networks=4", "matcher.rounds=4", "probe.epochs=5", "evaluate.epochs=5", "evaluate.full_epochs=1")


class DemoFailed(Exception):
    """The command did not succeed; what it said."""


def demo(quick: bool) -> dict[str, Any]:
    """Seconds of the whole command, until its first stage, and by stage. DemoFailed with what it said at the end."""
    from dasm_ray.store.events import read_events
    from dasm_ray.store.place import Place

    with tempfile.TemporaryDirectory(prefix="dasm-ray-bench-") as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "dasm_ray", "distill", str(ROOT / "configs/digits.yaml"), "--run", str(run)]
        changes = [part for change in QUICK if quick for part in ("--set", change)]
        began, clock = time.time(), time.perf_counter()
        done = subprocess.run([*command, *changes], cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - clock
        if done.returncode != 0:
            raise DemoFailed(done.stderr.strip()[-500:])
        return {"seconds": seconds, **by_stage(list(read_events(Place(str(run)))), began)}


def by_stage(events: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """Seconds until the first stage of a log and of every stage, in order; stages of one name are added up."""
    stages: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("kind") == "stage_end":
            stages[str(event["stage"])] += float(event["seconds"])
    first = next(float(event["time"]) for event in events if event.get("kind") == "stage")
    return {"start": first - began, "stages": dict(stages)}
