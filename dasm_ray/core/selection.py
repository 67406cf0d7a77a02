"""Picking real images instead of making synthetic ones: the baselines that a distilled set has to beat.

What must stay true: equal candidates are told apart by the lower index, and no sum depends on the number of threads,
so a baseline is the same set on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dasm_ray.errors import DataError

Indices = NDArray[np.int64]
Features = NDArray[np.floating]


def random(counts: Sequence[int] | Indices, ipc: int, generator: np.random.Generator) -> list[Indices]:
    """``ipc`` different within-class indices for each class, drawn uniformly, in the order drawn.

    ``counts`` (K,) are the images of each class. DataError where a class holds fewer than ``ipc``.
    """
    for label, count in enumerate(counts):
        if count < ipc:
            raise DataError(f"class {label}: has {count} images, fewer than the {ipc} to pick; lower synthetic.ipc")
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


def _centred(features: Features, count: int) -> NDArray[np.float64]:
    """Features minus their mean, (n, d) float64; neither method is moved by a shift."""
    if len(features) < count:
        raise DataError(f"a class has {len(features)} images, fewer than the {count} to pick; lower synthetic.ipc")
    wide = features.astype(np.float64)
    wide -= wide.mean(axis=0)
    return wide


def _dot(rows: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row inner products (n,); not by BLAS, which may sum equal rows in different orders and so break ties."""
    products: NDArray[np.float64] = np.einsum("nd,nd->n", rows, np.broadcast_to(other, rows.shape))
    return products
