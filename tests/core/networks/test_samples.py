"""Images by index: real ones normalised from uint8, tensors as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import COUNTS, MEAN, RECIPE, SHAPE, STD, generator, toy_blocks, toy_network

from dasm_ray.core.decode import decode, enlargers
from dasm_ray.core.networks import samples as samples_module
from dasm_ray.core.networks.evaluate import synthetic_samples
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples, Relabelled, Samples, StoredSamples, TensorSamples, held
from dasm_ray.core.networks.training import train
from dasm_ray.core.whiten import Whitening

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


# --- stored images ---------------------------------------------------------------------------------------------------


def synthetic(factor: int, is_soft: bool, is_normalised: bool, network: Network | None = None) -> Samples:
    draw = np.random.default_rng(0)
    pixels = draw.random((9, *SHAPE)).astype(np.float32)
    labels = draw.normal(size=(9, 4)).astype(np.float32) if is_soft else draw.integers(0, 4, 9)
    return synthetic_samples(network or toy_network(), pixels, labels, factor, is_normalised)


@pytest.mark.parametrize(
    ("factor", "is_soft", "is_normalised"), [(1, False, False), (2, True, False), (3, False, True)]
)
def test_a_training_through_batches_that_are_decoded_is_one_on_the_decoded_set(
    factor: int, is_soft: bool, is_normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toy_network()
    as_held = synthetic(factor, is_soft, is_normalised)
    monkeypatch.setattr(samples_module, "HELD_BYTES", 0)
    by_batch = synthetic(factor, is_soft, is_normalised)
    assert (type(as_held), type(by_batch)) == (TensorSamples, StoredSamples)
    draw = np.random.default_rng(0)
    rows = enlargers(SHAPE[1], factor)
    images = decode(torch.tensor(draw.random((9, *SHAPE)).astype(np.float32)), rows, rows)
    targets = torch.tensor(draw.normal(size=(9, 4)).astype(np.float32) if is_soft else draw.integers(0, 4, 9))
    targets = (targets.softmax(1) if is_soft else targets).repeat_interleave(factor**2, dim=0)
    whole = TensorSamples(images if is_normalised else network.normalise(images), targets)
    assert len(whole) == len(as_held) == len(by_batch)
    ends = [
        list(train(network, each, RECIPE, steps=7, generator=generator()))[-1].flat
        for each in (whole, as_held, by_batch)
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_chosen_images_are_held_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy_network()
    chosen = RealSamples(network, toy_blocks(), np.arange(5, 25))
    soft = Relabelled(chosen, torch.rand(20, 4, generator=generator()))
    few = [held(network, each, is_whitened=False) for each in (chosen, soft)]
    assert all(isinstance(each, TensorSamples) for each in few)
    monkeypatch.setattr(samples_module, "HELD_BYTES", 20 * 4 * 3 * 8 * 8 - 1)
    assert held(network, chosen, is_whitened=False) is chosen
    assert held(network, soft, is_whitened=False) is soft
    order = np.array([3, 19, 0])
    for kept, taken in zip(few, (chosen, soft), strict=True):
        assert len(kept) == len(taken) == 20
        assert all(torch.equal(*pair) for pair in zip(kept.take(order), taken.take(order), strict=True))
    assert torch.equal(soft.take(order)[1], soft.labels[order])


def test_what_is_still_to_be_whitened_is_whitened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    whitening = Whitening(torch.rand(size, generator=generator()), torch.rand(size, size, generator=generator(1)))
    network = toy_network(whitening=whitening)
    monkeypatch.setattr(samples_module, "HELD_BYTES", 0)
    whitened, as_it_is = (synthetic(2, False, is_normalised, network) for is_normalised in (False, True))
    assert (type(whitened), type(as_it_is)) == (TensorSamples, StoredSamples)
    rows = enlargers(SHAPE[1], 2)
    pixels = torch.tensor(np.random.default_rng(0).random((9, *SHAPE)).astype(np.float32))
    assert torch.equal(whitened.take(np.arange(36))[0], network.normalise(decode(pixels, rows, rows)))
