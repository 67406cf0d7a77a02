"""Probes: networks trained on the segments so far, which say what is still hard.

What must stay true: a probe follows from the run's seed, its segment and its number.
"""

from __future__ import annotations

from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.sets import Segments, flattened
from dasm_ray.runtime.pool import Ref, Task, put


def probes_before(here: Here, segment: int, trained: Experts, frozen: Segments) -> tuple[Ref, ...]:
    """Networks that know the segments so far; before the first, experts after one epoch."""
    if not frozen:
        return trained.early[: here.config.probe.members]
    pixels, hard, soft, _ = flattened(frozen)
    labels = hard if soft is None else soft
    where = put(pixels)  # in a tuple it travels as a reference; on its own Ray would send the pixels
    members = here.config.probe.members
    here.progress.stage("probes", members, here.of(segment))
    tasks = [
        Task(f"probe {m} before segment {segment + 1}", "probe", (here.job, segment, m, (where,), labels), 2)
        for m in range(members)
    ]
    return tuple(done.refs[0] for done in run_all(here, tasks, lambda _: here.progress.advance()))
