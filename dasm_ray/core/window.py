"""Which real samples of one class a segment may see, from how hard the probe and the experts find each of them.

What must stay true: a window is a pure function of its arguments, is never empty for a class with samples, and equal
scores are told apart by the lower index, so every worker and every rerun sees the same window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config import keys

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """What is known of the n samples of one class when segment ``segment`` (from 0) of ``segments`` is to begin."""

    segment: int
    segments: int
    dynamic: NDArray[np.generic]  # (n,) difficulty under the probe, larger is harder
    static: NDArray[np.generic]  # (n,) difficulty under the experts, larger is harder
    wrong: NDArray[np.bool_]  # (n,) the probe gets it wrong
    known: NDArray[np.bool_]  # (n,) the experts get it right
    images: int = 1  # that the class trains networks with once the segment is done, n_k f^2

    def __len__(self) -> int:
        return len(self.dynamic)

    @property
    def progress(self) -> Fraction:
        """From 0 at the first segment to 1 at the last; a lone segment is a first one."""
        return Fraction(self.segment, max(self.segments - 1, 1))


def window(
    policy: keys.Window,
    *,
    segment: int,
    segments: int,
    dynamic: NDArray[np.generic],
    static: NDArray[np.generic],
    wrong: NDArray[np.bool_],
    known: NDArray[np.bool_],
    images: int = 1,
) -> Indices:
    """The within-class indices that the segment may see, int64, ascending. All arrays are (n,); see Standing."""
    assert 0 <= segment < segments, (segment, segments)
    standing = Standing(segment, segments, dynamic, static, np.asarray(wrong, bool), np.asarray(known, bool), images)
    return np.sort(POLICIES[policy.policy](policy, standing))


def everything(policy: keys.Window, standing: Standing) -> Indices:
    """No window."""
    return np.arange(len(standing), dtype=np.int64)


def quantile(policy: keys.Window, standing: Standing) -> Indices:
    """A share ``width`` of the class by rank under the probe, sliding from the easiest to the hardest."""
    size = math.ceil(exact(policy.width) * len(standing))
    start = math.floor(standing.progress * (len(standing) - size))
    return easiest_first(standing.dynamic)[start : start + size]


def frontier(policy: keys.Window, standing: Standing) -> Indices:
    """What the probe gets wrong and the experts get right, easiest first by the static score; where that is less than
    a share ``w_min`` of the class, then the rest, easiest first under the probe, up to that share."""
    learnable = standing.wrong & standing.known
    by_static, by_dynamic = easiest_first(standing.static), easiest_first(standing.dynamic)
    order = np.concatenate([by_static[learnable[by_static]], by_dynamic[~learnable[by_dynamic]]])
    least = math.ceil(exact(policy.w_min) * len(standing))
    return order[: max(least, np.count_nonzero(learnable))]


def trim(policy: keys.Window, standing: Standing) -> Indices:
    """All but the easiest by the static score; the share dropped grows from 0 to ``trim`` at the last segment."""
    dropped = math.floor(standing.progress * exact(policy.trim) * len(standing))
    return easiest_first(standing.static)[dropped:]


HARDEST, EASIEST, LARGE = 0.20, 0.12, 500
"""Shares of a class that policy `size` drops where a set is smallest, and where it has LARGE images of a class."""


def size(policy: keys.Window, standing: Standing) -> Indices:
    """All but the hardest and the easiest by the static score, as many of either as the size of the set asks for.

    With v = log(n_k f^2) / log 500, cut off at 0 and 1, the hardest 0.20 (1 - v) and the easiest 0.12 v are dropped: a
    small set cannot show what is rare, a large one has no need of more of what is plain. That is a fifth at most, so
    three quarters of a class always stay.
    """
    share = min(math.log(standing.images) / math.log(LARGE), 1.0)
    hardest = math.floor(HARDEST * (1 - share) * len(standing))
    easiest = math.floor(EASIEST * share * len(standing))
    return easiest_first(standing.static)[easiest : len(standing) - hardest]


POLICIES: dict[str, Callable[[keys.Window, Standing], Indices]] = {
    "all": everything,
    "quantile": quantile,
    "frontier": frontier,
    "trim": trim,
    "size": size,
}


def easiest_first(score: NDArray[np.generic]) -> Indices:
    """The order (n,) of scores from the lowest; equal ones keep the order of their indices."""
    return np.argsort(score, kind="stable").astype(np.int64, copy=False)


def exact(share: float) -> Fraction:
    """The share as it was written: 0.07 of 100 samples is 7 of them, though ``0.07 * 100 > 7`` in binary."""
    return Fraction(repr(float(share)))
