"""Selection against slow twins that try every candidate and write each definition out as it stands in its paper.

What must stay true: features of the exact comparisons are small integers whose mean is an integer too, so that ties
are ties in floating point and no tolerance is needed.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_info, threadpool_limits

from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import (
    ccs,
    hardest,
    herding,
    k_center,
    k_means,
    loop,
    patches,
    random,
    ridge_accuracy,
    strata,
    window,
    windows,
)
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


# --- k-means -----------------------------------------------------------------------------------------------------


def numbers(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def best_partition(features: NDArray[np.float64], count: int) -> list[list[int]]:
    """Tries every way to put the samples into ``count`` heaps and keeps the one of least squared distances."""
    best, least = None, math.inf
    for places in itertools.product(range(count), repeat=len(features)):
        if list(dict.fromkeys(places)) != list(range(count)):
            continue  # a heap is empty, or these are heaps that came before, under other numbers
        heaps = [[i for i, place in enumerate(places) if place == heap] for heap in range(count)]
        spread = sum(float(((features[heap] - features[heap].mean(0)) ** 2).sum()) for heap in heaps)
        if spread < least:
            best, least = heaps, spread
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(6))
def test_k_means_takes_the_sample_in_the_middle_of_each_cluster(seed: int) -> None:
    """Three clusters of four, three and two (equally near their mean: the first), found by trying every partition."""
    draws = numbers(seed)
    places = draws.permutation(np.array([[0, 0], [40, 3], [-7, 50]])).repeat([4, 3, 2], axis=0)
    features = (places + draws.normal(size=(9, 2)))[draws.permutation(9)]
    expected = set()
    for heap in best_partition(features, 3):
        apart = [float(((features[i] - features[heap].mean(0)) ** 2).sum()) for i in heap]
        expected.add(next(i for i, squared in zip(heap, apart, strict=True) if squared <= min(apart) + 1e-9))
    assert set(k_means(features, 3, numbers(0)).tolist()) == expected


def test_k_means_follows_its_generator_alone_on_any_number_of_threads() -> None:
    features = numbers(0).normal(size=(1500, 24)).astype(np.float32)
    features.flags.writeable = False
    state = np.random.get_state()  # noqa: NPY002
    before = threadpool_info()
    first = k_means(features, 20, numbers(1))
    assert threadpool_info() == before
    with threadpool_limits(limits=2):
        assert k_means(features, 20, numbers(1)).tolist() == first.tolist()
    assert k_means(features, 20, numbers(2)).tolist() != first.tolist()
    assert np.random.get_state()[1].tolist() == state[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert first.dtype == np.int64
    assert len(set(first.tolist())) == 20


def test_k_means_takes_twins_but_no_sample_twice() -> None:
    assert sorted(k_means(np.ones((6, 3)), 6, numbers(0)).tolist()) == list(range(6))
    twins = np.array([[0.0], [0.0], [9.0], [9.0]])
    assert sorted(k_means(twins, 2, numbers(0)).tolist()) == [0, 2], "of equals the first"
    assert sorted(k_means(twins, 3, numbers(0)).tolist())[0] == 0


# --- by score ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_hardest_are_taken_by_score_and_then_by_index(seed: int) -> None:
    score = numbers(seed).integers(0, 4, size=11)
    expected = sorted(range(11), key=lambda i: (-score[i], i))
    for count in range(12):
        assert hardest(score.astype(np.float64), count).tolist() == expected[:count]
    assert hardest(score, 11).dtype == np.int64
    assert hardest(score >= 2, 11).tolist() == sorted(range(11), key=lambda i: (score[i] < 2, i))


def slow_budgets(sizes: list[int], count: int) -> list[int]:
    """Each heap in turn, the smallest first, gets an even part of what is left, or all it has."""
    budgets = [0] * len(sizes)
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (sizes[i], i))
    while order:
        smallest = order[0]
        budgets[smallest] = min(sizes[smallest], (count - sum(budgets)) // len(order))
        order = order[1:]
    return budgets


def slow_heaps(score: NDArray[np.float64], count: int, beta: float, strata: int) -> list[list[int]]:
    """The samples in each stratum once the hardest are dropped one by one."""
    kept = list(range(len(score)))
    dropped = 0
    while (dropped + 1) * 1000 <= round(beta * 1000) * len(score) and len(kept) > count:
        kept.remove(max(kept, key=lambda i: (score[i], i)))
        dropped += 1
    low, high = min(score[kept]), max(score[kept])
    heaps: list[list[int]] = [[] for _ in range(strata)]
    for i in kept:
        place = next((s for s in range(strata) if score[i] < low + (s + 1) * (high - low) / strata), strata - 1)
        heaps[place if high > low else 0].append(i)
    return heaps


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("beta", "strata"), [(0.3, 50), (0.3, 4), (0.0, 7), (0.29, 1), (0.9, 3)])
def test_ccs_fills_the_strata_as_in_the_paper(seed: int, beta: float, strata: int) -> None:
    draws = numbers(seed)
    score = draws.choice(draws.exponential(size=25), 30)  # with equals among them
    for count in (1, 2, 7, 19, 30):
        heaps = slow_heaps(score, count, beta, strata)
        taken = ccs(score, count, numbers(3), beta, strata).tolist()
        assert len(set(taken)) == len(taken) == count
        assert [len(set(taken) & set(heap)) for heap in heaps] == slow_budgets([len(heap) for heap in heaps], count)
        where = [next(s for s, heap in enumerate(heaps) if i in heap) for i in taken]
        assert where == sorted(where), "easiest stratum first"


def test_ccs_drops_the_hardest_and_no_more_than_it_can() -> None:
    score = np.arange(10.0)
    assert sorted(ccs(score, 7, numbers(0)).tolist()) == list(range(7)), "exactly 30 of 100"
    assert sorted(ccs(score, 9, numbers(0)).tolist()) == list(range(9))
    assert sorted(ccs(np.ones(10), 7, numbers(0)).tolist()) == list(range(7)), "of equals the last are dropped"


def test_ccs_is_uniform_within_a_stratum() -> None:
    score = np.array([0, 0, 0, 0, 9, 9, 20])
    times = Counter(i for seed in range(1000) for i in ccs(score, 3, numbers(seed), beta=0.0, strata=2).tolist())
    assert times[6] == 1000
    assert all(abs(times[i] - 333) < 75 for i in range(6)), "5 standard deviations of 15"


@pytest.mark.parametrize("seed", range(4))
def test_a_window_holds_a_stretch_of_the_difficulty(seed: int) -> None:
    score = numbers(seed).integers(0, 9, size=20)
    order = sorted(range(20), key=lambda i: (score[i], i))
    for start, first, last in [(0.0, 0, 6), (0.1, 2, 8), (0.5, 10, 16), (0.7, 14, 20), (0.9, 14, 20), (1.0, 14, 20)]:
        taken = window(score, 4, start, 0.29, numbers(1)).tolist()
        assert set(taken) <= set(order[first:last])
        assert taken == sorted(set(taken), key=order.index), "easiest first, none twice"
        assert len(taken) == 4
        assert window(score, 6, start, 0.29, numbers(1)).tolist() == order[first:last], "all that it holds"
    assert window(score, 5, 0.3, 0, numbers(1)).tolist() == order[6:11], "without a width, the next ones"
    assert window(score, 20, 0.3, 0.1, numbers(1)).tolist() == order


def test_every_member_of_a_window_is_as_likely() -> None:
    times = Counter(i for seed in range(1000) for i in window(np.arange(10), 2, 0.2, 0.5, numbers(seed)).tolist())
    assert set(times) == {2, 3, 4, 5, 6}
    assert all(abs(found - 400) < 78 for found in times.values()), "5 standard deviations of 15.5"


def test_candidates_are_windows_one_after_another() -> None:
    score, starts = numbers(0).normal(size=40), [0.0, 0.1, 0.5, 0.9]
    draws = numbers(5)
    expected = [window(score, 3, start, 0.2, draws).tolist() for start in starts]
    assert [found.tolist() for found in windows(score, 3, starts, 0.2, numbers(5))] == expected


@pytest.mark.parametrize(
    "method",
    [
        lambda score: hardest(score, 3),
        lambda score: ccs(score, 3, numbers(0)),
        lambda score: window(score, 3, 0.0, 0.5, numbers(0)),
        lambda score: k_means(score[:, None], 3, numbers(0)),
    ],
)
def test_a_class_that_is_too_small_is_refused_by_all(method: type) -> None:
    with pytest.raises(DataError, match=r"has 2 images, fewer than the 3 to pick; lower synthetic\.ipc"):
        method(np.zeros(2))


def test_ridge_accuracy_is_that_of_scikit_learn() -> None:
    generator = numpy_generator("ridge")
    truth = generator.integers(0, 3, 60)
    seen = generator.standard_normal((60, 5)) + 2 * np.eye(3, 5)[truth]
    features, labels = seen[:12] + 0.1, truth[:12]
    centred = features - features.mean(axis=0)
    penalty = 0.01 * np.trace(centred @ centred.T) / 12
    model = Ridge(alpha=penalty, fit_intercept=False).fit(centred, np.eye(3)[labels] - 1 / 3)
    expected = np.mean(model.predict(seen - features.mean(axis=0)).argmax(axis=1) == truth)
    found = ridge_accuracy(features, labels, 3, seen, truth)
    assert found == pytest.approx(float(expected))
    assert 0.5 < found < 1
    assert ridge_accuracy(np.zeros((3, 2)), np.arange(3), 3, np.zeros((4, 2)), np.zeros(4, np.int64)) in (0, 1)


def slow_loop(
    features: Integers, count: int, target: list[int], used: list[int], frontier: list[int], static: Integers, seed: int
) -> list[int]:
    """One image after another: the easiest of the frontier that is left, then the centres', then the easiest left."""
    left = [index for index in range(len(features)) if index not in used]
    chosen: list[int] = []
    while len(chosen) < count and any(index in frontier for index in left):
        chosen.append(min((index for index in left if index in frontier), key=lambda index: (static[index], index)))
        left.remove(chosen[-1])
    rest = [index for index in left if index in target]
    covering = min(count - len(chosen), len(rest))
    if covering:
        near = k_means(features[rest], covering, numpy_generator(seed))
        chosen += [rest[place] for place in near]
    left = [index for index in left if index not in chosen]
    while len(chosen) < count:
        chosen.append(min(left, key=lambda index: (static[index], index)))
        left.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 4, 9, 15])
