"""One split of the real data as the mathematics sees it: class-sorted uint8 images, read in place, copied by the batch.

The images of a class lie in one block or in several, one after another. On a GPU the blocks that are used stay on the
device; on a CPU they are memory that all processes share. What must stay true: nothing here writes to a block or
concatenates them, and none is looked at before one of its images is asked for, so that a set may be larger than memory.
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

from dasm_ray.core.device import sent


@dataclass(frozen=True)
class Layout:
    """What is known of blocks without a look at them: images a class ``counts`` (K,), images a block ``sizes`` (P,).

    ``shape``: (C, H, W) of one image.
    """

    counts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Blocks:
    """``blocks[p]``: uint8 (n_p, C, H, W), class after class. A global index counts through all blocks.

    Without a ``layout`` each block is a class.
    """

    blocks: Sequence[NDArray[np.uint8]]
    layout: Layout | None = None
    resident: dict[tuple[str, int], Tensor | None] = field(default_factory=dict, repr=False, compare=False)
    """Blocks on a device, by device and number; None for one that found no room."""

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Images per class: int64 (K,)."""
        return self._sizes if self.layout is None else self.layout.counts

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Global index of the first image of each class: int64 (K,)."""
        return np.cumsum(self.counts) - self.counts

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The label of every image in global order: int64 (N,)."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        if self.layout is not None:
            return self.layout.shape
        channels, height, width = self.blocks[0].shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return int(self.counts.sum())

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of the images at global ``indices`` (n,), in that order: uint8 (n, C, H, W)."""
        numbers = self._numbers(indices)
        images = np.empty((len(indices), *self.shape), np.uint8)
        for number in np.unique(numbers):
            mine = numbers == number
            images[mine] = self.blocks[number][indices[mine] - self._firsts[number]]
        return images

    def take_to(self, device: str, indices: NDArray[np.int64]) -> Tensor:
        """The same on a device, uint8. Blocks that are used stay there, each as far as it takes half the room left.

        Nobody waits for it, but where a block is brought there.
        """
        if device == "cpu":
            return torch.from_numpy(self.take(indices))
        numbers = self._numbers(indices)
        parts = []
        for number in np.unique(numbers):
            inside = indices[numbers == number] - self._firsts[number]
            block = self._resident(device, int(number))
            if block is None:
                parts.append(sent(torch.from_numpy(self.blocks[number][inside]), device))
            else:
                parts.append(block[sent(torch.from_numpy(inside), device)])
        if len(parts) < 2:
            return parts[0] if parts else torch.empty(0, *self.shape, dtype=torch.uint8, device=device)
        place = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")  # of each image among the parts
        return torch.cat(parts)[sent(torch.from_numpy(place), device)]

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Images per block: int64 (P,)."""
        if self.layout is not None:
            return self.layout.sizes
        return np.array([len(block) for block in self.blocks], dtype=np.int64)

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """Global index of the first image of each block: int64 (P,)."""
        return np.cumsum(self._sizes) - self._sizes

    def _numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The block that each global index is in."""
        return np.searchsorted(self._firsts, indices, side="right") - 1

    def _resident(self, device: str, number: int) -> Tensor | None:
        """A block on the device, brought there at its first use; None where it would take too much room."""
        if (device, number) not in self.resident:
            block = self.blocks[number]
            fits = block.nbytes <= room_on(device) // 2
            self.resident[device, number] = torch.tensor(block, device=device) if fits else None
        return self.resident[device, number]


def room_on(device: str) -> int:
    """Free bytes of a device's memory; without end where it cannot be asked."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else sys.maxsize
