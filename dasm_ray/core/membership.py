"""Membership inference: what a network's certainty, or a distance, says of which images something was made from.

Scores are larger where an image rather counts as a member. What must stay true: an area of 1/2 is what guessing gets,
ties count half, and the error of an area is that of the images that were drawn, for the networks as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Scores = NDArray[np.float64]


class Area(NamedTuple):
    """An area under a ROC curve in [0, 1], its standard error (None of a lone image), and how many images it is of."""

    value: float
    error: float | None
    members: int
    others: int


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log p/(1-p) of the label's probability p: (n,) float64 of logits (n, K) and labels (n,).

    Cross-entropy is log(1 + exp(-log odds)), so a threshold on one is a threshold on the other: the attack on the loss
    of Yeom et al. 2018. Carlini et al. 2022 attack the log odds, which are nearer to a normal distribution.
    """
    exact = logits.double()
    own = exact.gather(1, labels[:, None])[:, 0]
    others = exact.scatter(1, labels[:, None], -torch.inf)
    return own - others.logsumexp(1)


def calibrated(scores: Scores, shadows: Scores, is_out: NDArray[np.bool_]) -> Scores:
    """Scores (n,) less the mean of the shadow networks (S, n) that an image is ``is_out`` of; NaN where it is of none.

    The offline attack of Carlini et al. 2022 (LiRA) with one variance for all images, as they advise for few shadows:
    by how much a network is surer of an image than networks that never saw it.
    """
    count = is_out.sum(0)
    usual = np.where(is_out, shadows, 0).sum(0) / np.maximum(count, 1)
    return np.where(count > 0, scores - usual, np.nan)


def area(members: Sequence[Scores], others: Scores, *, is_shared: bool = False) -> Area | None:
    """The mean over R networks of the area under the ROC curve of members against others, with DeLong's error.

    ``members``: an array for each network; ``is_shared``: they are of the same images each time. ``others`` (R, n) are
    of the same images always. None where either holds none. The error is that of DeLong et al. 1988 for a mean of
    areas on the same images: of means over networks of each image's share of images on the other side that it beats.
    """
    if not others.size or not all(map(len, members)):
        return None
    beats = [_beaten(mine, against) for mine, against in zip(members, others, strict=True)]
    loses = np.stack([1 - _beaten(against, mine) for mine, against in zip(members, others, strict=True)]).mean(0)
    drawn = np.stack(beats).mean(0) if is_shared else np.concatenate(beats)
    value = float(np.mean([each.mean() for each in beats]))
    error = None
    if len(drawn) > 1 and len(loses) > 1:
        error = float(np.sqrt(drawn.var(ddof=1) / len(drawn) + loses.var(ddof=1) / len(loses)))
    return Area(value, error, len(drawn), len(loses))


def _beaten(scores: Scores, others: Scores) -> Scores:
    """For each score the share of the others that are smaller, equal ones counted half: (m,)."""
    ordered = np.sort(others)
    below, until = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    shares: Scores = (below + until) / (2 * len(others))
    return shares


def caught(members: Sequence[Scores], others: Scores, false: float = 0.01) -> float | None:
    """The mean over networks of the share of members above a threshold that a share ``false`` of others is above.

    None where the others are too few for such a share, or there is no member. Carlini et al. 2022 ask for this figure,
    since an attack that is sure of a few images is worse than one that is a little right about all.
    """
    allowed = int(false * others.shape[-1])
    if allowed < 1 or not all(map(len, members)):
        return None
    thresholds = np.sort(others, axis=1)[:, -allowed - 1]
    return float(np.mean([(mine > least).mean() for mine, least in zip(members, thresholds, strict=True)]))
