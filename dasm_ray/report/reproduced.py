"""Whether a recipe comes to what it says of itself: early signs while it runs, and a verdict on its table.

What must stay true: what a recipe expects is read from the first lines of its file, and nothing is run for a figure
that was never measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dasm_ray.errors import ConfigError
from dasm_ray.plain import Tree
from dasm_ray.report.table import Row

LINES = 12
"""Of a recipe's file, which may say what it expects."""

EXPERTS, DISTANCE = 0.03, 0.4
"""How far an early sign may lie off: the validation accuracy of the best expert, as a share; the first matching
distance, relative to what it should be. It is that of the group which is done first, and groups differ by a third."""


@dataclass(frozen=True)
class Expected:
    """What a recipe's file says that comes of it: test accuracy, mean and spread over seeds, as shares in [0, 1].

    ``experts``: the validation accuracy of the best one; ``distance``: the first that matching reports; ``digest`` of
    the set on the usual processors. None, or empty, where the file says nothing of it.
    """

    mean: float
    std: float
    experts: float | None = None
    distance: float | None = None
    digest: str = ""

    @classmethod
    def of(cls, file: str | Path) -> Expected:
        """What the file of a recipe expects; ConfigError where it says no figure."""
        head = "\n".join(Path(file).read_text(encoding="utf-8").splitlines()[:LINES])
        figure = re.search(r"^# Expected: (\d+\.\d) ± (\d+\.\d)", head, re.MULTILINE)
        if figure is None:
            raise ConfigError(
                f"{file}: does not say what it comes to, so there is nothing to hold a run against; a line of it reads "
                f"`# Expected: 89.5 ± 1.1`, and `dasm-ray recipes` lists those that have one"
            )
        early = re.search(r"^# Early: experts (\d+\.\d), distance (\d+(?:\.\d+)?)", head, re.MULTILINE)
        digest = re.search(r"^# Digest: ([0-9a-f]{16})\b", head, re.MULTILINE)
        return cls(
            float(figure[1]) / 100,
            float(figure[2]) / 100,
            float(early[1]) / 100 if early else None,
            float(early[2]) if early else None,
            digest[1] if digest else "",
        )


def watched(expected: Expected, say: Callable[[str], None]) -> Callable[[Tree], None]:
    """Hears the facts of a run, and says at the first experts and the first rounds whether they are as expected."""
    said: set[str] = set()

    def hear(fact: Tree) -> None:
        for what, found, due, room in _signs(fact, expected):
            if due is not None and what not in said:
                said.add(what)
                how = "as expected" if abs(found - due) <= room else "NOT as expected: the end will hardly be"
                say(f"early sign: {what} {found:.3g}, {how} ({due:.3g})")

    return hear


def _signs(fact: Tree, expected: Expected) -> list[tuple[str, float, float | None, float]]:
    """What a fact shows: its name, the figure, what it should be, and how far off it may lie."""
    if fact.get("kind") == "note":
        trained = re.match(r"experts: .*validation accuracy (?:[\d.]+% to )?([\d.]+)%", str(fact.get("text")))
        return [("accuracy of the best expert", float(trained[1]) / 100, expected.experts, EXPERTS)] if trained else []
    distance = fact.get("distance") if fact.get("stage") == "distil" else None
    if distance is None:
        return []
    return [("first matching distance", float(distance), expected.distance, DISTANCE * (expected.distance or 0.0))]


def verdict(expected: Expected, row: Row, digest: str) -> tuple[bool, str]:
    """Whether a run's own row is within what was expected, and a sentence that says so.

    Within: the means differ by no more than two standard deviations of their difference, both spreads being over seeds
    of the table. The same bytes are within whatever the figures say.
    """
    found = f"{100 * row.mean:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")
    due = f"{100 * expected.mean:.1f} ± {100 * expected.std:.1f}"
    room = 2 * math.hypot(expected.std, row.std or 0.0)
    same = bool(expected.digest) and digest == expected.digest
    is_within = same or abs(row.mean - expected.mean) <= room
    bytes_ = (
        "the same bytes" if same else f"other bytes than {expected.digest}" if expected.digest else "bytes not known"
    )
    where = "within" if is_within else "outside"
    return is_within, f"reproduced {found}, expected {due}: {where} (two deviations are {100 * room:.1f}; {bytes_})"
