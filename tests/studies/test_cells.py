"""Cells: an outcome is kept under all that it depends on, and found again by whoever asks for the same training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import LocalPool, local_run, small

from dasm_ray.errors import NonFinite
from dasm_ray.method.run import Run
from dasm_ray.method.sets import chosen
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.place import Place
from dasm_ray.studies import cells
from dasm_ray.studies.cells import Cell, accuracies_of, cells_for, evaluate_cells, right_in
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
        name(replace(run, config=run.config.model_copy(update={"seed": 1}))),
    ]
    assert len({name(), *others}) == 1 + len(others)
    assert name(under(evaluate={"seeds": 5})) == name()
    assert name(under(evaluate={"rows": ["distilled", "random"]})) == name()
    assert name(under(matcher={"lr_img": 0.5})) == name(), "how a set was made is nothing to a training on it"


def test_soft_trainings_with_cutmix_by_other_pairs_are_not_found(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version paired images with wrong probabilities, and its outcomes may lie in a cache."""
    soft = always(chosen(np.arange(0, 200, 10), np.zeros((20, 10), np.float32)))
    by_set = [(TRAINING, 0.5), (soft, 0.0), (soft, 0.5)]
    runs = [(replace(run, config=small(evaluate={"cutmix": cutmix})), training) for training, cutmix in by_set]
    now = [cells_of(of, tmp_path, training=training)[0].file for of, training in runs]
    monkeypatch.setattr(cells, "PAIRED", "otherwise")
    then = [cells_of(of, tmp_path, training=training)[0].file for of, training in runs]
    assert [one == other for one, other in zip(now, then, strict=True)] == [True, True, False]


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
    blind = replace(run, real=replace(run.real, splits=("train", "val")))
    cells = [replace(cell, job=blind.job) for cell in cells]
    assert [found["test"] for found in evaluate_cells(blind, cells)] == [None, None]


def test_images_that_are_right_belong_to_an_outcome_that_has_no_other_name(run: Run, tmp_path: Path) -> None:
    """An outcome without them is computed again for them, and comes out the same."""
    plain = evaluate_cells(run, cells_of(run, tmp_path / "cells"))
    assert all("right" not in found for found in plain)
    each = cells_of(run, tmp_path / "cells", reads_each=True)
    told = evaluate_cells(run, each)
    count = int(run.real.counts["val"].sum())
    assert [float(right_in(found, count).mean()) for found in told] == [found["validation"] for found in plain]
    assert [{**found, "right": None} for found in told] == [{**found, "right": None} for found in plain]
    assert isinstance(run.pool, LocalPool)
    assert len(run.pool.done) == 4
    assert evaluate_cells(run, cells_of(run, tmp_path / "cells")) == told, "who does not ask is content with them"
    assert evaluate_cells(run, each) == told
    assert len(run.pool.done) == 4


def test_accuracies_are_gathered_by_set_and_use(run: Run) -> None:
    cells = [(("some", "all"), cell) for cell in cells_for(run, "evaluate some", TRAINING, 2, None)]
    found = accuracies_of(run, cells)
    assert list(found) == [("some", "all")]
    assert len(found["some", "all"]) == 2


# --- figures that are none -------------------------------------------------------------------------------------------


def test_a_rate_by_which_all_is_nan_ends_the_command_and_keeps_no_figure(run: Run, tmp_path: Path) -> None:
    """Before, every row showed the share of class 0: the largest of several NaN is the first."""
    wild = replace(run, config=small(evaluate={"lr": 1e30}))
    with pytest.raises(NonFinite, match=r"evaluate some, seed 0, .*diverged.*; lower evaluate\.lr \(now 1e\+30\)"):
        evaluate_cells(wild, cells_of(wild, tmp_path / "cells"))
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("recipe", "key"),
    [({"weight_decay": 1e30}, "evaluate.weight_decay"), ({"momentum": 0.999, "lr": 1e25}, "evaluate.momentum")],
)
def test_other_keys_that_make_a_training_diverge_are_named(run: Run, recipe: dict[str, float], key: str) -> None:
    wild = replace(run, config=small(evaluate=recipe))
    with pytest.raises(NonFinite, match=rf"; lower {key} \(now .*\) or evaluate\.lr"):
        evaluate_cells(wild, cells_for(wild, "evaluate some", TRAINING, 8, None))


def test_soft_labels_that_are_nan_have_no_figure(run: Run) -> None:
    labels = np.full((20, 10), np.nan, np.float32)
    training = always(chosen(np.arange(0, 200, 10), labels))
    with pytest.raises(NonFinite, match="evaluate some, seed 0, between steps 0 and 4"):
        evaluate_cells(run, cells_for(run, "evaluate some", training, 4, None))


def test_what_was_found_before_a_training_diverged_stays(run: Run, tmp_path: Path) -> None:
    wild = replace(run, config=small(evaluate={"lr": 1e30}))
    longest = cells_of(run, tmp_path / "cells", steps=9)
    with pytest.raises(NonFinite):
        evaluate_cells(run, [*longest, *cells_for(wild, "evaluate wild", TRAINING, 4, Place(tmp_path / "cells"))])
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == sorted(
        cell.file.name for cell in longest if cell.file is not None
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: {**kept, "test": 0.99},
        lambda kept: {name: value for name, value in kept.items() if name != "checksum"} | {"test": 0.99},
        lambda kept: {**kept, "test": float("nan")},
        lambda kept: [],
    ],
    ids=["a figure changed", "without a checksum", "no number", "something else"],
)
def test_a_file_that_is_not_as_it_was_written_is_computed_anew(run: Run, tmp_path: Path, change: Any) -> None:
    cells = cells_of(run, tmp_path / "cells")
    first = evaluate_cells(run, cells)
    file = cells[0].file
    assert file is not None
    whole = file.read_bytes()
    file.write_text(json.dumps(change(file.read_json())))
    assert evaluate_cells(run, cells) == first
    assert file.read_bytes() == whole
    assert isinstance(run.pool, LocalPool)
    assert run.pool.done[2:] == ["evaluate some, seed 0"]


def test_the_seed_of_a_table_is_all_that_a_training_on_real_images_draws_by(digits: RealRefs, tmp_path: Path) -> None:
    found = []
    for seed, base in ((0, 5), (1, 5), (0, 6)):
        config = small(evaluate={"base_seed": base}).model_copy(update={"seed": seed})
        run = local_run(config, tmp_path / f"{seed}{base}", digits)
        found.append(evaluate_cells(run, cells_for(run, "evaluate some", TRAINING, 4, None)))
    assert found[0] == found[1] != found[2]


def test_a_split_that_nobody_here_may_read_is_not_read(run: Run) -> None:
    blind = replace(run, real=replace(run.real, splits=("train", "val")))
    cells = [replace(cell, job=blind.job) for cell in cells_for(run, "evaluate", TRAINING, 2, None)]
    with pytest.raises(AssertionError, match="nobody here may read the test split"):
        evaluate_cells(blind, cells)
