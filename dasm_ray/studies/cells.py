"""Cells of a table: each one training on one set from one seed, a task; what is on disk is not computed again.

What must stay true: the file of a cell is named by all that the cell depends on, and by nothing else; a file that is
not as it was written, and a training that diverged, has no outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.method.run import Run, run_all
from dasm_ray.plain import Tree
from dasm_ray.runtime.pool import Done, Task, task
from dasm_ray.runtime.worker import Chosen, Job, Stored, Training, Worker
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.place import Place

Found = Tree
"""Of a cell: test (None: not read) and validation accuracy in [0, 1], and the step that validation chose.

Where each image was asked for, ``right`` says in hexadecimal digits which validation images it got right, a bit each.
"""

Accuracies = dict[tuple[str, str], list[float]]
"""Test accuracies in [0, 1], one a seed, by set and by what it was tried on."""

RIGHT = "right"

PAIRED = "each image of CutMix with its own label"
"""Part of the key of trainings towards probabilities with CutMix, which 0.1.0 paired wrongly: those do not count."""

OF_THE_TABLE = ("seeds", "rows", "epochs", "full_epochs")
"""Keys of ``evaluate`` that say which trainings there are and for how many steps; a cell has its own."""


@dataclass(frozen=True)
class Cell:
    """One training: what it is called, where its outcome is kept (None: nowhere), and the arguments of its task."""

    name: str
    file: Place | None
    job: Job
    label: str
    """With the seed, what the training's random numbers are drawn by."""
    seed: int
    steps: int
    training: Training
    classes: tuple[int, ...] | None = None
    """Whose images are asked for; unset: of all."""
    reads_test: bool = True
    """Whether the test set is read; validation always is."""
    reads_each: bool = False
    """Whether it is told which validation images are right. An outcome without that is one of the same training."""


def cells_place(run: Run) -> Place:
    """Where a run keeps the outcomes of its trainings: by itself, or with others, which then compute none of them."""
    cache = run.config.evaluate.cache
    return Place(cache) if cache else run.place / "report" / "cells"


def cells_for(
    run: Run,
    name: str,
    training_of: Callable[[int], Training],
    steps: int,
    folder: Place | None,
    *,
    label: str | None = None,
    config: RunConfig | None = None,
    classes: tuple[int, ...] | None = None,
    reads_test: bool = True,
    reads_each: bool = False,
) -> list[Cell]:
    """A cell for every seed of one set: ``training_of`` gives what each is trained on, for ``steps`` steps.

    ``folder``: where outcomes are kept. ``label`` unset: trainings on the same images draw the same numbers, whatever
    they are called. ``config``: another network or recipe than the run's own.
    """
    job = run.job if config is None else replace(run.job, config=config)
    config, cells = job.config, []
    for seed in range(config.evaluate.seeds):
        training = training_of(seed)
        cell = Cell(
            name=f"{name}, seed {seed}",
            file=None,
            job=job,
            label=label or digest_of(training.digest, steps),
            seed=seed,
            steps=steps,
            training=training,
            classes=classes,
            reads_test=reads_test,
            reads_each=reads_each,
        )
        cells.append(cell if folder is None else replace(cell, file=folder / f"{_key(cell)}.json"))
    return cells


def _key(cell: Cell) -> str:
    """The digest of all that an outcome depends on."""
    config, real = cell.job.config, cell.job.real
    recipe = {name: value for name, value in result_keys(config.evaluate).items() if name not in OF_THE_TABLE}
    runtime = config.runtime.rounding(cell.job.device)
    of_the_set = (cell.training.digest, cell.label, cell.steps, cell.classes, cell.reads_test)
    seed = config.evaluation_seed
    of_the_run = (result_keys(config.model), recipe, result_keys(config.data), seed, runtime, real.digest)
    paired = [PAIRED] if _is_soft(cell.training) and config.evaluate.cutmix > 0 else []
    return digest_of(of_the_set, cell.seed, of_the_run, *paired)


def _is_soft(training: Training) -> bool:
    """Whether its labels are probabilities."""
    match training:
        case Stored(labels=labels):
            return labels.ndim == 2
        case Chosen(logits=logits):
            return logits is not None
    return False


def evaluate_cells(run: Run, cells: Sequence[Cell]) -> list[Found]:
    """The outcome of every cell, in their order; the longest are computed first, so that none ends alone.

    NonFinite for the first training that diverges: what the others have found by then is kept.
    """
    found: dict[str, Found] = {}
    for cell in cells:
        kept = None if cell.file is None else read_checked_json(cell.file)
        if kept is not None and (not cell.reads_each or RIGHT in kept):
            found[cell.name] = kept
    run.progress.stage("evaluate", len(cells), done=len(found))
    missing = {cell.name: cell for cell in sorted(cells, key=lambda cell: -cell.steps) if cell.name not in found}

    def on_done(done: Done) -> None:
        outcome, cell = done.value.outcome, missing[done.task.name]
        found[cell.name] = {"validation": outcome.validation, "test": outcome.test, "step": outcome.step}
        if outcome.right is not None:
            found[cell.name][RIGHT] = np.packbits(outcome.right).tobytes().hex()
        if cell.file is not None:
            write_checked_json(cell.file, found[cell.name])
        run.progress.advance(samples=cell.steps * cell.job.config.evaluate.batch)

    run_all(run, [_task(cell) for cell in missing.values()], on_done)
    return [found[cell.name] for cell in cells]


def _task(cell: Cell) -> Task:
    return task(
        cell.name,
        Worker.evaluate,
        cell.job,
        cell.label,
        cell.seed,
        cell.steps,
        cell.training,
        cell.classes,
        cell.reads_test,
        cell.name,
        cell.reads_each,
    )


def right_in(found: Found, count: int) -> NDArray[np.bool_]:
    """Which of ``count`` validation images were right, of an outcome that says so."""
    packed = np.frombuffer(bytes.fromhex(found[RIGHT]), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def accuracies_of(run: Run, cells: Sequence[tuple[tuple[str, str], Cell]]) -> Accuracies:
    """Test accuracies of cells by (set, what it was tried on), in the order of the cells."""
    outcomes = evaluate_cells(run, [cell for _, cell in cells])
    found: Accuracies = {}
    for (key, _), outcome in zip(cells, outcomes, strict=True):
        found.setdefault(key, []).append(outcome["test"])
    return found
