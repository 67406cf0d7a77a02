"""Rows of compiling: each kind of step compiled, beside the same step run eagerly.

`dasm_ray.config.gains` has its figures from here, the cost from the first calls, which are in the file. What must stay
true: ours and twin are one function; a first call finds nothing compiled on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pairs import CLASSES, Pair, Sizes, World, gap

from dasm_ray.core.augment import draw
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.matching.trajectory import Student

Call = Callable[[], Any]


def _pair(sizes: Sizes, name: str, call_of: Callable[[World], tuple[Call, int]]) -> Pair:
    """A call on two worlds that are alike but for their networks' being compiled."""
    (ours, images), (twin, _) = (call_of(World(sizes, name, compile=is_compiled)) for is_compiled in (True, False))
    return Pair(ours, twin, images, apart=gap)


def train(sizes: Sizes) -> Pair:
    """A training step of 64 images, compiled."""
    return _pair(sizes, "train", lambda world: _training(world, sizes.pick(64, 8)))


def match(sizes: Sizes) -> Pair:
    """A matching step of 64 real images and 10 stored ones decoded to 40, compiled."""
    return _pair(sizes, "match", lambda world: _matching(world, sizes.pick(64, 8), sizes.pick(10, 2)))


def mean(sizes: Sizes) -> Pair:
    """The gradient of 10 stored images decoded to 40, compiled."""
    return _pair(sizes, "mean", lambda world: _mean(world, sizes.pick(10, 2)))


def read(sizes: Sizes) -> Pair:
    """A reading of 500 images, compiled."""
    return _pair(sizes, "read", lambda world: _reading(world, sizes.pick(500, 50)))


def walk(sizes: Sizes) -> Pair:
    """A step of a student on 100 images, there and back, compiled."""
    return _pair(sizes, "walk", lambda world: _walking(world, sizes.pick(100, 10)))


def _images(world: World, count: int) -> torch.Tensor:
    return torch.randn(count, *world.network.shape, generator=world.generator)


def _training(world: World, count: int) -> tuple[Call, int]:
    images, labels = _images(world, count), torch.arange(count) % CLASSES
    draws, box = draw(count, world.generator), torch.rand(4, generator=world.generator)
    settings, at_rest = torch.tensor([0.01, 0.9, 5e-4, 0.0, 0.0]), torch.zeros_like(world.flat)
    step = world.network.train_step("color_crop")
    return lambda: step(world.flat, at_rest, images, labels, draws, box, settings)[:2], count


def _matching(world: World, count: int, stored: int) -> tuple[Call, int]:
    pixels = torch.rand(stored, *world.network.shape, generator=world.generator)
    matching = GradientMatching(world.network, "convolutions", "mse", "color_crop_cutout", 2, 0.5)
    inputs = StepInputs(
        flat=world.flat,
        pixels=pixels,
        velocity=torch.zeros_like(pixels),
        images=world.levels(count),
        label=torch.tensor(3),
        draws=draw(1, world.generator),
        earlier=matching.nothing(world.flat),
        settings=torch.tensor([0.1, 1.0]),
    )
    return lambda: [matching.step(inputs).pixels - pixels], count + 4 * stored


def _mean(world: World, stored: int) -> tuple[Call, int]:
    pixels = torch.rand(stored, *world.network.shape, generator=world.generator)
    matching = GradientMatching(world.network, "convolutions", "mse", "color_crop_cutout", 2, 0.5)
    draws, label = draw(1, world.generator), torch.tensor(3)
    return lambda: [matching.mean(world.flat, pixels, label, draws)], 4 * stored


def _reading(world: World, count: int) -> tuple[Call, int]:
    images = _images(world, count)

    @torch.no_grad()
    def call() -> Any:
        return world.network.read(world.flat, {}, images)

    return call, count


def _walking(world: World, count: int) -> tuple[Call, int]:
    images, labels = _images(world, count), torch.randn(count, CLASSES, generator=world.generator)
    student, rate = Student(world.network, soft=True), torch.tensor(0.01)

    def call() -> Any:
        after = student.forward(world.flat, images, labels, rate)
        return student.backward(world.flat, images, labels, rate, after)[:1]

    return call, count
