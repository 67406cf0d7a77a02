"""What is shown, on a terminal of 80 columns and in a log, with a clock of our own."""

import importlib.util
import io
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from dasm_ray.errors import StorageError
from dasm_ray.runtime.progress import Progress, clock_text, compact


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plain(clock: Clock, events: Any = None) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(events, console=Console(file=file, width=80), clock=clock), file


def live(clock: Clock, width: int = 80) -> tuple[Progress, Console]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, _environ={})
    return Progress(console=console, clock=clock), console


def picture(progress: Progress, console: Console) -> list[str]:
    """The live line as it would be drawn now."""
    paper = Console(file=io.StringIO(), width=console.width, force_terminal=True, color_system=None, _environ={})
    paper.print(progress._picture())
    assert isinstance(paper.file, io.StringIO)
    return [Text.from_ansi(line).plain for line in paper.file.getvalue().splitlines()]


def test_a_log_gets_a_line_at_the_beginning_now_and_then_and_at_the_end(clock: Clock) -> None:
    progress, file = plain(clock)
    progress.workers(2, 0)
    progress.stage("distil", 40, "segment 1 of 2")
    for _ in range(40):
        clock.now += 1
        progress.advance(1, samples=1500, loss=0.25)
    progress.close()
    assert file.getvalue().splitlines() == [
        "distil segment 1 of 2: 0/40, 2 workers",
        "distil segment 1 of 2: 10/40, 2 workers, 1.5k img/s, 0:30 left, loss 0.25",
        "distil segment 1 of 2: 20/40, 2 workers, 1.5k img/s, 0:20 left, loss 0.25",
        "distil segment 1 of 2: 30/40, 2 workers, 1.5k img/s, 0:10 left, loss 0.25",
        "distil segment 1 of 2: 40/40 in 0:40, 1.5k img/s",
    ]


def test_notes_are_kept_whole_and_their_brackets_mean_nothing(clock: Clock) -> None:
    progress, file = plain(clock)
    note = "expert 3: lost [red]again[/red], " + "x" * 100
    progress.note(note)
    assert file.getvalue() == f"{note}\n"


def test_what_was_done_before_a_resume_is_no_measure_of_speed(clock: Clock) -> None:
    progress, file = plain(clock)
    progress.stage("experts", 100, done=90)
    clock.now += 20
    progress.advance(2)
    assert file.getvalue().splitlines() == ["experts: 90/100", "experts: 92/100, 1:20 left"]


def test_a_new_stage_ends_the_one_before(clock: Clock) -> None:
    progress, file = plain(clock)
    with progress:
        progress.stage("experts", 1)
        progress.advance()
        progress.stage("score", 1)
    assert [line.split(" in")[0] for line in file.getvalue().splitlines()] == [
        "experts: 0/1",
        "experts: 1/1",
        "score: 0/1",
        "score: 0/1",
    ]


def test_events_are_told_as_plain_values(clock: Clock) -> None:
    events: list[dict[str, Any]] = []
    progress, _ = plain(clock, lambda **fields: events.append(fields))
    progress.stage("probe", 2, "segment 2 of 2")
    progress.workers(3, 0)
    progress.workers(3, 0)
    clock.now += 5
    progress.advance(samples=10, loss=0.5)
    progress.note("a word")
    progress.close()
    where = {"stage": "probe", "detail": "segment 2 of 2"}
    assert events == [
        {"kind": "stage", **where, "total": 2, "done": 0},
        {"kind": "workers", "workers": 3, "lost": 0},
        {"kind": "progress", **where, "done": 1, "total": 2, "samples": 10, "samples_per_second": 2.0, "loss": 0.5},
        {"kind": "note", "text": "a word"},
        {"kind": "stage_end", **where, "done": 1, "seconds": 5.0},
    ]


