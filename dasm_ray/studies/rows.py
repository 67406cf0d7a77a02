"""The fair table: every row, kind of labels and seed a cell.

What must stay true: all rows are trained alike, validation chooses, and the test set is read once a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import SELECTION_METHODS
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.choices import random_choice, selections
from dasm_ray.method.experts import Experts, taught
from dasm_ray.method.run import Here
from dasm_ray.method.sets import Images, Indices, training_on
from dasm_ray.report.table import Row
from dasm_ray.studies.cells import Cell, Found, Training, evaluate_cells


def evaluate_rows(here: Here, sets: dict[str, Images], factor: int, trained: Experts | None, stamp: str) -> list[Row]:
    """The fair table: every row and seed a task; in a run, cells on disk are not computed again."""
    config = here.config
    trainings = _trainings(here, sets, factor, trained)
    small = steps_for(len(sets["distilled"].labels) * factor**2, config.evaluate)
    whole = steps_for(int(here.real.counts["train"].sum()), config.evaluate, config.evaluate.full_epochs)
    steps = {row: whole if row[0] == "full" else small for row in trainings}
    key = digest_of(what(config.evaluate), stamp, here.key)
    place = here.place / "report" / "cells" / key if trained else None
    cells = [
        Cell(
            name=f"evaluate {name}, {kind} labels, seed {seed}",
            file=place and place / f"{name}_{kind}_{seed}.json",
            job=here.job,
            label=name if kind == "hard" else f"{name}, soft labels",
            seed=seed,
            steps=steps[name, kind],
            training=partial(training, seed),
        )
        for (name, kind), training in trainings.items()
        for seed in range(config.evaluate.seeds)
    ]
    found = iter(evaluate_cells(here, cells))
    return _best_selection(
        [
            row_of(name, kind, [next(found) for _ in range(config.evaluate.seeds)], note=f"{steps[name, kind]} steps")
            for name, kind in trainings
        ]
    )


def row_of(name: str, labels: str, found: Sequence[Found], **more: Any) -> Row:
    """A row out of its cells, one a seed."""
    return Row(name, [cell["test"] for cell in found], [cell["validation"] for cell in found], labels, **more)


def _best_selection(rows: list[Row]) -> list[Row]:
    """Of the selection methods only the one that validation prefers, under both names."""
    selections = [row for row in rows if row.name in SELECTION_METHODS]
    if len(selections) < 2:
        return rows
    best = max(selections, key=lambda row: float(np.mean(row.validation)))
    others = ", ".join(row.name for row in selections if row is not best)
    chosen = Row(
        f"selection: {best.name}", best.accuracies, best.validation, best.labels, f"{best.note}, before {others}"
    )
    kept = [chosen if row is best else row for row in rows]
    return [row for row in kept if row is chosen or row not in selections]


def _trainings(
    here: Here, sets: dict[str, Images], factor: int, trained: Experts | None
) -> dict[tuple[str, str], Callable[[int], Training]]:
    """For each row and kind of labels: from the seed to what is trained on, as ``Worker.evaluate`` takes it."""
    wanted, is_soft = here.config.evaluate.rows, any(content.logits is not None for content in sets.values())
    seeds = here.config.evaluate.seeds
    rows: dict[tuple[str, str], Callable[[int], Training]] = {}
    for kind in ("soft", "hard") if is_soft else ("hard",):
        for name, content in sets.items():
            if name in wanted and (kind == "hard" or content.logits is not None):
                rows[name, kind] = _always(training_on(content, factor, kind == "soft"))
        if kind == "hard":
            rows["random", kind] = lambda seed: ("real", (random_choice(here, seed), None))
        elif trained is not None:
            rows["random", kind] = with_expert_labels(here, trained, [random_choice(here, s) for s in range(seeds)])
    methods = [method for method in SELECTION_METHODS if method in wanted]
    if methods and trained is not None:
        chosen = selections(here, trained, methods)
        rows.update({(method, "hard"): _always(("real", (chosen[method], None))) for method in methods})
    if "full" in wanted:
        rows["full", "hard"] = _always(("full", None))
    return rows


def _always(training: Training) -> Callable[[int], Training]:
    """The same training set for every seed."""
    return lambda seed: training


def with_expert_labels(here: Here, trained: Experts, chosen: Sequence[Indices]) -> Callable[[int], Training]:
    """For every seed its choice of real images, with the experts' logits for it."""
    logits = taught(here, trained, [("real", (indices, None)) for indices in chosen])
    return lambda seed: ("real", (chosen[seed], logits[seed]))
