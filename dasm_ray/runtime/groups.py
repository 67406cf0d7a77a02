"""The coordinator: hands out the rounds of a segment's groups, swaps references as they come back.

Groups run free of one another, except where the network in the loop is trained on the synthetic set itself: then a
round reads what every group was after the round before, and is a barrier. In lanes a group's own steps are barriers as
well (`runtime.sidebyside`). Pixels stay with the workers: one that ends a round whose checkpoint is due writes it,
where it reaches the run directory; else it is written here. What must stay true: the references held at any moment name
one consistent set, and what is on disk is enough to go on from: of barriers, all groups at one round at any moment.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.keys import RunConfig
from dasm_ray.core.matching.round import Assignment
from dasm_ray.errors import SessionError, TaskLost
from dasm_ray.runtime.pool import Done, Pool, task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.sidebyside import LaneRound
from dasm_ray.runtime.worker import GroupKept, Job, Keeping, RoundInputRefs, RoundMetrics, Worker, write_standing
from dasm_ray.store.checkpoints import group_name, read_group, round_name, rounds_among
from dasm_ray.store.place import Place

Pixels = NDArray[np.float32]
Starts = Sequence[ObjectRef]
"""Where a segment begins: pixels (k, m, C, H, W) of each group."""


def groups_of(classes: int, group_size: int | None) -> list[tuple[int, ...]]:
    """The classes of every group: a function of the configuration, never of the number of workers."""
    size = group_size or max(1, math.ceil(classes / 2))
    return [tuple(range(first, min(first + size, classes))) for first in range(0, classes, size)]


def groups_in(config: RunConfig, classes: int) -> list[tuple[int, ...]]:
    """The groups that a segment is distilled in: one, where the base matcher takes the set as a whole."""
    return groups_of(classes, classes if config.base.couples == "set" else config.synthetic.group_size)


class Renewed(NamedTuple):
    """What was made again after some of it went with a node."""

    inputs: RoundInputRefs
    starts: Starts


@dataclass(eq=False)
class _Group:
    """One group on its way: how many rounds are done, where its state is, and which round is on disk.

    ``state`` None: it is at rest where it began. ``in_lanes``: the round that it is in, if that is in lanes.
    """

    number: int
    classes: tuple[int, ...]
    initial: ObjectRef
    round: int = 0
    state: ObjectRef | None = None
    saved_round: int = 0
    saved_at: float = 0.0
    in_lanes: LaneRound | None = None


@dataclass(frozen=True)
class _Given:
    """A task that is out: a round of a group, or part of one, or its checkpoint; ``keeps``: it writes one."""

    group: _Group
    is_round: bool
    keeps: bool


class SegmentRun:
    """Segment ``segment`` from where its groups begin, ``starts``, to the distilled pixels, which are on disk then."""

    def __init__(
        self, job: Job, pool: Pool, progress: Progress, place: Place, key: str, segment: int, starts: Starts
    ) -> None:
        self._job, self._pool, self._progress = job, pool, progress
        self._keeping, self._segment = Keeping(place, key), segment
        self._is_coupled = job.config.states == "synthetic"
        """Whether a round reads what every group was after the round before: then a round is a barrier."""
        self._rounds = job.config.rounds_of(segment)
        self._base: tuple[int, RoundInputRefs] | None = None
        self._given: dict[str, _Given] = {}
        self._losses: dict[int, str] = {}
        """Groups whose last task lost what it reads, with its name; they go back when all that is out is home."""
        self._lost = 0
        classes = groups_in(job.config, len(job.real.class_names))
        self._groups = [_Group(number, *each) for number, each in enumerate(zip(classes, starts, strict=True))]
        self._kept: list[Place] = []
        """Of barriers: what holds the newest round that all groups have on disk. It goes when they have a later one."""
        self._restore(self._groups)

    @property
    def rounds_done(self) -> int:
        """Rounds done so far, over all groups."""
        return sum(group.round for group in self._groups)

    @property
    def rounds_total(self) -> int:
        """Rounds in all."""
        return self._rounds * len(self._groups)

    def run(self, inputs: RoundInputRefs, renewed: Callable[[], Renewed]) -> int:
        """Does what is left. ``inputs``: what rounds read; ``renewed`` makes it again after some went with a node.

        Returns the number of groups; their last checkpoints hold the segment. Raises NonFinite at the first distance
        that is no number.
        """
        try:
            while True:
                self._give(self._groups, inputs)
                with contextlib.closing(self._pool.results()) as results:
                    for done in results:
                        group = self._take(done)
                        self._progress.workers(self._pool.alive, self._pool.lost)
                        if not self._losses:
                            self._give(self._groups if self._is_coupled else [group], inputs)
                if not self._losses:
                    return len(self._groups)
                inputs = self._go_back(renewed)
        except BaseException:
            with contextlib.suppress(SessionError):  # what cannot be fetched any more: the older checkpoint stays
                self._save()
            raise

    # --- giving and taking ---------------------------------------------------------------------------------------

    def _give(self, groups: Sequence[_Group], inputs: RoundInputRefs) -> None:
        """Submits the next round of those groups that may begin it, or what one that is in a round is ready for."""
        if self._is_coupled and self._keeps_all():
            return
        last = min(group.round for group in self._groups) if self._is_coupled else self._rounds
        for group in groups:
            if group.round >= self._rounds or group.round > last:
                continue
            reads = self._with_states(inputs, group.round) if self._is_coupled else inputs
            if self._job.config.matcher.lanes > 1:
                self._give_lanes(group, reads)
            else:
                self._give_round(group, reads)

    def _give_round(self, group: _Group, reads: RoundInputRefs) -> None:
        name = f"segment {self._segment + 1}, group {group.number}, round {group.round}"
        if name in self._given:
            return
        keeps = not self._is_coupled and self._is_due(group, group.round + 1)
        keeping = self._keeping if keeps else None
        initial = (group.initial,) if keeps or group.state is None else ()
        where = self._where(group)
        self._pool.submit(task(name, Worker.distil, self._job, where, reads, group.state, initial, keeping))
        self._given[name] = _Given(group, is_round=True, keeps=keeps)

    def _give_lanes(self, group: _Group, reads: RoundInputRefs) -> None:
        if group.in_lanes is None:
            group.in_lanes = LaneRound(self._job, self._where(group), group.state)
        keeps = group.in_lanes.is_ending and not self._is_coupled and self._is_due(group, group.round + 1)
        for ready in group.in_lanes.ready(reads, group.initial, self._keeping if keeps else None):
            self._pool.submit(ready)
            self._given[ready.name] = _Given(group, is_round=True, keeps=keeps)

    def _keeps_all(self) -> bool:
        """Whether checkpoints of all groups are being kept; that begins when all stand together and it is due.

        Checkpoints of different rounds are of no use, so no round is given meanwhile.
        """
        if any(not each.is_round for each in self._given.values()):
            return True
        round = self._groups[0].round
        is_between = not self._given and all(group.in_lanes is None for group in self._groups)
        together = is_between and all(group.round == round for group in self._groups)
        further = [group for group in self._groups if group.round > group.saved_round]
        if not (together and further and self._is_due(self._groups[0], round)):
            return False
        keeping = self._keeping_of(round)
        for group in further:
            name = f"segment {self._segment + 1}, group {group.number}, checkpoint of round {round}"
            where, state, initial = self._where(group), (group.state,), (group.initial,)
            self._pool.submit(task(name, Worker.keep_group, keeping, where, state, initial))
            self._given[name] = _Given(group, is_round=False, keeps=True)
        return True

    def _is_due(self, group: _Group, round: int) -> bool:
        """Whether a group is to be kept as it will be after ``round`` rounds."""
        waited = time.monotonic() - group.saved_at
        return round == self._rounds or waited >= self._job.config.runtime.checkpoint_seconds

    def _where(self, group: _Group) -> Assignment:
        return Assignment(self._segment, group.number, group.round, group.classes)

    def _with_states(self, inputs: RoundInputRefs, round: int) -> RoundInputRefs:
        """The inputs with all groups' states before ``round``, fixed when its first task is given."""
        if self._base is None or self._base[0] != round:
            current = tuple(group.initial if group.state is None else group.state for group in self._groups)
            self._base = round, replace(inputs, current=current)
        return self._base[1]

    def _take(self, done: Done) -> _Group:
        """Swaps the group's reference for the new one, or notes that what the task reads was lost."""
        given = self._given.pop(done.task.name)
        group = given.group
        if done.error is not None:
            self._losses[group.number] = done.task.name
            return group
        answer: RoundMetrics | GroupKept | None = done.value
        for notice in done.value.notices:
            self._progress.note(notice)
        if group.in_lanes is not None:
            answer = group.in_lanes.take(done)
        if answer is None:  # a round that goes on
            return group
        if isinstance(answer, RoundMetrics):
            group.state = group.in_lanes.state if group.in_lanes else done.refs[0]
            group.round, group.in_lanes = group.round + 1, None
            self._progress.advance(samples=answer.samples, distance=sum(answer.distances) / len(answer.distances))
        if given.keeps:
            if not answer.is_kept:
                self._write(group, self._pool.fetch(group.state), self._pool.fetch(group.initial))
            group.saved_round, group.saved_at = group.round, time.monotonic()
            self._drop_earlier()
        return group

    def _go_back(self, renewed: Callable[[], Renewed]) -> RoundInputRefs:
        """To the last state on disk: the groups that lost something or, where rounds are barriers, all of them."""
        name = next(iter(self._losses.values()))
        self._lost += 1
        if self._lost > self._job.config.runtime.max_lost:
            raise TaskLost(
                f"{name}: what it reads was lost {self._lost} times; run the same command again "
                f"to go on from the last checkpoint, or raise runtime.max_lost"
            )
        assert not self._given, "to make inputs again needs the pool, so nothing else may be out"
        before, numbers = self.rounds_done, set(self._losses)
        self._losses.clear()
        self._base = None
        read = self._restore([group for group in self._groups if self._is_coupled or group.number in numbers])
        self._progress.note(f"{name}: what it reads was lost with its node; going on from the last checkpoint")
        self._progress.advance(self.rounds_done - before)
        inputs, starts = renewed()
        for group in self._groups:  # where they began may have been lost of any
            if group.number not in read:
                group.initial = starts[group.number]
        return inputs

    # --- what is on disk -----------------------------------------------------------------------------------------

    def _restore(self, groups: Sequence[_Group]) -> set[int]:
        """Groups as their checkpoints say, or at their beginning; returns the numbers of those that had one."""
        names = set(self._keeping.place.names())
        return self._restore_together(names) if self._is_coupled else self._read(groups, self._keeping, names)

    def _restore_together(self, names: set[str]) -> set[int]:
        """All groups at the newest round that all of them have on disk; what is there of other rounds goes.

        ``names``: what the folder of checkpoints holds. The last round's files lie in it by themselves, and so do those
        that an earlier version has written of any round, each in the stead of the one before.
        """
        place = self._keeping.place
        last = [file for file in self._files(place) if file.name in names]
        folders = [place / round_name(self._segment, round) for round in rounds_among(names, self._segment)]
        for holder, held in [(place, last), *((folder, [folder]) for folder in folders)]:
            there = names if holder == place else set(holder.names())
            is_whole = there.issuperset(file.name for file in self._files(holder))
            read = self._read(self._groups, replace(self._keeping, place=holder), there if is_whole else set())
            if read and len({group.round for group in self._groups}) == 1:
                self._kept = held
                break
        else:
            self._kept, read = [], self._read(self._groups, self._keeping, set())
        _remove([*last, *folders], but=self._kept)
        return read

    def _read(self, groups: Sequence[_Group], keeping: Keeping, names: set[str]) -> set[int]:
        """Groups as their files among ``names`` say, or at their beginning; returns the numbers of those that had one.

        Workers read them; here, what they do not reach.
        """
        reading = {}
        for group in groups:
            group.round = group.saved_round = 0
            group.state, group.saved_at, group.in_lanes = None, time.monotonic(), None
            if group_name(self._segment, group.number) in names:
                name = f"segment {self._segment + 1}, group {group.number}, its checkpoint"
                reading[name] = group
        tasks = [task(name, Worker.kept_group, keeping, self._segment, group.number) for name, group in reading.items()]
        for done in self._pool.run(tasks):
            group = reading[done.task.name]
            if done.value is not None:
                group.round = group.saved_round = done.value
                group.state, group.initial = done.refs
            elif (kept := read_group(keeping.place, self._segment, group.number, keeping.key)) is not None:
                arrays, group.round = kept
                group.saved_round = group.round
                group.state = self._pool.put((arrays["pixels"], arrays["velocity"]))
                group.initial = self._pool.put(arrays["initial"])
        return {group.number for group in reading.values() if group.state is not None}

    def _files(self, folder: Place) -> list[Place]:
        """The file of each group in a folder of checkpoints."""
        return [folder / group_name(self._segment, group.number) for group in self._groups]

    def _keeping_of(self, round: int) -> Keeping:
        """Where checkpoints after ``round`` rounds go: of barriers into a folder of the round, but for the last.

        So those of an earlier round stay until all groups have the later one, and go by one removal.
        """
        if not self._is_coupled or round == self._rounds:
            return self._keeping
        return replace(self._keeping, place=self._keeping.place / round_name(self._segment, round))

    def _drop_earlier(self) -> None:
        """Of barriers: removes the checkpoints of an earlier round, once all groups have a later one."""
        if not self._is_coupled or len({group.saved_round for group in self._groups}) > 1:
            return
        round, earlier = self._groups[0].saved_round, self._kept
        folder = self._keeping_of(round).place
        self._kept = self._files(folder) if round == self._rounds else [folder]
        _remove(earlier, but=self._kept)

    def _save(self) -> None:
        """Writes, here, the groups that are further than their checkpoint: when a run is ended before it is done.

        With barriers only when all stand together, and nothing before all are fetched: checkpoints of different rounds
        are of no use.
        """
        if self._is_coupled and len({group.round for group in self._groups}) > 1:
            return
        further = [group for group in self._groups if group.round > group.saved_round]
        states = ((group, self._pool.fetch(group.state), self._pool.fetch(group.initial)) for group in further)
        for group, state, initial in list(states) if self._is_coupled else states:
            self._write(group, state, initial)
            group.saved_round = group.round
            self._drop_earlier()

    def _write(self, group: _Group, state: tuple[Pixels, Pixels], initial: Pixels) -> None:
        """Writes a checkpoint here."""
        keeping = self._keeping_of(group.round)
        write_standing(keeping.place, keeping.key, self._where(group), *state, initial)


def _remove(places: Sequence[Place], but: Sequence[Place]) -> None:
    """Removes files and folders, but for some of them."""
    for place in places:
        if place not in but:
            place.delete()
