"""Labelled images that a training takes by index, real ones in place or tensors on the device.

What must stay true: a batch is copied, never the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.blocks import Blocks
from dasm_ray.core.networks.network import Network


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
        labels = torch.from_numpy(self.blocks.labels[indices]).to(self.network.device)
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
        chosen = torch.from_numpy(indices).to(self.images.device)
        return self.images[chosen], self.labels[chosen]
