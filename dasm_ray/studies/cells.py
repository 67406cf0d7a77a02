"""Cells of a table: each one training on one set from one seed, a task; what is on disk is not computed again.

What must stay true: the file of a cell is named by all that the cell depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import RunConfig
from dasm_ray.method.run import Here, run_all
from dasm_ray.runtime.pool import Done, Task
from dasm_ray.runtime.worker import Job
from dasm_ray.store.artifact import Artifact, digest
from dasm_ray.store.place import Place

Training = tuple[str, Any]
"""What is trained on, as ``Worker.evaluate`` takes it."""

Found = dict[str, Any]
"""Of a cell: test (None: not read) and validation accuracy in [0, 1], and the step that validation chose."""


@dataclass(frozen=True)
class Cell:
    """One training: what it is called, where its outcome is kept (None: nowhere), and what the worker is told."""

    name: str
    file: Place | None
    job: Job
    label: str
    """With the seed, what the training's random numbers are drawn by."""
    seed: int
    steps: int
    training: Callable[[], Training]
    classes: tuple[int, ...] | None = None
    """Whose images are asked for; unset: of all."""
    reads_test: bool = True
    """Whether the test set is read; validation always is."""


def evaluate_cells(here: Here, cells: Sequence[Cell]) -> list[Found]:
    """The outcome of every cell, in their order; the longest are computed first, so that none ends alone."""
    found: dict[str, Found] = {}
    for cell in cells:
        if cell.file is not None and cell.file.exists():
            found[cell.name] = cell.file.read_json()
    here.progress.stage("evaluate", len(cells), done=len(found))
    missing = {cell.name: cell for cell in sorted(cells, key=lambda cell: -cell.steps) if cell.name not in found}

    def told(done: Done) -> None:
        (outcome, metrics), cell = done.value, missing[done.task.name]
        here.take_notices(metrics["notices"])
        found[cell.name] = {"validation": outcome.validation, "test": outcome.test, "step": outcome.step}
        if cell.file is not None:
            cell.file.write_json(found[cell.name])
        here.progress.advance(samples=cell.steps * cell.job.config.evaluate.batch)

    run_all(here, [_task(cell) for cell in missing.values()], told)
    return [found[cell.name] for cell in cells]


def _task(cell: Cell) -> Task:
    told = (cell.job, cell.label, cell.seed, cell.steps, cell.training(), cell.classes, cell.reads_test)
    return Task(cell.name, "evaluate", told)


Accuracies = dict[tuple[str, str], list[float]]
"""Test accuracies in [0, 1], one a seed, by set and by what it was tried on."""


def cells_of_set(
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


def accuracies_of(here: Here, tasks: Sequence[tuple[tuple[str, str], Cell]]) -> Accuracies:
    outcomes = evaluate_cells(here, [cell for _, cell in tasks])
    found: Accuracies = {}
    for (key, _), outcome in zip(tasks, outcomes, strict=True):
        found.setdefault(key, []).append(outcome["test"])
    return found
