"""The ConvNet of the field as a plain module, and the layers that it shares with other networks.

What must stay true: a module holds no random state and changes nothing while it runs, so that it can be evaluated at
any parameter vector, differentiated twice and compiled. Initial values come from ``core.networks.params``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to every variance, as in torch.nn."""


class Norm(nn.Module):
    """Instance, group (4 groups) or batch normalisation with a scale and a shift per channel.

    Batch normalisation uses the statistics of the batch while training; ``Network.statistics`` fills its buffers for
    evaluation, since nothing may change while a step runs.
    """

    mean: Tensor
    var: Tensor

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
        """Group normalisation spelled out so that a compiler reads ``x`` few times, also in its derivatives.

        Taking off a constant close to the mean keeps the variance exact; as a constant it adds nothing to any
        derivative, so that all derivatives need only sums over one group and one scale and shift per channel.
        """
        apart = x if self.groups == x.shape[1] else x.view(x.shape[0], self.groups, -1, *x.shape[2:])
        inside = tuple(range(2, apart.dim()))
        shifted = apart - apart.mean(inside, keepdim=True).detach()
        mean = shifted.mean(inside, keepdim=True)
        var = (shifted * shifted).mean(inside, keepdim=True) - mean * mean
        per_channel = (*apart.shape[1:-2], 1, 1)
        scale = torch.rsqrt(var + EPSILON) * self.weight.view(per_channel)
        return (shifted * scale + (self.bias.view(per_channel) - mean * scale)).reshape(x.shape)

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


def channels_last(x: Tensor) -> Tensor:
    """``x`` (n, C, h, w); under a compiler its channels lie innermost in memory, which suits convolutions."""
    return x.contiguous(memory_format=torch.channels_last) if torch.compiler.is_compiling() else x


def computes_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16: GPUs from Ampere on, processors with AVX512-BF16 or AMX."""
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Conv2d(nn.Conv2d):
    """torch's, which can take its inputs in as bfloat16: sums, bias and all around it stay as they are.

    ``inside`` None: nothing is rounded. torch.bfloat16: images and weights are, and so is what comes out, as are their
    gradients on the way back. A processor without such arithmetic takes the rounded values as float32
    (``is_imitated``): the same products, added up in another order, and no faster.

    ``is_centred``: an instance normalisation follows, which takes any bias off again. Then none is added to what was
    rounded: it would be a sum over all images in each derivative, for a gradient of 0. Without rounding it is added, as
    in the published codes.
    """

    inside: torch.dtype | None = None
    is_imitated = False
    is_centred = False

    def forward(self, x: Tensor) -> Tensor:  # (n, C, h, w)
        return self.convolved(x, self.weight)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of ``x`` (n, C, h, w) with ``weight``, whose memory may be laid out in any way."""
        if self.inside is None:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)
        images, weights = x.to(self.inside), weight.to(self.inside)
        if self.is_imitated:
            images, weights = images.to(x.dtype), weights.to(x.dtype)
        out = F.conv2d(images, weights, None, self.stride, self.padding).to(self.inside).to(x.dtype)
        return out if self.bias is None or self.is_centred else out + self.bias.view(1, -1, 1, 1)


class Convolution(Conv2d):
    """3x3 fields, the size kept."""

    def __init__(self, channels: int, width: int, is_centred: bool = False) -> None:
        super().__init__(channels, width, 3, padding=1)
        self.is_centred = is_centred

    def forward(self, x: Tensor) -> Tensor:  # (n, C, h, w)
        return self.convolved(x, channels_last(self.weight))


class ConvNet(nn.Module):
    """``depth`` blocks of 3x3 convolution, normalisation, ReLU and average pooling, then one linear layer (DC)."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int, depth: int, norm: str) -> None:
        super().__init__()
        is_centred = norm == "instance"
        self.convs = nn.ModuleList(
            Convolution(channels if block == 0 else width, width, is_centred) for block in range(depth)
        )
        self.norms = nn.ModuleList(Norm(norm, width) if norm != "none" else nn.Identity() for _ in range(depth))
        self.linear = nn.Linear(width * (size[0] >> depth) * (size[1] >> depth), classes)

    def forward(self, x: Tensor, hidden: bool = False, head: bool = False, blocks: bool = False) -> Tensor:
        """Logits (n, K) of images (n, C, H, W); ``hidden`` stops at the last hidden layer (n, d), ``head`` goes on.

        ``blocks`` gives (n, D): the outputs of all blocks, flattened and side by side, the last hidden layer last.
        """
        seen = []
        if not head:
            x = channels_last(x)
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = average_pool(F.relu(norm(conv(x))))
                if blocks:
                    seen.append(x.flatten(1))
            x = x.flatten(1)
        if blocks:
            return torch.cat(seen, 1)
        return x if hidden else self.linear(x)


def default_depth(size: int) -> int:
    """Blocks for a square image, so that about 4x4 remain: 3 for 28 and 32 pixels, 4 for 64, 5 for 128, at least 1."""
    return max(1, round(math.log2(size)) - 2)
