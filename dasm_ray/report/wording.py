"""Numbers and texts of a page, as people read them.

What must stay true: a text that comes out of a run is on one line and holds no character that cannot be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dasm_ray.config.shown import escaped, short
from dasm_ray.plain import Tree
from dasm_ray.report.table import Row


def percent(row: Row) -> str:
    """The accuracy of a row: mean and spread."""
    spread = "" if row.std is None else f" ± {100 * row.std:.1f}"
    return f"{100 * row.mean:.1f}{spread} %"


def points(difference: float) -> str:
    """A difference of two accuracies in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def number(count: int) -> str:
    """A number of things, in groups of three figures."""
    return f"{count:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """So long: 1:02 h, 4:05 min, 12 s."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02} h" if hours else f"{minute}:{second:02} min" if minute else f"{second} s"


def size(count: float) -> str:
    """Bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{short(count)} TB"


def share(part: float) -> str:
    """A part of a whole."""
    return "under 1 %" if part < 0.01 else f"{100 * part:.0f} %"


def grid(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], below: str = "") -> Tree:
    """A plain table for the template; all columns but the first hold numbers."""
    cells = [{"cells": [escaped(cell, 80) for cell in row], "is_own": False} for row in rows]
    return {
        "caption": caption,
        "headings": headings,
        "words": headings[:1],
        "rows": cells,
        "below": [below] if below else [],
    }


def figure(title: str, svg: str, says: str = "") -> Tree:
    """A figure of our own making for the template, which escapes all else."""
    from markupsafe import Markup

    return {"title": title, "svg": Markup(svg), "says": says}


def thinned(path: Sequence[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """At most ``most`` points of a curve: each the mean of as many as it stands for."""
    if len(path) <= most:
        return list(path)
    edges = [place * len(path) // most for place in range(most + 1)]
    parts = [path[first:last] for first, last in pairwise(edges)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]
