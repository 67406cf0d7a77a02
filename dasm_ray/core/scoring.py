"""Scoring a range of real samples under several networks: how hard they are for a probe, and by nature.

What must stay true: a sample's score does not depend on how the work is cut. Ranges are whole batches of one fixed
shape, so every sample meets the same neighbours in any cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.blocks import Blocks
from dasm_ray.core.difficulty import SCORES, forgetting
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import few_at_once, filled, read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Samples


@dataclass(frozen=True)
class Scored:
    """A range of samples: ``score`` float64 (n,), larger is harder; bool (n,): the ensemble errs, each member errs."""

    score: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    missed: NDArray[np.bool_]


def shard_ranges(count: int, batch: int, shards: int) -> list[tuple[int, int]]:
    """``count`` samples cut into at most ``shards`` ranges [first, last) of whole batches, as even as can be."""
    total = -(-count // batch)
    edges = [total * shard // shards * batch for shard in range(shards + 1)]
    ranges = [(first, min(last, count)) for first, last in pairwise(edges)]
    return [(first, last) for first, last in ranges if first < last]


def score_range(
    network: Network, blocks: Blocks, ensemble: Sequence[Tensor], score: str, first: int, last: int, batch: int
) -> Scored:
    """The mean score over the networks of ``ensemble``; whether their mean prediction is wrong, and each of theirs."""

    def judged(readings: Sequence[Reading], labels: Tensor) -> tuple[Tensor, ...]:
        scores = [SCORES[score](logits, labels, features) for logits, features in readings]
        return torch.stack(scores).mean(0), _wrong(readings, labels), _missed(readings, labels)

    return _scored(judged, _read(network, blocks, ensemble, first, last, batch), last - first)


def static_range(
    network: Network,
    blocks: Blocks,
    experts: Sequence[Sequence[Tensor]],
    score: str,
    early: int,
    first: int,
    last: int,
    batch: int,
    training: Samples | None = None,
) -> Scored:
    """The static score, averaged over trajectories (E+1, P) and their first ``early`` epochs, and who errs at the end.

    Of shorter trajectories all epochs count; ``forgetting`` counts over whole ones instead. ``training``: the images
    that the networks' statistics are of, whichever are scored; unset: all of ``blocks``.
    """
    whole = len(experts[0]) - 1
    counted = whole if score == "forgetting" else min(early, whole)
    flats = [flat for snapshots in experts for flat in (*snapshots[1 : counted + 1], snapshots[-1])]

    def judged(readings: Sequence[Reading], labels: Tensor) -> tuple[Tensor, ...]:
        parts, ends = [], readings[counted :: counted + 1]
        for start in range(0, len(readings), counted + 1):
            epochs = readings[start : start + counted]
            if score == "forgetting":
                parts.append(forgetting(torch.stack([logits.argmax(1) == labels for logits, _ in epochs])).double())
            else:
                parts.extend(SCORES[score](logits, labels, features) for logits, features in epochs)
        return torch.stack(parts).mean(0), _wrong(ends, labels), _missed(ends, labels)

    return _scored(judged, _read(network, blocks, flats, first, last, batch, training), last - first)


def features_of(network: Network, blocks: Blocks, flat: Tensor, label: int, batch: int) -> NDArray[np.float32]:
    """The last hidden layer (n_c, d) of all images of one class."""
    first = int(blocks.starts[label])
    count = int(blocks.counts[label])
    readings = _read(network, blocks, [flat], first, first + count, batch)
    (features,) = filled(((features,) for ((_, features),), _ in readings), count)
    found: NDArray[np.float32] = features.cpu().numpy()
    return found


Reading = tuple[Tensor, Tensor]
"""Logits (n, K) and last hidden layer (n, d) of a batch under one network."""


def _scored(
    judged: Callable[[Sequence[Reading], Tensor], tuple[Tensor, ...]],
    read: Iterator[tuple[list[Reading], Tensor]],
    count: int,
) -> Scored:
    """Score and errors of ``count`` samples by ``judged``; of a batch nothing else is kept: memory is one batch's."""
    columns = filled((judged(readings, labels) for readings, labels in read), count)
    return Scored(*(column.cpu().numpy() for column in columns))


def _read(
    network: Network,
    blocks: Blocks,
    flats: Sequence[Tensor],
    first: int,
    last: int,
    batch: int,
    training: Samples | None = None,
) -> Iterator[tuple[list[Reading], Tensor]]:
    """Batch by batch of [first, last): what each network makes of it, and its labels (n,)."""
    everything = RealSamples(network, blocks) if training is None else training
    statistics = [statistics_of(network, flat, everything) for flat in flats]
    with few_at_once(network, batch) as at_once:
        for start, end in _few_of_each(first, last, batch, at_once):
            samples = RealSamples(network, blocks, np.arange(start, end))
            seen = [
                next(read_all(network, *with_statistics, samples, at_once))
                for with_statistics in zip(flats, statistics, strict=True)
            ]
            yield [(logits, features) for logits, features, _ in seen], seen[0][2]


def _few_of_each(first: int, last: int, batch: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most ``at_once``, counted anew from each batch: shards begin with one, so they cut no range."""
    for begin in range(first, last, batch):
        end = min(begin + batch, last)
        yield from ((start, min(start + at_once, end)) for start in range(begin, end, at_once))


def _wrong(readings: Sequence[Reading], labels: Tensor) -> Tensor:
    mean = torch.stack([logits.softmax(1) for logits, _ in readings]).mean(0)
    return mean.argmax(1) != labels


def _missed(readings: Sequence[Reading], labels: Tensor) -> Tensor:
    return torch.stack([logits.argmax(1) != labels for logits, _ in readings]).all(0)
