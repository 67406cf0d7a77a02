"""The real image that each synthetic one is nearest to, found by looking at every training image of its class once.

What must stay true: distances are those of a plain double loop; only one shard of real images is in memory at a time;
and of equally near images the first one counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.store.datasets.catalogue import rows_of
from dasm_ray.store.datasets.shards import Source, decode, sides_of
from dasm_ray.store.datasets.sorting import Seal

MOST_VALUES = 2_000_000_000
"""Values of all training images above which none is looked at: minutes of decoding."""

Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Nearest:
    """For each stored image: the nearest real images, packed as it is, and how far they are."""

    pictures: Levels  # (N, C, H, W): each tile is the nearest real image to the tile there
    distances: NDArray[np.float64]  # (N,) root mean square difference in levels of [0, 1], over all tiles


def is_too_much(source: Source) -> bool:
    """Whether looking at all training images would take too long."""
    return source.found.of_train.images * math.prod(source.shape) > MOST_VALUES


def nearest(
    source: Source,
    data: Data,
    pictures: Levels,
    labels: NDArray[np.int64],
    factor: int,
    seal: Seal | None = None,
) -> Nearest:
    """The nearest training images, of the same class, to ``pictures`` (N, C, H, W) of ``labels`` (N,).

    A picture holds ``factor`` x ``factor`` tiles, each of which stands for a training image: real images are made as
    small as a tile is, and compared with it. Reads the training split alone, but for a ``seal``, which gets all images.
    Raises DataError.
    """
    tiles = [_Tile(pictures, box) for box in boxes(pictures.shape[2], pictures.shape[3], factor)]
    for images, of in _training_images(source, data, seal):
        for label in np.unique(labels):
            mine, real = np.flatnonzero(labels == label), images[of == label]
            if len(real):
                small = {size: shrunk(real, size) for size in {tile.size for tile in tiles}}
                for tile in tiles:
                    tile.look_at(mine, small[tile.size])
    packed, total = np.zeros_like(pictures), np.zeros(len(pictures))
    for tile in tiles:
        top, bottom, left, right = tile.box
        packed[:, :, top:bottom, left:right] = tile.found
        total += tile.squares
    covered = sum(math.prod(tile.found.shape[1:]) for tile in tiles)
    return Nearest(packed, np.sqrt(total / covered))


Box = tuple[int, int, int, int]
"""Rows and columns of a tile: top, bottom, left, right."""


def boxes(height: int, width: int, factor: int) -> list[Box]:
    """Where the tiles of a stored image lie, as `core.decode.tile_bounds` cuts it."""
    rows, columns = ([round(tile * size / factor) for tile in range(factor + 1)] for size in (height, width))
    return [(*of_rows, *of_columns) for of_rows in pairwise(rows) for of_columns in pairwise(columns)]


class _Tile:
    """One tile of every picture, and the nearest real image to each so far."""

    def __init__(self, pictures: Levels, box: Box) -> None:
        self.box = box
        top, bottom, left, right = box
        self._wanted = pictures[:, :, top:bottom, left:right]
        self.size = (bottom - top, right - left)
        self.found = np.zeros_like(self._wanted)
        self.squares = np.full(len(pictures), np.inf)  # sums of squared differences

    def look_at(self, mine: NDArray[np.int64], small: Levels) -> None:
        """Takes the nearest of ``small`` (n, C, *size) for the pictures ``mine``, where nearer than what was seen."""
        wanted, flat = (part.reshape(len(part), -1).astype(np.float64) / 255 for part in (self._wanted[mine], small))
        squares = (wanted**2).sum(1)[:, None] - 2 * wanted @ flat.T + (flat**2).sum(1)
        best = squares.argmin(axis=1)
        exact = ((wanted - flat[best]) ** 2).sum(1)  # the sum above cancels where images are alike
        nearer = exact < self.squares[mine]
        self.squares[mine[nearer]] = exact[nearer]
        self.found[mine[nearer]] = small[best[nearer]]


def shrunk(images: Levels, size: tuple[int, ...]) -> Levels:
    """Images (n, C, H, W) made ``size`` (rows, columns), as `core.decode.pack` makes them: bilinear, antialiased."""
    if images.shape[2:] == tuple(size):
        return images
    planes = images.reshape(-1, *images.shape[2:])
    way = Image.Resampling.BILINEAR
    made = [np.asarray(Image.fromarray(plane).resize((size[1], size[0]), way)) for plane in planes]
    return np.stack(made).reshape(*images.shape[:2], *size)


def _training_images(source: Source, data: Data, seal: Seal | None) -> Iterator[tuple[Levels, NDArray[np.int64]]]:
    """Training images and their labels, shard by shard, without those that are held out."""
    read = source.shards if seal is not None else {"train": source.shards["train"]}
    for shard in (shard for of_role in read.values() for shard in of_role):
        found = decode(shard, rows_of(shard), data)
        sides = sides_of(shard, found.keys, source.cut)
        if seal is not None:
            seal.add(found.images, found.labels, sides)
        kept = sides == "train"
        yield found.images[kept], found.labels[kept]
