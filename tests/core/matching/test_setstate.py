"""Shards of a segment: cut anywhere and put together again, and gradients of some images among all of them."""

from __future__ import annotations

import numpy as np
import pytest

from dasm_ray.core.matching.setstate import Cut, RowGradient, SetState, edges_of, joined, whole

K, M, SHAPE = 5, 2, (3, 4, 4)


def state_of() -> SetState:
    draw = np.random.default_rng(0)
    shapes = [(K, M, *SHAPE), (K, M, K), ()] * 2
    return SetState(*(np.asarray(draw.normal(size=shape), np.float32) for shape in shapes))


@pytest.mark.parametrize("edges", [(0, 5), (0, 1, 2, 3, 4, 5), (0, 3, 5)])
def test_shards_together_are_the_segment(edges: tuple[int, ...]) -> None:
    state = state_of()
    shards = list(zip(state.values.shards(edges), state.speeds.shards(edges), strict=True))
    assert [len(values.pixels) for values, _ in shards] == np.diff(edges).tolist()
    for found, part in zip(joined(shards), state, strict=True):
        assert (found.shape, found.tobytes()) == (part.shape, part.tobytes())


@pytest.mark.parametrize(
    ("most", "expected"), [(1000, (0, 5)), (500, (0, 5)), (499, (0, 4, 5)), (250, (0, 2, 4, 5)), (1, tuple(range(6)))]
)
def test_a_shard_holds_as_many_classes_as_go_into_its_bytes_and_one_at_least(
    most: int, expected: tuple[int, ...]
) -> None:
    assert edges_of(5, 100, most) == expected


def test_a_gradient_of_some_images_is_0_for_the_others() -> None:
    state, draw = state_of(), np.random.default_rng(1)
    found = RowGradient(
        np.array([1, 6, 7]),
        draw.random((3, *SHAPE), np.float32),
        draw.random((3, K), np.float32),
        np.array(2.0, np.float32),
    )
    dense = found.spread(state.values)
    assert (dense.pixels.shape, dense.labels.shape) == (state.pixels.shape, state.labels.shape)
    for number, (label, slot) in enumerate([(0, 1), (3, 0), (3, 1)]):
        np.testing.assert_array_equal(dense.pixels[label, slot], found.pixels[number])
        np.testing.assert_array_equal(dense.labels[label, slot], found.labels[number])
    assert np.count_nonzero(dense.pixels.any(axis=(2, 3, 4))) == 3
    assert dense.log_step == 2


def test_a_segment_in_one_piece_counts_frozen_images_of_a_class_before_its_own() -> None:
    state, earlier = state_of(), (np.zeros((K, 3, *SHAPE), np.float32), np.zeros((K, 3, K), np.float32))
    cut, read = whole(state, earlier)
    assert cut == Cut((0, K), M, 3)
    assert cut.rows_at_edges.tolist() == [0, K * (M + 3)]
    values, frozen = read(0)
    assert values == state[:3]
    assert frozen is earlier
