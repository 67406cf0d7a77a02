"""What the run is doing, for whoever watches: bars on a terminal or in a notebook, now and then a line elsewhere.

What must stay true: nothing is written to stdout, which belongs to results; and a line fits 80 columns.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from dasm_ray.plain import Values
from dasm_ray.runtime.streams import onlooking

Events = Callable[..., None]

FACTS = ("count", "crew", "speed", "left")
"""Words to the right of a bar."""

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one stage."""


LEAST_TOLD = 5.0
"""Seconds that compiling takes at least, as it is told: what takes longer than expected is always about to end."""


@dataclass
class _Stage:
    """One stage on its way. ``before`` tasks were done when it began, after a resume: no measure of speed."""

    name: str
    total: int
    detail: str
    before: int
    start: float
    done: int = 0
    samples: int = 0
    has_compiled: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.name} {self.detail}".rstrip()

    @property
    def count(self) -> str:
        return f"{self.done}/{self.total}"

    @property
    def share(self) -> float:
        """What is done of it, from 0 to 1."""
        return min(1.0, self.done / max(self.total, 1))

    @property
    def fresh(self) -> float:
        """The share that was done since it began: what was done before a resume took no time now."""
        return max(0, self.done - self.before) / max(self.total, 1)

    def rate(self, now: float) -> float:
        """Samples a second so far; 0 while unknown."""
        return self.samples / (now - self.start) if now > self.start else 0.0

    def speed(self, now: float) -> str:
        """The same for a reader; empty while unknown."""
        return f"{compact(rate)} img/s" if (rate := self.rate(now)) else ""

    def left(self, now: float) -> str:
        """Time to the end at the speed so far; empty while unknown."""
        fresh = self.done - self.before
        if not fresh or self.done >= self.total:
            return ""
        return clock_text((now - self.start) / fresh * (self.total - self.done))

    def numbers(self) -> str:
        """The latest metrics."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())


LIKE = {"evaluate": "experts"}
"""Stages whose work is of the kind of another's, by which they are timed until they have begun."""


@dataclass
class _Ahead:
    """The work of a whole run: of each large stage, by its title and in their order, so much in units of its kind.

    Stages of one name are of one kind, and so are those that are ``LIKE`` one another. Small stages are left out.
    """

    work: Mapping[str, float]
    spent: dict[str, float] = field(default_factory=dict)  # seconds by kind
    made: dict[str, float] = field(default_factory=dict)  # work by kind in these seconds
    over: int = 0  # stages of these that are over, or were passed over

    def end(self, stage: _Stage, now: float) -> None:
        """Takes a stage into account that is over."""
        name, made = stage.name, stage.fresh * self.work.get(stage.title, 0.0)
        if stage.title in self.work:
            self.over = list(self.work).index(stage.title) + 1
        if made:
            self.spent[name] = self.spent.get(name, 0.0) + now - stage.start
            self.made[name] = self.made.get(name, 0.0) + made

    def left(self, stage: _Stage, now: float) -> float | None:
        """Seconds to the end of the run at the speeds so far; None while one of them is unknown."""
        titles, seconds = list(self.work), 0.0
        for title in titles[titles.index(stage.title) if stage.title in titles else self.over :]:
            share = 1 - stage.share if title == stage.title else 1.0
            pace = self._pace(title.partition(" ")[0], stage, now)
            if share and pace is None:
                return None
            seconds += share * self.work[title] * (pace or 0.0)
        return seconds

    def _pace(self, name: str, stage: _Stage, now: float) -> float | None:
        """Seconds a unit of a kind; None while unknown."""
        spent, made = self.spent.get(name, 0.0), self.made.get(name, 0.0)
        if stage.name == name:
            spent, made = spent + now - stage.start, made + stage.fresh * self.work.get(stage.title, 0.0)
        if made:
            return spent / made
        return self._pace(LIKE[name], stage, now) if name in LIKE else None


