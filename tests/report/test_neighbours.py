"""The nearest real images against a double loop, and against images that are copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_pool import blocks_of
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.core.decode import pack, tile_bounds
from dasm_ray.report import neighbours
from dasm_ray.report.neighbours import boxes, is_too_much, nearest, shrunk
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.datasets.catalogue import open_source

DATA = Data(name="digits")


def training(digits: RealRefs) -> list[np.ndarray]:
    return blocks_of(digits)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (count, 1, 8, 8), np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_nearest_images_are_those_of_a_double_loop(digits: RealRefs, factor: int) -> None:
    pictures, labels = noise(4), np.array([0, 0, 3, 7])
    found = nearest(open_source(DATA), DATA, pictures, labels, factor)
    for n, label in enumerate(labels):
        total = 0.0
        for top, bottom, left, right in boxes(8, 8, factor):
            tile = pictures[n, 0, top:bottom, left:right].astype(np.float64) / 255
            best, least = None, np.inf
            for real in training(digits)[label][:, 0]:
                size, picture = (right - left, bottom - top), Image.fromarray(real)
                small = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) if factor > 1 else real
                square = float(((tile - small.astype(np.float64) / 255) ** 2).sum())
                if square < least:
                    best, least = small, square
            assert np.array_equal(found.pictures[n, 0, top:bottom, left:right], best)
            total += least
        assert found.distances[n] == pytest.approx(np.sqrt(total / 64), abs=1e-12)


def test_a_real_image_is_its_own_neighbour_and_held_out_images_are_none(digits: RealRefs) -> None:
    mine = training(digits)[4][:3]
    found = nearest(open_source(DATA), DATA, mine, np.array([4, 4, 4]), 1)
    assert np.array_equal(found.pictures, mine)
    assert found.distances.tolist() == [0.0, 0.0, 0.0]
    held_out = blocks_of(digits, "test")[4][:3]
    assert (nearest(open_source(DATA), DATA, held_out, np.array([4, 4, 4]), 1).distances > 0).all()


@pytest.mark.parametrize("size", [8, 9, 32])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_tiles_lie_where_training_cuts_them(size: int, factor: int) -> None:
    bounds = tile_bounds(size, factor)
    assert boxes(size, size, factor) == [(*rows, *columns) for rows in bounds for columns in bounds]


def test_images_are_shrunk_as_a_start_is_packed() -> None:
    images = noise(4)
    assert np.array_equal(shrunk(images, (8, 8)), images)
    packed = pack(torch.from_numpy(images).float() / 255, 2).numpy()[0]
    small = shrunk(images, (4, 4))
    tiles = [packed[:, top:bottom, left:right] for top, bottom, left, right in boxes(8, 8, 2)]
    assert np.abs(np.stack(tiles) * 255 - small).max() <= 1


def test_what_would_take_minutes_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(DATA)
    assert not is_too_much(source)
    monkeypatch.setattr(neighbours, "MOST_VALUES", 1797 * 64 - 1)
    assert is_too_much(source)
    assert not is_too_much(replace(source, shards={**source.shards}).with_shape((1, 7, 8)))