def test_the_live_line_says_what_how_far_by_whom_how_fast_and_how_long(clock: Clock) -> None:
    progress, console = live(clock)
    with progress:
        progress.workers(2, 0)
        progress.stage("distil", 40, "segment 1 of 2")
        clock.now += 100
        progress.advance(10, samples=150_000, loss=0.123456)
        line, numbers = picture(progress, console)
    assert len(line) <= 80
    assert line.startswith("distil segment 1 of 2 ━")
    assert line.rstrip().endswith("10/40 2 workers 1.5k img/s 5:00")
    assert numbers.strip() == "loss 0.1235"


def test_the_overall_bar_counts_stages_and_what_is_done_of_this_one(clock: Clock) -> None:
    progress, console = live(clock)
    with progress:
        progress.stage("data", 1)
        progress.advance()
        progress.expect(4)
        progress.stage("experts", 2)
        progress.advance(2)
        progress.stage("distil", 40, "segment 1 of 2")
        clock.now += 75
        progress.advance(20)
        overall, line = picture(progress, console)
    assert overall.startswith("all ")
    assert overall.split()[-5:] == ["stage", "2", "of", "4", "1:15"]
    assert line.startswith("distil segment 1 of 2 ")
    assert max(len(overall), len(line)) <= 80


def test_the_overall_bar_says_how_long_the_run_takes_still(clock: Clock) -> None:
    """From the speeds so far, kind by kind; while the speed of one is unknown nothing is said."""
    progress, console = live(clock)
    work = {"experts": 100.0, "distil segment 1 of 2": 40.0, "distil segment 2 of 2": 60.0, "evaluate": 300.0}
    with progress:
        progress.expect(6, work)
        progress.stage("experts", 2)
        clock.now += 50
        progress.advance(1)
        assert "left" not in picture(progress, console)[0], "how long matching takes is not known yet"
        clock.now += 50
        progress.advance(1)  # 1 s a unit
        progress.stage("scores", 1)
        clock.now += 10
        progress.stage("distil", 4, "segment 1 of 2")
        assert "left" not in picture(progress, console)[0]
        clock.now += 20
        progress.advance(1)  # 2 s a unit: 30 + 60 of them are left, and 300 of evaluation, as experts 1 s each
        overall = picture(progress, console)[0]
        assert overall.split()[-7:] == ["stage", "3", "of", "6", "2:10", "8:00", "left"]
        progress.advance(3)
        progress.stage("probes", 1, "segment 2 of 2")
        clock.now += 1000  # a small stage; 4 distilled in 20 s: 0.5 s a unit, 40 units of the first segment are done
        assert picture(progress, console)[0].split()[-2:] == ["5:30", "left"]
        progress.stage("evaluate", 10)
        clock.now += 30
        progress.advance(5)  # its own speed counts at once: 30 s for 150
        assert picture(progress, console)[0].split()[-2:] == ["0:30", "left"]
        assert max(map(len, picture(progress, console))) <= 80


def test_a_log_says_how_long_the_run_takes_still(clock: Clock) -> None:
    progress, file = plain(clock)
    with progress:
        progress.expect(2, {"experts": 10.0, "evaluate": 30.0})
        progress.stage("experts", 10, done=5)  # a resume: what was there took no time
        clock.now += 15
        progress.advance(1)
    assert file.getvalue().splitlines()[1] == "experts: 6/10, 1:00 left, 8:30 of the run"


def test_more_stages_than_were_expected_do_no_harm(clock: Clock) -> None:
    progress, console = live(clock)
    with progress:
        progress.expect(1)
        for name in ("experts", "scores"):
            progress.stage(name, 1)
        overall, _ = picture(progress, console)
    assert "stage 1 of 1" in overall


