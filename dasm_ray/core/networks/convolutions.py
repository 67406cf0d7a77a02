"""Derivatives of convolutions with less work in them, as a pass over what the compiler is about to build.

What must stay true: a graph computes the same numbers before and after. Importing this loads the compiler.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten


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
