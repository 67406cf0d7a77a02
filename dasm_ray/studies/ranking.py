"""Networks ranked by a set, held against their ranking by the full data.

What must stay true: the set stands beside random images of the same number, trained on alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.choices import random_choice
from dasm_ray.method.run import Run
from dasm_ray.method.sets import chosen, images_of, stored
from dasm_ray.runtime.worker import Everything
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Accuracies, accuracies_of, cells_for
from dasm_ray.studies.rows import TrainingOf, always


def try_networks(run: Run, artifact: Artifact, models: Sequence[Model], folder: Place | None) -> Accuracies:
    """Every network trained on the set, on random images and on the full data. Keys: (set, name of the network)."""
    config, count = run.config, int(run.real.counts["train"].sum())
    whole = steps_for(count, config.evaluate, config.evaluate.full_epochs)
    small = steps_for(len(artifact.labels) * artifact.factor**2, config.evaluate)
    images = images_of(artifact)
    sets: dict[str, tuple[int, TrainingOf]] = {
        "distilled": (small, always(stored(run, images, artifact.factor, images.logits is not None))),
        "random": (small, lambda seed: chosen(random_choice(run, seed))),
        "full": (whole, always(Everything())),
    }
    cells = [
        ((name, name_of(model)), cell)
        for model in models
        for name, (steps, training_of) in sets.items()
        for cell in cells_for(
            run,
            f"evaluate {name}, {name_of(model)}",
            training_of,
            steps,
            folder,
            label=f"{name}, {name_of(model)}",
            config=config.model_copy(update={"model": model}),
        )
    ]
    return accuracies_of(run, cells)


def agreement(found: Accuracies, name: str, models: Sequence[Model]) -> float:
    """Spearman's correlation of the networks' mean accuracies on a set and on the full data.

    NaN where all networks are alike on one of the two.
    """
    from scipy.stats import spearmanr  # loaded here: it takes a second, and nothing else needs it

    ours, theirs = ([float(np.mean(found[row, name_of(model)])) for model in models] for row in (name, "full"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input, and says NaN
        return float(spearmanr(ours, theirs).statistic)


def name_of(model: Model) -> str:
    """A ConvNet of a grid: ``width 16, depth 2, instance``."""
    return f"width {model.width}, depth {model.depth}, {model.norm}"
