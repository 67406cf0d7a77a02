"""How near images are to one another, each to the nearest of many, which pass by in batches.

What must stay true: distances are those of a plain double loop; of levels 0..255 they are exact, so a copy is at 0; and
of equally near images the first one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.core.decode import tile_bounds

Indices = NDArray[np.int64]
Levels = NDArray[np.uint8]
Size = tuple[int, int]
"""Rows and columns."""


class Near(NamedTuple):
    """Of M images, and of the n that they were held against: mean squared differences, infinite where none was."""

    squares: NDArray[np.float64]  # (M,) to the nearest
    which: Indices  # (M,) the index of that one
    among: NDArray[np.float64]  # (M,) to the nearest of a chosen few
    of_passed: NDArray[np.float64]  # (n,) of each that passed, in their order: to the nearest of the M


def nearest(wanted: Tensor, passing: Iterable[tuple[Indices, Tensor]], chosen: Indices) -> Near:
    """Holds ``wanted`` (M, D) against batches of (indices (b,), values (b, D)), all float64.

    ``chosen``: indices whose nearest is asked for beside that of all.
    """
    squares = torch.full((len(wanted),), torch.inf, dtype=torch.float64, device=wanted.device)
    among, index, of_passed = squares.clone(), torch.zeros(len(wanted), dtype=torch.int64), []
    own = (wanted**2).sum(1)[:, None]
    for indices, values in passing:
        distances = (own - 2 * wanted @ values.T + (values**2).sum(1)).clamp_(min=0)
        least, place = distances.min(1)
        index = torch.where((least < squares).cpu(), torch.from_numpy(indices)[place.cpu()], index)
        squares = torch.minimum(squares, least)
        is_chosen = np.flatnonzero(np.isin(indices, chosen))
        if len(is_chosen):
            few = distances[:, torch.from_numpy(is_chosen).to(distances.device)]
            among = torch.minimum(among, few.min(1).values)
        of_passed.append(distances.min(0).values)
    passed = torch.cat(of_passed) if of_passed else squares[:0]
    squares, among, passed = (part / wanted.shape[1] for part in (squares, among, passed))
    return Near(squares.cpu().numpy(), index.numpy(), among.cpu().numpy(), passed.cpu().numpy())


def merged(parts: Sequence[Near]) -> Near:
    """What the parts say together, the first counting where they are equal; what passed stands one after another."""
    squares = np.stack([part.squares for part in parts])
    best = squares.argmin(0)
    which = np.stack([part.which for part in parts])
    among = np.stack([part.among for part in parts]).min(0)
    of_passed = np.concatenate([part.of_passed for part in parts])
    rows = np.arange(squares.shape[1])
    return Near(squares[best, rows], which[best, rows], among, of_passed)


def numbered(parts: Sequence[tuple[Indices, Near]]) -> Near:
    """What is known of images by their numbers, all of which were held against the same ones, as one."""
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]))
    squares, which, among = (
        np.concatenate([getattr(near, name) for _, near in parts])[order] for name in ("squares", "which", "among")
    )
    return Near(squares, which, among, np.stack([near.of_passed for _, near in parts]).min(0))


def tiles_by_size(pictures: Levels, factor: int) -> dict[Size, tuple[Indices, Levels]]:
    """The tiles of stored ``pictures`` (n, C, H, W), by their size: which training image each is, and (m, C, h, w).

    Training images are numbered as `core.decode.decode` gives them: the factor * factor of one picture together.
    """
    found: dict[Size, list[tuple[Indices, Levels]]] = {}
    first = np.arange(len(pictures), dtype=np.int64) * factor**2
    cuts = [tile_bounds(size, factor) for size in pictures.shape[2:]]
    for number, ((top, bottom), (left, right)) in enumerate(product(*cuts)):
        tile = pictures[:, :, top:bottom, left:right]
        found.setdefault((bottom - top, right - left), []).append((first + number, tile))
    return {
        size: (np.concatenate([numbers for numbers, _ in parts]), np.concatenate([tile for _, tile in parts]))
        for size, parts in found.items()
    }


def flat_levels(images: Levels, size: Sequence[int], device: str = "cpu") -> Tensor:
    """Images (n, C, H, W) made as small as a tile of ``size``, as multi-formation packs them: levels (n, D) float64."""
    values = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    if tuple(images.shape[2:]) != tuple(size):
        unit = values.float() / 255
        small = F.interpolate(unit, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
        values = (small.clamp(0, 1) * 255).round()
    return values.flatten(1).double()


def shrunk_to(images: Levels, size: Sequence[int]) -> Levels:
    """The same as images (n, C, h, w)."""
    small: Levels = flat_levels(images, size).reshape(*images.shape[:2], *size).numpy().astype(np.uint8)
    return small


def in_batches(count: int, batch: int, first: int = 0) -> Iterator[Indices]:
    """Indices from ``first`` up to ``count``, so many at once."""
    for start in range(first, count, batch):
        yield np.arange(start, min(start + batch, count))
