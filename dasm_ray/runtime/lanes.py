"""The coordinator of trajectory matching: rounds of parallel lanes against the whole set, one step of the set a round.

A round is a barrier: its lanes all read the state of the round before, and the step takes their gradients in lane
order. A large set lies in shards of classes, each of which has a step of its own, to the same bytes. What must stay
true: workers may come and go without changing a byte, and what is on disk is enough to go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dasm_ray.core.matching.lane import draw_from_bank, draw_start
from dasm_ray.core.matching.setstate import Cut, Earlier, SetState, edges_of, joined
from dasm_ray.errors import NonFinite, SessionError, TaskLost
from dasm_ray.runtime.pool import Done, InputLost, Pool, Task, task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Job, Keeping, SetRefs, Worker
from dasm_ray.store.checkpoints import KeptSet, read_set, write_set
from dasm_ray.store.place import Place

SHARD_BYTES = 1 << 26
"""Pixels of a shard, at most, where it has more than one class."""


class Guides(NamedTuple):
    """References to the trajectories that students start on and are held against: of experts (E+1, P), of the bank."""

    experts: Sequence[ObjectRef]
    bank: Sequence[ObjectRef] = ()
    """Of probes that went on along the real images (S, P), where some students start on these."""


class LaneRun:
    """Segment ``segment`` from its state ``initial`` (see core.matching.lane) to the distilled one.

    ``earlier``: the frozen segments' pixels and labels; ``guides``: whom students follow; ``renewed`` gives
    new references to them after some went with a node; ``shift``: epochs by which the range of start epochs is moved.
    """

    def __init__(
        self,
        job: Job,
        pool: Pool,
        progress: Progress,
        place: Place,
        key: str,
        segment: int,
        initial: SetState,
        earlier: Earlier,
        guides: Guides,
        renewed: Callable[[], Guides],
        shift: int,
    ) -> None:
        self._job, self._pool, self._progress = job, pool, progress
        self._keeping, self._segment = Keeping(place, key), segment
        self._initial, self._shift = initial, shift
        self.guides, self._renewed = guides, renewed
        classes, own = initial.pixels.shape[:2]
        edges = edges_of(classes, initial.pixels[0].nbytes, SHARD_BYTES)
        self._cut = Cut(edges, own, earlier[0].shape[1])
        parts = (tuple(part[first:last] for part in earlier) for first, last in pairwise(edges))
        self._earlier = tuple(map(pool.put, parts))
        self._state, self._round, self._unused = self._begin()
        self._saved_round, self._saved_at = self._round, time.monotonic()
        self._lost = 0

    @property
    def rounds_done(self) -> int:
        """Rounds done so far."""
        return self._round

    @property
    def rounds_total(self) -> int:
        """Rounds in all."""
        return self._job.config.rounds_of(self._segment)

    def run(self) -> SetState:
        """Does what is left and returns the state. Raises NonFinite where the walk or the set explodes."""
        try:
            while self._round < self.rounds_total:
                self._one_round()
        except BaseException:
            with contextlib.suppress(SessionError):  # what cannot be fetched any more: the older checkpoint stays
                self._save()
            raise
        return self._fetched()

    # --- a round -------------------------------------------------------------------------------------------------

    def _one_round(self) -> None:
        """All lanes, then the step; a round whose input was lost is begun again from the disk."""
        try:
            refs = SetRefs(self._cut, tuple(values for values, _ in self._state), self._earlier)
            lanes = self._all([self._lane(lane, refs) for lane in range(self._job.config.trajectory.lanes)])
            distances = [done.value.distance for done in lanes]
            unused = self._checked(distances)
            steps = self._all([self._step(shard, distances, lanes) for shard in range(len(self._state))])
            self._state = [(step.refs[0], step.refs[1]) for step in steps]
            self._round, self._unused = self._round + 1, unused  # with the state: a round begun again counts once
            samples = sum(done.value.samples for done in lanes)
            self._progress.advance(samples=samples, distance=float(np.mean(distances)), rate=steps[0].value.rate)
            self._keep_if_due()
        except InputLost as lost:
            self._go_back(str(lost))

    def _lane(self, lane: int, refs: SetRefs) -> Task:
        """The task of one lane: whom its student follows and from when on is drawn here, where references are held."""
        where = (self._segment, self._round, lane)
        experts, bank = self.guides
        drawn = draw_from_bank(self._job.config, *where, len(bank))
        who, when = drawn or draw_start(self._job.config, *where, len(experts), self._shift)
        name = f"segment {self._segment + 1}, round {self._round}, lane {lane}"
        expert = ((bank if drawn else experts)[who],)
        return replace(task(name, Worker.walk, self._job, where, refs, expert, when), outputs=1 + len(self._state))

    def _step(self, shard: int, distances: Sequence[float], lanes: Sequence[Done]) -> Task:
        """The task of a shard's step."""
        several = f", shard {shard}" if len(self._state) > 1 else ""
        name, where = f"segment {self._segment + 1}, step of round {self._round}{several}", (self._segment, self._round)
        gradients = tuple(done.refs[shard] for done in lanes)
        return task(name, Worker.move_set, self._job, where, *self._state[shard], distances, gradients)

    def _all(self, tasks: Sequence[Task]) -> list[Done]:
        """Runs tasks to the end, in their order; InputLost if what one of them reads is gone."""
        answers: dict[str, Done] = {}
        for done in self._pool.run(tasks):
            self._progress.workers(self._pool.alive, self._pool.lost)
            answers[done.task.name] = done
        in_order = [answers[task.name] for task in tasks]
        for done in in_order:
            if done.error is not None:
                raise done.error
            for notice in done.value.notices:
                self._progress.note(notice)
        return in_order

    def _checked(self, distances: Sequence[float]) -> int:
        """Rounds in a row, with this one, in which no student ended within the threshold.

        Stops a run that has exploded, at the last good state; distances that are no numbers stop in their lane.
        """
        trajectory = self._job.config.trajectory
        where = f"segment {self._segment + 1}, round {self._round}"
        unused = 0 if min(distances) <= trajectory.threshold else self._unused + 1
        if unused >= trajectory.patience:
            raise NonFinite(
                f"{where}: for {unused} rounds no student ended within trajectory.threshold "
                f"{trajectory.threshold:g} of its expert (last distance {distances[-1]:.3g}); the last good state is "
                f"kept; lower trajectory.lr_img (now {trajectory.lr_img:g}) or raise trajectory.steps in a new run"
            )
        return unused

    # --- what is on disk -----------------------------------------------------------------------------------------

    def _begin(self) -> tuple[list[tuple[ObjectRef, ObjectRef]], int, int]:
        """References to values and velocities of each shard, the round that they are at, and how many were unused."""
        kept = read_set(self._keeping.place, self._segment, self._keeping.key)
        state = SetState(**kept.arrays) if kept else self._initial
        round, unused = (kept.round, kept.unused) if kept else (0, 0)
        parts = zip(state.values.shards(self._cut.edges), state.speeds.shards(self._cut.edges), strict=True)
        return [(self._pool.put(values), self._pool.put(speeds)) for values, speeds in parts], round, unused

    def _fetched(self) -> SetState:
        return joined([(self._pool.fetch(values), self._pool.fetch(speeds)) for values, speeds in self._state])

    def _go_back(self, what: str) -> None:
        """To the last state on disk."""
        self._lost += 1
        if self._lost > self._job.config.runtime.max_lost:
            raise TaskLost(
                f"{what}: what it reads was lost {self._lost} times; run the same command again to go on from the "
                f"last checkpoint, or raise runtime.max_lost"
            )
        before = self._round
        self._state, self._round, self._unused = self._begin()
        self._saved_round = self._round
        self.guides = self._renewed()
        self._progress.note(f"{what}: what it reads was lost with its node; going on from round {self._round}")
        self._progress.advance(self._round - before)

    def _keep_if_due(self) -> None:
        """Has a worker write the checkpoint; it is written here where no worker reaches the run directory."""
        waited = time.monotonic() - self._saved_at
        if self._round < self.rounds_total and waited < self._job.config.runtime.checkpoint_seconds:
            return
        name, where = f"segment {self._segment + 1}, checkpoint of round {self._round}", (self._segment, self._round)
        (done,) = self._all([task(name, Worker.keep_set, self._keeping, where, self._unused, tuple(self._state))])
        if done.value.is_kept:
            self._saved_round, self._saved_at = self._round, time.monotonic()
        else:
            self._save()

    def _save(self) -> None:
        """Writes the checkpoint here."""
        if self._round > self._saved_round:
            kept = KeptSet(self._fetched()._asdict(), self._round, self._unused)
            write_set(self._keeping.place, self._segment, kept, self._keeping.key)
            self._saved_round = self._round
        self._saved_at = time.monotonic()