def test_the_loop_takes_the_frontiers_easiest_then_the_centres_then_the_rest(seed: int, count: int) -> None:
    random_ = np.random.Generator(np.random.PCG64(seed))
    features, static = integer_features(seed, 20, 3), random_.integers(0, 6, 20)
    target, used, frontier = (np.flatnonzero(random_.random(20) < share) for share in (0.6, 0.2, 0.3))
    count = min(count, 20 - len(used))
    chosen = loop(features, count, target, used, frontier, static, numpy_generator(seed)).tolist()
    assert chosen == slow_loop(features, count, target.tolist(), used.tolist(), frontier.tolist(), static, seed)
    assert len(set(chosen)) == count
    assert not set(chosen) & set(used.tolist())


@pytest.mark.parametrize("count", [2, 5])
def test_a_start_that_covers_takes_what_is_nearest_to_the_frontiers_centres(count: int) -> None:
    """All of the frontier where it has no more, as the loop does."""
    features, static = integer_features(3, 20, 3), np.arange(20)[::-1].copy()
    target, used, frontier = np.arange(20), np.array([2, 11]), np.array([1, 2, 5, 8])
    chosen = loop(features, count, target, used, frontier, static, numpy_generator(1), covers=True)
    left = np.array([1, 5, 8])
    if count < len(left):
        assert chosen.tolist() == left[k_means(features[left], count, numpy_generator(1))].tolist()
    else:
        assert chosen.tolist() == loop(features, count, target, used, frontier, static, numpy_generator(1)).tolist()


