"""Multi-formation (IDC, Kim et al. 2022): one stored image holds f*f training images, cut out and enlarged.

Cutting and bilinear enlarging are linear in the pixels and separate into rows and columns, so decoding is two products
with small fixed matrices, for any factor and any size.

What must stay true: `pack` and `decode` agree on where tiles lie, and an image has the same bits whatever is decoded
with it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.device import sent

PIECE_BYTES = 1 << 23
"""Of the images that are decoded at once: decoding takes about four times as much beside them."""


def tile_bounds(size: int, factor: int) -> list[tuple[int, int]]:
    """First and last-plus-one row of each of ``factor`` tiles in ``size`` rows; sizes differ by at most one."""
    edges = [round(tile * size / factor) for tile in range(factor + 1)]
    return list(pairwise(edges))


def enlargers(size: int, factor: int) -> Tensor:
    """Matrices U (f, size, size): ``U[i] @ rows`` cuts tile i out of ``size`` rows and enlarges it to ``size`` rows."""
    matrices = torch.zeros(factor, size, size)
    for tile, (first, last) in enumerate(tile_bounds(size, factor)):
        unit = torch.eye(last - first)[None]  # (1, channels = source rows, source rows)
        grown = F.interpolate(unit, size=size, mode="linear", align_corners=False)[0]
        matrices[tile, :, first:last] = grown.T
    return matrices


def decode(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Training images (n*f*f, C, H, W) of stored ``pixels`` (n, C, H, W); the f*f of one slot stand together.

    ``rows`` (f, H, H) and ``columns`` (f, W, W) come from ``enlargers``; with f = 1 the pixels come back unchanged.
    """
    if rows.shape[0] == 1:
        return pixels
    tall = rows[:, None, None] @ pixels  # (f, n, C, H, W): every row tile enlarged
    wide = tall[:, None] @ columns.mT[None, :, None, None]  # (f, f, n, C, H, W): then every column tile
    return wide.permute(2, 0, 1, 3, 4, 5).reshape(-1, *pixels.shape[1:])


def pack(images: Tensor, factor: int) -> Tensor:
    """Stored pixels (n, C, H, W) out of ``images`` (n*f*f, C, H, W): each is shrunk into its tile ("mix" init).

    Shrinking averages over area (antialiased), so a tile keeps what a small picture can keep.
    """
    if factor == 1:
        return images.clone()
    total, channels, height, width = images.shape
    slots = images.view(total // factor**2, factor, factor, channels, height, width)
    packed = torch.empty(len(slots), channels, height, width, dtype=images.dtype)
    for i, (top, bottom) in enumerate(tile_bounds(height, factor)):
        for j, (left, right) in enumerate(tile_bounds(width, factor)):
            packed[:, :, top:bottom, left:right] = F.interpolate(
                slots[:, i, j], size=(bottom - top, right - left), mode="bilinear", antialias=True, align_corners=False
            )
    return packed.clamp_(0, 1)


class Decoded:
    """The training images of stored float32 ``pixels`` (N, C, H, W), each decoded when it is asked for.

    There are N*f*f of them, numbered as ``decode`` puts them out; the pixels stay where they are, and are decoded
    there: on the host if they are an array, else on the ``device`` of the tensor.
    """

    def __init__(self, pixels: NDArray[np.float32] | Tensor, factor: int) -> None:
        self._pixels, self._factor = pixels, factor
        self.device = pixels.device if isinstance(pixels, Tensor) else torch.device("cpu")
        self._rows, self._columns = (sent(enlargers(size, factor), self.device) for size in pixels.shape[2:])

    def __len__(self) -> int:
        return len(self._pixels) * self._factor**2

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Those at ``indices`` (n,), in that order: (n, C, H, W)."""
        shape = self._pixels.shape[1:]
        images = torch.empty(len(indices), *shape, dtype=self._stored(indices[:0]).dtype, device=self.device)
        step = max(1, PIECE_BYTES // (4 * math.prod(shape)))
        for first in range(0, len(indices), step):
            part = indices[first : first + step]
            images[first : first + len(part)] = self._piece(part)
        return images

    def _piece(self, indices: NDArray[np.int64]) -> Tensor:
        slots, tiles = np.divmod(indices, self._factor**2)
        stored = self._stored(slots)
        if self._factor == 1:
            return stored
        row, column = (sent(torch.from_numpy(places), self.device) for places in np.divmod(tiles, self._factor))
        return self._rows[row, None] @ stored @ self._columns[column, None].mT

    def _stored(self, slots: NDArray[np.int64]) -> Tensor:
        if isinstance(self._pixels, Tensor):
            return self._pixels[sent(torch.from_numpy(slots), self.device)]
        return torch.from_numpy(self._pixels[slots])


def decode_all(pixels: NDArray[np.float32], factor: int) -> Tensor:
    """All training images (N*f*f, C, H, W) of stored float32 ``pixels`` (N, C, H, W), for export."""
    decoded = Decoded(pixels, factor)
    return decoded.take(np.arange(len(decoded)))
