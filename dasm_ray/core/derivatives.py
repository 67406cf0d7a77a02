"""Gradients of functions of tensors: by plain autograd where steps run eagerly, by torch.func inside a compiled step.

torch.func traces best under a compiler; run eagerly it doubles the time of a step on small images, and its first use
loads the compiler, two seconds a process. What must stay true: both ways give the same gradients, and an outer
derivative goes through an inner one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def grad(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradient of a scalar ``function`` by its first argument."""
    return lambda *inputs: grad_and_value(function)(*inputs)[0]


def grads(function: Callable[..., Tensor], count: int) -> Callable[..., tuple[Tensor, ...]]:
    """The gradients of a scalar ``function`` by its first ``count`` arguments."""

    def gradients(*inputs: object) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            found: tuple[Tensor, ...] = torch.func.grad(function, tuple(range(count)))(*inputs)
            return found
        return _differentiated(function, count, inputs)[0]

    return gradients


def grad_and_value(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The gradient of a scalar ``function`` by its first argument, and its value."""

    def gradient_and_value(*inputs: object) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            found: tuple[Tensor, Tensor] = torch.func.grad_and_value(function)(*inputs)
            return found
        (slope,), value = _differentiated(function, 1, inputs)
        return slope, value

    return gradient_and_value


def _differentiated(
    function: Callable[..., Tensor], count: int, inputs: Sequence[object]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The gradients of ``function`` by its first ``count`` inputs, and its value.

    An input that an outer derivative follows stays joined to it; so does the result, if any input is followed. What a
    function closes over is followed by nobody.
    """
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    is_inner = any(tensor.requires_grad for tensor in tensors)
    with torch.enable_grad():
        by = [each.view_as(each) if each.requires_grad else each.detach().requires_grad_() for each in tensors[:count]]
        value = function(*by, *inputs[count:])
        slopes = torch.autograd.grad(value, by, create_graph=is_inner, allow_unused=True, materialize_grads=True)
    return slopes, value if is_inner else value.detach()


class _Along(torch.autograd.Function):
    """A scalar whose gradient by ``value`` is ``slope``.

    torch takes such a gradient as an argument too, and loads what it makes formulas of shapes with to look at it: 60 MB
    and a second for every process.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope, None


def vjp(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of ``function``, and what takes a gradient by the value to one by ``given``. Never compiled."""
    with torch.enable_grad():
        followed = given.detach().requires_grad_()
        value = function(followed)

    def pull_back(slope: Tensor) -> Tensor:
        with torch.enable_grad():
            (found,) = torch.autograd.grad(_Along.apply(value, slope), followed)
        return found

    return value.detach(), pull_back
