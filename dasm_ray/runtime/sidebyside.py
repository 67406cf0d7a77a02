"""A round of a group in lanes: which tasks it is ready for, and what their answers come to.

A matching step is a barrier: `matcher.lanes` tasks, one a network state, all against the group as it stands, then a
short one that moves the group by their mean gradient. What must stay true: lanes are taken in their order, whoever is
done first, and nobody is asked for a step before the one ahead of it is done.
"""

from __future__ import annotations

import numpy as np

from dasm_ray.core.matching.parallel import Moment
from dasm_ray.core.matching.round import Assignment
from dasm_ray.runtime.pool import Done, Task, task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import GroupKept, Job, Keeping, LaneMetrics, RoundInputRefs, RoundMetrics, Worker


class LaneRound:
    """The round of ``where`` from ``state``, a reference to (pixels, velocity); None where the group is at rest."""

    def __init__(self, job: Job, where: Assignment, state: ObjectRef | None) -> None:
        self._job, self._where, self.state = job, where, state
        self._at, self._moves = Moment(0, 0), False
        self._lanes: dict[str, int] = {}
        """The lane of each task of this step, by its name."""
        self._answers: dict[int, Done] = {}
        self._before: list[ObjectRef | None] = [None] * job.config.matcher.lanes
        """References to what the step before left of each lane's network."""
        self._distances: dict[int, list[float]] = {}
        """Of each network state."""
        self._samples = 0

    @property
    def is_ending(self) -> bool:
        """Whether the next task ends the round."""
        return self._has_answers and self._at.after(self._job.config) is None

    @property
    def _has_answers(self) -> bool:
        return len(self._answers) == self._job.config.matcher.lanes

    @property
    def _name(self) -> str:
        where, at = self._where, self._at
        step = f", step {at.step}" if self._job.config.matcher.steps > 1 else ""
        return f"segment {where.segment + 1}, group {where.group}, round {where.round}, state {at.state}{step}"

    def ready(self, inputs: RoundInputRefs, initial: ObjectRef, keeping: Keeping | None) -> list[Task]:
        """Tasks that may be given and were not yet: all lanes of a step, or what moves the group.

        ``initial``: where it began; ``keeping``: where its checkpoint goes, if `is_ending` and the round ends in one.
        """
        if self._has_answers and not self._moves:
            self._moves = True
            return [self._step(initial, keeping)]
        return [] if self._lanes else self._all_lanes(inputs, initial)

    def _all_lanes(self, inputs: RoundInputRefs, initial: ObjectRef) -> list[Task]:
        tasks, at_rest = [], self._at_rest(initial)
        for lane, before in enumerate(self._before):
            name, where = f"{self._name}, lane {lane}", (self._where, self._at, lane)
            self._lanes[name] = lane
            tasks.append(task(name, Worker.match_lane, self._job, *where, inputs, self.state, before, at_rest))
        return tasks

    def _step(self, initial: ObjectRef, keeping: Keeping | None) -> Task:
        slopes = tuple(self._answers[lane].refs[0] for lane in range(len(self._answers)))
        reads, name = (initial,) if keeping else self._at_rest(initial), f"{self._name}, its step"
        return task(name, Worker.move_group, self._job, self._where, self._at, self.state, slopes, reads, keeping)

    def _at_rest(self, initial: ObjectRef) -> tuple[ObjectRef, ...]:
        """Where the group began, for tasks that start there."""
        return (initial,) if self.state is None else ()

    def take(self, done: Done) -> RoundMetrics | None:
        """Takes an answer; what the round comes to at its end, when ``state`` is that after it."""
        if isinstance(done.value, LaneMetrics):
            self._answers[self._lanes[done.task.name]] = done
            return None
        kept: GroupKept = done.value
        answers = [self._answers[lane] for lane in range(len(self._answers))]
        self._distances.setdefault(self._at.state, []).extend(each.value.distance for each in answers)
        self._samples += sum(each.value.samples for each in answers)
        self.state, after = done.refs[0], self._at.after(self._job.config)
        if after is None:
            distances = [float(np.mean(of_state)) for of_state in self._distances.values()]
            return RoundMetrics((), distances, self._samples, kept.is_kept)
        self._before = [each.refs[1] if after.step else None for each in answers]
        self._at, self._moves = after, False
        self._lanes.clear()
        self._answers.clear()
        return None
