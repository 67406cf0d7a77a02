"""What the log of a run tells: its sittings, stages, tasks and losses, matching distances.

What must stay true: a line that is not as a run writes it is passed over, and nothing is read into what is there: what
the log does not say is not made up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dasm_ray.plain import Plain, Tree

MOST_SEGMENTS = 1000

KINDS = ("stage", "progress", "stage_end", "task", "workers", "probe", "data")
"""Lines that tell of work. Others, as a note, may come long before it, and say nothing of when it began."""

FIRST = ("data", "experts")
"""Stages that a driver goes through once, before all others."""


@dataclass(frozen=True)
class Stage:
    """A stage from ``start`` to ``end``, in seconds of work since the run began."""

    name: str
    detail: str
    start: float
    end: float
    done: int
    total: int

    @property
    def is_whole(self) -> bool:
        return self.done >= self.total


@dataclass(frozen=True)
class Work:
    """A task that came to an end on a worker; ``lost``: why it did not come to a good one."""

    name: str
    worker: int
    start: float
    end: float
    lost: str = ""


@dataclass
class Chronicle:
    """A run as its log tells it. Times are seconds of work: what lies between two sittings is left out."""

    stages: list[Stage] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    distances: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # by segment: rounds done, distance
    probes: list[float] = field(default_factory=list)  # shares in [0, 1] of the training images, in order
    losses: int = 0  # tasks lost and given again
    workers: int = 0  # how many have done something, in the sitting that had most
    found: Tree = field(default_factory=dict)  # what the real images turned out to be
    resumed: list[float] = field(default_factory=list)  # when a later sitting began
    seconds: float = 0.0
    last: float | None = None  # seconds since 1970 of the last line

    @property
    def by_stage(self) -> dict[str, float]:
        """Seconds by the kind of stage, in the order in which kinds began."""
        total: dict[str, float] = {}
        for stage in self.stages:
            name = kind_of(stage.name)
            total[name] = total.get(name, 0.0) + stage.end - stage.start
        return total


def kind_of(stage: str) -> str:
    """The kind of a stage: scores before any segment are scores."""
    return "scores" if "scores" in stage else stage


def chronicle(events: Iterable[Tree]) -> Chronicle:
    """The log of a run, read from its first line to its last."""
    reader = _Reader()
    for event in events:
        reader.take(event)
    return reader.whole()


class _Reader:
    """Takes lines one after another."""

    def __init__(self) -> None:
        self.told = Chronicle()
        self._open: tuple[str, str, float, int, int] | None = None
        self._offset: float | None = None
        self._now = 0.0
        self._lost_before = 0
        self._workers_before = 0
        self._at_work: set[int] = set()
        self._seen: set[tuple[str, str]] = set()  # kinds of lines in this sitting, and of which stage

    def take(self, event: Tree) -> None:
        """One line, if it is as a run writes it."""
        at = number(event.get("time"))
        if at is None:
            return
        self.told.last = at
        if _begins_a_driver(event) or self._begins_again(event):
            self._sit_down(at)
        kind = text(event, "kind")
        if kind not in KINDS:
            return
        if self._offset is None:
            self._sit_down(at)
        assert self._offset is not None
        self._now = max(self._now, at - self._offset)
        self._seen.add((kind, text(event, "stage")))
        getattr(self, f"_{kind}")(event)

    def whole(self) -> Chronicle:
        """All that was told, a stage that did not end included."""
        self._close()
        self.told.seconds = self._now
        return self.told

    def _sit_down(self, at: float) -> None:
        """A driver begins: time goes on where the one before left off. One that has done nothing was no sitting."""
        if self._seen:
            self._close()
            self.told.resumed.append(self._now)
            self._workers_before = max((work.worker for work in self.told.work), default=0)
            self._lost_before = self.told.losses
            self._at_work.clear()
            self._seen.clear()
        self._offset = at - self._now

    def _begins_again(self, event: Tree) -> bool:
        """Whether somebody finds the real images or the experts who has in this sitting: each driver does so once."""
        kind, stage = text(event, "kind"), text(event, "stage")
        return (kind == "data" or (kind == "stage" and stage in FIRST)) and (kind, stage) in self._seen

    def _close(self, done: int | None = None) -> None:
        if self._open is not None:
            name, detail, start, before, total = self._open
            reached = before if done is None else done
            self.told.stages.append(Stage(name, detail, start, self._now, reached, total))
            self._open = None

    # --- kinds of lines ------------------------------------------------------------------------------------------

    def _stage(self, event: Tree) -> None:
        self._close()
        name, detail = text(event, "stage"), text(event, "detail")
        self._open = (name, detail, self._now, count(event, "done"), count(event, "total"))

    def _progress(self, event: Tree) -> None:
        if self._open is not None:
            self._open = (*self._open[:3], count(event, "done"), self._open[4])
        distance, segment = number(event.get("distance")), segment_of(text(event, "detail"))
        if distance is not None and segment is not None:
            self.told.distances.setdefault(segment, []).append((count(event, "done"), distance))

    def _stage_end(self, event: Tree) -> None:
        self._close(count(event, "done"))

    def _task(self, event: Tree) -> None:
        seconds = number(event.get("seconds")) or 0.0
        worker = self._workers_before + count(event, "worker")
        self._at_work.add(worker)
        self.told.workers = max(self.told.workers, len(self._at_work))
        began = max(0.0, self._now - seconds)
        self.told.work.append(Work(text(event, "task"), worker, began, self._now, text(event, "lost")))

    def _workers(self, event: Tree) -> None:
        self.told.losses = max(self.told.losses, self._lost_before + count(event, "lost"))

    def _probe(self, event: Tree) -> None:
        accuracy = number(event.get("accuracy"))
        if accuracy is not None:
            self.told.probes.append(accuracy)

    def _data(self, event: Tree) -> None:
        self.told.found = {name: value for name, value in event.items() if name not in ("time", "kind")}


def _begins_a_driver(event: Tree) -> bool:
    """Whether a line is the first of a driver: it says so or, in older logs, notes its workers and its place."""
    kind, said = text(event, "kind"), text(event, "text")
    has_workers = kind == "note" and re.search(r": \d+ workers? of ", said) is not None
    return kind == "begin" or (has_workers and ", results in " in said)


def segment_of(detail: str) -> int | None:
    """The segment, from 0, that a stage is of."""
    found = re.fullmatch(r"segment (\d{1,6}) of \d{1,6}", detail)
    return int(found[1]) - 1 if found and 0 < int(found[1]) <= MOST_SEGMENTS else None


# --- values of others --------------------------------------------------------------------------------------------


def number(value: Plain) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def count(values: Tree, name: str) -> int:
    """A number of things; 0 where there is none."""
    return max(0, int(number(values.get(name)) or 0))


def text(values: Tree, name: str) -> str:
    """A text; empty where there is none."""
    value = values.get(name)
    return value if isinstance(value, str) else ""
