"""What a trained network makes of samples: logits, features, accuracy and loss.

What must stay true: every sample is read once, in batches of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import Samples

STATISTICS_SAMPLES = 512
"""Images whose moments stand for the running statistics of batch normalisation."""


def statistics_of(network: Network, flat: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Evaluation statistics from evenly spread samples (nothing where the network needs none)."""
    if network.model.norm != "batch":
        return {}
    spread = np.linspace(0, len(samples) - 1, min(STATISTICS_SAMPLES, len(samples))).astype(np.int64)
    return network.statistics(flat, samples.take(spread)[0])


def read_all(
    network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits, features, labels) of all samples in order, batch by batch.

    Every batch has ``batch`` samples: the last one repeats its last sample, and the repeats are cut off.
    """
    for first in range(0, len(samples), batch):
        kept = min(batch, len(samples) - first)
        images, labels = samples.take(np.minimum(np.arange(first, first + batch), len(samples) - 1))
        logits, features = network.read(flat, statistics, images)
        yield logits[:kept], features[:kept], labels[:kept]


def accuracy(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Share of samples whose largest logit is their label's."""
    right = sum(
        int((logits.argmax(1) == labels).sum()) for logits, _, labels in read_all(network, flat, statistics, samples)
    )
    return right / len(samples)


def mean_loss(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Mean cross-entropy in nats of samples as they are, without augmentation."""
    total = sum(
        float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        for logits, _, labels in read_all(network, flat, statistics, samples)
    )
    return total / len(samples)
