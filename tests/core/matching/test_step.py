"""The pixels' own step: SGD with momentum, as torch has it."""

from __future__ import annotations

import torch

from dasm_ray.core.matching.step import StepInputs, descended


def test_pixels_descend_as_by_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start, slopes = torch.rand(2, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    leaf = start.clone().requires_grad_()
    sgd = torch.optim.SGD([leaf], lr=0.3, momentum=0.5)
    pixels, velocity, nothing = start, torch.zeros_like(start), torch.zeros(())
    for slope in slopes:
        leaf.grad = slope.clone()
        sgd.step()
        settings = torch.tensor([0.3, 1.0])
        inputs = StepInputs(nothing, pixels, velocity, nothing, nothing, nothing, nothing, settings)
        pixels, velocity, distance = descended(inputs, slope, 0.5, torch.tensor(7.0))
        assert float(distance) == 7
    torch.testing.assert_close(pixels, leaf.detach())
