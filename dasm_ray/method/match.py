"""One segment distilled by its base matcher, from its checkpoint if there is one: by groups, or in rounds of lanes.

What must stay true: a checkpoint is enough to go on from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from dasm_ray.core.matching.lane import shift_of, stalled, start_epochs
from dasm_ray.core.matching.setstate import SetState
from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import Experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Held, Pixels, Segment, Segments, Target
from dasm_ray.method.strata import strata_of
from dasm_ray.runtime.groups import Renewed, SegmentRun, Starts, groups_in
from dasm_ray.runtime.lanes import Guides, LaneRun
from dasm_ray.runtime.worker import RoundInputRefs
from dasm_ray.store.checkpoints import KeptPixels, not_finite, start_name, write_start


def match(
    run: Run,
    segment: int,
    start: Segment,
    experts: Experts,
    probes: Probes,
    frozen: Segments,
    targets: list[Target],
) -> Segment:
    """Segment ``segment`` from its ``start`` to the distilled one; ``targets`` are of all segments up to it."""
    done: Segment = WALKS[run.config.base.family](run, segment, start, experts, probes, frozen, targets)
    return done


def polished(run: Run, segments: Segments, experts: Experts, targets: list[Target]) -> Segments:
    """All segments, once more, by the base matcher: nothing is frozen, and all of them are held against all windows.

    As if they were one more segment, number K, that starts as all of them together.
    """
    number, sizes = run.config.synthetic.segments, [each.shape[1] for each in segments]
    logits = [each.logits for each in segments if each.logits is not None]
    start = Segment(
        np.concatenate([each.pixels for each in segments], axis=1),
        np.concatenate(logits, axis=1) if logits else None,
        segments[-1].step_size,
    )
    every = [
        functools.reduce(np.union1d, of_class) for of_class in zip(*(each.window for each in targets), strict=True)
    ]
    seen = Target(every, [np.empty(0, np.int64)] * run.classes)  # no probe of it says what is hard
    done = match(run, number, start, experts, Probes(run, number, experts, segments), [], [*targets, seen])
    edges = np.cumsum(sizes)[:-1]
    parts = np.split(done.pixels, edges, axis=1)
    of_labels = [None] * len(parts) if done.logits is None else np.split(done.logits, edges, axis=1)
    return [Segment(pixels, own, done.step_size) for pixels, own in zip(parts, of_labels, strict=True)]


def _by_groups(
    run: Run,
    segment: int,
    start: Segment,
    experts: Experts,
    probes: Probes,
    frozen: Segments,
    targets: list[Target],
) -> Segment:
    """Gradients and distributions: groups of classes, each in rounds of its own."""
    place, (starts, starts_again) = run.place / "segments", _starts(run, start)
    groups = SegmentRun(run.job, run.pool, run.progress, place, run.key, segment, starts)
    is_done = groups.rounds_done == groups.rounds_total

    def inputs() -> RoundInputRefs:
        networks = probes.networks if run.config.probe_share_of(segment) and not is_done else ()
        bank = probes.bank if not is_done else ()
        snapshots = experts.snapshots if run.config.states == "experts" else ()
        nothing = np.empty((run.classes, 0, *run.real.shape), np.float32)
        earlier = run.pool.put(_joined([each.pixels for each in frozen], nothing))
        strata = strata_of(run, experts) if run.config.matcher.strata else ()
        run.progress.stage("distil", groups.rounds_total, run.of(segment), done=groups.rounds_done)
        windows = run.pool.put([each.window for each in targets])
        frontier = tuple(map(run.pool.put, targets[-1].frontier)) if run.config.matcher.frontier_share else ()
        return RoundInputRefs(windows, earlier, snapshots, networks, strata=strata, bank=bank, frontier=frontier)

    def renewed() -> Renewed:
        experts.read_again()
        probes.forget()
        return Renewed(inputs(), starts_again())

    many, rounds = groups.run(inputs(), renewed), run.config.rounds_of(segment)
    return Segment(KeptPixels(place, segment, run.key, many, run.classes, "pixels", rounds))


def _starts(run: Run, start: Segment) -> tuple[Starts, Callable[[], Starts]]:
    """References to where the groups of a segment begin, and what makes them again."""
    if isinstance(start.stored, Held):
        return start.stored.refs, start.stored.again
    pixels, groups = start.pixels, groups_in(run.config, run.classes)
    refs = [run.pool.put(pixels[classes[0] : classes[-1] + 1].copy()) for classes in groups]  # here, so they stay
    return refs, lambda: refs


def _by_lanes(
    run: Run,
    segment: int,
    start: Segment,
    experts: Experts,
    probes: Probes,
    frozen: Segments,
    targets: list[Target],
) -> Segment:
    """Trajectories: the segment as a whole, in rounds of lanes."""
    assert start.step_size is not None
    labels = _labels(start)
    before = [] if run.config.matcher.context == "alone" else frozen
    earlier = (
        _joined([each.pixels for each in before], start.pixels),
        _joined([_labels(each) for each in before], labels),
    )

    def renewed() -> Guides:
        experts.read_again()
        probes.forget()
        return Guides(experts.snapshots, probes.bank)

    lanes = LaneRun(
        run.job,
        run.pool,
        run.progress,
        run.place / "segments",
        run.key,
        segment,
        SetState.at_rest(start.pixels, labels, math.log(start.step_size)),
        earlier,
        Guides(experts.snapshots),
        renewed,
        _shift(run, segment, experts, probes, frozen),
    )
    if lanes.rounds_done < lanes.rounds_total:  # a bank costs its training, and is asked for only where it is read
        lanes.guides = Guides(experts.snapshots, probes.bank)
    run.progress.stage("distil", lanes.rounds_total, run.of(segment), done=lanes.rounds_done)
    state = lanes.run()
    _check_finite(run, segment, state)
    if not (run.place / "segments" / start_name(segment)).exists():
        write_start(run.place / "segments", segment, start.pixels, run.key)
    logits = state.labels if run.config.learns_labels else None
    return Segment(state.pixels, logits, math.exp(float(state.log_step)))


def _check_finite(run: Run, segment: int, state: SetState) -> None:
    """NonFinite for an older version's checkpoint that is not; rounds see to it now."""
    if not all(np.isfinite(part).all() for part in state):
        raise NonFinite(not_finite(run.place / "segments", segment))


