"""An expert: a network trained on the real data that keeps a snapshot of its parameters after every epoch.

What must stay true: an epoch follows from the state before it and its own generator, so a training that goes on from
any epoch ends with the same bytes; an epoch that is not made of finite numbers is never given out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config.keys import Experts
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy, filled, mean_loss, read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Samples
from dasm_ray.core.networks.training import Watch, train

LOSS_SAMPLES = 2000
"""Training images whose mean loss is recorded after each epoch, spread evenly over the set."""


@dataclass(frozen=True)
class Trajectory:
    """An expert's way so far, E epochs: index 0 is its initialisation."""

    snapshots: NDArray[np.float32]  # (E+1, P)
    velocity: NDArray[np.float32]  # (P,) of SGD, after the last epoch
    accuracy: NDArray[np.float32]  # (E+1,) on validation images, share in [0, 1]
    loss: NDArray[np.float32]  # (E+1,) on training images, nats

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.snapshots) - 1

    @property
    def is_finite(self) -> bool:
        """Whether it holds no NaN and no infinity."""
        return all(np.isfinite(part).all() for part in vars(self).values())


def spread(samples: RealSamples) -> RealSamples:
    """The training images whose loss is recorded."""
    count = min(LOSS_SAMPLES, len(samples))
    return RealSamples(samples.network, samples.blocks, np.linspace(0, len(samples) - 1, count).astype(np.int64))


def train_expert(
    network: Network,
    samples: RealSamples,
    validation: RealSamples,
    recipe: Experts,
    generator_of: Callable[[int], torch.Generator],
    so_far: Trajectory | None = None,
    name: str = "an expert",
) -> Iterator[Trajectory]:
    """Trains one expert, from ``so_far`` if there is one; yields its trajectory after each epoch.

    ``generator_of(e)`` draws epoch e (from 1); that of epoch 0 the initialisation. ``recipe.rho`` above 0 trains by
    GSAM, towards flat minima. NonFinite, which calls it ``name``, in the first epoch that is not made of numbers.
    """
    if so_far is None:
        flat = network.initial(generator_of(0))
        so_far = _grown(None, network, flat, torch.zeros_like(flat), samples, validation)
    steps = max(1, len(samples) // min(recipe.batch, len(samples)))
    while so_far.epochs < recipe.epochs:
        flat = torch.tensor(so_far.snapshots[-1], device=network.device)
        velocity = torch.tensor(so_far.velocity, device=network.device)
        epoch = so_far.epochs + 1
        watch = Watch(f"{name}, epoch {epoch}", "experts", recipe)
        training = train(
            network,
            samples,
            recipe,
            steps=steps,
            generator=generator_of(epoch),
            flat=flat,
            velocity=velocity,
            flatness=(recipe.rho, recipe.alpha),
        )
        for _, flat, velocity, _ in watch.over(training, steps):  # noqa: B007
            pass
        so_far = _grown(so_far, network, flat, velocity, samples, validation)
        if not np.isfinite([so_far.accuracy[-1], so_far.loss[-1]]).all():
            raise watch.failed("at its end")
        yield so_far


def continued(
    network: Network,
    samples: RealSamples,
    recipe: Experts,
    flat: torch.Tensor,
    epochs: Sequence[float],
    generator: torch.Generator,
    name: str = "a continued probe",
) -> NDArray[np.float32]:
    """A network ``flat`` (P,) goes on along the real images by the experts' ``recipe``: snapshots (len(epochs), P).

    ``epochs``, ascending, are when they are taken, rounded to steps; at 0 it is ``flat`` itself. NonFinite, which calls
    it ``name``, where it diverges.
    """
    of_epoch = max(1, len(samples) // min(recipe.batch, len(samples)))
    when = [round(epoch * of_epoch) for epoch in epochs]
    found = {0: flat.cpu().numpy()}
    flatness = (recipe.rho, recipe.alpha)
    training = train(network, samples, recipe, steps=when[-1], generator=generator, flat=flat, flatness=flatness)
    for state in Watch(name, "experts", recipe).over(training, when[-1]):
        if state.steps in when:
            found[state.steps] = state.flat.cpu().numpy()
    return np.stack([found[steps] for steps in when])


def expert_labels(
    network: Network, experts: Sequence[torch.Tensor], real: RealSamples, samples: Samples
) -> torch.Tensor:
    """Soft labels for ``samples`` of one class each: logits (n, K).

    The mean logits of those of the ``experts`` (P,) that are right on an image (DATM); of all where none is. ``real``
    gives the statistics that batch normalisation needs.
    """
    total = torch.zeros(len(samples), network.classes, device=network.device)
    right = torch.zeros(len(samples), 1, device=network.device)
    everyone = torch.zeros_like(total)
    for flat in experts:
        readings = read_all(network, flat, statistics_of(network, flat, real), samples)
        logits, labels = filled(((logits, labels) for logits, _, labels in readings), len(samples))
        is_right = (logits.argmax(1) == labels).float()[:, None]
        total, right, everyone = total + is_right * logits, right + is_right, everyone + logits
    return torch.where(right > 0, total / right.clamp_min(1), everyone / len(experts))


def _grown(
    so_far: Trajectory | None,
    network: Network,
    flat: torch.Tensor,
    velocity: torch.Tensor,
    samples: RealSamples,
    validation: RealSamples,
) -> Trajectory:
    """The trajectory with one more snapshot."""
    statistics = statistics_of(network, flat, samples)
    snapshot = flat.cpu().numpy()[None]
    right = np.array([accuracy(network, flat, statistics, validation)], np.float32)
    nats = np.array([mean_loss(network, flat, statistics, spread(samples))], np.float32)
    if so_far is None:
        return Trajectory(snapshot, velocity.cpu().numpy(), right, nats)
    return Trajectory(
        np.concatenate([so_far.snapshots, snapshot]),
        velocity.cpu().numpy(),
        np.concatenate([so_far.accuracy, right]),
        np.concatenate([so_far.loss, nats]),
    )
