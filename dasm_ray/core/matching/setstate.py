"""A segment as trajectories move it: its parts and their velocities, whole or cut into shards of consecutive classes.

What must stay true: shards put together are the segment, bit for bit, however it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Earlier = tuple[Array, Array]
"""Pixels (k, n, C, H, W) and labels (k, n, K) of the frozen segments that stand in a student's batches; n may be 0."""


class SetState(NamedTuple):
    """A segment on its way, and the velocity of each part, of SGD with momentum. A file holds them by these names."""

    pixels: Array
    """(K, m, C, H, W) normalised."""
    labels: Array
    """(K, m, K) logits or probabilities."""
    log_step: Array
    """(): logarithm of the student's rate."""
    velocity_pixels: Array
    velocity_labels: Array
    velocity_log_step: Array

    @classmethod
    def at_rest(cls, pixels: Array, labels: Array, log_step: float) -> SetState:
        """A state before its first step."""
        parts = (pixels, labels, np.array(log_step, np.float32))
        return cls(*parts, *(np.zeros_like(part) for part in parts))

    @property
    def values(self) -> SetValues:
        """What lanes read."""
        return SetValues(*self[:3])

    @property
    def speeds(self) -> SetValues:
        """The velocities of the same parts."""
        return SetValues(*self[3:])


class SetValues(NamedTuple):
    """The parts of a segment, or of some of its classes, or the velocities of these."""

    pixels: Array
    labels: Array
    log_step: Array

    def shards(self, edges: Sequence[int]) -> Iterator[SetValues]:
        """The shards from one of ``edges`` to the next, as views; the student's rate is in each."""
        for first, last in pairwise(edges):
            yield SetValues(self.pixels[first:last], self.labels[first:last], self.log_step)


def joined(shards: Sequence[tuple[SetValues, SetValues]]) -> SetState:
    """The state that values and velocities of all shards make; of one shard it is that, without a copy."""
    if len(shards) == 1:
        values, speeds = shards[0]
        return SetState(*values, *speeds)
    parts = []
    for of_all in zip(*shards, strict=True):
        parts += [np.concatenate([each.pixels for each in of_all]), np.concatenate([each.labels for each in of_all])]
        parts.append(of_all[0].log_step)
    return SetState(*parts)


class SetGradient(NamedTuple):
    """The gradient by each part of a state that moves."""

    pixels: Array
    labels: Array
    log_step: Array


class RowGradient(NamedTuple):
    """What one lane says of a shard: gradients by the images that it has seen, and by the student's rate."""

    rows: NDArray[np.int64]
    """(r,): class by class, m images each."""
    pixels: Array
    """(r, C, H, W)"""
    labels: Array
    """(r, K)"""
    log_step: Array

    def spread(self, over: SetValues) -> SetGradient:
        """The same for all images of a shard; 0 where the lane has seen none."""

        def dense(found: Array, part: Array) -> Array:
            of_rows = np.zeros((part.shape[0] * part.shape[1], *part.shape[2:]), np.float32)
            of_rows[self.rows] = found
            return of_rows.reshape(part.shape)

        return SetGradient(dense(self.pixels, over.pixels), dense(self.labels, over.labels), self.log_step)


class Cut(NamedTuple):
    """How a segment lies in shards, and how many images a class a student sees."""

    edges: tuple[int, ...]
    """The first class of each shard, and the number of classes."""
    own: int
    old: int
    """Of the frozen segments."""

    @property
    def rows_at_edges(self) -> NDArray[np.int64]:
        """The first image of each shard in the order in which students count them: frozen ones of a class, its own."""
        return np.array(self.edges) * (self.own + self.old)


Read = Callable[[int], tuple[SetValues, Earlier]]
"""What a shard holds, and the frozen images of its classes, fetched when it is asked for."""


def whole(state: SetState, earlier: Earlier) -> tuple[Cut, Read]:
    """A segment as one shard."""
    (classes, own), old = state.pixels.shape[:2], earlier[0].shape[1]
    return Cut((0, classes), own, old), lambda _: (state.values, earlier)


def edges_of(classes: int, bytes_a_class: int, most: int) -> tuple[int, ...]:
    """Shards of as many classes as ``most`` bytes hold, one at least."""
    return (*range(0, classes, max(1, most // bytes_a_class)), classes)
