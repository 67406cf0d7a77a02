"""Several runs side by side."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from test_differences import SEEN, study_of

from dasm_ray.plain import Tree
from dasm_ray.report.abreast import names_of, side_by_side
from dasm_ray.report.differences import summary
from dasm_ray.report.gathered import gather, gather_all
from dasm_ray.report.sections import sections
from dasm_ray.report.table import Row, as_json
from dasm_ray.report.wording import percent
from dasm_ray.store.checked import write_checked_json
from dasm_ray.store.findings import STUDY_COLUMNS, Finding, keep, write_trainings
from dasm_ray.store.place import Place
from dasm_ray.studies.laboratory import rows_of


def test_runs_stand_against_size_and_time_and_in_a_table(run_folder: Path, walked_folder: Path) -> None:
    places = [Place(run_folder), Place(walked_folder)]
    runs = [gather(place, looks_at_data=False) for place in places]
    shown = side_by_side(places, runs)
    assert shown["lead"] == "2 runs on digits, 2 of them done."
    assert [drawn["title"] for drawn in shown["figures"]] == ["Accuracy against size", "Accuracy against time"]
    for run in runs:
        assert run.row is not None
        assert f"{run.config.matcher.name}: {100 * run.row.mean:.1f} % at 2" in shown["figures"][0]["svg"]
    (grid,) = shown["tables"]
    first = dict(zip(grid["headings"], grid["rows"][0]["cells"], strict=True))
    assert runs[0].row is not None
    assert (first["run"], first["set"], first["images a class"]) == ("small", runs[0].digest, "2")
    assert first["test, %"] == percent(runs[0].row).removesuffix(" %")


def test_runs_of_one_name_are_told_apart_by_their_folders(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "other")
    runs = [gather(Place(folder), looks_at_data=False) for folder in (run_folder, tmp_path / "other")]
    assert names_of(runs) == ["small (run)", "small (other)"]
    assert names_of(runs[:1]) == ["small"]
    assert names_of([runs[0], *runs]) == ["small (run), 1", "small (run), 2", "small (other)"]


def test_a_run_without_figures_stands_in_the_table_alone(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "synthetic")
    shutil.rmtree(tmp_path / "run" / "report")
    place = Place(tmp_path / "run")
    shown = side_by_side([place], [gather(place, looks_at_data=False)])
    assert shown["figures"] == []
    assert "not done" in shown["tables"][0]["rows"][0]["cells"]


def test_a_comparison_shows_its_own_table_by_size(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "sets" / "small_ipc2")
    (tmp_path / "comparison.json").write_text("{}")
    rows = [Row("small", [0.5], ipc=2), Row("random", [0.4], ipc=2), Row("full", [0.95])]
    write_checked_json(Place(tmp_path) / "table.json", as_json(rows, "a title", 385))
    place = Place(tmp_path)
    shown = side_by_side([place], gather_all(place, looks_at_data=False))
    assert shown["figures"][-1]["title"] == "Every set of the comparison"
    assert "small: 50.0 % at 2" in shown["figures"][-1]["svg"]
    assert [row["cells"][1] for row in shown["tables"][0]["rows"]][:2] == ["small", "random"]


def test_a_sweep_shows_its_trials_as_validation_orders_them(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(asdict(Finding())))
    place = Place(tmp_path)
    for number, accuracies in enumerate([((0.7,),), ((0.3,), (0.6,))]):
        shutil.copytree(run_folder, tmp_path / "trials" / f"{number:03d}")
        keep(place, number, Finding(1, accuracies, 1.0))
    runs = gather_all(place, looks_at_data=False)
    assert [run.validation for run in runs] == [((0.7,),), ((0.3,), (0.6,))]
    trials = side_by_side([place], runs)["tables"][0]
    assert [row["cells"] for row in trials["rows"]] == [["001", "60.0", "2/2"], ["000", "70.0", "1/2"]], (
        "whole trials first"
    )


def begun_study(folder: Path, run: Path) -> Path:
    """A study of which two seeds have a set, and nothing else is known."""
    for seed in (3, 12):
        shutil.copytree(run, folder / "sets" / f"ipc2_seed{seed}_{'a' * 16}")
    (folder / "study.json").write_text("{}")
    return folder


def with_results(folder: Path) -> Path:
    seen = [replace(each, folder=f"sets/ipc2_seed3_{'a' * 16}", seed=3) for each in SEEN[3:4]]
    write_checked_json(Place(folder) / "results.json", summary(study_of(folder), SEEN, 900))
    write_trainings(Place(folder) / "trainings.parquet", rows_of(seen), STUDY_COLUMNS)
    return folder


def a_study(folder: Path, run: Path) -> Path:
    """A study with results, whose sets are copies of ``run``."""
    return with_results(begun_study(folder, run))


def test_a_study_shows_its_differences_tables_and_the_sets_of_its_first_seed(run_folder: Path, tmp_path: Path) -> None:
    place = Place(begun_study(tmp_path, run_folder))
    assert [run.arm for run in gather_all(place, looks_at_data=False)] == [""], "nothing is known of it yet"
    with_results(tmp_path)
    (run,) = gather_all(place, looks_at_data=False)
    assert (run.name, run.is_done) == ("dasm of 2", True)
    assert run.row is not None
    assert run.row.accuracies == [0.25, 0.26]
    shown = side_by_side([place], [run])
    assert shown["title"] == "some"
    assert shown["lead"] == "some: digits, 3 distillation × 2 evaluation seeds; Δ: less base"
    title = "Points over base at 2 images a class"
    assert [drawn["svg"] for drawn in shown["figures"] if drawn["title"] == title and "dasm +2.0" in drawn["svg"]]
    assert [table["caption"] for table in shown["tables"]][:2] == ["2 images a class", "2 images a class, cost"]
    assert any("test is read once" in line for line in shown["tables"][1]["below"])


def test_arms_that_share_a_set_have_a_row_each_with_its_own_labels(run_folder: Path, tmp_path: Path) -> None:
    """They differ in how the set is evaluated alone, so that nothing was distilled twice."""
    place = Place(a_study(tmp_path, run_folder))
    hard = [replace(each, folder=f"sets/ipc2_seed3_{'a' * 16}", seed=3) for each in SEEN[3:4]]
    better = tuple({**training, "test": training["test"] + 0.5} for training in hard[0].trainings)
    soft = replace(hard[0], arm="dasm_soft", labels="soft", trainings=better)
    write_trainings(place / "trainings.parquet", rows_of([*hard, soft]), STUDY_COLUMNS)
    (run,) = gather_all(place, looks_at_data=False)
    told = {arm: (row.labels, row.accuracies) for arm, row in run.own.items()}
    assert told == {"dasm": ("hard", [0.25, 0.26]), "dasm_soft": ("soft", [0.75, 0.76])}
    assert [row.name for row in run.rows] == ["distilled: dasm", "distilled: dasm_soft"]
    shown = sections(run, "r0", 10**6)
    assert "right: 25.5 ± 0.7 % as dasm, hard labels, 75.5 ± 0.7 % as dasm_soft, soft labels." in shown["lead"]
    assert [tile["value"] for tile in shown["tiles"]][:2] == ["25.5 %", "75.5 %"]
    assert [line["is_own"] for line in shown["table"]["rows"]] == [True, True]
    lines = [line["cells"] for line in side_by_side([place], [run])["tables"][-1]["rows"]]
    assert [(line[0], line[6]) for line in lines] == [
        ("dasm, dasm_soft of 2: dasm", "25.5 ± 0.7"),
        ("dasm, dasm_soft of 2: dasm_soft", "75.5 ± 0.7"),
    ]


def points_of(shown: Tree) -> dict[str, str]:
    """Series and points of the first figure, as it says them to who does not see it."""
    said = re.search(r'aria-label="Accuracy against size. ([^"]*)"', shown["figures"][0]["svg"])
    assert said is not None
    return dict(series.split(": ", 1) for series in html.unescape(said[1]).split("; "))


def with_name(run: Path, folder: Path, name: str) -> Path:
    """A copy of a run as one of another name."""
    shutil.copytree(run, folder)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("name: small", f"name: {name}"))
    return folder


def test_runs_of_one_matcher_and_size_are_no_one_curve(run_folder: Path, tmp_path: Path) -> None:
    folders = [run_folder, with_name(run_folder, tmp_path / "a", "base"), with_name(run_folder, tmp_path / "b", "base")]
    for count, names in ((1, ["gradient"]), (2, ["small", "base"]), (3, ["small", "base (a)", "base (b)"])):
        places = [Place(folder) for folder in folders[:count]]
        runs = [gather(place, looks_at_data=False) for place in places]
        matcher = runs[0].config.matcher.name
        found = points_of(side_by_side(places, runs))
        found.pop("random")
        assert list(found) == [matcher if name == "gradient" else name for name in names]
        assert all(said.count(" at 2") == 1 for said in found.values())


def test_arms_of_a_study_are_a_curve_each(run_folder: Path, tmp_path: Path) -> None:
    place = Place(a_study(tmp_path, run_folder))
    dasm = replace(SEEN[3], folder=f"sets/ipc2_seed3_{'a' * 16}", seed=3)
    write_trainings(place / "trainings.parquet", rows_of([dasm, replace(dasm, arm="other")]), STUDY_COLUMNS)
    runs = gather_all(place, looks_at_data=False)
    assert points_of(side_by_side([place], runs)) == {"dasm": "25.5 % at 2", "other": "25.5 % at 2"}
