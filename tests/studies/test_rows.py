"""The fair table: which rows stand in it, that all are trained alike, and which selection is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, local_run, shared_experts, small
from rich.console import Console

from dasm_ray.method.experts import train_experts
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Images
from dasm_ray.report.table import Row, cautions, render
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Chosen
from dasm_ray.studies.cells import cells_place
from dasm_ray.studies.rows import _best_selection, _trainings, evaluate_rows

ROWS = ["distilled", "initial", "random", "herding", "el2n", "patches", "full"]


@pytest.fixture
def run(digits: RealRefs, tmp_path: Path) -> Run:
    return local_run(small(evaluate={"rows": ROWS}, experts=shared_experts()), tmp_path, digits)


def sets_of(soft: bool = False) -> dict[str, Images]:
    generator = np.random.Generator(np.random.PCG64(0))
    labels = np.repeat(np.arange(10), 2)
    logits = generator.random((20, 10), np.float32) if soft else None
    names = ("distilled", "initial")
    return {name: Images(generator.random((20, 1, 8, 8), np.float32), labels, logits, False) for name in names}


def test_all_rows_of_hard_labels(run: Run) -> None:
    rows = evaluate_rows(run, sets_of(), 1, train_experts(run), cells_place(run))
    assert [row.name for row in rows][:3] == ["distilled", "initial", "random"]
    assert rows[3].name.startswith("selection: ")
    assert rows[4].name == "full"
    assert {row.labels for row in rows} == {"hard"}
    assert {row.note.partition(",")[0] for row in rows[:4]} == {"3 steps"}, "as many steps for every small set"
    assert all(len(row.accuracies) == len(row.validation) == 2 for row in rows)


def test_under_another_network_every_row_names_it_and_the_best_selection_is_held_against_the_set(run: Run) -> None:
    rows = evaluate_rows(run, sets_of(), 1, train_experts(run), None, "mlp")
    assert {row.network for row in rows} == {"mlp"}
    console = Console(width=100, record=True)
    console.print(render(rows, "digits; 2 seeds, mlp"))
    assert console.export_text().count("2 seeds, mlp") == 1, "one table, since there is one network"
    made = replace(rows[0], accuracies=[0.0, 0.0])
    chosen = rows[3].name.removeprefix("selection: ")
    (said,) = (sentence for sentence in cautions([made, rows[3]], None) if chosen in sentence)
    assert said.startswith(f"{chosen} does at least as well as distilled (mlp), ")


def test_soft_labels_stand_beside_random_images_with_labels_of_the_experts(run: Run) -> None:
    rows = evaluate_rows(run, sets_of(soft=True), 1, train_experts(run), None)
    soft = [row.name for row in rows if row.labels == "soft"]
    assert soft == ["distilled", "initial", "random"]
    assert [row.name for row in rows if row.labels == "hard"][:3] == soft


def test_an_artifact_alone_has_no_rows_that_need_experts(run: Run) -> None:
    rows = evaluate_rows(run, {"distilled": sets_of(soft=True)["distilled"]}, 1, None, None)
    assert [(row.name, row.labels) for row in rows] == [
        ("distilled", "soft"),
        ("distilled", "hard"),
        ("random", "hard"),
        ("full", "hard"),
    ]


def test_rows_that_are_there_are_not_computed_again(run: Run) -> None:
    experts, folder = train_experts(run), cells_place(run)
    first = evaluate_rows(run, sets_of(), 1, experts, folder)
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    again = evaluate_rows(run, sets_of(), 1, experts, folder)
    assert [row.accuracies for row in again] == [row.accuracies for row in first]
    assert not [name for name in run.pool.done[before:] if name.startswith("evaluate")]


def test_another_set_pays_for_its_own_rows_alone(run: Run) -> None:
    experts, folder = train_experts(run), cells_place(run)
    evaluate_rows(run, sets_of(), 1, experts, folder)
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    changed = {name: images._replace(pixels=images.pixels / 2) for name, images in sets_of().items()}
    evaluate_rows(run, changed, 1, experts, folder)
    computed = {name.partition(",")[0] for name in run.pool.done[before:] if name.startswith("evaluate")}
    assert computed == {"evaluate distilled", "evaluate initial"}


def test_runs_of_other_seeds_share_the_rows_that_no_set_decides(digits: RealRefs, tmp_path: Path) -> None:
    """Two distillation seeds, one table seed, one folder of outcomes: the second computes its own set's rows alone."""
    rows = ["distilled", "random", "full"]
    computed, shown = [], []
    for seed in (0, 1):
        config = small(evaluate={"rows": rows, "base_seed": 5, "cache": str(tmp_path / "cells")})
        run = local_run(config.model_copy(update={"seed": seed}), tmp_path / f"{seed}", digits)
        sets = {name: images._replace(pixels=images.pixels / (seed + 1)) for name, images in sets_of().items()}
        shown.append(evaluate_rows(run, sets, 1, None, cells_place(run)))
        assert isinstance(run.pool, LocalPool)
        computed.append({name.partition(",")[0] for name in run.pool.done if name.startswith("evaluate")})
    assert computed == [{"evaluate distilled", "evaluate random", "evaluate full"}, {"evaluate distilled"}]
    for name in ("random", "full"):
        first, second = ([row.accuracies for row in each if row.name == name] for each in shown)
        assert first == second


def test_a_table_without_a_seed_of_its_own_follows_the_run(digits: RealRefs, tmp_path: Path) -> None:
    found = []
    for config in (small(), small(evaluate={"base_seed": 0}), small(evaluate={"base_seed": 1})):
        run = local_run(config, tmp_path, digits)
        found.append([row.accuracies for row in evaluate_rows(run, sets_of(), 1, None, None)])
    assert found[0] == found[1] != found[2]


def test_of_the_selections_the_one_that_validation_prefers_is_shown_with_the_others_named() -> None:
    rows = [
        Row("random", [0.5], [0.5]),
        Row("herding", [0.9], [0.6], note="3 steps"),
        Row("el2n", [0.1], [0.7], note="3 steps"),
        Row("full", [0.95], [0.9]),
    ]
    kept = _best_selection(rows)
    assert [row.name for row in kept] == ["random", "selection: el2n", "full"]
    assert kept[1].note == "3 steps, before herding"
    assert _best_selection(rows[:2]) == rows[:2], "one alone is called by its name"


def test_another_network_has_its_own_cells_and_says_its_name(run: Run) -> None:
    sets, folder = {"distilled": sets_of()["distilled"]}, cells_place(run)
    own = evaluate_rows(run, sets, 1, None, folder)
    before = set(folder.names())
    rows = evaluate_rows(run, sets, 1, None, folder, "own_networks:with_batch_norm")
    assert {row.network for row in rows} == {"own_networks:with_batch_norm"}
    assert len(set(folder.names()) - before) == len(before)
    assert [row.name for row in rows] == [row.name for row in own]
    assert evaluate_rows(run, sets, 1, None, folder, "own_networks:with_batch_norm") == rows


def test_soft_labels_of_random_images_are_those_of_each_seeds_own(run: Run) -> None:
    rows = _trainings(run, sets_of(soft=True), 1, train_experts(run))
    seen = []
    for seed in (0, 1):
        soft, hard = rows["random", "soft"](seed), rows["random", "hard"](seed)
        assert isinstance(soft, Chosen)
        assert isinstance(hard, Chosen)
        assert soft.indices.tolist() == hard.indices.tolist()
        seen.append(soft.indices.tolist())
    assert seen[0] != seen[1]
