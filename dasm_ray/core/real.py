"""One split of the real data as the mathematics sees it: class-sorted uint8 blocks, read in place, copied by the batch.

What must stay true: nothing here writes to a block or concatenates them, so that many workers share one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Blocks:
    """``blocks[c]`` holds the images of class ``c``: uint8 (n_c, C, H, W). A global index counts through all blocks."""

    blocks: Sequence[NDArray[np.uint8]]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Images per class: int64 (K,)."""
        return np.array([len(block) for block in self.blocks], dtype=np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Global index of the first image of each class: int64 (K,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image in global order: int64 (N,)."""
        return np.repeat(np.arange(len(self.blocks), dtype=np.int64), self.counts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.blocks[0].shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return int(self.counts.sum())

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of the images at global ``indices`` (n,), in that order: uint8 (n, C, H, W)."""
        labels = np.searchsorted(self.starts, indices, side="right") - 1
        images = np.empty((len(indices), *self.shape), np.uint8)
        for label in np.unique(labels):
            here = labels == label
            images[here] = self.blocks[label][indices[here] - self.starts[label]]
        return images
