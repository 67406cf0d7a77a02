"""Where each segment starts: real images drawn from its window or chosen by the loop, and the labels to begin with.

What must stay true: a real image starts one segment at most, while its class has unused ones.
"""

from __future__ import annotations

import numpy as np

from dasm_ray.method.experts import Experts, soft_labels
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Images, Indices, Pixels, Segment, Segments, Target, labels_of, stored
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.worker import ClassStanding, Worker
from dasm_ray.store.checkpoints import Scores


def start_of(
    run: Run,
    segment: int,
    scores: Scores,
    target: Target,
    used: list[Indices],
    experts: Experts,
    frozen: Segments,
) -> tuple[Segment, list[Indices]]:
    """A segment before its first round, and the within-class indices of all real images that started one by now."""
    chosen = _chosen(run, segment, scores, target, used, experts) if run.config.synthetic.init == "loop" else None
    (start,) = run_all(
        run, [task(f"start of segment {segment + 1}", Worker.initialise, run.job, segment, target.window, used, chosen)]
    )
    used = [np.concatenate(pair) for pair in zip(used, start.value, strict=True)]
    return _with_labels(run, experts, run.pool.fetch(start.refs[0]), frozen), used


def _chosen(
    run: Run, segment: int, scores: Scores, target: Target, used: list[Indices], experts: Experts
) -> list[Indices]:
    """What a segment starts from by the loop, class by class: the frontier's easiest, then what covers the target."""
    known = [
        ClassStanding(*each, scores.static[scores.label == label])
        for label, each in enumerate(zip(target.window, used, target.frontier, strict=True))
    ]
    name = f"choice for segment {segment + 1}, class"
    first = experts.snapshots[:1]
    tasks = [
        task(f"{name} {label}", Worker.choose_start, run.job, segment, label, first, each)
        for label, each in enumerate(known)
    ]
    return [done.value for done in run_all(run, tasks)]


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
