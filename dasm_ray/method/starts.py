"""Where each segment starts: real images drawn from its window or chosen by the loop, and the labels to begin with.

What must stay true: a real image starts one segment at most, while its class has unused ones.
"""

from __future__ import annotations

import numpy as np

from dasm_ray.config.keys import CHOSEN_STARTS
from dasm_ray.errors import ArtifactError
from dasm_ray.method.experts import Experts, soft_labels
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Held, Images, Indices, Segment, Segments, Target, labels_of, stored
from dasm_ray.runtime.groups import groups_in
from dasm_ray.runtime.pool import Done, task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import ClassStanding, Worker
from dasm_ray.store.checkpoints import KeptPixels, Scores, group_name, read_start


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
    is_chosen = run.config.synthetic.init in CHOSEN_STARTS
    chosen = _chosen(run, segment, scores, target, used, experts) if is_chosen else None
    begun = _begun(run, segment, target, used, chosen)

    def again() -> list[ObjectRef]:
        return [done.refs[0] for done in _begun(run, segment, target, used, chosen)]

    taken = [indices for done in begun for indices in done.value]
    start = Segment(Held(run.pool, [done.refs[0] for done in begun], run.classes, again))
    return _with_labels(run, experts, start, frozen), [np.concatenate(pair) for pair in zip(used, taken, strict=True)]


def _begun(run: Run, segment: int, target: Target, used: list[Indices], chosen: list[Indices] | None) -> list[Done]:
    """Where the groups of a segment begin: the within-class indices used, and a reference to pixels, of each.

    For trajectories, which go through a segment as a whole, of all classes as one.
    """

    def of(classes: tuple[int, ...], values: list[Indices]) -> list[Indices]:
        return [values[label] for label in classes]

    groups = [tuple(range(run.classes))] if run.config.is_trajectory else groups_in(run.config, run.classes)
    tasks = [
        task(
            f"start of segment {segment + 1}, group {number}",
            Worker.initialise,
            run.job,
            segment,
            classes,
            of(classes, target.window),
            of(classes, used),
            None if chosen is None else of(classes, chosen),
        )
        for number, classes in enumerate(groups)
    ]
    return run_all(run, tasks)


def _chosen(
    run: Run, segment: int, scores: Scores, target: Target, used: list[Indices], experts: Experts
) -> list[Indices]:
    """What a segment starts from by choice, class by class: images of the frontier, then what covers the target."""
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


def _with_labels(run: Run, experts: Experts, start: Segment, frozen: Segments) -> Segment:
    """Soft labels are the experts', the student's rate goes on from the last segment; other matchers have neither."""
    if not run.config.is_trajectory:
        return start
    pixels, rate = start.pixels, frozen[-1].step_size if frozen else run.config.trajectory.step_size
    if not run.config.learns_labels:
        return Segment(pixels, None, rate)
    images = Images(pixels.reshape(-1, *pixels.shape[2:]), labels_of(pixels), None, is_normalised=True)
    (logits,) = soft_labels(run, experts, [stored(run, images)])
    return Segment(pixels, logits.reshape(*pixels.shape[:2], -1), rate)


# --- of a finished set -------------------------------------------------------------------------------------------


def kept_starts(run: Run) -> Segments:
    """Where the segments of a finished set began, as its checkpoints have it, without labels that are learned.

    Read through once, a group at a time, so that what is missing is known before anything is trained. Raises
    ArtifactError where it is not there or is not this run's: to find it again, segments would have to be distilled.
    """
    starts = [_kept_start(run, segment) for segment in range(run.config.synthetic.segments)]
    for segment, start in enumerate(starts):
        if start is None:
            raise ArtifactError(
                f"{run.place / 'segments'}: where segment {segment + 1} began is not there any more; leave initial out "
                f"of evaluate.rows, or distil the set anew in another --run"
            )
    return [start for start in starts if start is not None]


def _kept_start(run: Run, segment: int) -> Segment | None:
    place = run.place / "segments"
    if run.config.is_trajectory:
        pixels = read_start(place, segment, run.key)
        return None if pixels is None else Segment(pixels, None, run.config.trajectory.step_size)
    groups = len(groups_in(run.config, run.classes))
    if not {group_name(segment, group) for group in range(groups)} <= set(place.names()):
        return None
    start = Segment(KeptPixels(place, segment, run.key, groups, run.classes, "initial"))
    return start if sum(len(part) for part in start.parts()) == run.classes else None


def labelled(run: Run, experts: Experts | None, starts: Segments) -> Segments:
    """Kept starts with the labels that they began with, where these are learned: the experts'."""
    if not run.config.learns_labels:
        return starts
    assert experts is not None, "learned labels are theirs"
    return [_with_labels(run, experts, start, []) for start in starts]
