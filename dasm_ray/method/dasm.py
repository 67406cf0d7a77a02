"""DASM, difficulty-aligned sequential matching: the loop over segments.

    probes ─▶ scores ─▶ window ─▶ start ─▶ match ─▶ freeze

What must stay true: a segment is frozen once it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dasm_ray.method.experts import Experts, soft_labels
from dasm_ray.method.match import match
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.scores import scores_before, window_of
from dasm_ray.method.sets import Images, Indices, Pixels, Segment, Segments, labels_of, stored
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.worker import Worker


class Distilled(NamedTuple):
    """All segments, and where each started."""

    segments: Segments
    starts: Segments


def distil(run: Run, experts: Experts, after_each: Callable[[Segments], None] = lambda frozen: None) -> Distilled:
    """All segments in sequence; ``after_each`` hears the segments so far."""
    frozen: Segments = []
    starts: Segments = []
    windows: list[list[Indices]] = []
    used = [np.empty(0, np.int64) for _ in range(run.classes)]
    for segment in range(run.config.synthetic.segments):
        probes = Probes(run, segment, experts, frozen)  # trained when first asked for, once a segment
        scores = scores_before(run, segment, experts, probes)  # every real image, in shards; read where on disk
        windows.append(window_of(run, scores))  # what this segment may see, class by class
        start, used = start_of(run, segment, windows[-1], used, experts, frozen)
        starts.append(start)
        frozen.append(match(run, segment, start, experts, probes, frozen, windows))
        after_each(frozen)
    return Distilled(frozen, starts)


def start_of(
    run: Run, segment: int, window: list[Indices], used: list[Indices], experts: Experts, frozen: Segments
) -> tuple[Segment, list[Indices]]:
    """A segment before its first round, and the within-class indices of all real images that started one by now."""
    (start,) = run_all(
        run, [task(f"start of segment {segment + 1}", Worker.initialise, run.job, segment, window, used)]
    )
    used = [np.concatenate(pair) for pair in zip(used, start.value, strict=True)]
    return _with_labels(run, experts, run.pool.fetch(start.refs[0]), frozen), used


def _with_labels(run: Run, experts: Experts, pixels: Pixels, frozen: Segments) -> Segment:
    """Soft labels are the experts', the student's rate goes on from the last segment; other matchers have neither."""
    if not run.config.is_trajectory:
        return Segment(pixels)
    rate = frozen[-1].step_size if frozen else run.config.trajectory.step_size
    if not run.config.learns_labels:
        return Segment(pixels, None, rate)
    images = Images(pixels.reshape(-1, *pixels.shape[2:]), labels_of(pixels), None, is_normalised=True)
    (logits,) = soft_labels(run, experts, [stored(run, images)])
    return Segment(pixels, logits.reshape(*pixels.shape[:2], -1), rate)
