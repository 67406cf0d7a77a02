"""Rows of matching: gradients of one class (idc), features of all classes (dm), a student's walk (mtt, datm).

What must stay true: ours is the step, or the walk, that a round or a lane of a run calls.
"""

from __future__ import annotations

from typing import Any

import peers
import torch
from pairs import CLASSES, DSA, MEAN, STD, Pair, Sizes, World, gap
from torch import Tensor

from dasm_ray.core.augment import draw
from dasm_ray.core.matching.distribution import DistributionMatching
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.matching.trajectory import Student, adjoint, planned

RATE, MOMENTUM = 0.1, 0.5
"""Of the steps on pixels."""

LONG = 30
"""Student steps of the walk whose memory is measured."""


def match(sizes: Sizes) -> Pair:
    """A step of one class towards the gradient of 64 real images: 10 stored images, decoded to 40."""
    world, factor, strategy = World(sizes, "match"), 2, "color_crop_cutout"
    stored, count = sizes.pick(10, 2), sizes.pick(64, 8)
    images, pixels = world.levels(count), torch.rand(stored, *world.network.shape, generator=world.generator)
    draws, label = draw(1, world.generator), 3
    matching = GradientMatching(world.network, "convolutions", "mse", strategy, factor, MOMENTUM)
    inputs = StepInputs(
        flat=world.flat,
        pixels=pixels,
        velocity=torch.zeros_like(pixels),
        images=images,
        label=torch.tensor(label),
        draws=draws,
        earlier=matching.nothing(world.flat),
        settings=torch.tensor([RATE, 1.0]),
    )
    net, real = world.net(), peers.normalised(images.float() / 255, MEAN, STD)
    recipe = peers.Recipe(strategy, factor, MEAN, STD, RATE, MOMENTUM)
    return Pair(
        ours=lambda: matching.step(inputs),
        twin=lambda: peers.match(net, pixels, real, label, draws, recipe),
        units=count + stored * factor**2,
        apart=lambda ours, twin: _of_pixels(pixels, ours.pixels, ours.distance, *twin),
    )


def means(sizes: Sizes) -> Pair:
    """A step of 10 classes, 10 images each, towards the mean features of 256 real images each."""
    world, strategy = World(sizes, "means"), DSA
    stored, count = sizes.pick(10, 2), sizes.pick(256, 8)
    images = world.levels(CLASSES, count)
    pixels = torch.rand(CLASSES, stored, *world.network.shape, generator=world.generator)
    draws = draw(1, world.generator)
    matching = DistributionMatching(world.network, "hidden", strategy, 1, MOMENTUM)
    inputs = StepInputs(
        flat=world.flat,
        pixels=pixels,
        velocity=torch.zeros_like(pixels),
        images=images,
        label=torch.tensor(0),
        draws=draws,
        earlier=matching.nothing(world.flat),
        settings=torch.tensor([RATE, 1.0]),
    )
    net = world.net()
    real = peers.normalised(images.flatten(0, 1).float() / 255, MEAN, STD).view(images.shape)
    recipe = peers.Recipe(strategy, 1, MEAN, STD, RATE, MOMENTUM)
    return Pair(
        ours=lambda: matching.step(inputs),
        twin=lambda: peers.match_means(net, pixels, real, draws, recipe),
        units=CLASSES * (count + stored),
        apart=lambda ours, twin: _of_pixels(pixels, ours.pixels, ours.distance, *twin),
    )


def _of_pixels(before: Tensor, pixels: Tensor, distance: Tensor, by_twin: Tensor, distance_by_twin: float) -> float:
    """How far two steps from the same pixels differ: in the way gone, or in the distance told."""
    return max(gap([pixels - before], [by_twin - before]), gap([distance], [torch.tensor(distance_by_twin)]))


def trajectory(sizes: Sizes) -> Pair:
    """A walk of 10 student steps of 100 images with soft labels, and the way back."""
    return _walk(sizes, sizes.pick(10, 3))


def long_trajectory(sizes: Sizes) -> Pair:
    """The same with 30 steps, for its memory: whoever keeps all graphs needs three times as much."""
    return _walk(sizes, sizes.pick(LONG, 6))


def _walk(sizes: Sizes, steps: int) -> Pair:
    world, count = World(sizes, "walk"), sizes.pick(100, 10)
    images = torch.randn(count, *world.network.shape, generator=world.generator)
    labels = torch.randn(count, CLASSES, generator=world.generator)
    target = world.flat + 0.01 * torch.randn(world.flat.shape, generator=world.generator)
    plan = planned(count, count, steps, DSA, True, world.generator)
    rate, student = torch.tensor(0.01), Student(world.network, soft=True)
    plain = peers.Reparametrised(world.net())

    def ours() -> Any:
        return adjoint(student, plan, images, labels, rate.log(), world.flat, target)

    def twin() -> Any:
        return peers.walk(plain, peers.Walk(*plan), images, labels, rate, world.flat, target)

    def apart(ours: Any, twin: Any) -> float:
        distance, by_images, by_labels, by_rate = twin
        theirs = [torch.tensor(distance), by_images, by_labels, by_rate * rate]  # ours is by the rate's logarithm
        return max(gap([one], [other]) for one, other in zip(ours, theirs, strict=True))

    return Pair(ours, twin, steps * count, apart=apart)