def test_a_notebook_gets_bars_where_it_has_widgets_and_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(console=Console(force_jupyter=True)) as progress:
        assert progress._bars is not None
        progress.stage("experts", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Progress(console=Console(force_jupyter=True)) as progress:
        assert progress._bars is None


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_line_fits_the_terminal_whatever_is_told(clock: Clock, width: int) -> None:
    progress, console = live(clock, width)
    with progress:
        progress.workers(12345, 0)
        progress.stage("a stage with quite a name", 1_000_000, "segment 112 of 124 and then some")
        clock.now += 1e5
        progress.advance(123_456, samples=123_456_789, **{f"metric_{n}": 1 / 3 for n in range(20)})
        lines = picture(progress, console)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width


def test_the_live_line_is_gone_at_the_end_and_its_last_word_stays(clock: Clock) -> None:
    progress, console = live(clock)
    with progress:
        progress.stage("experts", 2)
        progress.note("one note")
        progress.advance(2)
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert drawn.count("one note\n") == 1
    assert "experts: 2/2 in 0:00\n" in drawn
    assert "experts: 0/2\n" not in drawn  # no plain line beside the live one
    assert "\x1b[?25h" in drawn  # the cursor is back


def test_the_display_ends_though_nobody_can_be_told(clock: Clock) -> None:
    """As where the run directory, and with it the log, is gone."""
    progress, console = live(clock)

    def gone(**_: object) -> None:
        raise StorageError("runs/x is not there any more")

    progress.stage("experts", 2)
    progress.listen(gone)
    with pytest.raises(StorageError), progress:
        pass
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is back
    assert progress._bars is None


@pytest.mark.parametrize("forced", [True, False])
def test_stdout_is_left_alone(clock: Clock, forced: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with Progress(live=forced, clock=clock) as progress:
        progress.stage("experts", 1)
        assert sys.stdout is before
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "experts: 1/1" in captured.err


def test_times_and_rates_are_short() -> None:
    assert [clock_text(s) for s in (0, 59.6, 75, 3600, 4000.4)] == ["0:00", "1:00", "1:15", "1:00:00", "1:06:40"]
    assert [compact(n) for n in (0.125, 7.123, 85.31, 999, 1234, 36_200, 1.52e6)] == [
        "0.125",
        "7.12",
        "85.3",
        "999",
        "1.2k",
        "36k",
        "1.5M",
    ]


def test_what_was_found_is_told_and_not_printed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict[str, object]] = []
    with Progress(lambda **event: events.append(event), live=False, clock=clock) as progress:
        progress.found({"name": "digits", "splits": ()})
    assert events == [{"kind": "data", "name": "digits", "splits": ()}]
    assert capsys.readouterr().err == ""


def test_that_somebody_sets_to_work_is_told_and_not_printed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict[str, object]] = []
    with Progress(lambda **event: events.append(event), live=False, clock=clock) as progress:
        progress.begin()
    assert events == [{"kind": "begin"}]
    assert capsys.readouterr() == ("", "")


def test_tasks_are_told_and_not_printed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[dict[str, object]] = []
    with Progress(lambda **event: events.append(event), live=False, clock=clock) as progress:
        progress.task("expert 0", 2, 1.23456)
        progress.task("expert 1", 3, 2.0, "its node went away")
    assert events == [
        {"kind": "task", "task": "expert 0", "worker": 2, "seconds": 1.235},
        {"kind": "task", "task": "expert 1", "worker": 3, "seconds": 2.0, "lost": "its node went away"},
    ]
    assert capsys.readouterr() == ("", "")


def test_that_workers_compile_is_said_once_a_stage(clock: Clock) -> None:
    progress, file = plain(clock)
    progress.workers(2, 0)
    progress.stage("experts", 2)
    for left in (90.0, 70.0, 2.0, None):
        progress.compiling(left)
    progress.stage("probes", 2)
    progress.compiling(70.0)
    lines = file.getvalue().splitlines()
    assert lines.count("experts: compiling, about 1:30") == 1
    assert lines[-1] == "probes: compiling, about 1:10"
    assert "probes: 0/2, 2 workers" in lines, "nobody compiles by then"


def test_the_live_line_says_that_workers_compile(clock: Clock) -> None:
    progress, console = live(clock)
    progress.workers(2, 0)
    progress.stage("distil", 40, "segment 1 of 2")
    progress.compiling(70.0)
    assert "compiling, about 1:10" in picture(progress, console)[0]
    progress.compiling(None)
    assert "2 workers" in picture(progress, console)[0]
    progress.close()
