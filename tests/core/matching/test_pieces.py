"""Means and slopes piece by piece, against the whole batch and a loop over images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.derivatives import grad
from dasm_ray.core.matching.pieces import Pieces, even

STORED = torch.rand(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = enlargers(6, 2).double()


def seen(stored: Tensor) -> Tensor:
    """Four images of each, and a step that is not linear."""
    return decode(stored, ROWS, ROWS).sin()


def mean_of(images: Tensor) -> Tensor:
    """Two numbers an image, and their means."""
    return torch.stack([images.square().mean((1, 2, 3)), images[:, 0, 2, 3]], 1).mean(0)


TOWARD = torch.tensor([3.0, -2.0], dtype=torch.float64)


def along(images: Tensor) -> Tensor:
    return torch.dot(TOWARD, mean_of(images))


@pytest.mark.parametrize("most", range(1, 22))
def test_mean_and_slope_are_those_of_the_whole(most: int) -> None:
    shown: list[int] = []

    def given(images: Tensor) -> Tensor:
        shown.append(len(images))
        return mean_of(images)

    pieces = Pieces(most, 4, seen)
    one_by_one = sum(mean_of(seen(stored[None])[[tile]]) for stored in STORED for tile in range(4)) / 20
    torch.testing.assert_close(pieces.mean(given, STORED), one_by_one, rtol=1e-13, atol=1e-15)
    assert max(shown) <= most
    assert sum(shown) == 20
    expected = grad(lambda stored: along(seen(stored)))(STORED)
    torch.testing.assert_close(pieces.slope(grad(along), STORED), expected, rtol=1e-13, atol=1e-16)
    assert pieces.holds(5) == (most >= 20)


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [(9, 8, [5, 4]), (64, 16, [16] * 4), (10, 4, [4, 4, 2]), (3, 8, [3]), (3, 1, [1, 1, 1]), (7, 4, [4, 3])],
)
def test_pieces_are_few_and_even(count: int, most: int, sizes: list[int]) -> None:
    assert [len(piece) for piece in even(torch.zeros(count, 1), most)] == sizes


def test_no_graph_outlives_its_piece() -> None:
    """What is alive at once: the tensors that hang on the images of the largest piece, not of all."""
    alive, most = [0], [0]

    class Held(torch.autograd.Function):
        """The square, which counts the images whose graph is there."""

        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor) -> Tensor:
            ctx.save_for_backward(images)
            alive[0] += len(images)
            most[0] = max(most[0], alive[0])
            return images.square()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:  # type: ignore[override]
            (images,) = ctx.saved_tensors  # type: ignore[attr-defined]
            alive[0] -= len(images)
            return 2 * images * slope

    found = Pieces(3, 1, lambda stored: stored).slope(grad(lambda images: Held.apply(images).mean(0).sum()), STORED)
    torch.testing.assert_close(found, 2 * STORED / 5, rtol=1e-14, atol=0)
    assert (alive[0], most[0]) == (0, 3)
