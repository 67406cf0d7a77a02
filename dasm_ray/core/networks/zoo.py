"""The table of networks, and those beside the ConvNet: each a list of stages, a linear layer, one forward for all.

The convolutional ones are those of the DC code (Zhao et al. 2021), also in that images of 28 pixels are padded to 32;
`resnet18` and `vit` are torchvision's. What must stay true: as in ``core.networks.convnet``, a module holds no random
state and changes nothing while it runs; no stage works in place, and all can be differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.convnet import Conv2d, ConvNet, Norm, computes_bf16, default_depth
from dasm_ray.core.networks.params import drawn, normal, xavier, zeros
from dasm_ray.errors import ConfigError

Shape = tuple[int, int, int]
NormOf = Callable[[int], nn.Module]
"""The normalisation of so many channels."""

DIM, DEPTH, HEADS, PATCHES = 192, 6, 3, 14
"""The small ViT: width, blocks, heads, and the most patches along a side (as many as in ViT-B/16)."""


class Staged(nn.Module):
    """``stages`` one after another, then one linear layer on what the last one gives, flattened to ``features``."""

    def __init__(self, stages: Sequence[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor, hidden: bool = False, head: bool = False, blocks: bool = False) -> Tensor:
        """Logits (n, K) of images (n, C, H, W); ``hidden`` stops at the last hidden layer (n, d), ``head`` goes on.

        ``blocks`` gives (n, D): the outputs of all stages, flattened and side by side, the last hidden layer last.
        """
        seen = []
        if not head:
            for stage in self.stages:
                x = stage(x)
                if blocks:
                    seen.append(x.flatten(1))
            x = x.flatten(1)
        if blocks:
            return torch.cat(seen, 1)
        return x if hidden else self.linear(x)


# --- convolutional -----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, the basic block)."""

    def __init__(self, channels: int, width: int, stride: int, norm: NormOf) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(Conv2d(channels, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:  # (n, C, h, w)
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


def resnet18(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """ResNet-18; up to 64 pixels its stem is one 3x3 convolution, beyond that torchvision's own with max-pooling."""
    channels, *sides = shape
    if max(sides) <= 64:
        stem = nn.Sequential(Conv2d(channels, 64, 3, 1, 1, bias=False), norm(64), nn.ReLU())
    else:
        first = Conv2d(channels, 64, 7, 2, 3, bias=False)
        stem = nn.Sequential(first, norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    if model.norm == "instance" and max(sides) <= 8:
        raise ConfigError(
            f"model.norm: resnet18 shrinks images of {_by(sides)} to single pixels, of which instance normalisation "
            f"leaves nothing; set model.norm to batch"
        )
    stages = [stem]
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        stride = 1 if width == 64 else 2
        stages.append(nn.Sequential(Residual(before, width, stride, norm), Residual(width, width, 1, norm)))
    stages[-1].append(nn.AdaptiveAvgPool2d(1))
    return Staged(stages, 512, classes)


def vgg11(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """VGG-11 as used on CIFAR: eight normalised 3x3 convolutions, five max-poolings, one linear layer."""
    channels, *sides = shape
    height, width = (_padded(side) >> 5 for side in sides)
    _refuse_small("vgg11", sides, height * width, "32 pixels, or 28, which it pads")
    stages: list[nn.Module] = []
    for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        stage = nn.Sequential()
        for out in widths:
            border = [1 + _border(side) if not stages else 1 for side in sides]
            stage.extend([Conv2d(channels, out, 3, 1, (border[0], border[1])), norm(out), nn.ReLU()])
            channels = out
        stages.append(stage.append(nn.MaxPool2d(2)))
    return Staged(stages, 512 * height * width, classes)


def alexnet(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """AlexNet for small images: five convolutions, three max-poolings, one linear layer, no normalisation."""
    channels, *sides = shape
    height, width = (_padded(side) >> 3 for side in sides)
    _refuse_small("alexnet", sides, height * width, "8 pixels")
    border = (2 + _border(sides[0]), 2 + _border(sides[1]))
    stages = [
        nn.Sequential(Conv2d(channels, 128, 5, 1, border), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(Conv2d(128, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(Conv2d(192, 256, 3, 1, 1), nn.ReLU()),
        nn.Sequential(Conv2d(256, 192, 3, 1, 1), nn.ReLU()),
        nn.Sequential(Conv2d(192, 192, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)),
    ]
    return Staged(stages, 192 * height * width, classes)


def lenet(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling: two 5x5 convolutions and three linear layers."""
    channels, *sides = shape
    height, width = (((_padded(side) - 4) // 2 - 4) // 2 for side in sides)
    _refuse_small("lenet", sides, max(height, 0) * max(width, 0), "16 pixels")
    border = (_border(sides[0]), _border(sides[1]))
    stages = [
        nn.Sequential(Conv2d(channels, 6, 5, 1, border), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16 * height * width, 120), nn.ReLU()),
        nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
    ]
    return Staged(stages, 84, classes)


def mlp(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """Three linear layers, 128 wide."""
    stages = [
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 128), nn.ReLU()),
        nn.Sequential(nn.Linear(128, 128), nn.ReLU()),
    ]
    return Staged(stages, 128, classes)


def _border(side: int) -> int:
    """Pixels added before and after: images of 28 pixels become 32, as the field has it."""
    return 2 if side == 28 else 0


def _padded(side: int) -> int:
    return side + 2 * _border(side)


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _refuse_small(arch: str, sides: Sequence[int], left: int, least: str) -> None:
    if left < 1:
        raise ConfigError(
            f"model.arch: {arch} needs at least {least}, not {_by(sides)}; raise data.image_size or choose another"
        )


# --- transformer -------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Images cut into square patches, each a vector, with a class token in front and the places added."""

    def __init__(self, channels: int, patch: int, count: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, DIM))
        self.places = nn.Parameter(torch.empty(1, count + 1, DIM))
        # torchvision cuts this one off at ±2, which is 8 standard deviations or more.
        draw = normal((channels * patch**2) ** -0.5)
        self.conv = drawn(Conv2d(channels, DIM, patch, patch), weight=draw, bias=zeros)
        self.draws = {"token": zeros, "places": normal(0.02)}

    def forward(self, x: Tensor) -> Tensor:  # (n, C, H, W) to (n, T, DIM)
        patches = self.conv(x).flatten(2).mT
        return torch.cat([self.token.expand(len(x), 1, DIM), patches], 1) + self.places


class Attention(nn.Module):
    """Self-attention written out, so that it can be differentiated any number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = drawn(nn.Linear(DIM, 3 * DIM), weight=xavier, bias=zeros)
        self.out = drawn(nn.Linear(DIM, DIM), bias=zeros)

    def forward(self, x: Tensor) -> Tensor:  # (n, T, DIM)
        apart = self.queries_keys_values(x).unflatten(2, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        queries, keys, values = apart.unbind()  # each (n, HEADS, T, DIM // HEADS)
        weights = (queries @ keys.mT / math.sqrt(DIM // HEADS)).softmax(-1)
        mixed: Tensor = self.out((weights @ values).transpose(1, 2).flatten(2))
        return mixed


class Encoder(nn.Module):
    """One block: attention, then two linear layers, each on normalised input and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, eps=1e-6)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(DIM, eps=1e-6)
        wide, narrow = (
            drawn(nn.Linear(into, out), weight=xavier, bias=normal(1e-6))
            for into, out in ((DIM, 4 * DIM), (4 * DIM, DIM))
        )
        self.mlp = nn.Sequential(wide, nn.GELU(), narrow)

    def forward(self, x: Tensor) -> Tensor:  # (n, T, DIM)
        x = x + self.attention(self.norm1(x))
        grown: Tensor = x + self.mlp(self.norm2(x))
        return grown


class Summary(nn.Module):
    """The class token at the end, normalised: (n, T, DIM) to (n, DIM)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        token: Tensor = self.norm(x[:, 0])
        return token


def vit(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """A small Vision Transformer (Dosovitskiy et al. 2021), fresh values as in torchvision: its head starts at 0."""
    channels, *sides = shape
    patch = next(patch for patch in (4 << power for power in range(64)) if max(sides) <= PATCHES * patch)
    if any(side % patch for side in sides):
        raise ConfigError(
            f"model.arch: vit cuts {_by(sides)} into patches of {patch} pixels, which leaves a rest; "
            f"make data.image_size a multiple of {patch} or choose another"
        )
    count = (sides[0] // patch) * (sides[1] // patch)
    encoders = [nn.Sequential(Encoder()) for _ in range(DEPTH)]
    encoders[-1].append(Summary())
    network = Staged([Patches(channels, patch, count), *encoders], DIM, classes)
    drawn(network.linear, weight=zeros, bias=zeros)
    return network


def convnet(model: Model, shape: Shape, classes: int, norm: NormOf) -> nn.Module:
    """The ConvNet of the field, as deep as asked or as the image size suggests."""
    channels, height, width = shape
    depth = model.depth or default_depth(min(height, width))
    return ConvNet(channels, (height, width), classes, model.width, depth, model.norm)


ARCHITECTURES: dict[str, Callable[[Model, Shape, int, NormOf], nn.Module]] = {
    "convnet": convnet,
    "resnet18": resnet18,
    "vgg11": vgg11,
    "alexnet": alexnet,
    "lenet": lenet,
    "mlp": mlp,
    "vit": vit,
}
"""Builders: (model, image shape (C, H, W), classes, normalisation) to a module whose parameters still lack values. A
new architecture is one row here and one in ``config.keys.NORMS``, which says the normalisations that it takes."""


def build(
    model: Model, shape: Shape, classes: int, inside: torch.dtype | None = None, device: str = "cpu"
) -> nn.Module:
    """The network named by ``model``, in training mode, its parameters unset and without gradients of their own.

    ``inside``: what its convolutions round their inputs to; None: nothing.
    """
    with torch.device("meta"):
        module = ARCHITECTURES[model.arch](model, shape, classes, partial(Norm, model.norm))
    # Memory as each value asks for, since `to_empty` brings in what torch makes formulas of shapes with: 35 MB, 0.3 s.
    values = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in module.state_dict().items()}
    module.load_state_dict(values, assign=True)
    for name, buffer in module.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.0)
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            layer.inside, layer.is_imitated = inside, inside is not None and not computes_bf16(device)
    return module.requires_grad_(False).train().to(device)
