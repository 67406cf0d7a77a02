"""Images by index: real ones normalised from uint8, tensors as they are."""

from __future__ import annotations

import numpy as np
import torch
from toy import COUNTS, MEAN, RECIPE, STD, generator, toy_blocks, toy_network

from dasm_ray.core.networks.samples import RealSamples, TensorSamples
from dasm_ray.core.networks.training import train

# --- samples ---------------------------------------------------------------------------------------------------------


def test_real_samples_are_normalised_pixels_by_global_index() -> None:
    network, blocks = toy_network(), toy_blocks()
    images, labels = RealSamples(network, blocks).take(np.array([40, 0, 13]))
    assert labels.tolist() == [3, 0, 1]
    raw = [blocks.blocks[3][9], blocks.blocks[0][0], blocks.blocks[1][1]]
    expected = [(image / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)) for image in raw]
    np.testing.assert_allclose(images.numpy(), np.stack(expected), atol=1e-5)
    assert images.dtype == torch.float32


def test_chosen_samples_are_counted_from_zero() -> None:
    network, blocks = toy_network(), toy_blocks()
    chosen = RealSamples(network, blocks, np.array([30, 2, 15, 41]))
    assert (len(chosen), len(RealSamples(network, blocks))) == (4, sum(COUNTS))
    some, all_of_them = chosen.take(np.array([3, 0])), RealSamples(network, blocks).take(np.array([41, 30]))
    assert torch.equal(some[0], all_of_them[0])
    assert torch.equal(some[1], all_of_them[1])


def test_tensor_samples_are_real_samples_held_in_memory() -> None:
    network, blocks = toy_network(), toy_blocks()
    real = RealSamples(network, blocks)
    held = TensorSamples(*real.take(np.arange(len(real))))
    assert len(held) == len(real)
    runs = [
        [state.flat for state in train(network, samples, RECIPE, steps=5, generator=generator())]
        for samples in (real, held)
    ]
    assert torch.equal(runs[0][-1], runs[1][-1])
