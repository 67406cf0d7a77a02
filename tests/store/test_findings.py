"""What sweeps and comparisons found comes back with all its digits; a folder serves one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dasm_ray.errors import DataError, RunDirError, RunFailure
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.findings import (
    STUDY_COLUMNS,
    TRAINING_COLUMNS,
    TRIAL_COLUMNS,
    Finding,
    check_study,
    check_sweep,
    claimed_comparison,
    claimed_study,
    claimed_sweep,
    find,
    keep,
    keep_stopped,
    read_trainings,
    read_trials,
    set_aside,
    write_trainings,
    write_trials,
)
from dasm_ray.store.place import Place

DEFINITION = {"space": [{"seed": 1}, {"seed": 2}], "recipe": "ab", "scheduler": {"name": "all"}}


def test_a_folder_is_claimed_and_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    place = Place(tmp_path / "sweep")
    with (
        claimed_sweep(place, DEFINITION, resume=False),
        pytest.raises(RunDirError, match="in use by another run"),
        claimed_sweep(place, DEFINITION, resume=True),
    ):
        raise AssertionError("two drivers in one folder")
    with pytest.raises(RunDirError, match="holds a sweep already; go on with it by --resume"), \
            claimed_sweep(place, DEFINITION, resume=False):  # fmt: skip
        raise AssertionError("a sweep begun anew over an old one")
    with claimed_sweep(place, DEFINITION, resume=True):
        pass


def test_a_changed_sweep_is_refused_by_what_differs(tmp_path: Path) -> None:
    place = Place(tmp_path / "sweep")
    with claimed_sweep(place, DEFINITION, resume=True):  # nothing there: it begins
        pass
    changed = {**DEFINITION, "space": [{"seed": 1}], "scheduler": {"name": "asha"}}
    with (
        pytest.raises(RunDirError, match=r"another sweep \(its space, scheduler differ\)"),
        claimed_sweep(place, changed, resume=True),
    ):
        raise AssertionError("two sweeps in one folder")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"space": 1, "space": 2}', '{"recipe": NaN}', "null", "[]"])
def test_a_sweep_whose_file_is_damaged_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with (
        pytest.raises(RunDirError, match=r"sweep\.json cannot be read|belongs to another sweep"),
        claimed_sweep(Place(tmp_path), DEFINITION, resume=True),
    ):
        raise AssertionError("gone on with")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    with (
        pytest.raises(RunDirError, match=r"holds holiday\.txt"),
        claimed_sweep(Place(tmp_path), DEFINITION, resume=True),
    ):
        raise AssertionError("claimed")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_folder_goes_away_again_only_if_the_user_must_mend_something_before_it_holds_anything(tmp_path: Path) -> None:
    place = Place(tmp_path / "sweep")
    with pytest.raises(DataError), claimed_sweep(place, DEFINITION, resume=False):
        raise DataError("images: are not there")
    assert not place.exists()
    with pytest.raises(RunFailure), claimed_sweep(place, DEFINITION, resume=False):
        raise RunFailure("the cluster went away")
    assert place.exists()
    (place / "trials").make_dir()
    with pytest.raises(DataError), claimed_sweep(place, DEFINITION, resume=True):
        raise DataError("images: are not there any more")
    assert (place / "trials").exists()


def test_findings_come_back_with_all_their_digits(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert find(place, 3) == Finding()
    found = Finding(begun=2, accuracies=((1 / 3, 0.5), (0.25, 0.75)), seconds=1.5)
    keep(place, 3, found)
    assert find(place, 3) == found
    assert not found.is_over
    assert replace(found, failed="no").is_over


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("0.5", "0.99"),
        lambda text: text.replace('"done": false', '"done": true'),
        lambda text: text.replace("1.5", "15"),
        lambda text: text[:-3],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != "checksum"}),
        lambda text: text.replace("{", '{"begun": 9, ', 1),
    ],
)
def test_a_finding_that_was_changed_is_refused_by_its_file(tmp_path: Path, damage: Callable[[str], str]) -> None:
    keep(Place(tmp_path), 7, Finding(begun=2, accuracies=((0.5, 0.25),), seconds=1.5))
    file = tmp_path / "found" / "007.json"
    assert damage(file.read_text()) != file.read_text()
    file.write_text(damage(file.read_text()))
    with pytest.raises(RunDirError, match=r"found/007\.json is not as it was written; remove it, and --resume"):
        find(Place(tmp_path), 7)
    file.unlink()
    assert find(Place(tmp_path), 7) == Finding()


def test_a_stop_is_kept_beside_the_finding_and_counts_only_if_the_trial_is_not_done(tmp_path: Path) -> None:
    place = Place(tmp_path)
    keep(place, 0, Finding(begun=1, accuracies=((0.5,),)))
    keep_stopped(place, 0)
    assert find(place, 0).stopped
    assert find(place, 0).is_over
    keep(place, 0, Finding(begun=1, accuracies=((0.5,), (0.6,)), done=True))
    assert not find(place, 0).stopped
    keep_stopped(place, 1)
    assert find(place, 1) == Finding(stopped=True)


def test_the_table_has_a_row_a_trial_and_a_column_a_key(tmp_path: Path) -> None:
    row = {"trial": 0, "validation": [0.5, 0.7], "mean": 0.6, "std": 0.14, "segments": 2, "of": 2, "stopped": False,
           "failed": None, "seconds": 3.0, "begun": 1, "matcher.lr_img": 0.1, "window.policy": "all",
           "matcher.snapshots": [[0, 4]], "model.depth": None}  # fmt: skip
    other = {**row, "trial": 1, "std": None, "matcher.lr_img": 1 / 3, "model.depth": 2}
    keys = ["matcher.lr_img", "window.policy", "matcher.snapshots", "model.depth"]
    write_trials(Place(tmp_path) / "table.parquet", [row, other], keys)
    assert read_trials(Place(tmp_path) / "table.parquet") == [
        {**row, "matcher.snapshots": "[[0, 4]]"}, {**other, "matcher.snapshots": "[[0, 4]]"},
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.schema.names == ["trial", *keys, *(name for name in TRIAL_COLUMNS if name != "trial")]
    assert str(table.schema.field("matcher.lr_img").type) == "double"


ROW = {
    "set": "idc", "ipc": 10, "labels": "hard", "network": "convnet", "seed": 0, "test": 1 / 3, "validation": 0.5,
    "step": 7, "steps": 9, "bytes": 1234, "digest": "ab",
}  # fmt: skip


def test_rows_come_back_with_all_their_digits(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "set": "full", "ipc": None}]
    write_trainings(Place(tmp_path) / "table.parquet", rows)
    assert read_trainings(Place(tmp_path) / "table.parquet") == rows
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column("test").to_pylist() == [1 / 3, 1 / 3]
    assert table.schema.names == TRAINING_COLUMNS.names


def test_a_missing_column_is_null_and_an_odd_value_is_refused(tmp_path: Path) -> None:
    write_trainings(Place(tmp_path) / "table.parquet", [{"set": "idc"}])
    assert read_trainings(Place(tmp_path) / "table.parquet")[0]["ipc"] is None
    with pytest.raises((TypeError, ValueError)):
        write_trainings(Place(tmp_path) / "table.parquet", [{**ROW, "seed": "one"}])


def test_a_folder_is_claimed_once_and_never_from_somebody_else(tmp_path: Path) -> None:
    place = Place(tmp_path / "mine")
    with claimed_comparison(place) as held:
        write_trainings(held / "table.parquet", [ROW])
    with claimed_comparison(place):
        assert read_trainings(place / "table.parquet") == [ROW]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("mine")
    with pytest.raises(RunDirError, match=r"photos holds holiday.txt and no comparison.json"), \
            claimed_comparison(Place(tmp_path / "photos")):  # fmt: skip
        raise AssertionError("claimed")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.txt"]


def test_two_comparisons_cannot_share_a_folder(tmp_path: Path) -> None:
    place = Place(tmp_path / "compared")
    with claimed_comparison(place) as held:
        (held / "table.md").write_text("first")
        with pytest.raises(RunDirError, match="in use by another run"), claimed_comparison(place):
            raise AssertionError("two drivers in one folder")
    assert sorted(place.names()) == [".lock", "comparison.json", "table.md"]


def test_a_comparison_that_could_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    place = Place(tmp_path / "compared")
    with pytest.raises(DataError), claimed_comparison(place):
        raise DataError("images: are not there")
    assert not place.exists()
    with claimed_comparison(place) as held:
        (held / "sets" / "idc" / "run.json").write_text("{}")
    with pytest.raises(DataError), claimed_comparison(place):
        raise DataError("images: are not there")
    assert (place / "comparison.json").exists()


@pytest.mark.parametrize("claim", [claimed_comparison, lambda place: claimed_sweep(place, DEFINITION, resume=False)])
def test_a_folder_that_is_removed_while_it_is_worked_on_is_not_made_anew(tmp_path: Path, claim: Any) -> None:
    place = Place(tmp_path / "folder")
    with claim(place) as held:
        shutil.rmtree(tmp_path / "folder")
        with pytest.raises(RunFailure, match="is not there any more"):
            keep(held, 0, Finding(begun=1))
    assert not (tmp_path / "folder").exists()


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    place = Place(tmp_path / "study")
    with claimed_study(place, "mine") as held:
        (held / "study.md").write_text("found")
    begun = {"name": "mine", "versions": {"torch": "1.0"}}
    (place / "study.json").write_text(json.dumps(begun))
    with claimed_study(place, "mine"):
        assert (place / "study.md").read_text() == "found"
        assert (place / "study.json").read_json() == begun, "what began it stays on record"
    with pytest.raises(RunDirError, match="holds the study mine, not theirs"), claimed_study(place, "theirs"):
        raise AssertionError("claimed")
    (place / "study.json").write_text("{")
    with claimed_study(place, "mine"):
        assert (place / "study.json").read_json()["name"] == "mine", "what was damaged is written anew"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("mine")
    with pytest.raises(RunDirError, match=r"holds holiday.txt and no study.json, so it is no study"):
        check_study(Place(tmp_path / "photos"), "mine")


def test_results_of_other_settings_are_put_aside_and_those_of_more_or_fewer_are_not(tmp_path: Path) -> None:
    place, first = Place(tmp_path), {"base of 2 at seed 0": "a", "dasm of 2 at seed 0": "b"}
    assert set_aside(place, first) == (), "nothing is there"
    write_checked_json(place / "results.json", {"arms": [1], "outcomes": first})
    for name in ("trainings.parquet", "study.md"):
        (place / name).write_text(f"the first {name}")
    grown = {**first, "base of 2 at seed 1": "c"}
    assert set_aside(place, grown) == set_aside(place, {"dasm of 2 at seed 0": "b"}) == ()
    moved = set_aside(place, {**grown, "dasm of 2 at seed 0": "other"})
    trainings, tables, results = (place / name for name in moved)
    assert [name.partition("_")[0] for name in moved] == ["trainings", "study", "results"]
    assert read_checked_json(results) == {"arms": [1], "outcomes": first}
    assert (trainings.read_text(), tables.read_text()) == ("the first trainings.parquet", "the first study.md")
    assert not (place / "results.json").exists()
    assert set_aside(place, grown) == (), "they are aside already"


@pytest.mark.parametrize("text", [None, "{"])
def test_results_that_nothing_tells_of_are_put_aside_too(tmp_path: Path, text: str | None) -> None:
    """As where a start was killed that had begun to, or where results.json is damaged."""
    place = Place(tmp_path)
    for name in ("trainings.parquet", "study.md"):
        (place / name).write_text(f"the first {name}")
    if text is not None:
        (place / "results.json").write_text(text)
    moved = set_aside(place, {"base of 2 at seed 0": "a"})
    assert [(place / name).read_text() for name in moved] == [
        "the first trainings.parquet", "the first study.md", *([text] if text is not None else [])
    ]  # fmt: skip
    assert set_aside(place, {"base of 2 at seed 0": "a"}) == ()


def test_trainings_of_a_study_come_back(tmp_path: Path) -> None:
    row = dict.fromkeys(STUDY_COLUMNS.names) | {"arm": "dasm", "seed": 1, "validation": 0.1 + 0.2}
    write_trainings(Place(tmp_path) / "trainings.parquet", [row], STUDY_COLUMNS)
    assert read_trainings(Place(tmp_path) / "trainings.parquet", STUDY_COLUMNS) == [row]


def test_a_sweep_file_that_lacks_a_part_is_another_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"space": [1]}))
    with pytest.raises(RunDirError, match=r"another sweep \(its scheduler differ"):
        check_sweep(Place(tmp_path), {"space": [1], "scheduler": {"name": "all"}}, resume=True)
