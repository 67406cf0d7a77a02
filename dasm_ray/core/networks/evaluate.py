"""Evaluation: train a fresh network on a set, choose its checkpoint on validation data, read the test set once.

What must stay true: a training that diverged has no figure, neither a good nor a bad one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasm_ray.config.keys import TrainRecipe
from dasm_ray.core.decode import Decoded
from dasm_ray.core.device import sent
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy, right, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Samples, StoredSamples, held
from dasm_ray.core.networks.training import Watch, train

Labels = NDArray[np.int64] | NDArray[np.float32]
"""Class numbers (N,), or logits (N, K)."""


@dataclass(frozen=True)
class Outcome:
    """One training: accuracies in [0, 1] (None: not asked for) and the step whose checkpoint validation chose.

    ``right`` bool (N,): the validation images that it got right, where each was asked for.
    """

    validation: float
    test: float | None
    step: int
    right: NDArray[np.bool_] | None = None


def evaluate_on(
    network: Network,
    samples: Samples,
    recipe: TrainRecipe,
    *,
    steps: int,
    checkpoints: int,
    validation: RealSamples,
    test: RealSamples | None,
    generator: torch.Generator,
    name: str = "a training",
    reads_each: bool = False,
) -> Outcome:
    """Trains for ``steps`` steps, looks at validation at ``checkpoints`` even places, reads ``test`` at the best one.

    ``test`` None: validation alone is asked for. Of equally good checkpoints the latest is taken: it was trained
    longest. ``reads_each``: which validation images it gets right is told as well. NonFinite, which calls the training
    ``name``, where it stops being made of numbers: a look that finds that is the last, also if an earlier one was good.
    """
    watch = Watch(name, "evaluate", recipe)
    looks = {max(1, round(steps * (place + 1) / checkpoints)) for place in range(checkpoints)}
    best_accuracy, best_step, best = -1.0, 0, torch.empty(0)
    training = train(network, samples, recipe, steps=steps, generator=generator, decay=True)
    for step, flat, *_ in watch.over(training, steps):
        if step in looks:
            seen = accuracy(network, flat, statistics_of(network, flat, samples), validation)
            if math.isnan(seen):
                raise watch.failed(f"by step {step}")
            if seen >= best_accuracy:
                best_accuracy, best_step, best = seen, step, flat
    each = right(network, best, statistics_of(network, best, samples), validation) if reads_each else None
    if test is None:
        return Outcome(best_accuracy, None, best_step, each)
    reported = accuracy(network, best, statistics_of(network, best, samples), test)
    if math.isnan(reported):
        raise watch.failed(f"by step {best_step}, on the test images")
    return Outcome(best_accuracy, reported, best_step, each)


def synthetic_samples(
    network: Network, pixels: NDArray[np.float32] | Tensor, labels: Labels, factor: int, is_normalised: bool = False
) -> Samples:
    """The training samples of stored ``pixels`` (N, C, H, W), decoded and, unless they are so already, normalised.

    Pixels that are a tensor of the network's device stay there.

    ``labels`` (N,) are class numbers, or (N, K) logits of soft labels.
    """
    targets = torch.tensor(labels) if labels.ndim == 1 else torch.tensor(labels).softmax(1)
    samples = StoredSamples(network, Decoded(pixels, factor), sent(targets, network.device), factor, is_normalised)
    return held(network, samples, network.whitening is not None and not is_normalised)
