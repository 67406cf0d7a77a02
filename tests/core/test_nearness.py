"""The nearest image of many, against a plain double loop, whole and in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dasm_ray.core.decode import decode_all, pack
from dasm_ray.core.nearness import flat_levels, in_batches, merged, nearest, numbered, tiles_by_size

DRAW = np.random.default_rng(0)
WANTED = DRAW.integers(0, 256, (5, 1, 4, 4), np.uint8)
REAL = DRAW.integers(0, 256, (23, 1, 4, 4), np.uint8)
REAL[17] = REAL[9] = WANTED[2]  # two copies: the first one counts
CHOSEN = np.array([0, 3, 4, 20])


def looked_at(first: int, last: int, batch: int):  # type: ignore[no-untyped-def]
    passing = ((indices, flat_levels(REAL[indices], (4, 4))) for indices in in_batches(last, batch, first))
    return nearest(flat_levels(WANTED, (4, 4)), passing, CHOSEN)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_distances_are_those_of_a_double_loop(batch: int) -> None:
    slow = np.array(
        [[sum((int(a) - int(b)) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / 16 for y in REAL] for x in WANTED]
    )
    found = looked_at(0, 23, batch)
    np.testing.assert_array_equal(found.squares, slow.min(1))
    np.testing.assert_array_equal(found.which, slow.argmin(1))
    np.testing.assert_array_equal(found.among, slow[:, CHOSEN].min(1))
    np.testing.assert_array_equal(found.of_passed, slow.min(0))
    assert (found.squares[2], found.which[2]) == (0, 9)


def test_parts_together_say_what_the_whole_says() -> None:
    parts = merged([looked_at(0, 4, 3), looked_at(4, 12, 3), looked_at(12, 23, 3)])
    for one, other in zip(parts, looked_at(0, 23, 100), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("size", "factor"), [(8, 1), (8, 2), (8, 3), (7, 2)])
def test_a_shrunk_copy_in_a_tile_is_at_distance_0(size: int, factor: int) -> None:
    """Tiles are numbered as decoding numbers the training images that come out of them."""
    images = DRAW.integers(0, 256, (2 * factor**2, 3, size, size), np.uint8)
    stored = pack(torch.from_numpy(images).float() / 255, factor).numpy()
    levels = np.rint(stored * 255).astype(np.uint8)
    parts = []
    for shape, (numbers, tiles) in tiles_by_size(levels, factor).items():
        wanted, real = flat_levels(tiles, shape), flat_levels(images, shape)
        found = nearest(wanted, [(np.arange(len(images)), real)], np.empty(0, np.int64))
        assert np.isinf(found.among).all()
        parts.append((numbers, found))
    together = numbered(parts)
    np.testing.assert_array_equal(together.squares, 0)
    np.testing.assert_array_equal(together.of_passed, 0)
    np.testing.assert_array_equal(together.which, np.arange(len(decode_all(stored, factor))))
