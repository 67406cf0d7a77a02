"""All segments in sequence, each distilled from its window by the base matcher.

What must stay true: a segment is frozen once it is done; a checkpoint is enough to go on from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dasm_ray.method.experts import Experts
from dasm_ray.method.match import match_gradients, match_trajectories, started_at
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.scores import StaticScores, scores_before
from dasm_ray.method.sets import Indices, Segments
from dasm_ray.runtime.pool import Task, fetch


def distil_segments(
    here: Here, trained: Experts, told: Callable[[Segments], None] = lambda frozen: None
) -> tuple[Segments, Segments]:
    """All segments in sequence, and where each started. ``told`` hears the segments so far after each."""
    static_scores = StaticScores(here, trained)
    frozen: Segments = []
    started: Segments = []
    windows: list[list[Indices]] = []
    used = [np.empty(0, np.int64) for _ in range(here.classes)]
    for segment in range(here.config.synthetic.segments):
        found = scores_before(here, segment, trained, frozen, static_scores)
        # Soft labels start as what experts say (DATM): only of images that they know is that worth learning.
        seen = found.window & found.known if here.config.learns_labels else found.window
        windows.append([np.flatnonzero(seen[found.label == label]) for label in range(here.classes)])
        (start,) = run_all(
            here,
            [Task(f"start of segment {segment + 1}", "initialise", (here.job, segment, windows[-1], used), outputs=2)],
        )
        used = [np.concatenate(pair) for pair in zip(used, start.value, strict=True)]
        started.append(started_at(here, trained, fetch(start.refs[0]), frozen))
        distil = match_trajectories if here.config.is_trajectory else match_gradients
        frozen.append(distil(here, segment, trained, frozen, windows, started[-1]))
        told(frozen)
    return frozen, started
