"""Scoring a range of real samples under several networks: how hard they are for a probe, and by nature.

What must stay true: a sample's score does not depend on how the work is cut. Ranges are whole batches of one fixed
shape, so every sample meets the same neighbours in any cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.difficulty import SCORES, forgetting
from dasm_ray.core.real import Blocks
from dasm_ray.core.train import Network, RealSamples, read_all, statistics_of


@dataclass(frozen=True)
class Scored:
    """A range of samples: ``score`` float64 (n,), larger is harder; ``wrong`` bool (n,): the ensemble errs."""

    score: NDArray[np.float64]
    wrong: NDArray[np.bool_]


def shard_ranges(count: int, batch: int, shards: int) -> list[tuple[int, int]]:
    """``count`` samples cut into at most ``shards`` ranges [first, last) of whole batches, as even as can be."""
    total = -(-count // batch)
    edges = [total * shard // shards * batch for shard in range(shards + 1)]
    ranges = [(first, min(last, count)) for first, last in pairwise(edges)]
    return [(first, last) for first, last in ranges if first < last]


def score_range(
    network: Network, blocks: Blocks, ensemble: Sequence[Tensor], score: str, first: int, last: int, batch: int
) -> Scored:
    """The mean score over the networks of ``ensemble``, and whether their mean prediction is wrong."""
    readings = [_read(network, blocks, flat, first, last, batch) for flat in ensemble]
    labels = readings[0][2]
    scores = [SCORES[score](logits, labels, features) for logits, features, _ in readings]
    return Scored(torch.stack(scores).mean(0).cpu().numpy(), _wrong(readings))


def static_range(
    network: Network,
    blocks: Blocks,
    experts: Sequence[Tensor],
    score: str,
    early: int,
    first: int,
    last: int,
    batch: int,
) -> Scored:
    """The static score, averaged over trajectories (E+1, P) and their first ``early`` epochs, and who errs at the end.

    ``forgetting`` counts over whole trajectories instead.
    """
    ends = [_read(network, blocks, snapshots[-1], first, last, batch) for snapshots in experts]
    labels = ends[0][2]
    parts = []
    for snapshots in experts:
        epochs = snapshots[1:] if score == "forgetting" else snapshots[1 : early + 1]
        readings = [_read(network, blocks, flat, first, last, batch) for flat in epochs]
        if score == "forgetting":
            parts.append(forgetting(torch.stack([logits.argmax(1) == labels for logits, _, _ in readings])).double())
        else:
            parts.extend(SCORES[score](logits, labels, features) for logits, features, _ in readings)
    return Scored(torch.stack(parts).mean(0).cpu().numpy(), _wrong(ends))


def features_of(network: Network, blocks: Blocks, flat: Tensor, label: int, batch: int) -> NDArray[np.float32]:
    """The last hidden layer (n_c, d) of all images of one class."""
    first = int(blocks.starts[label])
    return _read(network, blocks, flat, first, first + int(blocks.counts[label]), batch)[1].cpu().numpy()


def _read(
    network: Network, blocks: Blocks, flat: Tensor, first: int, last: int, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, features and labels of the samples [first, last)."""
    statistics = statistics_of(network, flat, RealSamples(network, blocks))
    samples = RealSamples(network, blocks, np.arange(first, last))
    readings = list(read_all(network, flat, statistics, samples, batch))
    return tuple(torch.cat(parts) for parts in zip(*readings, strict=True))  # type: ignore[return-value]


def _wrong(readings: Sequence[tuple[Tensor, Tensor, Tensor]]) -> NDArray[np.bool_]:
    mean = torch.stack([logits.softmax(1) for logits, _, _ in readings]).mean(0)
    return (mean.argmax(1) != readings[0][2]).cpu().numpy()