class Progress:
    """Shows stages as they go. ``events`` gets each fact as keywords with a ``kind``; ``live`` forces the display.

    On a terminal (stderr) and in a notebook bars: of the stage and, once ``expect`` has said how many there are, of the
    whole; elsewhere a line when a stage begins and ends, and every 10 seconds between.
    """

    def __init__(
        self,
        events: Events | None = None,
        live: bool | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listeners = [events] if events else []
        self._console = console or _console()
        self._clock = clock
        self._stage: _Stage | None = None
        self._workers = self._lost = 0
        self._compiling: float | None = None
        self._said = 0.0
        self._began, self._expected, self._ended = clock(), 0, 0
        self._ahead = _Ahead({})
        self._bars: _Bars | None = None
        if _can_draw(self._console) if live is None else live:
            self._bars = _Bars(self._console, clock, self._picture)
            self._bars.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self, events: Events) -> None:
        """Someone else who gets each fact from now on."""
        self._listeners.append(events)

    def begin(self) -> None:
        """Somebody sets to work: for those who listen, since what was told before may be hours old."""
        self._tell(kind="begin")

    def expect(self, stages: int, work: Mapping[str, float] | None = None) -> None:
        """So many stages are to come, which the overall bar counts.

        ``work``: what the large ones among them take, by title and in their order, from which the time left of the
        whole run follows: in any unit, the same for stages of one name and for those that are LIKE one another.
        """
        self._end_stage()
        self._began, self._expected, self._ended = self._clock(), stages, 0
        self._ahead = _Ahead(work or {})

    def stage(self, name: str, total: int, detail: str = "", *, done: int = 0) -> None:
        """Begins a stage of ``total`` tasks, of which ``done`` are done already; ends the one before."""
        self._end_stage()
        self._stage = _Stage(name, total, detail, before=done, start=self._clock(), done=done)
        self._tell(kind="stage", stage=name, detail=detail, total=total, done=done)
        self._say_plainly()

    def advance(self, n: int = 1, samples: int = 0, **metrics: float) -> None:
        """``n`` more tasks are done, in which ``samples`` images were worked on; metrics are numbers to show."""
        stage = self._stage
        assert stage is not None, "no stage has begun"
        stage.done += n
        stage.samples += samples
        stage.metrics.update(metrics)
        self._tell(
            kind="progress",
            stage=stage.name,
            detail=stage.detail,
            done=stage.done,
            total=stage.total,
            samples=samples,
            samples_per_second=round(stage.rate(self._clock()), 1),
            **metrics,
        )
        if self._clock() - self._said >= PLAIN_SECONDS and stage.done < stage.total:
            self._say_plainly()

    def note(self, text: str) -> None:
        """One line that stays."""
        self._tell(kind="note", text=text)
        self._print(text)

    def found(self, facts: Values) -> None:
        """What the real images turned out to be, as plain values, for those who listen; it is said elsewhere."""
        self._tell(kind="data", **facts)

    def task(self, name: str, worker: int, seconds: float, lost: str = "") -> None:
        """A task came to an end on the worker of that number, or was ``lost`` with it: for those who listen."""
        self._tell(kind="task", task=name, worker=worker, seconds=round(seconds, 3), **({"lost": lost} if lost else {}))

    def workers(self, alive: int, lost: int) -> None:
        """How many workers are alive, and how many tasks were lost so far."""
        if (alive, lost) != (self._workers, self._lost):
            self._workers, self._lost = alive, lost
            self._tell(kind="workers", workers=alive, lost=lost)

    def probe(self, accuracy: float) -> None:
        """What share of the training images the latest probe gets right."""
        self._tell(kind="probe", accuracy=round(accuracy, 4))

    def compiling(self, seconds: float | None) -> None:
        """Workers compile steps, for about so many seconds still; None: they do not."""
        self._compiling = seconds
        stage = self._stage
        if seconds is not None and stage is not None and not stage.has_compiled:
            stage.has_compiled = True
            if self._bars is None:
                self._print(f"{stage.title}: {self._crew()}")

    def close(self) -> None:
        """Ends the stage and the display."""
        try:
            self._end_stage()  # which those who listen hear, and may fail at
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _tell(self, **event: object) -> None:
        for listener in self._listeners:
            listener(**event)

    # --- the two displays ----------------------------------------------------------------------------------------

    def _end_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        self._ended += 1
        now = self._clock()
        self._ahead.end(stage, now)
        self._tell(kind="stage_end", stage=stage.name, detail=stage.detail, done=stage.done, seconds=now - stage.start)
        took = clock_text(now - stage.start)
        self._print(", ".join(part for part in (f"{stage.title}: {stage.count} in {took}", stage.speed(now)) if part))

    def _say_plainly(self) -> None:
        """One line on how the stage goes, where there is no live line."""
        stage = self._stage
        if self._bars is not None or stage is None:
            return
        now = self._said = self._clock()
        left = stage.left(now)
        of_run = self._left_of_run(stage, now)
        parts = (
            *(f"{stage.title}: {stage.count}", self._crew(), stage.speed(now), f"{left} left" if left else ""),
            f"{of_run} of the run" if of_run else "",
        )
        self._print(", ".join(part for part in (*parts, stage.numbers()) if part))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _crew(self) -> str:
        """Who is at work, or that they compile."""
        if self._compiling is not None:
            return f"compiling, about {clock_text(max(self._compiling, LEAST_TOLD))}"
        return f"{self._workers} worker{'' if self._workers == 1 else 's'}" if self._workers else ""

    def _picture(self) -> RenderableType:
        """The bars as they stand: what, how far, by whom, how fast, how long; below them the latest metrics."""
        stage, bars = self._stage, self._bars
        if stage is None or bars is None:
            return Text("")
        now = self._clock()
        words = (stage.count, self._crew(), stage.speed(now), stage.left(now))
        rows = [bars.row(stage.title, stage.done, stage.total, *words)]
        if self._expected:
            rows.insert(0, self._overall(bars, stage, now))
        numbers = stage.numbers()
        table = bars.make_tasks_table(rows)
        return Group(table, Text(f"  {numbers}", "dim", no_wrap=True, overflow="ellipsis")) if numbers else table

    def _overall(self, bars: _Bars, stage: _Stage, now: float) -> RichTask:
        """The bar of the whole: stages that are done, and what is done of this one."""
        number, expected = min(self._ended + 1, self._expected), self._expected
        done = min(self._ended + stage.share, expected)
        count, left = f"stage {number} of {expected}", self._left_of_run(stage, now)
        took = clock_text(now - self._began)
        return bars.row("all", done, expected, count, "", *((took, f"{left} left") if left else ("", took)))

    def _left_of_run(self, stage: _Stage, now: float) -> str:
        """Time to the end of the whole run at the speeds so far; empty while unknown."""
        left = self._ahead.left(stage, now) if self._ahead.work else None
        return "" if left is None else clock_text(left)


