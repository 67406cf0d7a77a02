"""The coordinator: hands out the rounds of a segment's groups, swaps references as they come back, writes checkpoints.

Groups run free of one another, except where the network in the loop is trained on the synthetic set itself: then a
round reads what every group was after the round before, and is a barrier. What must stay true: the references held at
any moment name one consistent set, and what is on disk is enough to go on from.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.core.matching.round import Assignment
from dasm_ray.errors import SessionError, TaskLost
from dasm_ray.runtime.pool import Done, ObjectRef, Pool, task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.worker import Job, RoundInputRefs, RoundMetrics, Worker
from dasm_ray.store.checkpoints import read_group, write_group
from dasm_ray.store.place import Place

Pixels = NDArray[np.float32]


def groups_of(classes: int, group_size: int | None) -> list[tuple[int, ...]]:
    """The classes of every group: a function of the configuration, never of the number of workers."""
    size = group_size or max(1, math.ceil(classes / 2))
    return [tuple(range(first, min(first + size, classes))) for first in range(0, classes, size)]


@dataclass(eq=False)
class _Group:
    """One group on its way: how many rounds are done, where its state is, and which round is on disk."""

    number: int
    classes: tuple[int, ...]
    initial: Pixels
    round: int
    state: ObjectRef
    saved_round: int


class SegmentRun:
    """Segment ``segment`` from its ``initial`` pixels (K, m, C, H, W) to the distilled ones."""

    def __init__(
        self, job: Job, pool: Pool, progress: Progress, place: Place, key: str, segment: int, initial: Pixels
    ) -> None:
        self._job, self._pool, self._progress = job, pool, progress
        self._place, self._key, self._segment = place, key, segment
        self._is_coupled = job.config.states == "synthetic"
        """Whether a round reads what every group was after the round before: then a round is a barrier."""
        self._rounds = job.config.rounds_of(segment)
        self._base: tuple[int, RoundInputRefs] | None = None
        self._given: dict[str, _Group] = {}
        self._losses: dict[int, str] = {}
        """Groups whose last task lost what it reads, with its name; they go back when all that is out is home."""
        self._lost = 0
        self._saved_at = time.monotonic()
        is_one = job.config.base.couples == "set"
        sizes = groups_of(len(initial), len(initial) if is_one else job.config.synthetic.group_size)
        self._groups = [self._open(number, classes, initial) for number, classes in enumerate(sizes)]
        if self._is_coupled:
            self._align()

    @property
    def rounds_done(self) -> int:
        """Rounds done so far, over all groups."""
        return sum(group.round for group in self._groups)

    @property
    def rounds_total(self) -> int:
        """Rounds in all."""
        return self._rounds * len(self._groups)

    def run(self, inputs: RoundInputRefs, renewed: Callable[[], RoundInputRefs]) -> Pixels:
        """Does what is left. ``inputs``: what rounds read; ``renewed`` makes it again after some went with a node.

        Returns the pixels (K, m, C, H, W). Raises NonFinite at the first distance that is no number.
        """
        try:
            while True:
                self._give(inputs)
                for done in self._pool.results():
                    self._take(done)
                    self._progress.workers(self._pool.alive, self._pool.lost)
                    if not self._losses:
                        self._give(inputs)
                if not self._losses:
                    break
                self._go_back()
                assert not self._given, "to make inputs again needs the pool, so nothing else may be out"
                inputs = renewed()
        except BaseException:
            with contextlib.suppress(SessionError):  # what cannot be fetched any more: the older checkpoint stays
                self._save()
            raise
        self._save()
        return np.concatenate([self._pool.fetch(group.state)[0] for group in self._groups])

    # --- giving and taking ---------------------------------------------------------------------------------------

    def _give(self, inputs: RoundInputRefs) -> None:
        """Submits the next round of every group that may begin it."""
        slowest = min(group.round for group in self._groups)
        for group in self._groups:
            waits = self._is_coupled and group.round > slowest
            name = f"segment {self._segment + 1}, group {group.number}, round {group.round}"
            if group.round >= self._rounds or waits or name in self._given:
                continue
            where = Assignment(self._segment, group.number, group.round, group.classes)
            reads = self._with_states(inputs, group.round) if self._is_coupled else inputs
            self._pool.submit(task(name, Worker.distil, self._job, where, reads, group.state))
            self._given[name] = group

    def _with_states(self, inputs: RoundInputRefs, round: int) -> RoundInputRefs:
        """The inputs with all groups' states before ``round``, fixed when its first task is given."""
        if self._base is None or self._base[0] != round:
            self._base = round, replace(inputs, current=tuple(group.state for group in self._groups))
        return self._base[1]

    def _take(self, done: Done) -> None:
        """Swaps the group's reference for the new one, or notes that what the task reads was lost."""
        group = self._given.pop(done.task.name)
        if done.error is not None:
            self._losses[group.number] = done.task.name
            return
        metrics: RoundMetrics = done.value
        for notice in metrics.notices:
            self._progress.note(notice)
        group.state, group.round = done.refs[0], group.round + 1
        self._progress.advance(samples=metrics.samples, distance=sum(metrics.distances) / len(metrics.distances))
        if time.monotonic() - self._saved_at >= self._job.config.runtime.checkpoint_seconds:
            self._save()

    def _go_back(self) -> None:
        """To the last state on disk: the groups that lost something or, where rounds are barriers, all of them."""
        name = next(iter(self._losses.values()))
        self._lost += 1
        if self._lost > self._job.config.runtime.max_lost:
            raise TaskLost(
                f"{name}: what it reads was lost {self._lost} times; run the same command again "
                f"to go on from the last checkpoint, or raise runtime.max_lost"
            )
        before = self.rounds_done
        for group in self._groups if self._is_coupled else [self._groups[number] for number in self._losses]:
            kept = read_group(self._place, self._segment, group.number, self._key)
            arrays, group.round = kept or (_at_rest(group.initial), 0)
            group.state, group.saved_round = self._pool.put((arrays["pixels"], arrays["velocity"])), group.round
        if self._is_coupled:
            self._align()
        self._base = None
        self._losses.clear()
        self._progress.note(f"{name}: what it reads was lost with its node; going on from the last checkpoint")
        self._progress.advance(self.rounds_done - before)

    # --- what is on disk -----------------------------------------------------------------------------------------

    def _open(self, number: int, classes: tuple[int, ...], initial: Pixels) -> _Group:
        """A group as its checkpoint says, or at its beginning."""
        kept = read_group(self._place, self._segment, number, self._key)
        arrays, round = kept or (_at_rest(initial[list(classes)]), 0)
        state = self._pool.put((arrays["pixels"], arrays["velocity"]))
        return _Group(number, classes, arrays["initial"], round, state, round)

    def _align(self) -> None:
        """Rounds that are barriers go on together: from the beginning unless all groups stand at the same round."""
        if len({group.round for group in self._groups}) > 1:
            for group in self._groups:
                group.state = self._pool.put((group.initial, np.zeros_like(group.initial)))
                group.round = group.saved_round = 0

    def _save(self) -> None:
        """Writes the groups that are further than their checkpoint.

        With barriers only when all stand together, and nothing before all are fetched: checkpoints of different rounds
        would send all of them back to the beginning.
        """
        if self._is_coupled and len({group.round for group in self._groups}) > 1:
            return
        further = [group for group in self._groups if group.round > group.saved_round]
        states = ((group, self._pool.fetch(group.state)) for group in further)
        for group, (pixels, velocity) in list(states) if self._is_coupled else states:
            arrays = {"pixels": pixels, "velocity": velocity, "initial": group.initial}
            write_group(self._place, self._segment, group.number, arrays, group.round, self._key)
            group.saved_round = group.round
        self._saved_at = time.monotonic()


def _at_rest(initial: Pixels) -> dict[str, Pixels]:
    """A group before its first round."""
    return {"pixels": initial, "velocity": np.zeros_like(initial), "initial": initial}
