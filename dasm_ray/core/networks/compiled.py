"""Compiling a step once per shape, with the eager form as the reference and the fallback.

What must stay true: the compiled form is the same mathematics; where no compiler works, the run goes on eagerly and
says so.
"""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten

Result = TypeVar("Result")

fallbacks: list[str] = []
"""Why something runs eagerly in this process, one sentence each; the worker hands them to the driver."""

SHAPES = 256
"""Steps of different shape that one process may compile; beyond, the compiler would silently run eagerly."""


class Compiled(Generic[Result]):
    """``fast`` compiled at its first call; ``eager`` from then on if the compiler cannot do it for some shape."""

    def __init__(self, fast: Callable[..., Result], eager: Callable[..., Result] | None = None) -> None:
        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.accumulated_recompile_limit = SHAPES
        self._eager = eager or fast
        self._call: Callable[..., Result] = torch.compile(
            fast, fullgraph=True, dynamic=False, options={"post_grad_custom_pre_pass": LeanConvolutions()}
        )

    def __call__(self, *inputs: object) -> Result:
        try:
            return self._call(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = _in_short(error)
        # Inputs that no form accepts raise here, as themselves, and are no fault of the compiler.
        result = self._eager(*inputs)
        self._call = self._eager
        fallbacks.append(f"the compiler cannot build a step, so it runs eagerly and slower: {cause}")
        return result


class LeanConvolutions(CustomGraphPass):
    """Takes work out of the derivatives of convolutions that the compiler leaves in.

    A backward convolution computes the gradients of image, weight and bias together, whether or not all are used. And
    the library differentiates once more by convolving whole images with whole images as kernels, for what is a
    gradient of a small weight; its kernel for such gradients is four times as fast.
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrites a graph in place."""
        for node in list(graph.nodes):
            if node.target is aten.convolution_backward.default:
                used = {user.args[1] for user in node.users if user.target is operator.getitem}
                if len(used) == len(node.users):
                    node.update_arg(10, [bool(on) and place in used for place, on in enumerate(node.args[10])])
            elif node.target is aten.convolution.default and _is_weight_gradient(node):
                _as_weight_gradient(graph, node)
        graph.lint()

    def uuid(self) -> Any:
        """Part of the key under which compiled steps are kept on disk."""
        return get_hash_for_files((__file__,))


def _is_weight_gradient(node: fx.Node) -> bool:
    """Whether a convolution has kernels the size of its images: (C, N, h, w) by (O, N, h, w) to (C, O, k, k)."""
    images, kernels, bias, stride, _, dilation, transposed, _, groups = node.args
    shape, size = images.meta["val"].shape, kernels.meta["val"].shape  # type: ignore[union-attr]
    plain = bias is None and not transposed and groups == 1 and {*stride, *dilation} == {1}  # type: ignore[misc]
    return bool(plain and shape[2:] == size[2:] and min(size[2:]) > max(node.meta["val"].shape[2:]))


def _as_weight_gradient(graph: fx.Graph, node: fx.Node) -> None:
    """The same by the library's gradient of a weight."""
    images, kernels, _, _, padding = node.args[:5]
    result = node.meta["val"]

    def call(target: Any, *args: Any, **options: Any) -> fx.Node:
        made = graph.call_function(target, args, options)
        made.meta["val"] = target(*fx.map_arg(args, lambda each: each.meta["val"]), **options)
        return made

    with graph.inserting_before(node), result.fake_mode:
        x, by_result = (call(aten.permute.default, each, [1, 0, 2, 3]) for each in (images, kernels))
        shape = [result.shape[1], result.shape[0], *result.shape[2:]]
        weight = call(aten.full.default, shape, 0, dtype=result.dtype, device=result.device)  # only its shape is read
        options = ([1, 1], padding, [1, 1], False, [0, 0], 1, [False, True, False])
        gradients = call(aten.convolution_backward.default, by_result, x, weight, None, *options)
        gradient = call(operator.getitem, gradients, 1)
        node.replace_all_uses_with(call(aten.permute.default, gradient, [1, 0, 2, 3]))
    graph.erase_node(node)


def _in_short(error: Exception) -> str:
    """What the compiler said, on one line and without its advice on debugging."""
    return textwrap.shorten(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0], 400, placeholder=" ...")


def maybe_compiled(
    compile_it: bool, fast: Callable[..., Result], eager: Callable[..., Result] | None = None
) -> Callable[..., Result]:
    """``fast`` to be compiled, or the eager reference (``fast`` itself where there is no other)."""
    return Compiled(fast, eager) if compile_it else (eager or fast)
