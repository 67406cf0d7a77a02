"""Training a network by SGD: for experts, probes, the networks inside the loop and evaluation.

What must stay true: a training is a function of its samples, recipe and generator, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import TrainRecipe
from dasm_ray.core.augment import draw
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import Samples

DECAY_AT, DECAY = (2 / 3, 5 / 6), 0.2
"""IDC's schedule for evaluation: the rate falls to a fifth at these shares of the training."""


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
