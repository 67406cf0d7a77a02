"""DASM, difficulty-aligned sequential matching: the loop over segments.

    probes ─▶ scores ─▶ window ─▶ start ─▶ match ─▶ freeze          ─▶ polish

What must stay true: a segment is frozen once it is done, but for the polish at the very end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dasm_ray.method.experts import Experts
from dasm_ray.method.match import match, polished
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run
from dasm_ray.method.scores import scores_before, target_of
from dasm_ray.method.sets import Segments, Target, as_kept
from dasm_ray.method.starts import start_of


class Distilled(NamedTuple):
    """All segments, and where each started."""

    segments: Segments
    starts: Segments


def distil(run: Run, experts: Experts, after_each: Callable[[Segments], None] = lambda frozen: None) -> Distilled:
    """All segments in sequence; ``after_each`` hears the segments so far."""
    frozen: Segments = []
    starts: Segments = []
    targets: list[Target] = []
    used = [np.empty(0, np.int64) for _ in range(run.classes)]
    for segment in range(run.config.synthetic.segments):
        probes = Probes(run, segment, experts, frozen)  # trained when first asked for, once a segment
        scores = scores_before(run, segment, experts, probes)  # every real image, in shards; read where on disk
        targets.append(target_of(run, segment, scores))  # what this segment may see, class by class
        start, used = start_of(run, segment, scores, targets[-1], used, experts, frozen)
        starts.append(start)
        frozen.append(match(run, segment, start, experts, probes, frozen, targets))
        starts[-1] = as_kept(starts[-1], frozen[-1])  # on disk, they need not stay with the workers
        if len(frozen) == run.config.synthetic.segments and run.config.rounds_of(len(frozen)):
            frozen = polished(run, frozen, experts, targets)  # at the very end, all move once more
        after_each(frozen)
    return Distilled(frozen, starts)
