"""One split of the real data as the mathematics sees it: class-sorted uint8 blocks, read in place, copied by the batch.

On a GPU the blocks that are used stay on the device; on a CPU they are shared memory already. What must stay true:
nothing here writes to a block or concatenates them, so that many workers share one copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """``blocks[c]`` holds the images of class ``c``: uint8 (n_c, C, H, W). A global index counts through all blocks."""

    blocks: Sequence[NDArray[np.uint8]]
    resident: dict[tuple[str, int], Tensor | None] = field(default_factory=dict, repr=False, compare=False)
    """Blocks on a device, by device and class; None for one that found no room."""

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
            mine = labels == label
            images[mine] = self.blocks[label][indices[mine] - self.starts[label]]
        return images

    def take_to(self, device: str, indices: NDArray[np.int64]) -> Tensor:
        """The same on a device, uint8. Blocks that are used stay there, each as far as it takes half the room left."""
        if device == "cpu":
            return torch.from_numpy(self.take(indices))
        labels = np.searchsorted(self.starts, indices, side="right") - 1
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8, device=device)
        for label in np.unique(labels):
            mine, inside = labels == label, indices[labels == label] - self.starts[label]
            block = self._resident(device, int(label))
            found = self.blocks[label][inside] if block is None else block[torch.from_numpy(inside).to(device)]
            images[torch.from_numpy(mine).to(device)] = torch.as_tensor(found, device=device)
        return images

    def _resident(self, device: str, label: int) -> Tensor | None:
        """A class's block on the device, brought there at its first use; None where it would take too much room."""
        if (device, label) not in self.resident:
            block = self.blocks[label]
            fits = block.nbytes <= room_on(device) // 2
            self.resident[device, label] = torch.tensor(block, device=device) if fits else None
        return self.resident[device, label]


def room_on(device: str) -> int:
    """Free bytes of a device's memory; without end where it cannot be asked."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else sys.maxsize
