"""A set as the memory of class-incremental learning, beside random images.

What must stay true: both memories hold as many images and are trained on alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dasm_ray.core.networks.training import steps_for
from dasm_ray.core.seed import numpy_generator
from dasm_ray.method.choices import random_choice
from dasm_ray.method.run import Here
from dasm_ray.method.sets import Images, Indices, training_on
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Accuracies, Cell, Training, accuracies_of, cells_of_set


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
            for cell in cells_of_set(here, here.config, f"{name}, {count} classes", many, training, artifact, cells):
                tasks.append(((name, f"{count} classes"), replace(cell, classes=tuple(seen.tolist()))))
    return accuracies_of(here, tasks)


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
