"""Training a network by SGD: one compiled step, used for experts, probes, the nets inside the loop and evaluation.

A `Network` binds an architecture to a data set: its shapes, normalisation, device and compiled steps. What must stay
true: a training is a function of its samples, recipe and generator, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value

from dasm_ray.config import Model, TrainRecipe
from dasm_ray.core.augment import augment, cutmix, draw
from dasm_ray.core.compiled import maybe_compiled
from dasm_ray.core.models import Norm, batch_moments, build
from dasm_ray.core.params import Layout, apply, initial
from dasm_ray.core.real import Blocks
from dasm_ray.core.whiten import Whitening

DECAY_AT, DECAY = (2 / 3, 5 / 6), 0.2
"""IDC's schedule for evaluation: the rate falls to a fifth at these shares of the training."""

STATISTICS_SAMPLES = 512
"""Images whose moments stand for the running statistics of batch normalisation."""


WORTH_COMPILING = 1 << 14
"""Values in a network's first block from which a CPU step is compiled: 28x28 pixels at width 21, never 8x8 ones."""


PIECE_BYTES = 1 << 24
"""Of the first block's output for the images that a CPU takes at once, so that its caches hold what is read next."""


class Network:
    """An architecture on images of one shape, normalised by ``mean`` and ``std`` (C,) of pixels in [0, 1]."""

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int, int],
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: str = "cpu",
        compile: bool | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        """``compile`` unset: where a step is large enough that compiling it, some 20 s, pays within a run."""
        self.model, self.shape, self.classes = model, shape, classes
        self.mean, self.std = mean, std
        self.whitening = None if whitening is None else whitening.to(device)
        self.device = device
        is_large = device != "cpu" or model.width * shape[1] * shape[2] >= WORTH_COMPILING
        self.compile = is_large if compile is None else compile
        self.module = build(model, shape, classes).to(device)  # holds no values of its own
        self.layout = Layout.of(self.module)
        self.read = self._reader()
        self._train_steps: dict[tuple[str, bool], Callable[..., tuple[Tensor, Tensor, Tensor]]] = {}

    def piece(self, batch: int) -> int:
        """How many of ``batch`` images are best taken at once where a gradient is a sum over images.

        On a CPU as many as its caches hold: an even part of the batch if there is one of about that size. Everything on
        other devices, and where batch normalisation couples the images.
        """
        _, height, width = self.shape
        most = max(1, PIECE_BYTES // (4 * self.model.width * height * width))
        if batch <= most or self.device != "cpu" or self.model.norm == "batch":
            return batch
        return next((size for size in range(most, most // 2, -1) if batch % size == 0), most)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters (P,) on the device."""
        return initial(self.module, generator).to(self.device)

    def logits(self, flat: Tensor, images: Tensor) -> Tensor:
        """Logits (n, K) of normalised ``images`` (n, C, H, W) at parameters ``flat`` (P,), as in training."""
        return apply(self.module, self.layout, flat, images)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1], or uint8, (n, C, H, W), to zero mean and unit variance a channel; whitened where asked."""
        if images.dtype == torch.uint8:
            images = images.to(torch.float32) / 255
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        images = (images - mean) / std
        return images if self.whitening is None else self.whitening.apply(images)

    def denormalise(self, images: Tensor) -> Tensor:
        """The pixels (n, C, H, W), around [0, 1], that ``normalise`` makes into ``images``."""
        if self.whitening is not None:
            images = self.whitening.invert(images)
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.mean, self.std))
        return images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)

    def train_step(self, augment_by: str, is_flat: bool = False) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """One SGD step of fixed shape with augmentation and CutMix inside; ``is_flat``: towards a flat minimum (GSAM).

        (flat (P,), velocity (P,), images (b, C, H, W) normalised, labels (b,) or probabilities (b, K),
        draws (b, DRAWS), box (4,), settings (5,): rate, momentum, weight decay, rho, alpha) to (flat, velocity, loss).
        """
        if (augment_by, is_flat) not in self._train_steps:
            self._train_steps[augment_by, is_flat] = self._train_step(augment_by, is_flat)
        return self._train_steps[augment_by, is_flat]

    def _train_step(self, augment_by: str, is_flat: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:

        def loss_of(flat: Tensor, images: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
            logits = self.logits(flat, images)
            own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels.roll(1))
            return kept * own + (1 - kept) * other

        def step(
            flat: Tensor, velocity: Tensor, images: Tensor, labels: Tensor, draws: Tensor, box: Tensor, settings: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            images = augment(images, draws, augment_by)
            mixed, kept = cutmix(images, images.roll(1, 0), box)
            gradient, loss = grad_and_value(loss_of)(flat, mixed, labels, kept)
            rate, momentum, decay, rho, alpha = settings.unbind()
            if is_flat:
                gradient = flattened(
                    lambda there: grad(loss_of)(there, mixed, labels, kept), flat, gradient, rho, alpha
                )
            velocity = momentum * velocity + gradient + decay * flat
            return flat - rate * velocity, velocity, loss

        return maybe_compiled(self.compile, step)

    def _reader(self) -> Callable[[Tensor, dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]:
        """(flat, statistics, images (n, C, H, W) normalised) to logits (n, K) and last hidden layer (n, d)."""
        frozen = build(self.model, self.shape, self.classes).to(self.device).eval()

        def forward(flat: Tensor, statistics: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
            values = {**self.layout.unflatten(flat), **statistics}
            features = functional_call(frozen, values, (images,), {"hidden": True})
            return functional_call(frozen, values, (features,), {"head": True}), features

        return maybe_compiled(self.compile, forward)

    def statistics(self, flat: Tensor, images: Tensor) -> dict[str, Tensor]:
        """What batch normalisation needs for evaluation: the moments of ``images`` at every layer (else nothing)."""
        found: dict[str, Tensor] = {}
        hooks = []
        for name, layer in self.module.named_modules():
            if isinstance(layer, Norm) and layer.kind == "batch":

                def keep(_: torch.nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                    found[f"{name}.mean"], found[f"{name}.var"] = batch_moments(inputs[0])

                hooks.append(layer.register_forward_pre_hook(keep))
        try:
            if hooks:
                self.logits(flat, images)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def flattened(
    gradient_at: Callable[[Tensor], Tensor], flat: Tensor, gradient: Tensor, rho: Tensor, alpha: Tensor
) -> Tensor:
    """The direction of GSAM (Zhuang et al. 2022) with adaptive radius, by which FTD trains its experts.

    The gradient at the worst point within ``rho`` (distances in units of each parameter), less ``alpha`` times that
    part of the ``gradient`` here which is perpendicular to it. All vectors (P,).
    """
    scaled = flat.abs() * gradient
    there = gradient_at(flat + flat.abs() * scaled * (rho / (scaled.norm() + 1e-12)))
    parallel = torch.dot(gradient, there) / (torch.dot(there, there) + 1e-12)
    return there - alpha * (gradient - parallel * there)


class Samples(Protocol):
    """Labelled images that can be taken by index."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Normalised images (n, C, H, W) and labels (n,) on the device."""
        ...


@dataclass(frozen=True)
class RealSamples:
    """Real images by global index, all or a chosen few; a batch is copied, never the set."""

    network: Network
    blocks: Blocks
    chosen: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.blocks) if self.chosen is None else len(self.chosen)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        if self.chosen is not None:
            indices = self.chosen[indices]
        images = self.blocks.take_to(self.network.device, indices)
        labels = torch.from_numpy(self.blocks.labels[indices]).to(self.network.device)
        return self.network.normalise(images), labels


@dataclass(frozen=True)
class TensorSamples:
    """Normalised images (n, C, H, W) and labels (n,), or probabilities (n, K), held on the device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See Samples."""
        chosen = torch.from_numpy(indices).to(self.images.device)
        return self.images[chosen], self.labels[chosen]


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[NDArray[np.int64]]:
    """``steps`` full batches of indices below ``count``: shuffled passes one after another, cut at every ``size``."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size].numpy().copy()
        left = left[size:]


def steps_for(count: int, recipe: TrainRecipe, epochs: int | None = None) -> int:
    """SGD steps of ``epochs`` (unset: the recipe's) passes over ``count`` samples, at least one."""
    return max(1, (epochs or recipe.epochs) * count // min(recipe.batch, count))


class Trained(NamedTuple):
    """A training after ``steps`` steps."""

    steps: int
    flat: Tensor  # (P,)
    velocity: Tensor  # (P,)
    loss: Tensor  # () of the last batch


def train(
    network: Network,
    samples: Samples,
    recipe: TrainRecipe,
    *,
    steps: int,
    generator: torch.Generator,
    flat: Tensor | None = None,
    velocity: Tensor | None = None,
    decay: bool = False,
    flatness: tuple[float, float] = (0.0, 0.0),
) -> Iterator[Trained]:
    """Trains for ``steps`` steps and yields the state after each.

    ``flat`` and ``velocity`` are where to start (unset: a fresh initialisation, at rest); ``decay`` follows IDC's
    schedule of the rate; ``flatness``: GSAM's rho and alpha, plain SGD where rho is 0.
    """
    if flat is None:
        flat = network.initial(generator)
    if velocity is None:
        velocity = torch.zeros_like(flat)
    size = min(recipe.batch, len(samples))
    for done, indices in enumerate(batches(len(samples), size, steps, generator)):
        images, labels = samples.take(indices)
        draws = draw(size, generator).to(network.device)
        box = _box(recipe.cutmix, generator).to(network.device)
        rate = recipe.lr * (DECAY ** sum(done >= share * steps for share in DECAY_AT) if decay else 1)
        settings = torch.tensor([rate, recipe.momentum, recipe.weight_decay, *flatness], device=network.device)
        step_once = network.train_step(_strategy(recipe, generator), flatness[0] > 0)
        flat, velocity, loss = step_once(flat, velocity, images, labels, draws, box, settings)
        yield Trained(done + 1, flat, velocity, loss)


def _strategy(recipe: TrainRecipe, generator: torch.Generator) -> str:
    """The augmentations of one step: all, or the one that is drawn."""
    parts = recipe.augment.split("_")
    if not recipe.single or len(parts) == 1:
        return recipe.augment
    return parts[int(torch.randint(len(parts), (1,), generator=generator))]


def _box(probability: float, generator: torch.Generator) -> Tensor:
    """A draw for CutMix (4,), its switch below 0 when this step does not mix."""
    box = torch.rand(4, generator=generator)
    box[3] = 1.0 if box[3] < probability else -1.0
    return box


def statistics_of(network: Network, flat: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Evaluation statistics from evenly spread samples (nothing where the network needs none)."""
    if network.model.norm != "batch":
        return {}
    spread = np.linspace(0, len(samples) - 1, min(STATISTICS_SAMPLES, len(samples))).astype(np.int64)
    return network.statistics(flat, samples.take(spread)[0])


def read_all(
    network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples, batch: int = 500
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits, features, labels) of all samples in order, batch by batch.

    Every batch has ``batch`` samples: the last one repeats its last sample, and the repeats are cut off.
    """
    for first in range(0, len(samples), batch):
        kept = min(batch, len(samples) - first)
        images, labels = samples.take(np.minimum(np.arange(first, first + batch), len(samples) - 1))
        logits, features = network.read(flat, statistics, images)
        yield logits[:kept], features[:kept], labels[:kept]


def accuracy(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Share of samples whose largest logit is their label's."""
    right = sum(
        int((logits.argmax(1) == labels).sum()) for logits, _, labels in read_all(network, flat, statistics, samples)
    )
    return right / len(samples)


def mean_loss(network: Network, flat: Tensor, statistics: dict[str, Tensor], samples: Samples) -> float:
    """Mean cross-entropy in nats of samples as they are, without augmentation."""
    total = sum(
        float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        for logits, _, labels in read_all(network, flat, statistics, samples)
    )
    return total / len(samples)
