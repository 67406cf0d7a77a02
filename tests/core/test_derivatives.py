"""Gradients by plain autograd are those of torch.func, also one inside another, and load no compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from dasm_ray.core.derivatives import grad, grad_and_value, grads, vjp
from dasm_ray.core.seed import torch_generator

X, Y = torch.randn(2, 5, generator=torch_generator(1), dtype=torch.float64).unbind()


def energy(x: Tensor, y: Tensor, power: int = 3) -> Tensor:
    return (x**power * y.sin()).sum() + x.prod()


def test_gradients_and_values_are_those_of_torch_func() -> None:
    slope, value = grad_and_value(energy)(X, Y)
    expected, at = torch.func.grad_and_value(energy)(X, Y)
    assert torch.allclose(slope, expected, rtol=1e-14)
    assert value == at
    for mine, theirs in zip(grads(energy, 2)(X, Y, 2), torch.func.grad(energy, (0, 1))(X, Y, 2), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-14)


def test_an_outer_derivative_goes_through_an_inner_one() -> None:
    """By every argument that the inner one saw, and by its value as well."""

    def outer(x: Tensor, y: Tensor) -> Tensor:
        slope, value = grad_and_value(energy)(x * 2, y)
        return (slope.square() * y).sum() + value

    def by_torch(x: Tensor, y: Tensor) -> Tensor:
        slope, value = torch.func.grad_and_value(energy)(x * 2, y)
        return (slope.square() * y).sum() + value

    for mine, theirs in zip(grads(outer, 2)(X, Y), torch.func.grad(by_torch, (0, 1))(X, Y), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    third, expected = grad(lambda x: grad(lambda z: grad(energy)(z, Y).sum())(x).sum()), torch.func.grad
    assert torch.allclose(
        third(X), expected(lambda x: expected(lambda z: expected(energy)(z, Y).sum())(x).sum())(X), rtol=1e-12
    )


def test_what_is_found_holds_no_graph_and_asks_for_none() -> None:
    slope, value = grad_and_value(energy)(X, Y)
    assert not slope.requires_grad
    assert not value.requires_grad
    assert not X.requires_grad
    with torch.no_grad():
        assert torch.equal(grad(energy)(X, Y), slope)


def test_an_argument_that_is_not_used_has_a_gradient_of_zeros() -> None:
    by_x, by_y = grads(lambda x, y: x.sum() + 0 * y.sum().detach(), 2)(X, Y)
    assert by_x.eq(1).all()
    assert by_y.eq(0).all()


def test_a_gradient_is_taken_back_through_a_function() -> None:
    value, pull_back = vjp(torch.sin, X)
    assert torch.equal(value, X.sin())
    assert not value.requires_grad
    found = pull_back(Y)
    assert torch.allclose(found, Y * X.cos(), rtol=1e-14)
    assert not found.requires_grad


def test_a_gradient_taken_back_has_the_bits_that_torch_gives_it() -> None:
    followed = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(followed, Y).exp() * followed, followed, Y)
    assert torch.equal(vjp(lambda x: energy(x, Y).exp() * x, X)[1](Y), expected)
    assert torch.equal(vjp(lambda x: x, X)[1](Y), Y), "a function that gives back what it is given"


def test_an_eager_gradient_loads_no_compiler() -> None:
    """Two seconds of every worker's start."""
    script = """
import sys, torch
from dasm_ray.core.derivatives import grad, grad_and_value, vjp
X = torch.ones(3)
def energy(x, y): return (x * y).sum()
grad(energy)(X, X)
grad_and_value(energy)(X, X)
vjp(torch.sin, X)[1](X)
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
