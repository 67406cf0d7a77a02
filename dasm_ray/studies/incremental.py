"""A set as the memory of class-incremental learning, beside random images.

What must stay true: both memories hold as many images and are trained on alike.
"""

from __future__ import annotations

import numpy as np

from dasm_ray.config.shown import several
from dasm_ray.core.networks.training import steps_for
from dasm_ray.core.seed import numpy_generator
from dasm_ray.errors import DataError
from dasm_ray.method.choices import random_choice
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Indices, chosen, images_of, stored
from dasm_ray.runtime.worker import Training
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Accuracies, Cell, accuracies_of, cells_for
from dasm_ray.studies.rows import TrainingOf, always


def learn_incrementally(run: Run, artifact: Artifact, steps: int, folder: Place | None) -> Accuracies:
    """Classes come in ``steps`` parts; after each a fresh network is trained on the memory alone (GDumb, Prabhu 2020).

    The memory holds the set's images of the classes so far, or as many random ones; the test images are those of the
    classes so far. The order of classes follows from the run's seed. Keys: ("distilled" or "random", "4 classes").
    """
    order = numpy_generator(run.config.seed, "class order").permutation(run.classes)
    _check_first_part(run, np.array_split(order, steps)[0])
    cells: list[tuple[tuple[str, str], Cell]] = []
    count = 0
    for part in np.array_split(order, steps):
        count += len(part)
        known = np.sort(order[:count])
        many = steps_for(count * run.config.synthetic.ipc * artifact.factor**2, run.config.evaluate)
        for name, training_of in _memories(run, artifact, known).items():
            row = f"{name}, {count} classes"  # no sentence: random numbers are drawn by it
            made = cells_for(
                run, f"evaluate {row}", training_of, many, folder, label=row, classes=tuple(known.tolist())
            )
            cells += [((name, several(count, "classes", "class")), cell) for cell in made]
    return accuracies_of(run, cells)


def _check_first_part(run: Run, classes: Indices) -> None:
    """DataError where the first networks would be asked for no image: later ones are asked for those and more."""
    for split in ("val", "test"):
        if not run.real.counts[split][classes].sum():
            names = ", ".join(repr(run.real.class_names[label]) for label in classes)
            raise DataError(
                f"{run.config.data.name}: the first part of the classes ({names}) has no image in the {split} split; "
                f"lower --steps, or raise data.{split}_share"
            )


def _memories(run: Run, artifact: Artifact, known: Indices) -> dict[str, TrainingOf]:
    """What the memory may hold of the ``known`` classes."""
    images = images_of(artifact, np.isin(artifact.labels, known))
    distilled = stored(run, images, artifact.factor, images.logits is not None)
    label_of = np.repeat(np.arange(run.classes), run.real.counts["train"])

    def at_random(seed: int) -> Training:
        picked = random_choice(run, seed)
        return chosen(picked[np.isin(label_of[picked], known)])

    return {"distilled": always(distilled), "random": at_random}
