"""Labelled images that a training takes by index: real ones in place, stored ones decoded by the batch, or tensors.

What must stay true: a batch is copied, never the set, unless it is small; and held or not, an image has the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.blocks import Blocks, room_on
from dasm_ray.core.decode import PIECE_BYTES, Decoded
from dasm_ray.core.device import sent
from dasm_ray.core.networks.network import Network

HELD_BYTES = 1 << 26
"""Normalised images of so many bytes are held rather than made anew for each batch."""


class Samples(Protocol):
    """Labelled images that can be taken by index."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Normalised images (n, C, H, W) and labels (n,) on the device."""
        ...


@dataclass(frozen=True)
class RealSamples:
    """Real images by global index, all or a chosen few; a batch is copied, never the set."""

    network: Network
    blocks: Blocks
    chosen: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.blocks) if self.chosen is None else len(self.chosen)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        if self.chosen is not None:
            indices = self.chosen[indices]
        images = self.blocks.take_to(self.network.device, indices)
        labels = sent(torch.from_numpy(self.blocks.labels[indices]), self.network.device)
        return self.network.normalise(images), labels


@dataclass(frozen=True)
class TensorSamples:
    """Normalised images (n, C, H, W) and labels (n,), or probabilities (n, K), held on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        chosen = sent(torch.from_numpy(indices), self.images.device)
        return self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class StoredSamples:
    """Training images of a synthetic set, decoded and, unless they are so already, normalised when they are taken.

    ``labels`` (N,), or probabilities (N, K), one for the ``factor`` * ``factor`` images of each stored one, on the
    device.
    """

    network: Network
    images: Decoded
    labels: Tensor
    factor: int
    is_normalised: bool

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        images = self.images.take(indices)
        images = sent(images, self.network.device) if self.images.device.type == "cpu" else images
        slots = sent(torch.from_numpy(indices // self.factor**2), self.network.device)
        return images if self.is_normalised else self.network.normalise(images, is_own=True), self.labels[slots]


@dataclass(frozen=True)
class Relabelled:
    """Samples under other labels: probabilities (n, K) on the device."""

    samples: RealSamples
    labels: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        images, _ = self.samples.take(indices)
        return images, self.labels[sent(torch.from_numpy(indices), images.device)]


def held(network: Network, samples: Samples, is_whitened: bool) -> Samples:
    """The same samples, all of them on the device where that takes little: HELD_BYTES, on a GPU half of the room left.

    Held in any case, made at once, where they are still to be whitened: a product has other bits for a batch than for
    all.
    """
    count, device = len(samples), network.device
    size = 4 * math.prod(network.shape)
    if is_whitened:
        return TensorSamples(*samples.take(np.arange(count)))
    if count * size > (HELD_BYTES if device == "cpu" else max(HELD_BYTES, room_on(device) // 2)):
        return samples
    images, step = torch.empty(count, *network.shape, device=device), max(1, PIECE_BYTES // size)
    labels = []
    for first in range(0, count, step):
        part, of_part = samples.take(np.arange(first, min(first + step, count)))
        images[first : first + len(part)] = part
        labels.append(of_part)
    return TensorSamples(images, torch.cat(labels))
