"""One segment distilled by its base matcher, from its checkpoint if there is one: by groups, or by lanes.

What must stay true: a checkpoint is enough to go on from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dasm_ray.core.matching.lane import begun, shift_of, stalled, start_range
from dasm_ray.method.experts import Experts, expert_tasks, taught
from dasm_ray.method.probes import probes_before
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.sets import Images, Indices, Pixels, Segment, Segments, labels_of, training_on
from dasm_ray.runtime.groups import SegmentRun, Surrounding
from dasm_ray.runtime.lanes import LaneRun
from dasm_ray.runtime.pool import Ref, Task, put
from dasm_ray.runtime.worker import Around


def started_at(here: Here, trained: Experts, pixels: Pixels, frozen: Segments) -> Segment:
    """A segment before its first round; soft labels are the experts', the student's rate goes on from the last one."""
    if not here.config.is_trajectory:
        return Segment(pixels)
    rate = frozen[-1].step_size if frozen else here.config.trajectory.step_size
    if not here.config.learns_labels:
        return Segment(pixels, None, rate)
    images = Images(pixels.reshape(-1, *pixels.shape[2:]), labels_of(pixels), None, is_normalised=True)
    return Segment(pixels, taught(here, trained, [training_on(images)])[0].reshape(*pixels.shape[:2], -1), rate)


def match_gradients(
    here: Here, segment: int, trained: Experts, frozen: Segments, windows: list[list[Indices]], start: Segment
) -> Segment:
    """Distils one segment group by group, from its checkpoint if there is one."""
    run = SegmentRun(here.job, here.pool, here.progress, here.place / "segments", here.key, segment, start.pixels)
    needs_probes = here.config.matcher.probe_share > 0 and run.rounds_done < run.rounds_total
    experts = _snapshots(here, trained)

    def surroundings() -> Surrounding:
        probes = probes_before(here, segment, trained, frozen) if needs_probes else ()
        seen, before = put(windows), put(_joined([each.pixels for each in frozen], start.pixels))
        snapshots = experts() if here.config.states == "experts" else ()
        here.progress.stage("distil", run.rounds_total, here.of(segment), done=run.rounds_done)
        return lambda beside: Around(seen, before, beside, snapshots, probes)

    return Segment(run.run(surroundings))


def match_trajectories(
    here: Here, segment: int, trained: Experts, frozen: Segments, windows: list[list[Indices]], start: Segment
) -> Segment:
    """Distils one segment as a whole, in rounds of lanes, from its checkpoint if there is one."""
    labels = _probabilities(start)
    assert start.step_size is not None
    alone = here.config.matcher.context == "alone"
    before = [] if alone else [(each.pixels, _probabilities(each)) for each in frozen]
    earlier = put((_joined([p for p, _ in before], start.pixels), _joined([each for _, each in before], labels)))
    run = LaneRun(
        here.job,
        here.pool,
        here.progress,
        here.place / "segments",
        here.key,
        segment,
        begun(start.pixels, labels, math.log(start.step_size)),
        earlier,
        _snapshots(here, trained),
        _shift(here, segment, trained, frozen),
    )
    here.progress.stage("distil", run.rounds_total, here.of(segment), done=run.rounds_done)
    state = run.run()
    logits = state["labels"] if here.config.learns_labels else None
    return Segment(state["pixels"], logits, math.exp(float(state["log_step"])))


def _snapshots(here: Here, trained: Experts) -> Callable[[], tuple[Ref, ...]]:
    """Gives the references to the experts' trajectories; when asked again, new ones from their files."""
    known = iter((trained.snapshots,))

    def references() -> tuple[Ref, ...]:
        if (first := next(known, None)) is not None:
            return first
        return tuple(done.refs[0] for done in run_all(here, expert_tasks(here)))

    return references


def _shift(here: Here, segment: int, trained: Experts, frozen: Segments) -> int:
    """Epochs by which a segment's start epochs are moved; says which stretches of experts teach nothing."""
    trajectory = here.config.trajectory
    shift = 0
    if frozen and trajectory.by_probe:
        (loss,) = run_all(
            here, [Task("loss of the probe", "loss_of", (here.job, probes_before(here, segment, trained, frozen)))]
        )
        shift = shift_of(trained.losses, loss.value)
    first, last = start_range(here.config, segment, here.config.matcher.rounds, shift)
    begin, _ = start_range(here.config, segment, 0, shift)
    here.progress.note(f"segment {segment + 1}: students start at expert epochs {begin} to {last - 1}")
    idle = [(who, when) for who, when in stalled(trained.losses, trajectory.epochs) if first <= when < last]
    if idle:
        share = len(idle) / (len(trained.losses) * (last - first))
        here.progress.note(
            f"{share:.0%} of the expert stretches to match do not lower the expert's own loss (such as expert "
            f"{idle[0][0]}, epoch {idle[0][1]}); matching them teaches nothing: lower trajectory.starts"
        )
    return shift


def _probabilities(segment: Segment) -> Pixels:
    """The labels that a student is trained with, (K, m, K): logits where they are learned, else certainties."""
    if segment.logits is not None:
        return segment.logits
    classes, many = segment.pixels.shape[:2]
    return np.repeat(np.eye(classes, dtype=np.float32)[:, None], many, axis=1)


def _joined(parts: list[Pixels], like: Pixels) -> Pixels:
    """Segments (K, m, ...) side by side; none of them: (K, 0, ...)."""
    return np.concatenate([like[:, :0], *parts], axis=1)
