"""Class-sorted blocks: counting through them, and copying out of them, against plain lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dasm_ray.core import blocks as real
from dasm_ray.core.blocks import Blocks


def blocks_of(*counts: int) -> Blocks:
    """Blocks that may not be written to, as they come out of shared memory."""
    generator = np.random.default_rng(0)
    made = [generator.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8) for count in counts]
    for block in made:
        block.setflags(write=False)
    return Blocks(made)


def test_counts_starts_and_labels() -> None:
    blocks = blocks_of(2, 1, 3)
    assert blocks.counts.tolist() == [2, 1, 3]
    assert blocks.starts.tolist() == [0, 2, 3]
    assert blocks.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert {str(array.dtype) for array in (blocks.counts, blocks.starts, blocks.labels)} == {"int64"}
    assert len(blocks) == 6
    assert blocks.shape == (3, 4, 5)


@pytest.mark.parametrize("counts", [(2, 1, 3), (4,), (0, 3, 2), (3, 0, 0, 2), (2, 3, 0)])
def test_take_gives_every_image_in_the_order_asked(counts: tuple[int, ...]) -> None:
    blocks = blocks_of(*counts)
    everything = [image for block in blocks.blocks for image in block]
    order = np.random.default_rng(1).integers(0, len(everything), 20)
    np.testing.assert_array_equal(blocks.take(order), np.stack([everything[place] for place in order]))
    np.testing.assert_array_equal(blocks.take(np.arange(len(blocks))), np.stack(everything))
    assert blocks.labels.tolist() == [label for label, count in enumerate(counts) for _ in range(count)]


def test_what_is_taken_is_a_copy_that_may_be_written_to() -> None:
    blocks = blocks_of(2, 2)
    kept = [block.copy() for block in blocks.blocks]
    taken = blocks.take(np.array([0, 3]))
    taken[:] = 0
    for block, before in zip(blocks.blocks, kept, strict=True):
        np.testing.assert_array_equal(block, before)


def test_taking_nothing_gives_no_images_of_the_right_shape() -> None:
    assert blocks_of(2, 2).take(np.empty(0, np.int64)).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("index", [6, 100])
def test_an_index_past_the_end_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        blocks_of(2, 4).take(np.array([0, index]))


def test_blocks_are_held_and_not_copied() -> None:
    blocks = blocks_of(2, 2)
    held = Blocks(blocks.blocks)
    held.take(np.array([1, 2]))
    assert all(a is b for a, b in zip(held.blocks, blocks.blocks, strict=True))


@pytest.mark.parametrize("counts", [(2, 1, 3), (0, 3, 2)])
@pytest.mark.parametrize("room", [10**9, 0], ids=["there is room", "there is none"])
def test_a_device_gets_the_same_images(counts: tuple[int, ...], room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU under another name stands for a device: copies are made and kept as on one."""
    monkeypatch.setattr(real, "room_on", lambda device: room)
    blocks = blocks_of(*counts)
    order = np.random.default_rng(1).integers(0, len(blocks), 20)
    for _ in range(2):
        taken = blocks.take_to("cpu:0", order)
        assert taken.dtype == torch.uint8
        np.testing.assert_array_equal(taken.numpy(), blocks.take(order))
    held = [block for block in blocks.resident.values() if block is not None]
    assert len(held) == (len(set(blocks.labels[order])) if room else 0)
    np.testing.assert_array_equal(blocks.take_to("cpu", order).numpy(), blocks.take(order))
    assert blocks.take_to("cpu:0", order[:0]).shape == (0, 3, 4, 5)


def test_only_what_is_used_goes_to_a_device() -> None:
    blocks = blocks_of(2, 3, 4)
    blocks.take_to("cpu:0", np.array([3, 2]))
    assert list(blocks.resident) == [("cpu:0", 1)]
    assert real.room_on("cpu") > 1 << 60
