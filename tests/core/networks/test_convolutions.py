"""The pass computes the same with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dasm_ray.core.networks.convolutions import LeanConvolutions


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_derivatives_of_convolutions_are_the_same_with_less_work(size: tuple[int, int]) -> None:
    """The second derivative of a convolution: no image as a kernel any more."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, *size, dtype=torch.float64, generator=generator)
    weight, along = torch.randn(2, 3, 3, 3, 3, dtype=torch.float64, generator=generator).unbind()

    def inner(weight: Tensor, images: Tensor) -> Tensor:
        seen = F.conv2d(images, weight, weight[:, 0, 0, 0], padding=1).tanh()
        return F.conv2d(seen, weight, weight[:, 0, 0, 1], padding=1).tanh().sum()

    def outer(weight: Tensor, images: Tensor, along: Tensor) -> Any:
        return grad(lambda *both: (along * grad(inner)(*both)).sum(), argnums=(0, 1))(weight, images)

    traced = make_fx(outer, tracing_mode="fake")(weight, images, along)
    traced.graph.eliminate_dead_code()
    assert size in kernels(traced), "the case must hold an image as a kernel"
    LeanConvolutions()(traced.graph)
    traced.recompile()
    assert size not in kernels(traced)
    for ours, reference in zip(traced(weight, images, along), outer(weight, images, along), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_only_gradients_that_are_used_are_computed() -> None:
    generator = torch.Generator().manual_seed(0)
    images, by_result = torch.randn(2, 5, 3, 8, 8, generator=generator).unbind()
    weight = torch.randn(3, 3, 3, 3, generator=generator)
    options = ([3], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])

    def by_images(*tensors: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.convolution_backward(*tensors, *options)[0]
        return found

    traced = make_fx(by_images, tracing_mode="fake")(by_result, images, weight)
    traced.graph.eliminate_dead_code()
    assert [place for _, place in unused(traced)] == [1, 2]
    LeanConvolutions()(traced.graph)
    traced.recompile()
    assert not unused(traced)
    torch.testing.assert_close(traced(by_result, images, weight), by_images(by_result, images, weight))


def kernels(traced: GraphModule) -> set[tuple[int, ...]]:
    """The sizes of the kernels of all convolutions."""
    nodes = [node for node in traced.graph.nodes if node.target is torch.ops.aten.convolution.default]
    return {tuple(node.args[1].meta["val"].shape[2:]) for node in nodes}


def unused(traced: GraphModule) -> list[tuple[str, int]]:
    """Gradients that backward convolutions compute, and that nothing reads."""
    nodes = [node for node in traced.graph.nodes if node.target is torch.ops.aten.convolution_backward.default]
    return [
        (node.name, place)
        for node in nodes
        for place, on in enumerate(node.args[10])
        if on and place not in {user.args[1] for user in node.users}
    ]


def test_the_key_of_what_is_kept_on_disk_follows_the_rewriting() -> None:
    assert LeanConvolutions().uuid() == LeanConvolutions().uuid() is not None
