"""Patches of real images that an expert knows best, packed into stored images: what can be had without optimising a
pixel (RDED, Sun et al. 2024).

Of a class some images are drawn, several crops are cut out of each at random, an expert says how well it knows each,
and the best crop of each image competes for the tiles of the stored images.

What must stay true: an expert judges a crop as networks will see it, shrunk into its tile and enlarged again; and what
is chosen follows from the generator alone, however much is read at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.blocks import Blocks
from dasm_ray.core.decode import decode, enlargers, pack
from dasm_ray.core.device import sent
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import filled, read_all, statistics_of
from dasm_ray.core.networks.samples import Samples
from dasm_ray.core.selection import CROPS

CANDIDATES = 300
"""Images of a class that crops are cut from, or twice as many as there are tiles, where that is more."""

SMALLEST = 0.08
"""The least share of an image's area that a crop has; the largest is all of it."""


@dataclass(frozen=True)
class Crops:
    """CROPS crops out of each of n images of one class, numbered image by image; they can be read as samples.

    ``images`` (n,): global indices; ``boxes`` (n, CROPS, 4): top, left, height, width in pixels.
    """

    network: Network
    blocks: Blocks
    images: NDArray[np.int64]
    boxes: NDArray[np.int64]
    factor: int

    def __len__(self) -> int:
        return len(self.images) * CROPS

    def cut(self, numbers: NDArray[np.int64]) -> Tensor:
        """The crops of those numbers, enlarged to whole images: (k, C, H, W) in [0, 1]."""
        found, sides = torch.empty(len(numbers), *self.blocks.shape), self.blocks.shape[1:]
        for place, number in enumerate(numbers):
            image, box = divmod(int(number), CROPS)
            top, left, height, width = self.boxes[image, box]
            whole = torch.from_numpy(self.blocks.take(self.images[image : image + 1])).float() / 255
            crop = whole[:, :, top : top + height, left : left + width]
            found[place] = F.interpolate(crop, size=sides, mode="bilinear", antialias=True, align_corners=False)[0]
        return found

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples: each crop as it is decoded from a tile."""
        tiles, (rows, columns) = self.factor**2, (enlargers(side, self.factor) for side in self.blocks.shape[1:])
        seen = decode(pack(self.cut(indices).repeat_interleave(tiles, 0), self.factor), rows, columns)[::tiles]
        labels = torch.from_numpy(self.blocks.labels[np.repeat(self.images, CROPS)[indices]])
        device = self.network.device
        return self.network.normalise(sent(seen, device)), sent(labels, device)


def drawn_crops(
    network: Network, blocks: Blocks, label: int, tiles: int, factor: int, generator: np.random.Generator
) -> Crops:
    """Random crops of a class that is to fill so many ``tiles``; each keeps the shape of its image."""
    count, wanted = int(blocks.counts[label]), max(CANDIDATES, 2 * tiles)
    chosen = generator.permutation(count)[:wanted].astype(np.int64)
    sides = np.sqrt(generator.uniform(SMALLEST, 1.0, size=(len(chosen), CROPS)))
    places = generator.uniform(size=(2, len(chosen), CROPS))
    boxes = np.empty((len(chosen), CROPS, 4), dtype=np.int64)
    for axis, side in enumerate(blocks.shape[1:]):
        length = np.maximum(np.rint(sides * side), 1)
        boxes[..., axis] = np.floor(places[axis] * (side - length + 1))
        boxes[..., 2 + axis] = length
    return Crops(network, blocks, blocks.starts[label] + chosen, boxes, factor)


def losses_of(network: Network, flat: Tensor, real: Samples, crops: Crops, batch: int) -> NDArray[np.float64]:
    """An expert's cross-entropy in nats for each crop and its class: (n, CROPS); ``real`` gives its statistics."""
    read = read_all(network, flat, statistics_of(network, flat, real), crops, batch)
    losses = ((F.cross_entropy(logits.double(), labels, reduction="none"),) for logits, _, labels in read)
    return filled(losses, len(crops))[0].cpu().numpy().reshape(-1, CROPS)


def packed(crops: Crops, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Stored images (m, C, H, W) in [0, 1] whose tiles are the crops ``chosen`` (m f^2,), in levels of 8 bits."""
    levels = torch.round(pack(crops.cut(chosen), crops.factor) * 255)
    stored: NDArray[np.float32] = (levels / 255).numpy()
    return stored
