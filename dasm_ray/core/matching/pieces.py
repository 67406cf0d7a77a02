"""Batches in pieces: a mean over images, and the slope of whatever depends on images by such a mean alone.

Where a distance d depends on pixels only by a mean G of what each image gives (a gradient, features), dd/dpixels is
found in two passes: G piece by piece without a graph, then v = dd/dG, then the gradient of <v, G> piece by piece. One
piece's graph is alive at a time, at the price of computing what the images give twice.

What must stay true: no function is shown more images at once than asked for; mean and slope are those of the whole
batch up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dasm_ray.core.derivatives import vjp


class Pieces(NamedTuple):
    """How a batch is cut: by ``most`` images at once, ``tiles`` of which a stored image is decoded to.

    ``seen`` makes of stored images (m, C, H, W) what a network is shown, (m * tiles, C, H, W), image by image. As many
    stored images as fit are decoded at once, or one, whose tiles are then shown piece by piece.
    """

    most: int
    tiles: int
    seen: Callable[[Tensor], Tensor]

    def holds(self, count: int) -> bool:
        """Whether so many stored images are one piece."""
        return count * self.tiles <= self.most

    def mean(self, given: Callable[[Tensor], Tensor], stored: Tensor) -> Tensor:
        """The mean of what images give, where ``given`` is its mean over the images (n, C, H, W) of a piece."""
        images = len(stored) * self.tiles
        parts = (
            len(piece) / images * given(piece)
            for few in self._decoded_at_once(stored)
            for piece in even(self.seen(few), self.most)
        )
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def slope(self, along: Callable[[Tensor], Tensor], stored: Tensor) -> Tensor:
        """The gradient by ``stored`` of <v, mean>: ``along`` is that of <v, given> by the images of a piece."""
        images = len(stored) * self.tiles
        slopes = []
        for few in self._decoded_at_once(stored):
            shown, pull_back = vjp(self.seen, few)
            by_shown = [len(piece) / images * along(piece) for piece in even(shown, self.most)]
            slopes.append(pull_back(torch.cat(by_shown)))
        return torch.cat(slopes)

    def _decoded_at_once(self, stored: Tensor) -> Iterator[Tensor]:
        return even(stored, max(1, self.most // self.tiles))


def even(images: Tensor, most: int) -> Iterator[Tensor]:
    """As few pieces of ``images`` (n, ...) of at most ``most`` as will do, of one size but for the last."""
    pieces = -(-len(images) // most)
    return iter(torch.split(images, -(-len(images) // pieces)))
