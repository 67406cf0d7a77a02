"""Picking real images instead of making synthetic ones: the baselines that a distilled set has to beat.

Each method works on one class: on its features (n, d), or on one score per sample (n,) where larger is harder, and
returns within-class indices. What must stay true: equal candidates are told apart by the lower index, and no sum
depends on the number of threads, so a baseline is the same set on every machine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.shown import several
from dasm_ray.core.window import easiest_first, exact
from dasm_ray.errors import DataError

Indices = NDArray[np.int64]
Features = NDArray[np.floating]
Scores = NDArray[np.generic]

TRIALS, ITERATIONS = 3, 100
"""k-means: starts of which the best is kept, and the most steps of one."""

CROPS = 5
"""Crops that are cut out of an image, where patches are chosen."""


def random(counts: Sequence[int] | Indices, ipc: int, generator: np.random.Generator) -> list[Indices]:
    """``ipc`` different within-class indices for each class, drawn uniformly, in the order drawn.

    ``counts`` (K,) are the images of each class. DataError where a class holds fewer than ``ipc``.
    """
    for label, count in enumerate(counts):
        if count < ipc:
            raise DataError(
                f"class {label}: has {several(count, 'images')}, fewer than the {ipc} to pick; lower synthetic.ipc"
            )
    return [generator.choice(int(count), ipc, replace=False).astype(np.int64) for count in counts]


def herding(features: Features, count: int) -> Indices:
    """The ``count`` samples, in order, whose running mean stays nearest to the class mean (Welling 2009).

    ``features`` (n, d) of one class. At step t the sample x joins that makes ``||mean - (x_1 + … + x_t)/t||`` least;
    none joins twice. DataError where n is below ``count``.
    """
    centred = _centred(features, count)
    # ||S + z||^2 = ||S||^2 + 2 S·z + ||z||^2 with S the sum of the chosen z; the first term is the same for all z.
    cost = _dot(centred, centred)
    chosen = np.empty(count, dtype=np.int64)
    for step in range(count):
        best = chosen[step] = np.argmin(cost)
        cost += 2 * _dot(centred, centred[best])
        cost[best] = np.inf
    return chosen


def k_center(features: Features, count: int) -> Indices:
    """The ``count`` samples, in order, of greedy k-center: first the one nearest to the mean, then always the one
    farthest from all chosen so far (Sener and Savarese 2018).

    ``features`` (n, d) of one class. DataError where n is below ``count``.
    """
    centred = _centred(features, count)
    distance = np.full(len(centred), np.inf)
    chosen = np.empty(count, dtype=np.int64)
    for step in range(count):
        best = chosen[step] = np.argmax(distance) if step else np.argmin(_dot(centred, centred))
        offset = centred - centred[best]
        distance = np.minimum(distance, _dot(offset, offset))
        distance[chosen[: step + 1]] = -1.0  # below a twin of a chosen sample, which stands at 0 and may still join
    return chosen


def k_means(features: Features, count: int, generator: np.random.Generator) -> Indices:
    """The sample nearest to each of ``count`` centroids of k-means, none twice.

    ``features`` (n, d) of one class; ``generator`` gives the one seed of scikit-learn's k-means, which runs on one
    thread, since it adds up in the order in which threads finish. DataError where n is below ``count``.
    """
    centred = _centred(features, count)
    centroids, _ = _clusters(centred, count, generator)
    chosen = np.empty(count, dtype=np.int64)
    for place, centroid in enumerate(centroids):
        offset = centred - centroid
        distance = _dot(offset, offset)
        distance[chosen[:place]] = np.inf
        # The two samples of a cluster of two are equally near, whatever rounding makes of it.
        chosen[place] = np.flatnonzero(distance <= distance.min() * (1 + 1e-9))[0]
    return chosen


def strata(features: Features, count: int, generator: np.random.Generator) -> Indices:
    """Which of ``count`` k-means clusters each sample is in, int64 (n,); of fewer samples each is one of its own.

    ``features`` (n, d) of one class.
    """
    if len(features) <= count:
        return np.arange(len(features), dtype=np.int64)
    return _clusters(_centred(features, count), count, generator)[1]


def _clusters(
    centred: NDArray[np.float64], count: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], Indices]:
    """Centroids (count, d) of k-means, and which one each sample belongs to (n,)."""
    # Loaded here: it takes a second, and every other method does without.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(count, n_init=TRIALS, max_iter=ITERATIONS, random_state=int(generator.integers(2**31)))
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than centroids is no fault
        means.fit(centred)
    return means.cluster_centers_, means.labels_.astype(np.int64)


def loop(
    features: Features,
    count: int,
    target: Indices,
    used: Indices,
    frontier: Indices,
    static: Scores,
    generator: np.random.Generator,
    covers: bool = False,
) -> Indices:
    """``count`` unused samples of a class to start a segment from: the frontier's easiest, then what covers the target.

    ``features`` (n, d) and the ``static`` score (n,) of one class; ``target``, ``used`` and ``frontier`` are
    within-class indices. First come the unused ones of the frontier, easiest first, or, where it ``covers`` and has
    more of them, those nearest to ``count`` k-means centres of it; where that is not enough, those
    nearest to as many k-means centres of the unused rest of the target; where that is used up too, what else is unused,
    easiest first. In the order chosen. DataError where fewer than ``count`` are unused.
    """
    order = easiest_first(static)
    unused = ~np.isin(order, used)
    _refuse_small(int(np.count_nonzero(unused)), count)
    is_frontier, is_target = np.isin(order, frontier), np.isin(order, target)
    first = order[unused & is_frontier]
    if covers and len(first) > count:
        first = np.sort(first)
        first = first[k_means(features[first], count, generator)]
    first = first[:count]
    rest = np.sort(order[unused & ~is_frontier & is_target])
    covering = min(count - len(first), len(rest))
    second = rest[k_means(features[rest], covering, generator)] if covering else rest[:0]
    third = order[unused & ~is_frontier & ~is_target][: count - len(first) - covering]
    return np.concatenate([first, second, third])


def hardest(score: Scores, count: int) -> Indices:
    """The ``count`` samples of the highest ``score`` (n,), hardest first: `forgetting`, `el2n` and `grand` by theirs.

    Toneva et al. 2019, Paul et al. 2021. DataError where n is below ``count``.
    """
    _refuse_small(len(score), count)
    # Sorted from behind, so that equal ones keep the order of their indices once it is turned round.
    return len(score) - 1 - np.argsort(score[::-1], kind="stable")[::-1][:count]


def patches(losses: Scores, count: int) -> Indices:
    """The ``count`` crops that an expert knows best, best first, of different images as far as there are so many.

    ``losses`` (n, CROPS): those of n images, NaN behind all; a crop is numbered image * CROPS + crop. First compete the
    best crops of all images, then the second best, and so on. RDED (Sun et al. 2024). DataError where there are fewer
    than ``count`` crops.
    """
    _refuse_small(losses.size, count, "crops of images")
    rank = losses.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.lexsort((losses.ravel(), rank.ravel()))[:count].astype(np.int64)


def ccs(score: Scores, count: int, generator: np.random.Generator, beta: float = 0.3, strata: int = 50) -> Indices:
    """``count`` samples that cover all difficulties (coverage-centric selection, Zheng et al. 2023, algorithm 1).

    The hardest share ``beta`` of ``score`` (n,) is dropped, as far as ``count`` samples are left; the range of the rest
    is cut into ``strata`` equal widths. The budget is shared evenly among those that hold a sample, the smallest first,
    so that what it cannot use goes to the others; within each the draw is uniform. Easiest stratum first. DataError
    where n is below ``count``.
    """
    _refuse_small(len(score), count)
    dropped = min(math.floor(exact(beta) * len(score)), len(score) - count)
    kept = easiest_first(score)[: len(score) - dropped]
    members = [kept[_strata(score[kept], strata) == stratum] for stratum in range(strata)]
    taken: dict[int, Indices] = {}
    filled = sorted((stratum for stratum in range(strata) if len(members[stratum])), key=lambda s: len(members[s]))
    left = count
    for place, stratum in enumerate(filled):
        budget = min(len(members[stratum]), left // (len(filled) - place))
        taken[stratum] = generator.choice(members[stratum], budget, replace=False)
        left -= budget
    return np.concatenate([taken[stratum] for stratum in sorted(taken)])


def _strata(score: Scores, strata: int) -> Indices:
    """Which of ``strata`` equal widths between least and largest each score (n,) falls in; one if all are equal."""
    wide = score.astype(np.float64)
    span = wide.max() - wide.min()
    if span == 0:
        return np.zeros(len(wide), dtype=np.int64)
    places: Indices = np.minimum((wide - wide.min()) / span * strata, strata - 1).astype(np.int64)
    return places


def window(score: Scores, count: int, start: float, width: float, generator: np.random.Generator) -> Indices:
    """``count`` samples drawn from one window of difficulty, easiest first.

    Samples (n,) stand in order from easy to hard; the window begins after a share ``start`` of them and holds a share
    ``width``, but at least ``count`` (so width 0 is exactly the next ``count``); where it would reach past the hardest
    it ends there. DataError where n is below ``count``.
    """
    _refuse_small(len(score), count)
    size = max(count, math.ceil(exact(width) * len(score)))
    first = min(math.floor(exact(start) * len(score)), len(score) - size)
    places = np.sort(generator.choice(size, count, replace=False))
    return easiest_first(score)[first + places]


def windows(
    score: Scores, count: int, starts: Sequence[float], width: float, generator: np.random.Generator
) -> list[Indices]:
    """A candidate for each of ``starts``, see `window`; which is best is for a validation to say."""
    return [window(score, count, start, width, generator) for start in starts]


WINDOW_STARTS = tuple(place / 20 for place in range(20))
"""Shares of a class, from the easiest on, after which a candidate window may begin."""

Pick = Callable[[NDArray[np.floating], int, np.random.Generator], list[Indices]]
"""Candidates of ``ipc`` within-class indices each, from features (n, d) or one score a sample (n,) of one class; of
patches, numbers of crops for all tiles, from their losses (n, CROPS)."""

PICKS: dict[str, Pick] = {
    "herding": lambda features, ipc, _: [herding(features, ipc)],
    "k_center": lambda features, ipc, _: [k_center(features, ipc)],
    "k_means": lambda features, ipc, generator: [k_means(features, ipc, generator)],
    "forgetting": lambda score, ipc, _: [hardest(score, ipc)],
    "el2n": lambda score, ipc, _: [hardest(score, ipc)],
    "grand": lambda score, ipc, _: [hardest(score, ipc)],
    "ccs": lambda score, ipc, generator: [ccs(score, ipc, generator)],
    "window": lambda score, ipc, generator: windows(score, ipc, WINDOW_STARTS, 0.0, generator),
    "patches": lambda losses, tiles, _: [patches(losses, tiles)],
}
"""The function of every way to choose that ``config.selections.SELECTIONS`` lists."""


def ridge_accuracy(
    features: Features, labels: Indices, classes: int, seen: Features, truth: Indices, penalty: float = 1e-2
) -> float:
    """How many of ``seen`` (v, d) of classes ``truth`` a ridge regression on few samples tells right, in [0, 1].

    ``features`` (n, d) with ``labels`` (n,); targets are one-hot; ``penalty`` is in units of the mean squared feature.
    A cheap stand-in for training a network on them, as best-window selection uses (Choi et al. 2024).
    """
    centre = features.astype(np.float64).mean(axis=0)
    x, other = features - centre, seen - centre
    targets = np.eye(classes)[labels] - 1 / classes
    gram = x @ x.T
    weights = np.linalg.solve(gram + penalty * max(np.trace(gram) / len(x), 1e-12) * np.eye(len(x)), targets)
    return float(np.mean((other @ x.T @ weights).argmax(axis=1) == truth))


def _refuse_small(present: int, count: int, what: str = "images") -> None:
    if present < count:
        raise DataError(f"a class has {present} {what}, fewer than the {count} to pick; lower synthetic.ipc")


def _centred(features: Features, count: int) -> NDArray[np.float64]:
    """Features minus their mean, (n, d) float64; no method is moved by a shift."""
    _refuse_small(len(features), count)
    wide = features.astype(np.float64)
    wide -= wide.mean(axis=0)
    return wide


def _dot(rows: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row inner products (n,); not by BLAS, which may sum equal rows in different orders and so break ties."""
    products: NDArray[np.float64] = np.einsum("nd,nd->n", rows, np.broadcast_to(other, rows.shape))
    return products
