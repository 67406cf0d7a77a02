"""The fair table: every row, kind of labels and seed a task; cells on disk are not computed again.

What must stay true: all rows are trained alike, validation chooses, and the test set is read once a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config import SELECTION_METHODS, RunConfig, digest_of, what
from dasm_ray.core.train import steps_for
from dasm_ray.report.table import Row
from dasm_ray.runtime.pool import Done, Task, put
from dasm_ray.stages.contents import Images
from dasm_ray.stages.experts import Experts
from dasm_ray.stages.here import Here, run_all
from dasm_ray.stages.selection import random_choice, selections

Indices = NDArray[np.int64]
Pixels = NDArray[np.float32]


Cell = tuple[str, str, int]
"""A row of the table, its kind of labels, and a seed."""


def evaluate_rows(here: Here, sets: dict[str, Images], factor: int, trained: Experts | None, stamp: str) -> list[Row]:
    """The fair table: every row and seed a task; in a run, cells on disk are not computed again."""
    config = here.config
    training = _trainings(here, sets, factor, trained)
    small = steps_for(len(sets["distilled"].labels) * factor**2, config.evaluate)
    whole = steps_for(int(here.real.counts["train"].sum()), config.evaluate, config.evaluate.full_epochs)
    steps = {row: whole if row[0] == "full" else small for row in training}
    key = digest_of(what(config.evaluate), stamp, here.key)
    place = here.place / "report" / "cells" / key if trained else None
    found: dict[Cell, Any] = {}
    wanted = [(*row, seed) for row in training for seed in range(config.evaluate.seeds)]
    for cell in wanted:
        if place is not None and (file := place / _name_of(cell)).exists():
            found[cell] = file.read_json()
    here.progress.stage("evaluate", len(wanted), done=len(found))
    missing = [cell for cell in wanted if cell not in found]
    missing.sort(key=lambda cell: -steps[cell[:2]])  # the longest first, so that none ends alone
    cells = {f"evaluate {row}, {kind} labels, seed {seed}": (row, kind, seed) for row, kind, seed in missing}

    def task(name: str, cell: Cell) -> Task:
        row, seed = cell[:2], cell[2]
        label = row[0] if row[1] == "hard" else f"{row[0]}, soft labels"
        return Task(name, "evaluate", (here.job, label, seed, steps[row], training[row](seed)))

    def told(done: Done) -> None:
        (outcome, metrics), cell = done.value, cells[done.task.name]
        here.take_notices(metrics["notices"])
        found[cell] = {"validation": outcome.validation, "test": outcome.test, "step": outcome.step}
        if place is not None:
            (place / _name_of(cell)).write_json(found[cell])
        here.progress.advance(samples=steps[cell[:2]] * config.evaluate.batch)

    run_all(here, [task(name, cell) for name, cell in cells.items()], told)
    return _best_selection(_rows(config, training, steps, found))


def _name_of(cell: Cell) -> str:
    return "_".join(map(str, cell)) + ".json"


def _rows(
    config: RunConfig, names: Iterable[tuple[str, str]], steps: dict[tuple[str, str], int], found: dict[Cell, Any]
) -> list[Row]:
    seeds = range(config.evaluate.seeds)
    return [
        Row(
            name,
            [found[name, kind, seed]["test"] for seed in seeds],
            [found[name, kind, seed]["validation"] for seed in seeds],
            kind,
            note=f"{steps[name, kind]} steps",
        )
        for name, kind in names
    ]


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
) -> dict[tuple[str, str], Callable[[int], tuple[str, Any]]]:
    """For each row and kind of labels: from the seed to what is trained on, as ``Worker.evaluate`` takes it."""
    wanted, is_soft = here.config.evaluate.rows, any(content.logits is not None for content in sets.values())
    rows: dict[tuple[str, str], Callable[[int], tuple[str, Any]]] = {}
    for kind in ("soft", "hard") if is_soft else ("hard",):
        for name, content in sets.items():
            labels = content.labels if kind == "hard" else content.logits
            if name in wanted and labels is not None:
                rows[name, kind] = _always("synthetic", ((put(content.pixels),), labels, factor, content.is_normalised))
        if kind == "hard":
            rows["random", kind] = lambda seed: ("real", (random_choice(here, seed), None))
        elif trained is not None:
            rows["random", kind] = _each_its_own("real", _taught_random(here, trained))
    methods = [method for method in SELECTION_METHODS if method in wanted]
    if methods and trained is not None:
        chosen = selections(here, trained, methods)
        rows.update({(method, "hard"): _always("real", (chosen[method], None)) for method in methods})
    if "full" in wanted:
        rows["full", "hard"] = _always("full", None)
    return rows


def _always(kind: str, content: Any) -> Callable[[int], tuple[str, Any]]:
    """The same training set for every seed."""
    return lambda seed: (kind, content)


def _each_its_own(kind: str, contents: Sequence[Any]) -> Callable[[int], tuple[str, Any]]:
    """A training set for each seed."""
    return lambda seed: (kind, contents[seed])


def _taught_random(here: Here, trained: Experts) -> list[tuple[Indices, Pixels]]:
    """For every seed, a random selection and the experts' logits for it."""
    chosen = [random_choice(here, seed) for seed in range(here.config.evaluate.seeds)]
    labels = np.repeat(np.arange(here.classes), here.config.synthetic.ipc)
    tasks = [
        Task(f"soft labels, seed {seed}", "teach", (here.job, trained.snapshots, indices, labels))
        for seed, indices in enumerate(chosen)
    ]
    return [(indices, done.value) for indices, done in zip(chosen, run_all(here, tasks), strict=True)]
