"""Selection against slow twins that try every candidate and write each definition out as it stands in its paper.

What must stay true: features of the exact comparisons are small integers whose mean is an integer too, so that ties
are ties in floating point and no tolerance is needed.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dasm_ray.core.selection import herding, k_center, random
from dasm_ray.errors import DataError

Integers = NDArray[np.int64]


def integer_features(seed: int, n: int, d: int) -> Integers:
    """Small integers, full of ties and repeated rows, moved so that each column's sum is 0."""
    rows = np.random.Generator(np.random.PCG64(seed)).integers(-2, 3, size=(n, d))
    return n * rows - rows.sum(axis=0)


def slow_herding(features: Integers, count: int) -> list[int]:
    """Tries every sample and compares ``||t * mean - sum of the chosen||^2`` as integers; the mean is 0."""
    chosen: list[int] = []
    for _ in range(count):
        costs = {}
        for candidate in range(len(features)):
            if candidate not in chosen:
                total = [sum(int(features[i][j]) for i in [*chosen, candidate]) for j in range(features.shape[1])]
                costs[candidate] = sum(value**2 for value in total)
        chosen.append(min(costs, key=lambda candidate: (costs[candidate], candidate)))
    return chosen


def slow_k_center(features: Integers, count: int) -> list[int]:
    """Tries every sample and compares squared distances to the nearest chosen one; the mean is 0."""

    def apart(a: Integers, b: Integers) -> int:
        return sum(int(x - y) ** 2 for x, y in zip(a, b, strict=True))

    origin = np.zeros_like(features[0])
    chosen = [min(range(len(features)), key=lambda i: (apart(features[i], origin), i))]
    while len(chosen) < count:
        left = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(apart(features[i], features[j]) for j in chosen), -i)))
    return chosen


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "d"), [(1, 3), (6, 1), (9, 2), (12, 4)])
def test_herding_agrees_with_trying_every_sample(seed: int, n: int, d: int) -> None:
    features = integer_features(seed, n, d)
    assert herding(features.astype(np.float32), n).tolist() == slow_herding(features, n)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n", "d"), [(1, 3), (6, 1), (9, 2), (12, 4)])
def test_k_center_agrees_with_trying_every_sample(seed: int, n: int, d: int) -> None:
    features = integer_features(seed, n, d)
    assert k_center(features.astype(np.float32), n).tolist() == slow_k_center(features, n)


def test_herding_starts_at_the_mean_and_then_balances_it() -> None:
    assert herding(np.array([[-4.0], [1.0], [4.0], [-1.0]]), 3).tolist() == [1, 3, 0]


def test_k_center_starts_at_the_mean_and_then_goes_far() -> None:
    assert k_center(np.array([[-3.0], [0.0], [5.0], [-2.0]]), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("method", [herding, k_center])
@pytest.mark.parametrize("d", [3, 67, 130])
def test_equal_rows_are_taken_in_order_and_never_twice(method: type, d: int) -> None:
    """Odd floating point values, each row at five positions that a blocked matrix product may sum differently."""
    rows = np.random.Generator(np.random.PCG64(d)).normal(size=(11, d))
    taken = method(np.tile(rows, (5, 1)), 55)
    assert sorted(taken) == list(range(55))
    for row in range(11):
        assert [index for index in taken if index % 11 == row] == list(range(row, 55, 11))


@pytest.mark.parametrize("method", [herding, k_center])
def test_the_features_are_left_as_they_were(method: type) -> None:
    features = np.random.Generator(np.random.PCG64(1)).normal(size=(8, 3))
    features.flags.writeable = False
    before = features.copy()
    fewer, more = method(features, 3), method(features, 5)
    assert fewer.tolist() == more[:3].tolist(), "a longer selection starts with the shorter one"
    assert more.dtype == np.int64
    assert np.array_equal(features, before)


@pytest.mark.parametrize("method", [herding, k_center])
def test_a_class_that_is_too_small_is_refused(method: type) -> None:
    with pytest.raises(DataError, match="has 2 images, fewer than the 3 to pick"):
        method(np.zeros((2, 4)), 3)


def test_random_draws_without_repeats_inside_each_class() -> None:
    picked = random([3, 7, 5], 3, np.random.Generator(np.random.PCG64(0)))
    assert sorted(picked[0].tolist()) == [0, 1, 2]
    for indices, count in zip(picked, [3, 7, 5], strict=True):
        assert indices.dtype == np.int64
        assert len(set(indices.tolist())) == 3
        assert set(indices.tolist()) <= set(range(count))


def test_random_reaches_every_image_equally_often() -> None:
    generator = np.random.Generator(np.random.PCG64(1))
    times = np.zeros(4, dtype=int)
    for _ in range(2000):
        times[random([4], 2, generator)[0]] += 1
    assert np.all(abs(times - 1000) < 120), "5 standard deviations of 22"


def test_random_follows_its_generator_alone() -> None:
    first, again, other = (
        [indices.tolist() for indices in random([50, 50], 5, np.random.Generator(np.random.PCG64(seed)))]
        for seed in (7, 7, 8)
    )
    assert first == again != other
    assert first[0] != first[1], "classes do not share a draw"


def test_random_names_the_class_that_is_too_small() -> None:
    with pytest.raises(DataError, match=r"class 1: has 2 images, fewer than the 3 to pick; lower synthetic\.ipc"):
        random([9, 2], 3, np.random.Generator(np.random.PCG64(0)))
