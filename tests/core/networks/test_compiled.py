"""The compiler at work, and every way in which it may refuse."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.compiled import Compiled, LeanConvolutions, maybe_compiled


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    compiled.fallbacks.clear()
    yield
    compiled.fallbacks.clear()
    torch._dynamo.reset()


LOCK = threading.Lock()


def untraceable(x: Tensor) -> Tensor:
    with LOCK:
        return x + 1


def test_what_compiles_runs_compiled_and_says_nothing() -> None:
    was_compiling = []

    def fast(x: Tensor) -> Tensor:
        was_compiling.append(torch.compiler.is_compiling())
        return x.sin() * 2

    def eager(x: Tensor) -> Tensor:
        raise AssertionError("the eager form must not be needed")

    x = torch.linspace(0, 1, 7)
    step = Compiled(fast, eager)
    for size in (7, 3, 7):  # another shape is compiled anew
        torch.testing.assert_close(step(x[:size]), x[:size].sin() * 2)
    assert compiled.fallbacks == []
    assert False not in was_compiling


def test_what_cannot_be_traced_runs_in_its_eager_form_and_says_so_once() -> None:
    called = []

    def eager(x: Tensor) -> Tensor:
        called.append(len(x))
        return x + 10

    step = Compiled(untraceable, eager)
    assert step(torch.zeros(2)).tolist() == [10, 10]
    assert step(torch.zeros(3)).tolist() == [10, 10, 10]
    assert called == [2, 3]
    (sentence,) = compiled.fallbacks
    assert sentence.startswith("the compiler cannot build a step, so it runs eagerly and slower: ")
    assert "context manager" in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500


def test_without_another_form_the_fast_one_itself_runs_eagerly() -> None:
    assert Compiled(untraceable)(torch.zeros(2)).tolist() == [1, 1]
    assert len(compiled.fallbacks) == 1


def test_a_compiler_that_fails_at_a_later_shape_stops_nothing() -> None:
    def fast(x: Tensor) -> Tensor:
        return untraceable(x) if len(x) > 2 else x + 1

    step = Compiled(fast, lambda x: x + 1)
    assert step(torch.zeros(2)).tolist() == [1, 1]
    assert compiled.fallbacks == []
    assert step(torch.zeros(3)).tolist() == [1, 1, 1]
    assert len(compiled.fallbacks) == 1


@pytest.mark.filterwarnings("ignore:dynamo_pgo")  # says that the cache, which would save compiling, is off
def test_a_machine_without_a_cpp_compiler_runs_eagerly() -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}):
        assert Compiled(lambda x: x.cos() + 3)(torch.zeros(5)).tolist() == [4] * 5
    (sentence,) = compiled.fallbacks
    assert "/nowhere/g++" in sentence


def test_wrong_inputs_raise_as_themselves_and_are_not_the_compilers_fault() -> None:
    step = Compiled(lambda x, y: x @ y)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        step(torch.zeros(3, 4), torch.zeros(3, 4))
    assert compiled.fallbacks == []
    torch.testing.assert_close(step(torch.ones(2, 2), torch.ones(2, 2)), torch.full((2, 2), 2.0))


def test_without_compilation_the_eager_form_is_handed_out() -> None:
    def eager(x: Tensor) -> Tensor:
        return x

    assert maybe_compiled(False, untraceable, eager) is eager
    assert maybe_compiled(False, untraceable) is untraceable
    assert isinstance(maybe_compiled(True, untraceable, eager), Compiled)


def test_more_shapes_may_be_compiled_than_a_run_has() -> None:
    Compiled(untraceable)
    assert torch._dynamo.config.recompile_limit >= compiled.SHAPES
    assert torch._dynamo.config.accumulated_recompile_limit >= compiled.SHAPES


# --- convolutions ----------------------------------------------------------------------------------------------------


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