def test_the_loop_refuses_a_class_that_is_used_up() -> None:
    features, none = integer_features(0, 5, 2), np.empty(0, np.int64)
    with pytest.raises(DataError, match="a class has 3 images, fewer than the 4 to pick"):
        loop(features, 4, np.arange(5), np.array([0, 4]), none, np.arange(5), numpy_generator(0))


def test_strata_are_the_clusters_that_were_made() -> None:
    random_ = np.random.Generator(np.random.PCG64(3))
    centres, of_cluster = 100 * np.eye(6), random_.integers(0, 6, 60)
    features = centres[of_cluster] + random_.normal(size=(60, 6))
    found = strata(features, 6, numpy_generator(0))
    assert found.dtype == np.int64
    assert len(set(zip(found.tolist(), of_cluster.tolist(), strict=True))) == 6
    assert strata(features[:5], 6, numpy_generator(0)).tolist() == [0, 1, 2, 3, 4]


# --- patches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_patches_are_the_best_crops_of_the_best_images(seed: int) -> None:
    losses = np.random.Generator(np.random.PCG64(seed)).integers(0, 6, size=(7, 5)).astype(np.float64)
    losses[0, 0] = np.nan
    left = [[(losses[image, crop], crop) for crop in range(5)] for image in range(7)]
    behind = [[(math.inf if math.isnan(loss) else loss, crop) for loss, crop in crops] for crops in left]
    expected = []
    while len(expected) < 30:  # turn by turn: the best crop that each image has left, then these by their losses
        turn = sorted((min(crops), image) for image, crops in enumerate(behind))
        for (loss, crop), image in sorted(turn, key=lambda each: (each[0][0], each[1])):
            behind[image].remove((loss, crop))
            expected.append(image * 5 + crop)
    assert patches(losses, 30).tolist() == expected[:30]
    assert len({number // 5 for number in patches(losses, 7).tolist()}) == 7, "of different images while there are any"


def test_more_patches_than_crops_are_refused() -> None:
    with pytest.raises(DataError, match="fewer than the 11"):
        patches(np.zeros((2, 5)), 11)
