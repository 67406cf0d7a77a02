"""A tiny network for both ways of matching, and what the steps of either are held to."""

from __future__ import annotations

import warnings
from typing import Protocol

import pytest
import torch

from dasm_ray.config.keys import AUGMENTATIONS, Model
from dasm_ray.core.matching.step import StepInputs, Stepped
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.seed import torch_generator

SHAPE, CLASSES = (3, 12, 12), 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
ALL = "_".join(AUGMENTATIONS)


class Matching(Protocol):
    """Either way of matching."""

    def step(self, inputs: StepInputs) -> Stepped: ...


def network_of(norm: str = "instance", compile: bool = False) -> Network:
    """Two blocks of four channels."""
    return Network(Model(width=4, depth=2, norm=norm), SHAPE, CLASSES, MEAN, STD, compile=compile)  # type: ignore[arg-type]


def assert_same(found: Stepped, expected: Stepped) -> None:
    """Equal but for the rounding of float64."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


def assert_slope_of_distance(matching: Matching, inputs: StepInputs) -> None:
    """Without momentum the velocity is the slope of the distance: against a difference of two along one direction."""
    _, slope, distance = matching.step(inputs)
    along = torch.randn(inputs.pixels.shape, generator=torch_generator(3), dtype=torch.float64)
    ahead, behind = (
        matching.step(inputs._replace(pixels=inputs.pixels + sign * 1e-6 * along)).distance for sign in (1, -1)
    )
    assert float(distance) > 0
    assert float((ahead - behind) / 2e-6) == pytest.approx(float((slope * along).sum()), rel=1e-5)


def assert_compiled_alike(fast: Matching, plain: Matching, inputs: StepInputs, atol: float) -> None:
    """The compiler builds the step, and it comes to what the plain one does."""
    compiled.fallbacks.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fast.step(inputs)
    assert compiled.fallbacks == []
    for ours, theirs in zip(found, plain.step(inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=atol)
