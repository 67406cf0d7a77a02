"""An expert: a network trained on the real data that keeps a snapshot of its parameters after every epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dasm_ray.config import TrainRecipe
from dasm_ray.core.train import Network, RealSamples, accuracy, statistics_of, train


def train_expert(
    network: Network,
    samples: RealSamples,
    validation: RealSamples,
    recipe: TrainRecipe,
    generator: torch.Generator,
    told: Callable[[int, float], None] = lambda epoch, accuracy: None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Trains one expert; calls ``told(epoch, validation accuracy)`` after each epoch.

    Returns its trajectory (E+1, P), snapshot 0 being the initialisation, and the validation accuracies (E+1,).
    """
    per_epoch = max(1, len(samples) // min(recipe.batch, len(samples)))
    flat = network.initial(generator)
    snapshots, accuracies = [flat], [_accuracy(network, flat, samples, validation)]
    training = train(
        network, samples, recipe, steps=per_epoch * recipe.epochs, generator=generator, flat=flat, decay=False
    )
    for step, flat, _ in training:
        if step % per_epoch == 0:
            snapshots.append(flat)
            accuracies.append(_accuracy(network, flat, samples, validation))
            told(step // per_epoch, accuracies[-1])
    return torch.stack(snapshots).cpu().numpy(), np.array(accuracies, np.float32)


def _accuracy(network: Network, flat: torch.Tensor, samples: RealSamples, validation: RealSamples) -> float:
    return accuracy(network, flat, statistics_of(network, flat, samples), validation)
