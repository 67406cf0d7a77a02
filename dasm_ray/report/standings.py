"""The table of a sweep: what was tried and what validation says of it, the best first.

What must stay true: no figure here has seen the test set.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from dasm_ray.plain import Tree

LEGEND = (
    "Validation accuracy in %, mean ± std over seeds, of networks trained on the segments that were done. "
    "The test set was not read."
)


@dataclass(frozen=True)
class Line:
    """One trial. ``accuracies``: validation, in [0, 1], after its last finished segment, one a seed."""

    trial: int
    values: Tree
    accuracies: Sequence[float]
    segments: int
    of: int
    seconds: float
    begun: int
    stopped: bool = False
    failed: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether the trial distilled all of its segments."""
        return bool(self.accuracies) and self.segments == self.of and not self.stopped and not self.failed

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for a single seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def in_order(lines: Sequence[Line]) -> list[Line]:
    """Whole trials before others, better ones first; of equal ones the lower number."""
    return sorted(lines, key=lambda line: (not line.is_whole, line.mean is None, -(line.mean or 0), line.trial))


def best(lines: Sequence[Line]) -> Line | None:
    """The trial that validation prefers, of those that distilled all of their segments."""
    return next((line for line in in_order(lines) if line.is_whole), None)


def render(lines: Sequence[Line], title: str) -> Table:
    """The table for a terminal of 80 columns; why a trial failed stands below it."""
    caption = Text("\n".join([LEGEND, *_reasons(lines)]))
    table = Table(title=Text(title), caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in _headings(lines):
        table.add_column(Text(heading.replace(".", ".\n")), justify="right" if heading else "left", overflow="fold")
    chosen = best(lines)
    for line in in_order(lines):
        table.add_row(*(Text(cell) for cell in _cells(line, chosen)), style="bold" if line is chosen else None)
    return table


def markdown(lines: Sequence[Line], title: str) -> str:
    """The table as GitHub Markdown, ending in a newline."""
    headings, chosen = _headings(lines), best(lines)
    rule = ["---:" if heading else "---" for heading in headings]
    body = [[cell.replace("|", "\\|") for cell in _cells(line, chosen)] for line in in_order(lines)]
    drawn = ["| " + " | ".join(row) + " |" for row in (headings, rule, *body)]
    reasons = [f"- {reason}" for reason in _reasons(lines)]
    return "\n".join([f"## {title}", "", *drawn, "", LEGEND, *([""] if reasons else []), *reasons, ""])


def _headings(lines: Sequence[Line]) -> list[str]:
    return ["trial", *lines[0].values, "validation", "segments", "seconds", ""]


def _cells(line: Line, chosen: Line | None) -> list[str]:
    fate = "failed" if line.failed else "stopped" if line.stopped else "best" if line is chosen else ""
    spread = "" if line.std is None else f" ± {100 * line.std:.1f}"
    validation = "–" if line.mean is None else f"{100 * line.mean:.1f}{spread}"
    values = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values.values())
    return [str(line.trial), *values, validation, f"{line.segments}/{line.of}", f"{line.seconds:.0f}", fate]


def _reasons(lines: Sequence[Line]) -> list[str]:
    return [f"trial {line.trial} failed: {line.failed}" for line in lines if line.failed]
