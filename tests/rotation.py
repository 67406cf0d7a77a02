"""Which of the slow tests one landing runs: another part each time, so that a few landings run them all.

What must stay true: each test is in exactly one part, whatever parts there are; tests keep their order, so that those
of a file lie together and share what takes long to make; the same commit has the same part.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PARTS = 12
"""Of about four minutes each, by two processes on two cores."""

USUAL_SECONDS = 60.0
"""How long a slow test takes whose mark does not say."""


class Part(NamedTuple):
    """``number`` from 1 on; ``why`` it is this one, in words."""

    number: int
    why: str

    def __str__(self) -> str:
        return f"slow tests, part {self.number} of {PARTS} ({self.why}; SLOW_PART=N has another)"


def parts_of(seconds: Sequence[float], count: int) -> list[int]:
    """The part, from 1 to ``count``, of each test in a list of how long they take.

    One after another on a line they are cut into pieces of equal length; a test is where its middle lies.
    """
    found, begin, total = [], 0.0, sum(seconds)
    for each in seconds:
        middle = (begin + each / 2) / total
        found.append(min(count, 1 + int(middle * count)))
        begin += each
    return found


def asked_for(given: str, folder: Path) -> Part:
    """The part that ``SLOW_PART`` names: a number, or ``next``, which is the turn of the commit that is checked out."""
    if given == "next":
        return _turn(folder)
    if not given.isdecimal() or not 1 <= int(given) <= PARTS:
        raise ValueError(f"SLOW_PART={given}: is neither next nor a number from 1 to {PARTS}")
    return Part(int(given), "as SLOW_PART says")


def _turn(folder: Path) -> Part:
    """By how many landings there were before; by the day, where the history is not here."""
    landings = _landings(folder)
    if landings:
        return Part(1 + landings % PARTS, f"by its {landings} landings")
    today = datetime.datetime.now(datetime.UTC).date()
    return Part(1 + today.toordinal() % PARTS, f"by the day, {today}, since the history is not here")


def _landings(folder: Path) -> int:
    """Commits on the way from the first one, a merge being one; 0 without a history or with a part of it."""
    if _git(folder, "rev-parse", "--is-shallow-repository") != "false":
        return 0
    return int(_git(folder, "rev-list", "--count", "--first-parent", "HEAD") or 0)


def _git(folder: Path, *words: str) -> str:
    """What git says in a folder; nothing where there is no git or it fails."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=without_git(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def without_git() -> dict[str, str]:
    """The environment without what a hook of git puts there, which would have git look elsewhere than it is told."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
