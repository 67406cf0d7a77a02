"""Multi-formation (IDC, Kim et al. 2022): one stored image holds f*f training images, cut out and enlarged.

Cutting and bilinear enlarging are linear in the pixels and separate into rows and columns, so decoding is two products
with small fixed matrices, for any factor and any size.

What must stay true: `pack` and `decode` agree on where tiles lie.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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


def decode_all(pixels: np.ndarray, factor: int) -> Tensor:
    """All training images (n*f*f, C, H, W) of stored float32 ``pixels`` (n, C, H, W), for evaluation and export."""
    stored = torch.tensor(pixels)
    return decode(stored, enlargers(stored.shape[2], factor), enlargers(stored.shape[3], factor))