class _Bars(RichProgress):
    """Bars redrawn from ``picture`` a few times a second. Warnings pass above them; stdout is left alone."""

    def __init__(self, console: Console, clock: Callable[[], float], picture: Callable[[], RenderableType]) -> None:
        self._picture = picture  # first, because rich asks for it at once
        right = Column(no_wrap=True, justify="right")
        title = Column(no_wrap=True, overflow="ellipsis", max_width=34)
        super().__init__(
            TextColumn("{task.fields[title]}", style="bold", markup=False, table_column=title),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            *(TextColumn(f"{{task.fields[{name}]}}", markup=False, table_column=right.copy()) for name in FACTS),
            console=console,
            get_time=clock,
            expand=True,
            transient=True,
            redirect_stdout=False,
        )

    def get_renderable(self) -> RenderableType:
        """What is drawn now."""
        return self._picture()

    def row(self, title: str, done: float, total: float, *facts: str) -> RichTask:
        """One bar with its words."""
        fields = {"title": title, **dict(zip(FACTS, facts, strict=True))}
        task = RichTask(TaskID(0), title, max(total, 1), done, _get_time=self.get_time, fields=fields)
        task.start_time = self.get_time()  # else the bar only pulses
        return task


def _can_draw(console: Console) -> bool:
    """Whether bars can be redrawn in place: on a terminal, and in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def _console() -> Console:
    """Stderr as long as somebody reads it; a closed terminal or pipe ends the display, not the run."""
    if sys.stderr is None:
        return Console(stderr=True, highlight=False)
    return Console(file=onlooking(sys.stderr), highlight=False)


def clock_text(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def compact(number: float) -> str:
    """Three figures: 7.12, 85.3, 1.2k, 36k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{letter}" if number / size < 10 else f"{number / size:.0f}{letter}"
    return f"{number:.3g}"
