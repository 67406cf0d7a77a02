"""Comparisons: all sets of a size are trained alike, and nothing is computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_pool import LocalPool, local_run, small

from dasm_ray.config.compared import Plan
from dasm_ray.errors import NonFinite, RunDirError
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import digest, read_artifact
from dasm_ray.store.findings import read_trainings
from dasm_ray.store.place import Place
from dasm_ray.studies.comparison import Comparison


def named(name: str, **sections: dict[str, object]):  # type: ignore[no-untyped-def]
    return small(**sections).model_copy(update={"name": name})


def test_a_comparison_computes_what_is_missing_and_trains_all_sets_of_a_size_alike(
    digits: RealRefs, tmp_path: Path
) -> None:
    rows = {"rows": ["distilled", "random", "full"]}
    recipes = [named("plain", evaluate=rows), named("tiled", synthetic={"factor": 2}, evaluate=rows)]
    plan = Plan((2,), ("random", "el2n", "patches"), ("hard", "soft"), ())
    run = local_run(recipes[0], tmp_path, digits)
    first = Comparison(run, recipes, plan).rows()
    assert {(row.name, row.labels) for row in first} == {
        *((name, labels) for name in ("plain", "tiled", "random", "el2n", "patches") for labels in ("hard", "soft")),
        ("full", "hard"),
    }
    trainings = read_trainings(run.place / "table.parquet")
    assert {line["steps"] for line in trainings if line["ipc"] == 2} == {3 * 2 * 10 * 4 // 20}, "those of the largest"
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    again = Comparison(run, recipes, plan).rows("table_other")
    assert read_trainings(run.place / "table_other.parquet") == trainings
    assert [row.accuracies for row in again] == [row.accuracies for row in first]
    assert not [name for name in run.pool.done[before:] if name.startswith("evaluate") or "round" in name]


def test_a_table_of_other_trainings_finds_the_sets_of_the_first(digits: RealRefs, tmp_path: Path) -> None:
    few, more = named("plain", evaluate={"seeds": 1}), named("plain", evaluate={"seeds": 2, "epochs": 4})
    plan = Plan((2,), ("random",), ("hard",), ())
    Comparison(local_run(few, tmp_path, digits), [few], plan).rows()
    made = read_artifact(Place(tmp_path / "sets" / "plain_ipc2" / "synthetic"))
    run = local_run(more, tmp_path, digits)
    rows = Comparison(run, [more], plan).rows("table_other")
    assert [len(row.accuracies) for row in rows] == [2, 2, 2]
    assert isinstance(run.pool, LocalPool)
    assert not [name for name in run.pool.done if "round" in name]
    (line, _) = (line for line in read_trainings(Place(tmp_path) / "table_other.parquet") if line["set"] == "plain")
    assert line["steps"] == 4 * 2 * 10 // 20, "trained as is asked now"
    assert digest(read_artifact(Place(tmp_path / "sets" / "plain_ipc2" / "synthetic"))) == digest(made)
    other = named("plain", matcher={"rounds": 3})
    with pytest.raises(RunDirError, match=r"plain_ipc2 belongs to another configuration \(matcher.rounds differ\)"):
        Comparison(local_run(other, tmp_path, digits), [other], plan).rows()


def test_a_training_that_diverges_ends_a_comparison_and_keeps_no_table(digits: RealRefs, tmp_path: Path) -> None:
    recipe = named("plain", evaluate={"lr": 1e30})
    run = local_run(recipe, tmp_path, digits)
    with pytest.raises(NonFinite, match=r"evaluate convnet on full, hard labels, seed 0, .*; lower evaluate\.lr"):
        Comparison(run, [recipe], Plan((2,), ("random",), ("hard",), ())).rows()
    assert not {"cells", "table.parquet", "table.json"} & set(run.place.names())
