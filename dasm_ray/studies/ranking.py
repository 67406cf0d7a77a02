"""Networks ranked by a set, held against their ranking by the full data.

What must stay true: the set stands beside random images of the same number, trained on alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.training import steps_for
from dasm_ray.core.selection import rank_correlation
from dasm_ray.method.choices import random_choice
from dasm_ray.method.run import Here
from dasm_ray.method.sets import Images, training_on
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Accuracies, Training, accuracies_of, cells_of_set


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
        for cell in cells_of_set(
            here,
            config.model_copy(update={"model": model}),
            f"{name}, {name_of(model)}",
            steps,
            training,
            artifact,
            cells,
        )
    ]
    return accuracies_of(here, tasks)


def agreement(found: Accuracies, name: str, models: Sequence[Model]) -> float:
    """Spearman's correlation of the networks' mean accuracies on a set and on the full data."""
    ours, theirs = ([float(np.mean(found[row, name_of(model)])) for model in models] for row in (name, "full"))
    return rank_correlation(ours, theirs)


def name_of(model: Model) -> str:
    """A ConvNet of a grid: ``width 16, depth 2, instance``."""
    return f"width {model.width}, depth {model.depth}, {model.norm}"
