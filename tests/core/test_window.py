"""Windows of small classes, by integers alone: every permutation of scores and every pattern of wrong and known.

What must stay true: the expected windows are written out or found by counting, never by the code under test.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from dasm_ray.config import keys
from dasm_ray.core.window import POLICIES, window


def see(
    policy: str, dynamic: Any, *, segment: int = 0, segments: int = 1, static: Any = None, **more: Any
) -> list[int]:
    """The window of a class whose scores are integers; wrong and known are all true unless given."""
    wrong, known = (np.array(more.pop(name, [True] * len(dynamic)), dtype=bool) for name in ("wrong", "known"))
    images = more.pop("images", 1)
    indices = window(
        keys.Window(policy=policy, **more),  # type: ignore[arg-type]
        segment=segment,
        segments=segments,
        dynamic=np.array(dynamic, dtype=np.int64),
        static=np.array(dynamic if static is None else static, dtype=np.int64),
        wrong=wrong,
        known=known,
        images=images,
    )
    assert indices.dtype == np.int64
    assert indices.tolist() == sorted(set(indices.tolist())), "ascending and without repeats"
    return list(indices.tolist())


def test_the_table_holds_every_policy_of_the_configuration() -> None:
    assert list(POLICIES) == keys.WINDOWS


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_never_empty_and_always_inside(policy: str, n: int, segments: int) -> None:
    for segment, wrong in product(range(segments), product([False, True], repeat=n)):
        for share in (0.001, 0.5, 0.999):
            options = {"w_min": share, "width": share, "trim": share}
            seen = see(policy, [0] * n, segment=segment, segments=segments, wrong=wrong, **options)
            assert 1 <= len(seen) <= n
            assert set(seen) <= set(range(n))


def test_all_sees_everything() -> None:
    assert see("all", [3, 1, 2], segment=1, segments=2) == [0, 1, 2]


def test_quantile_slides_from_easiest_to_hardest() -> None:
    scores = [50, 10, 40, 20, 30, 0]  # easiest first: 5 1 3 4 2 0
    windows = [see("quantile", scores, segment=k, segments=4, width=0.5) for k in range(4)]
    assert windows == [[1, 3, 5], [1, 3, 4], [2, 3, 4], [0, 2, 4]]


def test_quantile_of_one_segment_is_the_easiest_part() -> None:
    assert see("quantile", [2, 0, 1, 3], width=0.5) == [1, 2]


def test_quantile_takes_contiguous_ranks_of_every_permutation() -> None:
    for scores in permutations(range(5)):
        starts = []
        for segment in range(3):
            ranks = sorted(scores[index] for index in see("quantile", scores, segment=segment, segments=3, width=0.4))
            assert ranks == [ranks[0], ranks[0] + 1]
            starts.append(ranks[0])
        assert starts == [0, 1, 3]


def test_quantile_breaks_ties_by_the_lower_index() -> None:
    assert see("quantile", [7, 7, 7, 7], segment=0, segments=2, width=0.5) == [0, 1]
    assert see("quantile", [7, 7, 7, 7], segment=1, segments=2, width=0.5) == [2, 3]
    many = [index % 2 for index in range(600)]  # short arrays are sorted stably by any method
    assert see("quantile", many, width=0.25) == list(range(0, 300, 2))


def test_quantile_ignores_the_static_score() -> None:
    assert see("quantile", [0, 1, 2, 3], static=[3, 2, 1, 0], width=0.25) == [0]


def test_a_share_is_the_decimal_that_was_written() -> None:
    """0.07 * 100 is 7.000000000000001 in binary, and would round up to 8."""
    assert len(see("quantile", range(100), width=0.07)) == 7
    assert len(see("frontier", range(100), w_min=0.07, wrong=[False] * 100)) == 7
    assert len(see("trim", range(100), segment=1, segments=2, trim=0.29)) == 71


def test_frontier_is_what_the_probe_misses_and_the_experts_know() -> None:
    assert see("frontier", [0] * 4, wrong=[1, 1, 0, 0], known=[1, 0, 1, 0], w_min=0.001) == [0]


def test_frontier_keeps_all_that_can_be_learned_even_beyond_the_least_share() -> None:
    assert see("frontier", [0] * 4, wrong=[1, 1, 1, 0], w_min=0.25) == [0, 1, 2]


def test_frontier_fills_up_with_the_rest_easiest_first_under_the_probe() -> None:
    dynamic, static = [9, 5, 1, 3, 7], [0, 1, 2, 3, 4]
    frontier = {"wrong": [1, 0, 0, 0, 0], "static": static}
    assert see("frontier", dynamic, w_min=0.2, **frontier) == [0]
    assert see("frontier", dynamic, w_min=0.4, **frontier) == [0, 2]
    assert see("frontier", dynamic, w_min=0.6, **frontier) == [0, 2, 3]
    assert see("frontier", dynamic, w_min=1.0, **frontier) == [0, 1, 2, 3, 4]


def test_frontier_without_anything_to_learn_is_the_easiest_share() -> None:
    assert see("frontier", [4, 4, 0, 4], wrong=[0, 0, 0, 0], w_min=0.5) == [0, 2]


def test_frontier_agrees_with_counting_for_every_pattern_of_four() -> None:
    """A sample is in when it can be learned, or when fewer than the missing ones come before it among the rest."""
    dynamic = [2, 0, 2, 1]
    for wrong, known in product(product([0, 1], repeat=4), repeat=2):
        learnable = [bool(w and k) for w, k in zip(wrong, known, strict=True)]
        missing = max(0, 3 - sum(learnable))
        rest = [(dynamic[i], i) for i in range(4) if not learnable[i]]
        expected = [i for i in range(4) if learnable[i] or sum(other < (dynamic[i], i) for other in rest) < missing]
        assert see("frontier", dynamic, wrong=wrong, known=known, w_min=0.75) == expected


def test_trim_drops_a_growing_share_of_the_easiest_by_the_static_score() -> None:
    static = [5, 3, 4, 1, 2, 0, 6, 7, 8, 9]
    windows = [see("trim", [0] * 10, static=static, segment=k, segments=3, trim=0.4) for k in range(3)]
    assert windows == [list(range(10)), [0, 1, 2, 4, 6, 7, 8, 9], [0, 2, 6, 7, 8, 9]]


def test_trim_of_one_segment_drops_nothing() -> None:
    assert see("trim", [0, 1, 2], trim=0.9) == [0, 1, 2]


@pytest.mark.parametrize("trim", [0.0, 0.15, 0.5, 0.99])
def test_trim_drops_the_whole_part_of_its_share(trim: float) -> None:
    for n, segments in product(range(1, 30), range(2, 5)):
        for segment in range(segments):
            dropped = int(Fraction(str(trim)) * segment * n / (segments - 1))
            seen = see("trim", list(range(n)), segment=segment, segments=segments, trim=trim)
            assert seen == list(range(dropped, n))


def test_float_scores_give_the_window_of_their_ranks() -> None:
    scores = np.array([0.25, -1.5, 3.0, 0.5])
    for policy, segment in product(POLICIES, range(2)):
        arguments = {"segment": segment, "segments": 2, "wrong": scores > 0, "known": scores < 1}
        ranks = np.argsort(np.argsort(scores))
        by_score, by_rank = (
            window(keys.Window(policy=policy), dynamic=values, static=-values, **arguments)  # type: ignore[arg-type]
            for values in (scores, ranks)
        )
        assert by_score.tolist() == by_rank.tolist()


@pytest.mark.parametrize(
    ("images", "easiest", "hardest"),
    [(1, 0, 20), (10, 4, 12), (40, 7, 8), (100, 8, 5), (200, 10, 2), (499, 11, 0), (500, 12, 0), (9000, 12, 0)],
)
def test_size_drops_the_hardest_of_small_sets_and_the_easiest_of_large_ones(
    images: int, easiest: int, hardest: int
) -> None:
    """Of 100 samples, by hand: v = log 40 / log 500 = 0.594 drops 0.12 * 59.4 = 7 and 0.20 * 40.6 = 8 of them."""
    static = [(37 * place) % 100 for place in range(100)]
    seen = see("size", [0] * 100, static=static, images=images)
    assert sorted(static[index] for index in seen) == list(range(easiest, 100 - hardest))


def test_size_leaves_three_quarters_of_any_class() -> None:
    for n, images in product(range(1, 60), (1, 2, 5, 22, 130, 500, 10_000)):
        assert 4 * len(see("size", range(n), images=images)) >= 3 * n
