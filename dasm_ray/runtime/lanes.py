"""The coordinator of trajectory matching: rounds of parallel lanes against the whole set, one step of the set a round.

A round is a barrier: its lanes all read the state of the round before, and the step takes their gradients in lane
order. What must stay true: workers may come and go without changing a byte, and what is on disk is enough to go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dasm_ray.core.matching.lane import SetState, draw_from_bank, draw_start
from dasm_ray.errors import NonFinite, SessionError, TaskLost
from dasm_ray.runtime.pool import Done, InputLost, ObjectRef, Pool, Task, task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.worker import Job, Worker
from dasm_ray.store.checkpoints import read_group, write_group
from dasm_ray.store.place import Place


class Guides(NamedTuple):
    """References to the trajectories that students start on and are held against: of experts (E+1, P), of the bank."""

    experts: Sequence[ObjectRef]
    bank: Sequence[ObjectRef] = ()
    """Of probes that went on along the real images (S, P), where some students start on these."""


class LaneRun:
    """Segment ``segment`` from its state ``initial`` (see core.matching.lane) to the distilled one.

    ``earlier``: reference to the frozen segments' (pixels, labels); ``guides``: whom students follow; ``renewed`` gives
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
        earlier: ObjectRef,
        guides: Guides,
        renewed: Callable[[], Guides],
        shift: int,
    ) -> None:
        self._job, self._pool, self._progress = job, pool, progress
        self._place, self._key, self._segment = place, key, segment
        self._initial, self._earlier, self._shift = initial, earlier, shift
        self.guides, self._renewed = guides, renewed
        self._state, self._round = self._begin()
        self._saved_round, self._saved_at = self._round, time.monotonic()
        self._lost, self._unused = 0, 0

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
        self._save()
        state: SetState = self._pool.fetch(self._state)
        return state

    # --- a round -------------------------------------------------------------------------------------------------

    def _one_round(self) -> None:
        """All lanes, then the step; a round whose input was lost is begun again from the disk."""
        try:
            lanes = self._all([self._lane(lane) for lane in range(self._job.config.trajectory.lanes)])
            distances = [done.value.distance for done in lanes]
            self._check(distances)
            name, where = f"segment {self._segment + 1}, step of round {self._round}", (self._segment, self._round)
            gradients = tuple(done.refs[0] for done in lanes)
            (step,) = self._all([task(name, Worker.move_set, self._job, where, self._state, distances, gradients)])
        except InputLost as lost:
            self._go_back(str(lost))
            return
        self._state, self._round = step.refs[0], self._round + 1
        samples = sum(done.value.samples for done in lanes)
        self._progress.advance(samples=samples, distance=float(np.mean(distances)), rate=step.value.rate)
        if time.monotonic() - self._saved_at >= self._job.config.runtime.checkpoint_seconds:
            self._save()

    def _lane(self, lane: int) -> Task:
        """The task of one lane: whom its student follows and from when on is drawn here, where references are held."""
        where = (self._segment, self._round, lane)
        experts, bank = self.guides
        drawn = draw_from_bank(self._job.config, *where, len(bank))
        who, when = drawn or draw_start(self._job.config, *where, len(experts), self._shift)
        name = f"segment {self._segment + 1}, round {self._round}, lane {lane}"
        inputs = (self._state, self._earlier, (bank if drawn else experts)[who])
        return task(name, Worker.walk, self._job, where, inputs, when)

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

    def _check(self, distances: Sequence[float]) -> None:
        """Stops a run that has exploded, at the last good state; distances that are no numbers stop in their lane."""
        trajectory = self._job.config.trajectory
        where = f"segment {self._segment + 1}, round {self._round}"
        self._unused = 0 if min(distances) <= trajectory.threshold else self._unused + 1
        if self._unused >= trajectory.patience:
            raise NonFinite(
                f"{where}: for {self._unused} rounds no student ended within trajectory.threshold "
                f"{trajectory.threshold:g} of its expert (last distance {distances[-1]:.3g}); the last good state is "
                f"kept; lower trajectory.lr_img (now {trajectory.lr_img:g}) or raise trajectory.steps in a new run"
            )

    # --- what is on disk -----------------------------------------------------------------------------------------

    def _begin(self) -> tuple[ObjectRef, int]:
        kept = read_group(self._place, self._segment, 0, self._key)
        state, round = (SetState(**kept[0]), kept[1]) if kept else (self._initial, 0)
        return self._pool.put(state), round

    def _go_back(self, what: str) -> None:
        """To the last state on disk."""
        self._lost += 1
        if self._lost > self._job.config.runtime.max_lost:
            raise TaskLost(
                f"{what}: what it reads was lost {self._lost} times; run the same command again to go on from the "
                f"last checkpoint, or raise runtime.max_lost"
            )
        before = self._round
        self._state, self._round = self._begin()
        self._saved_round = self._round
        self.guides = self._renewed()
        self._progress.note(f"{what}: what it reads was lost with its node; going on from round {self._round}")
        self._progress.advance(self._round - before)

    def _save(self) -> None:
        if self._round > self._saved_round:
            state: SetState = self._pool.fetch(self._state)
            write_group(self._place, self._segment, 0, state._asdict(), self._round, self._key)
            self._saved_round = self._round
        self._saved_at = time.monotonic()
