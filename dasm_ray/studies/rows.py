"""The fair table: every row, kind of labels and seed a cell.

What must stay true: all rows are trained alike, validation chooses, and the test set is read once a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import several
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.choices import choices, random_choice
from dasm_ray.method.experts import Experts, soft_labels
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Images, Indices, chosen, chosen_by, stored
from dasm_ray.plain import Plain
from dasm_ray.report.table import BEST, Row
from dasm_ray.runtime.worker import Everything, Training
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Found, cells_for, evaluate_cells

TrainingOf = Callable[[int], Training]
"""What is trained on, by the seed of the training."""


def evaluate_rows(
    run: Run,
    sets: dict[str, Images],
    factor: int,
    experts: Experts | None,
    folder: Place | None,
    network: str | None = None,
) -> list[Row]:
    """The fair table: every row and seed a task; cells that lie in ``folder`` are not computed again.

    ``network``: another than the run's own, as `RunConfig.under` takes it.
    """
    config = run.config if network is None else run.config.under(network)
    count = int(run.real.counts["train"].sum())
    trainings = _trainings(run, sets, factor, experts)
    small = steps_for(len(sets["distilled"].labels) * factor**2, config.evaluate)
    whole = steps_for(count, config.evaluate, config.evaluate.full_epochs)
    steps = {row: whole if row[0] == "full" else small for row in trainings}
    cells = {
        (name, kind): cells_for(
            run,
            f"evaluate {name}, {kind} labels",
            training_of,
            steps[name, kind],
            folder,
            label=label_of(name, kind),
            config=config,
        )
        for (name, kind), training_of in trainings.items()
    }
    found = iter(evaluate_cells(run, [cell for row in cells.values() for cell in row]))
    named = {} if network is None else {"network": network}
    return _best_selection(
        [
            row_of(name, kind, [next(found) for _ in row], note=several(steps[name, kind], "steps"), **named)
            for (name, kind), row in cells.items()
        ]
    )


def label_of(name: str, kind: str) -> str:
    """By what the random numbers of a row's trainings are drawn."""
    return name if kind == "hard" else f"{name}, soft labels"


def row_of(name: str, labels: str, found: Sequence[Found], **more: Plain) -> Row:
    """A row out of its cells, one a seed."""
    return Row(name, [cell["test"] for cell in found], [cell["validation"] for cell in found], labels, **more)


def _best_selection(rows: list[Row]) -> list[Row]:
    """Of the selection methods only the one that validation prefers, under both names."""
    selections = [row for row in rows if row.name in SELECTIONS]
    if len(selections) < 2:
        return rows
    best = max(selections, key=lambda row: float(np.mean(row.validation)))
    others = ", ".join(row.name for row in selections if row is not best)
    shown = replace(best, name=f"{BEST}{best.name}", note=f"{best.note}, before {others}")
    kept = [shown if row is best else row for row in rows]
    return [row for row in kept if row is shown or row not in selections]


def _trainings(
    run: Run, sets: dict[str, Images], factor: int, experts: Experts | None
) -> dict[tuple[str, str], TrainingOf]:
    """For each row and kind of labels: from the seed to what is trained on."""
    wanted, is_soft = run.config.evaluate.rows, any(images.logits is not None for images in sets.values())
    seeds = run.config.evaluate.seeds
    rows: dict[tuple[str, str], TrainingOf] = {}
    for kind in ("soft", "hard") if is_soft else ("hard",):
        for name, images in sets.items():
            if name in wanted and (kind == "hard" or images.logits is not None):
                rows[name, kind] = always(stored(run, images, factor, kind == "soft"))
        if kind == "hard":
            rows["random", kind] = lambda seed: chosen(random_choice(run, seed))
        elif experts is not None:
            rows["random", kind] = _with_soft_labels(run, experts, [random_choice(run, s) for s in range(seeds)])
    methods = [method for method in SELECTIONS if method in wanted]
    if methods and experts is not None:
        found = choices(run, experts, methods)
        rows.update({(method, "hard"): always(chosen_by(run, found[method])) for method in methods})
    if "full" in wanted:
        rows["full", "hard"] = always(Everything())
    return rows


def always(training: Training) -> TrainingOf:
    """The same training set for every seed."""
    return lambda seed: training


def _with_soft_labels(run: Run, experts: Experts, picked: Sequence[Indices]) -> TrainingOf:
    """For every seed its choice of real images, with the experts' logits for it."""
    logits = soft_labels(run, experts, [chosen(indices) for indices in picked])
    trainings = [chosen(*pair) for pair in zip(picked, logits, strict=True)]
    return lambda seed: trainings[seed]
