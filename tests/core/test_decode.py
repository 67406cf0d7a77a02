"""Multi-formation against cutting tiles by hand and torch's own bilinear enlarging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dasm_ray.core import decode as decode_module
from dasm_ray.core.decode import Decoded, decode, decode_all, enlargers, pack, tile_bounds

FACTORS, SIZES = (1, 2, 3), ((8, 8), (28, 28), (32, 32), (9, 14))


def edges_of(size: int, factor: int) -> list[int]:
    """Where tiles begin and end, written out."""
    return {
        (8, 1): [0, 8],
        (8, 2): [0, 4, 8],
        (8, 3): [0, 3, 5, 8],
        (9, 1): [0, 9],
        (9, 2): [0, 4, 9],
        (9, 3): [0, 3, 6, 9],
        (14, 1): [0, 14],
        (14, 2): [0, 7, 14],
        (14, 3): [0, 5, 9, 14],
        (28, 1): [0, 28],
        (28, 2): [0, 14, 28],
        (28, 3): [0, 9, 19, 28],
        (32, 1): [0, 32],
        (32, 2): [0, 16, 32],
        (32, 3): [0, 11, 21, 32],
    }[size, factor]


def slow_decode(pixels: Tensor, factor: int) -> Tensor:
    height, width = pixels.shape[2:]
    rows, columns = edges_of(height, factor), edges_of(width, factor)
    images = []
    for slot in pixels:
        for i in range(factor):
            for j in range(factor):
                tile = slot[None, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
                images.append(F.interpolate(tile, size=(height, width), mode="bilinear", align_corners=False))
    return torch.cat(images)


def stored(count: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", SIZES)
def test_decoding_is_cutting_and_enlarging_each_tile(factor: int, size: tuple[int, int]) -> None:
    pixels = stored(2, size)
    decoded = decode(pixels, enlargers(size[0], factor), enlargers(size[1], factor))
    assert decoded.shape == (2 * factor**2, 3, *size)
    torch.testing.assert_close(decoded, slow_decode(pixels, factor), atol=2e-6, rtol=0)


def test_factor_one_changes_no_bit() -> None:
    pixels = stored(3, (8, 8))
    assert torch.equal(decode(pixels, enlargers(8, 1), enlargers(8, 1)), pixels)
    assert torch.equal(decode_all(pixels.numpy(), 1), pixels)


@pytest.mark.parametrize("size", [3, 8, 9, 28, 31, 32, 224])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_tiles_cover_every_row_once_and_are_equal_up_to_one(size: int, factor: int) -> None:
    tiles = tile_bounds(size, factor)
    assert [row for first, last in tiles for row in range(first, last)] == list(range(size))
    lengths = [last - first for first, last in tiles]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_packed_in_a_tile_is_decoded_from_that_tile_alone(factor: int, size: tuple[int, int]) -> None:
    """Images of one grey each come back whole, in order: one row of a neighbour's tile would show."""
    count = 2 * factor**2
    greys = torch.linspace(0.1, 0.9, count).view(count, 1, 1, 1)
    images = greys.expand(count, 3, *size).contiguous()
    back = decode(pack(images, factor), enlargers(size[0], factor), enlargers(size[1], factor))
    torch.testing.assert_close(back, images, atol=1e-5, rtol=0)


def test_a_packed_picture_is_a_small_picture_of_the_same() -> None:
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(4, 1, 32, 32).contiguous()
    packed = pack(ramp, 2)
    assert packed.shape == (1, 1, 32, 32)
    small = packed[0, 0, 5, :16]
    assert torch.all(small.diff() > 0)
    torch.testing.assert_close(small, F.avg_pool1d(ramp[0, :, 0, :], 2)[0], atol=0.02, rtol=0)


def test_fine_stripes_become_grey_when_packed() -> None:
    """Shrinking must average: taking every third pixel would leave stripes black or white."""
    stripes = (torch.arange(24) % 2).float().expand(9, 1, 24, 24).contiguous()
    inner = pack(stripes, 3)[0, 0, 1:7, 1:7]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_packing_stays_between_black_and_white_and_makes_a_copy(factor: int) -> None:
    images = (torch.rand(factor**2, 3, 28, 28, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    packed = pack(images, factor)
    assert float(packed.min()) >= 0
    assert float(packed.max()) <= 1
    before = images.clone()
    packed.zero_()
    assert torch.equal(images, before)


def test_decode_all_reads_arrays_that_may_not_be_written_to() -> None:
    pixels = stored(2, (9, 14)).numpy()
    pixels.setflags(write=False)
    decoded = decode_all(pixels, 2)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, slow_decode(torch.tensor(pixels), 2), atol=2e-6, rtol=0)


def test_decoding_is_linear_and_its_gradient_right() -> None:
    rows, columns = enlargers(5, 2).double(), enlargers(6, 2).double()
    pixels = torch.rand(2, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decode(x, rows, columns), (pixels,))


def test_each_row_of_an_enlarger_is_an_average() -> None:
    weights = enlargers(28, 3).numpy()
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", SIZES)
def test_an_image_has_the_same_bytes_whatever_is_decoded_with_it(
    factor: int, size: tuple[int, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = stored(7, size)[:, :channels]
    whole = decode(pixels, enlargers(size[0], factor), enlargers(size[1], factor))
    monkeypatch.setattr(decode_module, "PIECE_BYTES", 4 * pixels[0].numel() * 5)  # five images at once
    images, there = Decoded(pixels.numpy(), factor), Decoded(pixels, factor)
    assert len(images) == len(whole)
    assert torch.equal(decode_all(pixels.numpy(), factor), whole)
    order = np.random.default_rng(0).permutation(len(images))
    for many in (1, 2, 13):
        for first in range(0, len(order), many):
            some = order[first : first + many]
            assert torch.equal(images.take(some), whole[some])
            assert torch.equal(there.take(some), whole[some])
