"""Which real images of a class a matching step is shown: any of a window, or one of each of its strata first.

What must stay true: no image stands twice in what is drawn from a window while the window has others. A batch that is
drawn from several, as from all windows so far or from the frontier first, may hold an image of both.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def draw_from(window: Indices, count: int, generator: torch.Generator, strata: Indices | None = None) -> Indices:
    """``count`` members of a ``window`` of within-class indices, without repetition as long as it lasts.

    With ``strata`` (n_c,), the stratum of each image of the class, every stratum in the window gives one image before
    any gives its second; which one, and the order of strata, is drawn.
    """
    passes = [torch.randperm(len(window), generator=generator).numpy() for _ in range(-(-count // len(window)))]
    if strata is not None:
        passes = [_in_turn(order, strata[window]) for order in passes]
    chosen = np.concatenate([*passes, np.empty(0, np.int64)])[:count]
    return np.take(window, chosen)


def _in_turn(order: Indices, strata: Indices) -> Indices:
    """An ``order`` (n,) of members, rearranged: the first of each of the ``strata`` (n,), then the second of each."""
    of_stratum = strata[order]
    together = np.argsort(of_stratum, kind="stable")
    _, first, counts = np.unique(of_stratum[together], return_index=True, return_counts=True)
    turn = np.empty(len(order), np.int64)
    turn[together] = np.arange(len(order)) - np.repeat(first, counts)
    return order[np.argsort(turn, kind="stable")]
