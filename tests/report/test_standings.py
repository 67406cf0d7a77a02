"""The table of a sweep: the best whole trial stands first and is marked, in 80 columns; reasons stand below."""

from __future__ import annotations

from rich.console import Console

from dasm_ray.report.standings import Line, best, in_order, markdown, render


def line(trial: int, *accuracies: float, segments: int = 2, stopped: bool = False, failed: str = "") -> Line:
    values = {"matcher.lr_img": 10.0**-trial, "window.policy": "frontier"}
    return Line(trial, values, accuracies, segments, 2, 12.3, 1, stopped, failed)


LINES = [
    line(0, 0.5, 0.6),
    line(1, 0.9, 0.9, segments=1, stopped=True),
    line(2, segments=0, failed="segment 1: the loss is nan; lower matcher.lr_img"),
    line(3, 0.7, 0.72),
    line(4, 0.7, 0.72),
]


def test_the_best_is_whole_and_of_equal_ones_the_first() -> None:
    chosen = best(LINES)
    assert chosen is not None
    assert chosen.trial == 3
    assert [each.trial for each in in_order(LINES)] == [3, 4, 0, 1, 2]
    assert best(LINES[1:3]) is None


def test_a_single_seed_has_no_spread() -> None:
    assert line(0, 0.5).std is None
    assert line(0).mean is None
    assert abs((LINES[0].std or 0) - 0.0707) < 1e-4


def test_the_table_fits_80_columns_and_says_why_a_trial_failed() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render(LINES, "some: 5 trials"))
    drawn = capture.get()
    assert max(map(len, drawn.splitlines())) <= 80
    rows = [text.split() for text in drawn.splitlines()]
    assert ["3", "0.001", "frontier", "71.0", "±", "1.4", "2/2", "12", "best"] in rows
    assert ["1", "0.1", "frontier", "90.0", "±", "0.0", "1/2", "12", "stopped"] in rows
    assert ["2", "0.01", "frontier", "–", "0/2", "12", "failed"] in rows
    assert "trial 2 failed: segment 1: the loss is nan; lower matcher.lr_img" in " ".join(drawn.split())


def test_markdown_shows_the_same_rows() -> None:
    text = markdown(LINES, "some: 5 trials")
    assert "| 3 | 0.001 | frontier | 71.0 ± 1.4 | 2/2 | 12 | best |" in text
    assert "- trial 2 failed: segment 1" in text
    assert text.endswith("\n")
    assert len({row.count("|") for row in text.splitlines() if row.startswith("|")}) == 1
