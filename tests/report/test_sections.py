"""One run as the sections of a page: the figures are the run's own, and what it lacks is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dasm_ray.config.digests import config_digest
from dasm_ray.config.parsing import parse_config
from dasm_ray.report.gathered import Gathered, gather
from dasm_ray.report.sections import found_in, sections
from dasm_ray.report.table import Row, best_selection
from dasm_ray.report.wording import duration, percent, points
from dasm_ray.store.place import Place


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Gathered:
    return gather(Place(run_folder), looks_at_data=False)


@pytest.fixture(scope="module")
def shown(run: Gathered) -> dict[str, Any]:
    return sections(run, "r0", 10**6)


def test_the_figures_are_those_of_the_run(run: Gathered, shown: dict[str, Any]) -> None:
    own, random, full = run.row, run.row_of("random"), run.row_of("full")
    assert own
    assert random
    assert full
    assert f"get {percent(own)} of the test images right" in shown["lead"]
    assert f"random images {percent(random)}" in shown["lead"]
    assert "20 synthetic images in place of" in shown["lead"]
    values = [tile["value"] for tile in shown["tiles"]]
    best = best_selection(own, run.rows)
    over = [points(own.mean - each.mean) for each in (random, best, full) if each]
    assert values[:4] == [f"{100 * own.mean:.1f} %", *over]
    assert values[5] == duration(run.log.seconds)
    assert [row["cells"][0] for row in shown["table"]["rows"]] == [row.name for row in run.rows]
    assert [row["is_own"] for row in shown["table"]["rows"]] == [row.name == "distilled" for row in run.rows]
    assert shown["status"] == ""
    assert ("synthetic set", run.digest) in shown["identity"]


def test_the_best_selection_stands_in_the_first_sentence(run: Gathered) -> None:
    own = run.row
    assert own
    chosen = Row("herding", [own.mean + 0.02] * 2, [1.0, 1.0])
    told = sections(replace(run, rows=[*run.rows, chosen]), "r0", 10**6)
    assert f"on as many chosen by herding {percent(chosen)}" in told["lead"]
    assert ["\u22122.0", "points over herding"] in [[tile["value"], tile["label"]] for tile in told["tiles"]]
    assert any("herding does at least as well as distilled" in line for line in told["table"]["below"])


def test_the_method_is_seen(shown: dict[str, Any]) -> None:
    titles = [drawn["title"] for drawn in shown["method"]]
    assert titles == [
        "What each segment may see",
        "What the probe still gets wrong",
        "Difficulty of all real images before segment 1",
        "Difficulty of all real images before segment 2",
        "Matching distance",
        "Experts: accuracy",
        "Experts: loss",
    ]


def test_the_recipe_gives_the_same_run(run: Gathered, shown: dict[str, Any]) -> None:
    assert config_digest(parse_config(yaml.safe_load(shown["yaml"]))) == config_digest(run.config)


def test_what_was_lost_is_listed(shown: dict[str, Any]) -> None:
    (line,) = shown["losses"]
    assert line.startswith("segment 1, group 0, round 0: lost by worker 2 after")
    assert line.endswith("its node went away")
    crew = next(grid for grid in shown["counts"] if grid["caption"] == "who did how much")
    assert [(row["cells"][0], row["cells"][3]) for row in crew["rows"]] == [("worker 1", "0"), ("worker 2", "1")]


def test_accuracy_after_each_segment_is_drawn_where_a_sweep_measured_it(run_folder: Path) -> None:
    run = gather(Place(run_folder), looks_at_data=False)
    run.validation = ((0.5, 0.6), (0.7, 0.8))
    drawn = next(d for d in sections(run, "r0", 10**6)["method"] if d["title"] == "Accuracy after each segment")
    assert "from 55 to 75" in drawn["svg"]


def test_a_run_on_its_way(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    for name in ("synthetic", "report", "scores", "segments"):
        shutil.rmtree(folder / name)
    shown = sections(gather(Place(folder)), "r0", 10**6)
    assert (shown["table"], shown["accuracies"], shown["gallery"]) == (None, None, None)
    assert shown["status"].startswith("Not finished: ")
    assert "get" not in shown["lead"].split()
    (folder / "events.jsonl").write_text("")
    bare = sections(gather(Place(folder)), "r0", 10**6)
    assert bare["status"] == "Not finished: its log names no stage yet."
    assert (bare["found"], bare["timeline"]) == ([], None)


def test_findings() -> None:
    found = {
        "form": "folders",
        "class_names": ["ant", "bee"],
        "shape": [3, 20, 30],
        "splits": [{"role": "train"}, {"role": "test"}],
        "counts": {"train": [5, 6], "val": [1, 1], "test": [2, 3]},
        "converted": {"palette turned to RGB": 4},
        "equal": 2,
        "leaked": {"test": 1},
        "left_out": [{"what": "text files", "count": 7}],
        "notes": ["a word"],
    }
    said = list(found_in(found))
    assert ("training", "11 images, 5 to 6 a class") in said
    assert ("validation", "2 images, 1 a class, held out from the training images by their content") in said
    assert ("test", "5 images, 2 to 3 a class") in said
    assert ("images", "20 × 30 pixels, colour") in said
    assert ("converted", "4 palette turned to RGB") in said
    assert ("equal", "2 training images are copies of another training image") in said
    assert ("warning", "1 test image is equal to a training image") in said
    assert ("left out", "7 text files") in said
    assert ("note", "a word") in said


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"counts": 3, "shape": "x", "class_names": None, "converted": [], "equal": "2", "leaked": 0, "notes": 1},
        {"counts": {"train": ["a"]}, "shape": [1], "left_out": ["x"], "splits": [3]},
    ],
)
def test_findings_of_odd_types_are_passed_over(found: dict[str, Any]) -> None:
    assert list(found_in(found)) == []
