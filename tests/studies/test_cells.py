"""Cells: an outcome is kept under all that it depends on, and found again by whoever asks for the same training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import LocalPool, local_run, small

from dasm_ray.method.run import Run
from dasm_ray.method.sets import chosen
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Cell, accuracies_of, cells_for, evaluate_cells
from dasm_ray.studies.rows import always

TRAINING = always(chosen(np.arange(0, 200, 10)))


@pytest.fixture
def run(digits: RealRefs, tmp_path: Path) -> Run:
    return local_run(small(), tmp_path, digits)


def cells_of(run: Run, folder: Path, **more: Any) -> list[Cell]:
    return cells_for(run, "evaluate some", more.pop("training", TRAINING), more.pop("steps", 4), Place(folder), **more)


def test_outcomes_are_computed_once(run: Run, tmp_path: Path) -> None:
    cells = cells_of(run, tmp_path / "cells")
    first = evaluate_cells(run, cells)
    assert isinstance(run.pool, LocalPool)
    assert run.pool.done == ["evaluate some, seed 0", "evaluate some, seed 1"]
    assert evaluate_cells(run, cells_of(run, tmp_path / "cells")) == first
    assert len(run.pool.done) == 2
    assert all(0 <= found["test"] <= 1 and found["step"] == 4 for found in first)


def test_without_a_folder_nothing_is_kept(run: Run) -> None:
    cells = cells_for(run, "evaluate some", TRAINING, 4, None)
    assert [cell.file for cell in cells] == [None, None]
    evaluate_cells(run, cells)


def test_the_file_is_named_by_all_that_the_outcome_depends_on_and_nothing_else(run: Run, tmp_path: Path) -> None:
    def name(of: Run = run, **more: Any) -> str:
        file = cells_of(of, tmp_path, **more)[0].file
        assert file is not None
        return file.name

    def under(**sections: dict[str, Any]) -> Run:
        return replace(run, config=small(**sections))

    others = [
        name(training=always(chosen(np.arange(20)))),
        name(steps=5),
        name(label="another"),
        name(classes=(0, 1)),
        name(reads_test=False),
        name(under(model={"width": 8})),
        name(under(evaluate={"lr": 0.5})),
        name(under(evaluate={"checkpoints": 2})),
        name(under(data={"zca": 0.1})),
        name(under(runtime={"cpus_per_worker": 2})),
        name(under(runtime={"compile": True})),
        name(replace(run, session=replace(run.session, device="cuda"))),
        name(replace(run, real=replace(run.real, digest="other"))),
    ]
    assert len({name(), *others}) == 1 + len(others)
    assert name(under(evaluate={"seeds": 5})) == name()
    assert name(under(evaluate={"rows": ["distilled", "random"]})) == name()
    assert name(under(matcher={"lr_img": 0.5})) == name(), "how a set was made is nothing to a training on it"


def test_seeds_are_different_trainings(run: Run) -> None:
    first, second = cells_for(run, "evaluate some", TRAINING, 4, None)
    assert (first.seed, second.seed, first.label) == (0, 1, second.label)


def test_the_same_images_draw_the_same_numbers_whatever_they_are_called(run: Run) -> None:
    one, other = (cells_for(run, name, TRAINING, 4, None)[0].label for name in ("a", "b"))
    assert one == other
    assert cells_for(run, "a", TRAINING, 5, None)[0].label != one


def test_the_longest_trainings_begin_first(run: Run) -> None:
    cells = [cell for steps in (1, 3, 2) for cell in cells_for(run, f"evaluate {steps}", TRAINING, steps, None)[:1]]
    outcomes = evaluate_cells(run, cells)
    assert isinstance(run.pool, LocalPool)
    assert run.pool.done == ["evaluate 3, seed 0", "evaluate 2, seed 0", "evaluate 1, seed 0"]
    assert [found["step"] for found in outcomes] == [1, 3, 2], "in the order asked"


def test_without_the_test_set_there_is_no_test_accuracy(run: Run) -> None:
    cells = cells_for(run, "validate", TRAINING, 4, None, reads_test=False)
    without_test = {name: refs for name, refs in run.real.splits.items() if name != "test"}
    blind = replace(run, real=replace(run.real, splits=without_test))
    cells = [replace(cell, job=blind.job) for cell in cells]
    assert [found["test"] for found in evaluate_cells(blind, cells)] == [None, None]


def test_accuracies_are_gathered_by_set_and_use(run: Run) -> None:
    cells = [(("some", "all"), cell) for cell in cells_for(run, "evaluate some", TRAINING, 2, None)]
    found = accuracies_of(run, cells)
    assert list(found) == [("some", "all")]
    assert len(found["some", "all"]) == 2
