"""Plain twins: the work of the package as the published codes of the field write it, for benchmarks to compare with.

Modules and autograd, torch's own group normalisation, float32, one thing after another; nothing is compiled. Where the
published codes differ among each other, or do more than the work needs (a loader that collates image by image, tests
that build a graph), the twin takes the cheaper way, so that it is no slower than they are.

    MTT, DATM                  `ConvNet`, `Training`, `Reparametrised`, `walk`
    IDC                        `Training` with CutMix, `enlarged`, `match`
    DatasetCondensation, DM    `augment` (DSA), `match_means`, `Training`, `tell_right`
    DeepCore                   `el2n`, `k_center`, `herding`

What must stay true: given the same draws, a twin computes what the package computes, up to rounding
(`tests/test_peers.py`); and it shares no code with the package.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import datasets, transforms

# --- the network -------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance normalisation, ReLU and average pooling, then a linear layer.

    Instance normalisation is torch's group normalisation with a group a channel, as in the published codes.
    """

    def __init__(self, channels: int, size: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        inputs = [channels, *[width] * (depth - 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(count, width, 3, padding=1) for count in inputs)
        self.norms = nn.ModuleList(nn.GroupNorm(width, width, affine=True) for _ in inputs)
        self.activation, self.pool = nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)
        self.classifier = nn.Linear(width * (size >> depth) ** 2, classes)

    def embed(self, images: Tensor) -> Tensor:
        """The last hidden layer (n, d) of images (n, C, H, W)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = self.pool(self.activation(norm(convolution(images))))
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K)."""
        return self.classifier(self.embed(images))


def filled(net: ConvNet, flat: Tensor) -> ConvNet:
    """The network with parameters ``flat`` (P,), in its type."""
    net = net.to(flat.dtype)
    nn.utils.vector_to_parameters(flat.clone(), net.parameters())
    return net


def flat_of(net: nn.Module) -> Tensor:
    """All parameters, (P,)."""
    return nn.utils.parameters_to_vector(net.parameters()).detach()


# --- differentiable augmentation (DSA) ---------------------------------------------------------------------------


def augment(images: Tensor, draws: Tensor, strategy: str) -> Tensor:
    """Images (n, C, H, W) under uniform ``draws`` (1 or n, 12), part after part."""
    for part in strategy.split("_"):
        images = PARTS[part](images, draws)
    return images


def _color(x: Tensor, draws: Tensor) -> Tensor:
    bright, saturation, contrast = (draws[:, place].view(-1, 1, 1, 1) for place in range(3))
    x = x + (bright - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (saturation * 2) + grey
    level = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - level) * (contrast + 0.5) + level


def _places(count: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.meshgrid(torch.arange(count), torch.arange(rows), torch.arange(columns), indexing="ij")


def _crop(x: Tensor, draws: Tensor) -> Tensor:
    count, _, height, width = x.shape
    image, row, column = _places(count, height, width)
    down, right = (
        (uniform * (2 * pad + 1)).floor().long().view(-1, 1, 1) - pad
        for uniform, pad in ((draws[:, 3], int(height / 8 + 0.5)), (draws[:, 4], int(width / 8 + 0.5)))
    )
    row = torch.clamp(row + down + 1, 0, height + 1)
    column = torch.clamp(column + right + 1, 0, width + 1)
    padded = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1).contiguous()
    return padded[image, row, column].permute(0, 3, 1, 2)


def _cutout(x: Tensor, draws: Tensor) -> Tensor:
    count, _, height, width = x.shape
    sides = int(height / 2 + 0.5), int(width / 2 + 0.5)
    image, row, column = _places(count, *sides)
    corners = (
        (uniform * (size + 1 - side % 2)).floor().long().view(-1, 1, 1) - side // 2
        for uniform, size, side in zip((draws[:, 5], draws[:, 6]), (height, width), sides, strict=True)
    )
    top, left = corners
    mask = torch.ones(count, height, width, dtype=x.dtype)
    mask[image, torch.clamp(row + top, 0, height - 1), torch.clamp(column + left, 0, width - 1)] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, draws: Tensor) -> Tensor:
    return torch.where(draws[:, 7].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _sampled(x: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta.to(x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _scale(x: Tensor, draws: Tensor) -> Tensor:
    down, right = (draws[:, place].to(x.dtype) * (1.2 - 1 / 1.2) + 1 / 1.2 for place in (8, 9))
    zero = torch.zeros_like(down)
    return _sampled(x, torch.stack([right, zero, zero, zero, down, zero], 1).view(-1, 2, 3))


def _rotate(x: Tensor, draws: Tensor) -> Tensor:
    angle = (draws[:, 10] - 0.5) * 2 * 15 * np.pi / 180
    zero = torch.zeros_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    return _sampled(x, torch.stack(rows, 1).view(-1, 2, 3))


PARTS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}


# --- training ----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """All that is drawn for one training step."""

    indices: Tensor  # (b,)
    draws: Tensor  # (b, 12)
    strategy: str
    box: Sequence[float] | None  # CutMix: area kept, centre y and x; None: this step does not mix
    rate: float


class Training:
    """A network in training by SGD, which may be looked at on its way."""

    def __init__(self, net: ConvNet, momentum: float, decay: float) -> None:
        self.net = net
        self.optimiser = torch.optim.SGD(net.parameters(), lr=1.0, momentum=momentum, weight_decay=decay)

    def over(self, images: Tensor, labels: Tensor, steps: Iterable[Step]) -> tuple[float, float]:
        """Goes on, on normalised ``images`` (N, C, H, W); mean loss and accuracy on the way, which the peers log."""
        self.net.train()
        total, right, seen = 0.0, 0.0, 0
        for step in steps:
            self.optimiser.param_groups[0]["lr"] = step.rate
            batch, truth = augment(images[step.indices], step.draws, step.strategy), labels[step.indices]
            batch, kept = _cutmix(batch, step.box)
            logits = self.net(batch)
            loss = F.cross_entropy(logits, truth)
            if kept < 1:
                loss = loss * kept + F.cross_entropy(logits, truth.roll(1)) * (1 - kept)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(batch)
            right += np.sum(np.equal(logits.detach().argmax(1).numpy(), truth.numpy()))
            seen += len(batch)
        return total / seen, right / seen


def _cutmix(images: Tensor, box: Sequence[float] | None) -> tuple[Tensor, float]:
    """A box of each image's neighbour pasted in, and the share that is still its own."""
    if box is None:
        return images, 1.0
    area, *centre = box
    spans = []
    for place, size in zip(centre, images.shape[2:], strict=True):
        middle, half = np.floor(place * size), np.floor(np.sqrt(1 - area) * size) / 2
        spans.append((max(0, int(np.floor(middle - half))), min(size, int(np.floor(middle + half)))))
    (top, bottom), (left, right) = spans
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    height, width = images.shape[2:]
    return mixed, 1 - max(0, bottom - top) * max(0, right - left) / (height * width)


@torch.no_grad()
def tell_right(net: ConvNet, images: Tensor, labels: Tensor, batch: int) -> float:
    """Accuracy on normalised images, batch by batch."""
    net.eval()
    right = 0.0
    for first in range(0, len(images), batch):
        logits = net(images[first : first + batch])
        right += np.sum(np.equal(logits.argmax(1).numpy(), labels[first : first + batch].numpy()))
    return right / len(images)


@torch.no_grad()
def el2n(net: ConvNet, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """How far the answer for each image is from its label, (N,)."""
    net.eval()
    found = []
    for first in range(0, len(images), batch):
        answers = net(images[first : first + batch]).softmax(dim=1)
        truth = F.one_hot(labels[first : first + batch], answers.shape[1])
        found.append(torch.linalg.vector_norm(answers - truth, dim=1))
    return torch.cat(found)


# --- gradient and distribution matching --------------------------------------------------------------------------


def enlarged(pixels: Tensor, factor: int) -> Tensor:
    """Multi-formation: every tile of every stored image cut out and enlarged, tile after tile."""
    height, width = pixels.shape[2:]
    rows, columns = (torch.linspace(0, size, factor + 1).round().long().tolist() for size in (height, width))
    tiles = [
        F.interpolate(
            pixels[:, :, rows[y] : rows[y + 1], columns[x] : columns[x + 1]],
            size=(height, width),
            mode="bilinear",
            align_corners=False,
        )
        for y in range(factor)
        for x in range(factor)
    ]
    return torch.cat(tiles)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels in [0, 1] to zero mean and unit variance a channel."""
    centre, spread = (torch.tensor(values, dtype=images.dtype).view(1, -1, 1, 1) for values in (mean, std))
    return (images - centre) / spread


class Recipe(NamedTuple):
    """What a matching step is told."""

    strategy: str
    factor: int
    mean: Sequence[float]
    std: Sequence[float]
    rate: float
    momentum: float


def match(
    net: ConvNet, pixels: Tensor, real: Tensor, label: int, draws: Tensor, recipe: Recipe
) -> tuple[Tensor, float]:
    """One step on stored ``pixels`` (m, C, H, W) towards the gradient of normalised ``real`` (b, C, H, W): new pixels.

    Squared differences of the gradients of all convolutions, for one class.
    """
    stored = pixels.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([stored], lr=recipe.rate, momentum=recipe.momentum)
    parameters = list(net.parameters())
    seen = augment(real, draws, recipe.strategy)
    loss = F.cross_entropy(net(seen), torch.full((len(seen),), label))
    wanted = [gradient.detach() for gradient in torch.autograd.grad(loss, parameters)]
    made = augment(normalised(enlarged(stored, recipe.factor), recipe.mean, recipe.std), draws, recipe.strategy)
    loss = F.cross_entropy(net(made), torch.full((len(made),), label))
    found = torch.autograd.grad(loss, parameters, create_graph=True)
    distance = sum(((a - b) ** 2).sum() for a, b in zip(wanted, found, strict=True) if a.dim() == 4)
    optimiser.zero_grad()
    distance.backward()
    optimiser.step()
    for parameter in parameters:
        parameter.grad = None
    return stored.detach(), distance.item()


def match_means(net: ConvNet, pixels: Tensor, real: Tensor, draws: Tensor, recipe: Recipe) -> tuple[Tensor, float]:
    """One step of all classes' ``pixels`` (K, m, C, H, W) towards the mean features of normalised ``real`` (K, b, ...).

    Class after class into one loss, which is differentiated once.
    """
    for parameter in net.parameters():
        parameter.requires_grad = False
    stored = pixels.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([stored], lr=recipe.rate, momentum=recipe.momentum)
    loss = torch.tensor(0.0, dtype=pixels.dtype)
    for images, own in zip(real, stored, strict=True):
        wanted = net.embed(augment(images, draws, recipe.strategy)).detach()
        made = augment(normalised(enlarged(own, recipe.factor), recipe.mean, recipe.std), draws, recipe.strategy)
        loss = loss + ((wanted.mean(0) - net.embed(made).mean(0)) ** 2).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return stored.detach(), loss.item()


# --- trajectory matching -----------------------------------------------------------------------------------------


class Reparametrised:
    """A module that is called with a flat parameter vector, cut into views that take the place of its parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.places = []
        for name, parameter in list(module.named_parameters()):
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            del owner._parameters[leaf]
            self.places.append((owner, leaf, parameter.shape))

    def __call__(self, images: Tensor, flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for _, _, shape in self.places])
        for (owner, leaf, shape), part in zip(self.places, parts, strict=True):
            object.__setattr__(owner, leaf, part.view(shape))
        return self.module(images)


class Walk(NamedTuple):
    """What is drawn for a student's walk: indices (N, B), draws (N, B, 12), N strategies."""

    batches: Tensor
    draws: Tensor
    strategies: Sequence[str]


def walk(
    student: Reparametrised, drawn: Walk, images: Tensor, labels: Tensor, rate: Tensor, start: Tensor, target: Tensor
) -> tuple[float, Tensor, Tensor, Tensor]:
    """The normalised distance of the student's end to ``target`` (P,), and its gradients by images, labels and rate.

    ``labels`` (n, K) are logits. All steps' graphs are alive until the distance is differentiated.
    """
    images, labels, rate = (each.detach().clone().requires_grad_(True) for each in (images, labels, rate))
    flats = [start.detach().clone().requires_grad_(True)]
    for chosen, draws, strategy in zip(*drawn, strict=True):
        batch = augment(images[chosen], draws, strategy)
        answers = F.log_softmax(student(batch, flats[-1]), dim=1)
        loss = (-answers * F.softmax(labels[chosen], dim=1)).sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, flats[-1], create_graph=True)
        flats.append(flats[-1] - rate * gradient)
    distance = F.mse_loss(flats[-1], target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
    distance.backward()
    return distance.item(), images.grad, labels.grad, rate.grad


# --- selection ---------------------------------------------------------------------------------------------------


def _far(one: Tensor, many: Tensor) -> Tensor:
    """Euclidean distances (m, n) by the squares' sum."""
    square = one.pow(2).sum(1, keepdim=True) + many.pow(2).sum(1, keepdim=True).t()
    return square.addmm_(one, many.t(), alpha=-2).clamp(min=1e-12).sqrt()


@torch.no_grad()
def k_center(features: Tensor, count: int) -> list[int]:
    """Greedy k-center of one class (n, d), from the sample nearest to the mean on.

    The distances to all chosen so far stand in one matrix, whose least are looked for at every step.
    """
    chosen = [int(_far(features.mean(0, keepdim=True), features).argmin())]
    is_free = torch.ones(len(features), dtype=torch.bool)
    is_free[chosen[0]] = False
    matrix = torch.full((count, len(features)), -1.0, dtype=features.dtype)
    matrix[0, is_free] = _far(features[chosen[0]].unsqueeze(0), features[is_free])[0]
    for step in range(1, count):
        least = matrix[:step].min(dim=0).values
        least[~is_free] = -1
        best = int(least.argmax())
        chosen.append(best)
        is_free[best] = False
        matrix[step, is_free] = _far(features[best].unsqueeze(0), features[is_free])[0]
    return chosen


@torch.no_grad()
def herding(features: Tensor, count: int) -> list[int]:
    """Herding of one class (n, d): what is free is copied out at every step, and the nearest of it joins."""
    mean = features.mean(0)
    places = np.arange(len(features))
    is_chosen = np.zeros(len(features), dtype=bool)
    chosen: list[int] = []
    for step in range(count):
        wanted = (step + 1) * mean - features[is_chosen].sum(0)
        nearest = int(_far(wanted.view(1, -1), features[~is_chosen]).argmin())
        chosen.append(int(places[~is_chosen][nearest]))
        is_chosen[chosen[-1]] = True
    return chosen


# --- reading image files -----------------------------------------------------------------------------------------


def _prepared(mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


def read_folder(folder: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """All images of a folder a class, (N, C, H, W) normalised, and labels (N,): image by image, then joined."""
    found = datasets.ImageFolder(str(folder), _prepared(mean, std))
    rows = [found[place] for place in range(len(found))]
    return torch.cat([image.unsqueeze(0) for image, _ in rows]), torch.tensor([label for _, label in rows])


def read_parquet(file: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The same of a Parquet file with columns ``image`` (of encoded bytes) and ``label``."""
    table, prepare = pyarrow.parquet.read_table(file), _prepared(mean, std)
    images = []
    for cell in table.column("image").to_pylist():
        picture = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        images.append(prepare(picture).unsqueeze(0))
    return torch.cat(images), torch.tensor(table.column("label").to_pylist())
