"""Patches against a plain loop: crops of the image's shape, judged as they are decoded, packed best first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy import COUNTS, SHAPE, generator, toy_blocks, toy_network

from dasm_ray.core.decode import decode, enlargers, pack
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.patches import SMALLEST, Crops, drawn_crops, losses_of, packed
from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import CROPS


def crops_of(label: int = 1, factor: int = 2, tiles: int = 8) -> Crops:
    return drawn_crops(toy_network(), toy_blocks(), label, tiles, factor, numpy_generator(3, "patches", label))


def crop(crops: Crops, image: int, number: int) -> torch.Tensor:
    """One crop, cut by slicing and enlarged, (1, C, H, W)."""
    whole = torch.from_numpy(crops.blocks.take(crops.images[[image]])).float() / 255
    top, left, height, width = crops.boxes[image, number].tolist()
    part = whole[:, :, top : top + height, left : left + width]
    return F.interpolate(part, size=SHAPE[1:], mode="bilinear", antialias=True, align_corners=False)


@pytest.mark.parametrize("label", range(4))
def test_crops_lie_within_images_of_the_class_and_keep_their_shape(label: int) -> None:
    crops = crops_of(label)
    assert len(crops) == COUNTS[label] * CROPS
    assert sorted(crops.images.tolist()) == np.flatnonzero(crops.blocks.labels == label).tolist()
    top, left, height, width = np.moveaxis(crops.boxes, -1, 0)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= SHAPE[1]
    assert (height == width).all()
    assert height.min() >= round(SMALLEST**0.5 * SHAPE[1])
    assert len(np.unique(crops.boxes.reshape(-1, 4), axis=0)) > CROPS
    assert (crops_of(label).boxes == crops.boxes).all()


def test_few_of_many_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dasm_ray.core.patches.CANDIDATES", 6)
    assert len(crops_of(0, tiles=2).images) == 6
    assert len(crops_of(0, tiles=4).images) == 8, "twice as many as there are tiles"
    assert len(set(crops_of(0, tiles=4).images.tolist())) == 8


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("batch", [4, 500])
def test_an_expert_judges_each_crop_as_it_is_decoded(factor: int, batch: int) -> None:
    crops, network = crops_of(factor=factor), toy_network()
    flat = network.initial(generator())
    real = RealSamples(network, crops.blocks)
    found = losses_of(network, flat, real, crops, batch)
    rows, columns = (enlargers(side, factor) for side in SHAPE[1:])
    for image in range(len(crops.images)):
        for number in range(CROPS):
            tiles = pack(crop(crops, image, number).expand(factor**2, -1, -1, -1), factor)
            logits, _ = network.read(flat, {}, network.normalise(decode(tiles, rows, columns)[:1]))
            expected = F.cross_entropy(logits.double(), torch.tensor([1]))
            assert found[image, number] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_stored_images_hold_the_chosen_crops_in_order_in_levels_of_eight_bits(factor: int) -> None:
    crops = crops_of(factor=factor)
    chosen = np.array([7, 3, 30, 11, 0, 1, 2, 44])
    stored = packed(crops, chosen)
    assert stored.dtype == np.float32
    assert stored.shape == (8 // factor**2, *SHAPE)
    whole = torch.cat([crop(crops, *divmod(int(number), CROPS)) for number in chosen])
    np.testing.assert_allclose(stored, pack(whole, factor).numpy(), atol=0.5 / 255 + 1e-6)
    assert (np.rint(stored * 255) / np.float32(255) == stored).all()
