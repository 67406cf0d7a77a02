"""What a trained network makes of samples: logits, features, accuracy and loss.

What must stay true: every sample is read once, in batches that fit the network; on compiled paths all of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import Model
from dasm_ray.core.heap import tidy
from dasm_ray.core.networks.convnet import Norm
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import Samples
from dasm_ray.core.networks.zoo import build

STATISTICS_SAMPLES = 512
"""Images whose moments stand for the running statistics of batch normalisation."""

FEWEST = 16
"""Images that a CPU reads at least: a product with fewer rows may be another kernel's, with other last bits."""


def statistics_of(network: Network, flat: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Evaluation statistics from evenly spread samples (nothing where the network needs none)."""
    if network.model.norm != "batch":
        return {}
    spread = np.linspace(0, len(samples) - 1, min(STATISTICS_SAMPLES, len(samples))).astype(np.int64)
    return network.statistics(flat, samples.take(spread)[0])


def fewest_pixels(model: Model, shape: tuple[int, int, int], classes: int) -> int:
    """Pixels of the smallest maps that batch normalisation sees of an image ``shape``: 1 where a lone image is lost."""
    module = build(model, shape, classes)
    seen: list[int] = []
    for layer in module.modules():
        if isinstance(layer, Norm) and layer.kind == "batch":
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, 0].numel()))
    with torch.no_grad():
        module(torch.zeros(2, *shape))
    return min(seen)


@contextmanager
def few_at_once(network: Network, batch: int) -> Iterator[int]:
    """How many of ``batch`` images are read at once; where fewer, holes in the heap go back before and afterwards.

    Images are so large then that to touch pages anew, a tenth of a second, is nothing beside a reading of them.
    """
    at_once = network.read_at_once(batch)
    if at_once < batch:
        tidy()
    yield at_once
    if at_once < batch:
        tidy()


def read_all(
    network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits, features, labels) of all samples in order, batch by batch.

    A batch has ``batch`` samples, or as many as the network reads at once. The last one is filled up by repeats of its
    last sample, which are cut off: where steps are compiled, for one shape, to a full batch, else to FEWEST.
    """
    is_one_shape = network.compile or network.device != "cpu"
    with few_at_once(network, batch) as batch:
        for first in range(0, len(samples), batch):
            kept = min(batch, len(samples) - first)
            size = batch if is_one_shape else max(kept, min(batch, FEWEST))
            images, labels = samples.take(np.minimum(np.arange(first, first + size), len(samples) - 1))
            logits, features = network.read(flat, statistics, images)
            yield logits[:kept], features[:kept], labels[:kept]


def filled(parts: Iterable[tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
    """Columns of ``count`` rows out of parts of them, in order: each part is written to its place as it comes.

    Parts that are kept until the last lie between the large blocks that a network takes and frees at every batch, which
    then do not fit any more where they were: memory would grow by some MB a batch.
    """
    columns: tuple[Tensor, ...] = ()
    first = 0
    for part in parts:
        columns = columns or tuple(each.new_empty(count, *each.shape[1:]) for each in part)
        for column, each in zip(columns, part, strict=True):
            column[first : first + len(each)] = each
        first += len(part[0])
    assert first == count, f"{first} rows of {count}"
    return columns


def accuracy(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Share of samples whose largest logit is their label's; NaN where some logit is no finite number.

    The largest of several NaN is the first by convention, so such a network would seem to answer class 0.
    """
    found = torch.zeros(2, dtype=torch.int64, device=flat.device)  # right ones, and batches that are not of numbers
    for logits, _, labels in read_all(network, flat, statistics, samples):
        found += torch.stack([(logits.argmax(1) == labels).sum(), ~logits.isfinite().all()])
    right, odd = found.tolist()  # the one wait for the device
    return math.nan if odd else right / len(samples)


def right(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> NDArray[np.bool_]:
    """Of which samples the largest logit is the label's: bool (N,), in their order."""
    read = read_all(network, flat, statistics, samples)
    (found,) = filled(((logits.argmax(1) == labels,) for logits, _, labels in read), len(samples))
    answers: NDArray[np.bool_] = found.cpu().numpy()
    return answers


def mean_loss(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Mean cross-entropy in nats of samples as they are, without augmentation."""
    total = torch.zeros((), dtype=torch.float64, device=flat.device)
    for logits, _, labels in read_all(network, flat, statistics, samples):
        total += F.cross_entropy(logits.double(), labels, reduction="sum")
    return total.item() / len(samples)  # the one wait for the device