WALKS: dict[str, Callable[..., Segment]] = {
    "gradient": _by_groups,
    "distribution": _by_groups,
    "trajectory": _by_lanes,
}
"""How each family of matchers goes through a segment."""


def _shift(run: Run, segment: int, experts: Experts, probes: Probes, frozen: Segments) -> int:
    """Epochs by which a segment's start epochs are moved; says which stretches of experts teach nothing."""
    trajectory = run.config.trajectory
    shift = shift_of(experts.losses, probes.loss()) if frozen and trajectory.by_probe else 0
    first, last = start_epochs(run.config, segment, run.config.rounds_of(segment), shift)
    begin, _ = start_epochs(run.config, segment, 0, shift)
    run.progress.note(f"segment {segment + 1}: students start at expert epochs {begin} to {last - 1}")
    idle = [(who, when) for who, when in stalled(experts.losses, trajectory.epochs) if first <= when < last]
    if idle:
        share = len(idle) / (len(experts.losses) * (last - first))
        run.progress.note(
            f"{share:.0%} of the expert stretches to match do not lower the expert's own loss (such as expert "
            f"{idle[0][0]}, epoch {idle[0][1]}); matching them teaches nothing: lower trajectory.starts"
        )
    return shift


def _labels(segment: Segment) -> Pixels:
    """The labels that a student is trained with, (K, m, K): logits where they are learned, else certainties."""
    if segment.logits is not None:
        return segment.logits
    classes, many = segment.pixels.shape[:2]
    return np.repeat(np.eye(classes, dtype=np.float32)[:, None], many, axis=1)


def _joined(parts: list[Pixels], like: Pixels) -> Pixels:
    """Segments (K, m, ...) side by side; none of them: (K, 0, ...)."""
    return np.concatenate([like[:, :0], *parts], axis=1)
