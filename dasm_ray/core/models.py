"""The networks of the field as plain modules, and a table of builders.

What must stay true: a module holds no random state and changes nothing while it runs, so that it can be evaluated at any
parameter vector, differentiated twice and compiled. Initial values come from ``core.params.initial``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasm_ray.config import Model

EPSILON = 1e-5
"""Added to every variance, as in torch.nn."""


class Norm(nn.Module):
    """Instance, group (4 groups) or batch normalisation with a scale and a shift per channel.

    Batch normalisation uses the statistics of the batch while training; ``core.train.statistics`` fills its buffers for
    evaluation, since nothing may change while a step runs.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.kind = kind
        self.groups = {"instance": channels, "group": 4 if channels % 4 == 0 else 1, "batch": 1}[kind]
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (n, C, h, w)
        if self.kind == "batch":
            return self._batch(x)
        if torch.compiler.is_compiling():
            return self._grouped(x)
        return F.group_norm(x, self.groups, self.weight, self.bias, EPSILON)

    def _grouped(self, x: Tensor) -> Tensor:
        """Group normalisation spelled out: a compiler fuses this better than the library's own kernel."""
        n, channels, height, width = x.shape
        apart = x if self.groups == channels else x.reshape(n, self.groups, -1, width)
        centred = apart - apart.mean((2, 3), keepdim=True)
        scale = torch.rsqrt((centred * centred).mean((2, 3), keepdim=True) + EPSILON)
        return (centred * scale).reshape(x.shape) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _batch(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = batch_moments(x)
        else:
            mean, var = self.mean, self.var
        scale = torch.rsqrt(var + EPSILON) * self.weight
        return x * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance per channel of (n, C, h, w): two vectors (C,)."""
    mean = x.mean((0, 2, 3))
    return mean, (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))


def average_pool(x: Tensor) -> Tensor:
    """Means of 2x2 fields; an odd last row or column is dropped, as in torch. (n, C, h, w) to (n, C, h//2, w//2)."""
    if not torch.compiler.is_compiling():
        return F.avg_pool2d(x, 2)
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    x = x[:, :, :height, :width]
    rows = x[:, :, ::2] + x[:, :, 1::2]
    return (rows[:, :, :, ::2] + rows[:, :, :, 1::2]) * 0.25


class ConvNet(nn.Module):
    """``depth`` blocks of 3x3 convolution, normalisation, ReLU and average pooling, then one linear layer (DC, 2021)."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int, depth: int, norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if block == 0 else width, width, 3, padding=1) for block in range(depth)
        )
        self.norms = nn.ModuleList(Norm(norm, width) if norm != "none" else nn.Identity() for _ in range(depth))
        self.linear = nn.Linear(width * (size[0] >> depth) * (size[1] >> depth), classes)

    def forward(self, x: Tensor, hidden: bool = False, head: bool = False) -> Tensor:
        """Logits (n, K) of images (n, C, H, W); ``hidden`` stops at the last hidden layer (n, d), ``head`` starts there."""
        if not head:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = average_pool(F.relu(norm(conv(x))))
            x = x.flatten(1)
        return x if hidden else self.linear(x)


def default_depth(size: int) -> int:
    """Blocks for a square image, so that about 4x4 remain: 3 for 28 and 32 pixels, 4 for 64, 5 for 128, at least 1."""
    return max(1, round(math.log2(size)) - 2)


def _convnet(model: Model, shape: tuple[int, int, int], classes: int) -> nn.Module:
    channels, height, width = shape
    depth = model.depth or default_depth(min(height, width))
    return ConvNet(channels, (height, width), classes, model.width, depth, model.norm)


MODELS: dict[str, Callable[[Model, tuple[int, int, int], int], nn.Module]] = {"convnet": _convnet}
"""Builders: (model, image shape (C, H, W), number of classes) to a module whose parameters still lack values."""


def build(model: Model, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network named by ``model``, in training mode, its parameters unset and without gradients of their own."""
    with torch.device("meta"):
        module = MODELS[model.arch](model, shape, classes)
    module.to_empty(device="cpu")
    for name, buffer in module.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.0)
    return module.requires_grad_(False).train()
