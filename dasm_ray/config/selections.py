"""The table of ways to choose real images: what each reads. A new way is one row here and one function in its twin
table, ``core.selection.PICKS``.

What must stay true: whatever is listed here can be asked for wherever a selection can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """A way to choose ipc images of a class. ``reads``: an expert's ``features``, its losses on ``crops``, or a static
    score by its name."""

    reads: str
    is_judged: bool = False
    """Whether it gives several candidates, of which validation prefers one."""


SELECTIONS: dict[str, Selection] = {
    "herding": Selection("features"),
    "k_center": Selection("features"),
    "k_means": Selection("features"),
    "forgetting": Selection("forgetting"),
    "el2n": Selection("el2n"),
    "grand": Selection("grand"),
    "ccs": Selection("el2n"),
    "window": Selection("el2n", is_judged=True),
    "patches": Selection("crops"),
}
"""Beside them stands ``random``, which reads nothing."""
