"""The rotation of the slow tests: whole, the same for the same commit, another for the next."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rotation import PARTS, asked_for, parts_of, without_git


@given(st.lists(st.floats(0.1, 1000), max_size=100), st.integers(1, 20))
def test_each_test_is_in_exactly_one_part_and_the_order_stays(seconds: list[float], count: int) -> None:
    found = parts_of(seconds, count)
    assert len(found) == len(seconds)
    assert all(1 <= part <= count for part in found)
    assert found == sorted(found)


def test_parts_take_alike_long() -> None:
    assert parts_of([10] * 9, 3) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert parts_of([10, 10, 40, 10, 10], 2) == [1, 1, 2, 2, 2], "a test in the middle is in one of both"
    seconds = [float(1 + 7 * number % 13) for number in range(200)]
    sums = [
        sum(each for each, part in zip(seconds, parts_of(seconds, 8), strict=True) if part == n) for n in range(1, 9)
    ]
    assert max(sums) - min(sums) <= 2 * max(seconds)


def test_a_part_that_is_named_is_that_one(tmp_path: Path) -> None:
    assert [asked_for(str(number), tmp_path).number for number in range(1, PARTS + 1)] == list(range(1, PARTS + 1))
    for wrong in ("0", str(PARTS + 1), "two", "", "-1"):
        with pytest.raises(ValueError, match=f"SLOW_PART={wrong}: is neither next nor a number from 1 to {PARTS}"):
            asked_for(wrong, tmp_path)


NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, env=without_git(), check=True)


def commit(folder: Path) -> None:
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")


@NEEDS_GIT
def test_each_landing_has_the_next_part_and_one_landing_the_same(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    turns = []
    for _ in range(PARTS + 2):
        commit(tmp_path)
        turns.append(asked_for("next", tmp_path).number)
        assert asked_for("next", tmp_path).number == turns[-1]
    assert all(then % PARTS + 1 == now for then, now in pairwise(turns))
    assert set(turns) == set(range(1, PARTS + 1))
    assert str(asked_for("next", tmp_path)).startswith(
        f"slow tests, part {turns[-1]} of {PARTS} (by its {PARTS + 2} landings;"
    )


@NEEDS_GIT
def test_without_the_history_the_day_decides(tmp_path: Path) -> None:
    """Outside a repository, and in one whose history was cut off."""
    before = datetime.datetime.now(datetime.UTC).date()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    git(tmp_path, "init", "-q", str(whole))
    for _ in range(2):
        commit(whole)
    git(tmp_path, "clone", "-q", "--depth", "1", whole.as_uri(), str(cut))
    for folder in (tmp_path, cut):
        part = asked_for("next", folder)
        assert part.number in {1 + before.toordinal() % PARTS, 1 + (before.toordinal() + 1) % PARTS}
        assert "by the day" in part.why
