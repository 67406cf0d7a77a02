"""Where a segment starts: unused images of its window, packed, or noise; reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import COUNTS, FIRST, SHAPE, config_of, toy_blocks

from dasm_ray.core.decode import pack
from dasm_ray.core.start import initial_pixels

# --- where a segment starts ------------------------------------------------------------------------------------------


NONE_USED = [np.empty(0, np.int64)] * 4


@pytest.mark.parametrize("factor", [1, 2])
def test_real_initial_pixels_are_unused_images_of_the_window(factor: int) -> None:
    config = config_of(ipc=4, init="real", factor=factor)
    used = [np.array([4, 7])] * 4
    stored, chosen = initial_pixels(config, toy_blocks(), FIRST, used, 0)
    assert stored.dtype == np.float32
    assert stored.shape == (4, 2, *SHAPE)
    for label, (slots, indices) in enumerate(zip(stored, chosen, strict=True)):
        assert len(set(indices.tolist())) == 2
        assert set(indices.tolist()) <= {1, 5, 8}
        np.testing.assert_allclose(slots * 255, toy_blocks().blocks[label][indices], atol=1e-4)


def test_mixed_initial_pixels_hold_four_images_a_slot() -> None:
    config = config_of(ipc=4, init="mix", factor=2)
    stored, chosen = initial_pixels(config, toy_blocks(), [np.arange(9)] * 4, NONE_USED, 0)
    assert stored.shape == (4, 2, *SHAPE)
    for label, (slots, indices) in enumerate(zip(stored, chosen, strict=True)):
        assert len(set(indices.tolist())) == 8
        images = torch.tensor(toy_blocks().blocks[label][indices]).float() / 255
        assert torch.equal(torch.tensor(slots), pack(images, 2))


def test_a_window_that_is_used_up_is_filled_from_the_rest_and_nothing_is_used_twice() -> None:
    config = config_of(ipc=10, init="real")  # five a segment: all that class 1 has left
    used = [np.array([4, 7, 8, 0])] * 4
    _, chosen = initial_pixels(config, toy_blocks(), FIRST, used, 1)
    for label, indices in enumerate(chosen):
        assert set(indices[:2].tolist()) == {1, 5}, "the window first"
        rest = set(range(COUNTS[label])) - {1, 4, 5, 7, 8, 0}
        assert len(set(indices[2:].tolist())) == 3
        assert set(indices[2:].tolist()) <= rest


def test_noise_uses_no_image() -> None:
    stored, chosen = initial_pixels(config_of(ipc=40, init="noise"), toy_blocks(), FIRST, NONE_USED, 0)
    assert stored.shape == (4, 20, *SHAPE)
    assert stored.dtype == np.float32
    assert stored.min() >= 0
    assert stored.max() < 1
    assert stored.std() == pytest.approx(12**-0.5, rel=0.05)
    assert [len(indices) for indices in chosen] == [0] * 4
    assert len({slots.tobytes() for slots in stored}) == 4


def test_what_is_chosen_already_fills_the_slots_in_its_order() -> None:
    config = config_of(ipc=3, init="loop", factor=2, segments=2, sizes=(1, 2))
    chosen = [np.array([8, 1, 5, 0, 7, 2, 6, 3])] * 4
    stored, taken = initial_pixels(config, toy_blocks(), FIRST, NONE_USED, 1, chosen)
    assert taken == chosen
    assert stored.shape == (4, 2, *SHAPE)
    for label, slots in enumerate(stored):
        images = torch.tensor(toy_blocks().blocks[label][chosen[label]]).float() / 255
        assert torch.equal(torch.tensor(slots), pack(images, 2))


@pytest.mark.parametrize("init", ["real", "mix", "noise"])
def test_the_start_follows_from_seed_segment_and_class(init: str) -> None:
    windows = [np.arange(9)] * 4

    def start(seed: int, segment: int) -> bytes:
        return initial_pixels(config_of(init=init, seed=seed), toy_blocks(), windows, NONE_USED, segment)[0].tobytes()

    state = torch.random.get_rng_state()
    assert start(0, 0) == start(0, 0)
    assert len({start(0, 0), start(0, 1), start(1, 0)}) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    _, chosen = initial_pixels(config_of(init="real", ipc=8), toy_blocks(), windows, NONE_USED, 0)
    assert len({tuple(indices.tolist()) for indices in chosen}) > 1, "classes draw apart"


@pytest.mark.parametrize("init", ["real", "mix", "noise"])
def test_classes_begin_the_same_alone_and_together(init: str) -> None:
    config = config_of(ipc=4, init=init, factor=2)
    windows, used = [np.arange(2 + label, 9) for label in range(4)], [np.array([label]) for label in range(4)]
    whole, taken = initial_pixels(config, toy_blocks(), windows, used, 0)
    for classes in ((0,), (1, 2), (3,)):
        mine = [windows[label] for label in classes], [used[label] for label in classes]
        stored, found = initial_pixels(config, toy_blocks(), *mine, 0, None, classes)
        assert stored.tobytes() == whole[list(classes)].tobytes()
        assert all(np.array_equal(*pair) for pair in zip(found, [taken[label] for label in classes], strict=True))
    if init != "noise":
        stored, found = initial_pixels(config, toy_blocks(), windows[2:], used[2:], 0, taken[2:], (2, 3))
        assert stored.tobytes() == whole[2:].tobytes()
