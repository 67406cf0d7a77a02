"""What a finished set is used for: as the memory of class-incremental learning, and to rank architectures.

What must stay true: the set stands beside random images of the same number, trained on alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config import Model, RunConfig, digest_of, what
from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import rank_correlation
from dasm_ray.core.train import steps_for
from dasm_ray.stages.cells import Cell, Training, evaluate_cells
from dasm_ray.stages.contents import Images, training_on
from dasm_ray.stages.here import Here
from dasm_ray.stages.selection import random_choice
from dasm_ray.store.artifact import Artifact, digest
from dasm_ray.store.rundir import Place

Indices = NDArray[np.int64]
Accuracies = dict[tuple[str, str], list[float]]
"""Test accuracies in [0, 1], one a seed, by set and by what it was tried on."""


def learn_incrementally(here: Here, artifact: Artifact, steps: int, cells: Place | None) -> Accuracies:
    """Classes come in ``steps`` parts; after each a fresh network is trained on the memory alone (GDumb, Prabhu 2020).

    The memory holds the set's images of the classes so far, or as many random ones; the test images are those of the
    classes so far. The order of classes follows from the run's seed. Keys: ("distilled" or "random", "4 classes").
    """
    order = numpy_generator(here.config.seed, "class order").permutation(here.classes)
    tasks: list[tuple[tuple[str, str], Cell]] = []
    count = 0
    for part in np.array_split(order, steps):
        count += len(part)
        seen = np.sort(order[:count])
        many = steps_for(count * here.config.synthetic.ipc * artifact.factor**2, here.config.evaluate)
        for name, training in _memories(here, artifact, seen).items():
            for cell in _cells(here, here.config, f"{name}, {count} classes", many, training, artifact, cells):
                tasks.append(((name, f"{count} classes"), replace(cell, classes=tuple(seen.tolist()))))
    return _evaluated(here, tasks)


def _memories(here: Here, artifact: Artifact, seen: Indices) -> dict[str, Callable[[int], Training]]:
    """What the memory may hold of the ``seen`` classes."""
    mine = np.isin(artifact.labels, seen)
    logits = None if artifact.soft_labels is None else artifact.soft_labels[mine]
    images = Images(artifact.pixels[mine], artifact.labels[mine], logits, artifact.is_normalised)
    distilled = training_on(images, artifact.factor, logits is not None)
    label_of = np.repeat(np.arange(here.classes), here.real.counts["train"])

    def at_random(seed: int) -> Training:
        chosen = random_choice(here, seed)
        return "real", (chosen[np.isin(label_of[chosen], seen)], None)

    return {"distilled": lambda seed: distilled, "random": at_random}


def try_networks(here: Here, artifact: Artifact, models: Sequence[Model], cells: Place | None) -> Accuracies:
    """Every network trained on the set, on random images and on the full data. Keys: (set, name of the network)."""
    config, factor = here.config, artifact.factor
    whole = steps_for(int(here.real.counts["train"].sum()), config.evaluate, config.evaluate.full_epochs)
    small = steps_for(len(artifact.labels) * factor**2, config.evaluate)
    images = Images(artifact.pixels, artifact.labels, artifact.soft_labels, artifact.is_normalised)
    distilled = training_on(images, factor, artifact.soft_labels is not None)
    sets: dict[str, tuple[int, Callable[[int], Training]]] = {
        "distilled": (small, lambda seed: distilled),
        "random": (small, lambda seed: ("real", (random_choice(here, seed), None))),
        "full": (whole, lambda seed: ("full", None)),
    }
    tasks = [
        ((name, name_of(model)), cell)
        for model in models
        for name, (steps, training) in sets.items()
        for cell in _cells(
            here,
            config.model_copy(update={"model": model}),
            f"{name}, {name_of(model)}",
            steps,
            training,
            artifact,
            cells,
        )
    ]
    return _evaluated(here, tasks)


def agreement(found: Accuracies, name: str, models: Sequence[Model]) -> float:
    """Spearman's correlation of the networks' mean accuracies on a set and on the full data."""
    ours, theirs = ([float(np.mean(found[row, name_of(model)])) for model in models] for row in (name, "full"))
    return rank_correlation(ours, theirs)


def name_of(model: Model) -> str:
    """A ConvNet of a grid: ``width 16, depth 2, instance``."""
    return f"width {model.width}, depth {model.depth}, {model.norm}"


def _cells(
    here: Here,
    config: RunConfig,
    label: str,
    steps: int,
    training: Callable[[int], Training],
    artifact: Artifact,
    place: Place | None,
) -> list[Cell]:
    """A cell for every seed of one set under one configuration."""
    key = digest_of(digest(artifact), what(config.model), what(config.evaluate), here.real.digest, label, config.seed)
    return [
        Cell(
            name=f"evaluate {label}, seed {seed}",
            file=place and place / f"{key}_{seed}.json",
            job=replace(here.job, config=config),
            label=label,
            seed=seed,
            steps=steps,
            training=partial(training, seed),
        )
        for seed in range(config.evaluate.seeds)
    ]


def _evaluated(here: Here, tasks: Sequence[tuple[tuple[str, str], Cell]]) -> Accuracies:
    outcomes = evaluate_cells(here, [cell for _, cell in tasks])
    found: Accuracies = {}
    for (key, _), outcome in zip(tasks, outcomes, strict=True):
        found.setdefault(key, []).append(outcome["test"])
    return found
