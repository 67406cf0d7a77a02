"""How hard each real sample is for a network: one number a sample, larger is harder.

What must stay true: a score depends on its own sample alone, so any cut of the data into shards gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits (n, K), labels int64 (n,), features (n, d)) -> float64 (n,)``"""


def loss(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Cross-entropy in nats, ``-log p_y``, in [0, inf)."""
    nats: Tensor = F.cross_entropy(logits.double(), labels, reduction="none")
    return nats


def el2n(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """``||p - y||_2`` of probabilities and one-hot label, in [0, sqrt 2] (Paul et al. 2021, definition 2.2)."""
    length: Tensor = torch.linalg.vector_norm(_residual(logits, labels), dim=1)
    return length


def margin(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """``max_{k != y} p_k - p_y``, in [-1, 1]: above 0 when another class is preferred."""
    p = _probabilities(logits)
    true = labels[:, None]
    # The true class is set to 0, which no probability is below, so it can never be the best of the others.
    return p.scatter(1, true, 0.0).amax(dim=1).sub(p.gather(1, true).squeeze(1))


def grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Norm of the cross-entropy gradient of the last linear layer, weights and bias (GraNd, Paul et al. 2021).

    With ``logits = W h + b`` the gradient is the outer product ``(p - y) (h, 1)^T``, and its norm the product of norms.
    """
    h = features.double()
    length = h.square().sum(dim=1).add(1).sqrt()
    return el2n(logits, labels, features).mul(length)


SCORES: dict[str, Score] = {"loss": loss, "el2n": el2n, "margin": margin, "grand": grand}


def forgetting(correct: Tensor) -> Tensor:
    """How often each sample was learned and then forgotten (Toneva et al. 2019).

    ``correct`` bool (epochs, n): whether the sample was classified correctly after each epoch. Returns int64 (n,): the
    number of epochs with a correct answer that are followed by one with a wrong answer. A sample that was never
    correct has nothing to forget and is the hardest of all; it gets ``epochs``, more than any other can reach.
    """
    forgotten = (correct[:-1] & ~correct[1:]).sum(dim=0)
    return forgotten + len(correct) * ~correct.any(dim=0)


def thirds(score: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which third of its class each sample is in by its score: 0 easy, 1, 2 hard; of equal scores the first is easier.

    By class, so that no third is made of the hard classes. ``score`` (n,), ``labels`` (n,).
    """
    found = np.empty(len(score), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        found[mine[np.argsort(score[mine], kind="stable")]] = np.arange(len(mine)) * 3 // len(mine)
    return found


def _residual(logits: Tensor, labels: Tensor) -> Tensor:
    """``p - y`` (n, K) float64."""
    onehot = F.one_hot(labels, logits.shape[1])
    return _probabilities(logits).sub(onehot)


def _probabilities(logits: Tensor) -> Tensor:
    """``p`` (n, K) float64: in float32 the most confident samples would tie, and their ranks be lost."""
    return logits.double().softmax(dim=1)
