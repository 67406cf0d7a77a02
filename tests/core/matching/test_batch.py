"""Real batches: drawn without repetition, and one of each stratum first."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from toy import generator

from dasm_ray.core.matching.batch import draw_from


def test_members_of_a_window_repeat_only_when_it_is_used_up() -> None:
    window = np.array([3, 5, 8, 13, 21])
    for seed in range(5):
        few = draw_from(window, 4, generator(seed)).tolist()
        assert len(set(few)) == 4
        many = draw_from(window, 13, generator(seed)).tolist()
        assert len(many) == 13
        assert set(many[:5]) == set(many[5:10]) == set(window.tolist())
        assert max(Counter(many).values()) == 3
    assert draw_from(window, 0, generator()).tolist() == []
    assert len({tuple(draw_from(window, 5, generator(seed))) for seed in range(10)}) > 1


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 12, 20])
def test_strata_take_turns_until_each_is_used_up(count: int) -> None:
    """Of a window of 12, strata hold 5, 4, 2 and 1: each has its turn before any other has two more."""
    window = np.arange(40)[::3][:12]
    strata = np.full(40, -1)
    strata[window] = [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3]
    for seed in range(20):
        drawn = draw_from(window, count, generator(seed), strata)
        whole, rest = divmod(count, 12)
        left = drawn[12 * whole :]
        assert all(set(drawn[12 * times : 12 * times + 12]) == set(window) for times in range(whole))
        assert len(set(left.tolist())) == len(left) == rest
        taken = {stratum: int((strata[left] == stratum).sum()) for stratum in range(4)}
        for one, other in ((a, b) for a in taken for b in taken):
            held = int((strata[window] == other).sum())
            assert taken[one] - taken[other] <= 1 or taken[other] == held, "the other had none left"


def test_every_member_of_a_stratum_is_as_likely() -> None:
    window, strata = np.arange(9), np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    drawn = Counter(int(each) for seed in range(600) for each in draw_from(window, 3, generator(seed), strata))
    assert drawn[8] == 600
    assert all(240 < drawn[place] < 360 for place in (6, 7))
    assert all(60 < drawn[place] < 140 for place in range(6))
