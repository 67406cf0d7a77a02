"""Training a network by SGD: for experts, probes, the networks inside the loop and evaluation.

What must stay true: a training is a function of its samples, recipe and generator, and nothing else; one that is
watched ends where its numbers stop being finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import TrainRecipe
from dasm_ray.core.augment import draw
from dasm_ray.core.device import ahead, numbers, sent
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import Samples
from dasm_ray.errors import NonFinite

DECAY_AT, DECAY = (2 / 3, 5 / 6), 0.2
"""IDC's schedule for evaluation: the rate falls to a fifth at these shares of the training."""

LOOK_EVERY = 50
"""Steps between two looks at whether a training still holds numbers: a look waits for the device, so few are taken."""

USUAL = {"momentum": 0.99, "weight_decay": 0.1, "rho": 1.0}
"""Keys beside the rate that can make a training explode, and the most that is usual of each."""


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
    return recipe.steps_over(count, epochs or recipe.epochs)


class Trained(NamedTuple):
    """A training after ``steps`` steps."""

    steps: int
    flat: Tensor  # (P,)
    velocity: Tensor  # (P,)
    loss: Tensor  # () of the last batch


@dataclass(frozen=True)
class Watch:
    """Looks after one training: ``what`` it is called, and the ``section`` of the configuration that rules it."""

    what: str
    section: str
    recipe: TrainRecipe

    def over(self, training: Iterable[Trained], steps: int) -> Iterator[Trained]:
        """Passes on the states of a training of ``steps`` steps; NonFinite where a look finds one that is no number."""
        looked = 0
        for state in training:
            if state.steps % LOOK_EVERY == 0 or state.steps == steps:
                if not all_finite(state.flat, state.velocity, state.loss):
                    raise self.failed(f"between steps {looked} and {state.steps}")
                looked = state.steps
            yield state

    def failed(self, when: str) -> NonFinite:
        """The error for a training whose numbers stopped being finite: when, and the keys to lower."""
        return NonFinite(
            f"{self.what}, {when}: the training diverged (its numbers are no longer finite), and nothing of them is "
            f"kept; lower {self._keys()}"
        )

    def _keys(self) -> str:
        """What is set beyond the usual, with its present value; the rate always, since all the others act by it."""
        values = {name: getattr(self.recipe, name, 0.0) for name in USUAL}
        named = [name for name, value in values.items() if value > USUAL[name]]
        return " or ".join(f"{self.section}.{name} (now {getattr(self.recipe, name):g})" for name in [*named, "lr"])


def all_finite(*tensors: Tensor) -> bool:
    """Whether no tensor holds NaN or infinity; waits for the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


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
    prepared = _prepared(network, samples, recipe, steps, generator, decay, flatness)
    for done, (strategy, inputs) in enumerate(ahead(prepared, network.device), 1):
        step_once = network.train_step(strategy, flatness[0] > 0)
        flat, velocity, loss = step_once(flat, velocity, *inputs)
        yield Trained(done, flat, velocity, loss)


def _prepared(
    network: Network,
    samples: Samples,
    recipe: TrainRecipe,
    steps: int,
    generator: torch.Generator,
    decay: bool,
    flatness: tuple[float, float],
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Of each step what does not depend on the one before: its augmentations, and all it reads beside the network."""
    size = min(recipe.batch, len(samples))
    for done, indices in enumerate(batches(len(samples), size, steps, generator)):
        images, labels = samples.take(indices)
        draws = sent(draw(size, generator), network.device)
        box = sent(_box(recipe.cutmix, generator), network.device)
        rate = recipe.lr * (DECAY ** sum(done >= share * steps for share in DECAY_AT) if decay else 1)
        settings = numbers([rate, recipe.momentum, recipe.weight_decay, *flatness], network.device)
        yield _strategy(recipe, generator), (images, labels, draws, box, settings)


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
