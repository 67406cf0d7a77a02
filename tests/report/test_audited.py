"""An audit in words and tables: figures with errors, what is clear and what is not, and the same on a page."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dasm_ray.report.audited import ONLY_THESE, area_grid, area_text, distance_grid, markdown, terminal, words
from dasm_ray.report.webpage import webpage
from dasm_ray.store.artifact import digest, read_artifact, write_artifact
from dasm_ray.store.checked import write_checked_json
from dasm_ray.store.place import Place


def attack(value: float, error: float | None = 0.02, caught: float | None = 0.05) -> dict[str, Any]:
    return {"value": value, "error": error, "members": 100, "others": 50, "caught": caught}


def attacks(value: float) -> dict[str, Any]:
    return {name: attack(value) for name in ("loss", "calibrated", "distance in pixels", "distance in features")}


SPREAD = {"least": 1.0, "lower_quarter": 2.0, "median": 3.0, "upper_quarter": 4.0}
BOTH = {"training": SPREAD, "held_out": {**SPREAD, "median": 5.0}, "nearer_to_training": {"value": 0.7, "error": 0.1}}
NEAR = {"images": 20, "copies": 0, "distances": {"pixels": BOTH, "features": BOTH}}
RIGHT = {"right": {"training": 0.8, "held_out": 0.75}}
FOUND: dict[str, Any] = {
    "networks": 8,
    "seeds": 3,
    "training": 1110,
    "held_out": 400,
    "usual": {"pixels": SPREAD, "features": SPREAD},
    "sets": {
        "distilled": {**RIGHT, **NEAR, "attacks": attacks(0.52)},
        "random": {**RIGHT, **NEAR, "copies": 20, "attacks": attacks(0.9)},
        "full": {**RIGHT, "attacks": {"loss": attack(0.6), "calibrated": None}},
    },
}


def test_every_set_has_its_column_and_a_group_one_more() -> None:
    found = copy.deepcopy(FOUND)
    found["sets"]["distilled"]["started from"] = {"images": 20, "attacks": attacks(0.61)}
    columns = list(zip(*area_grid(found), strict=True))
    assert [column[:2] for column in columns[1:]] == [
        ("distilled", "all training"),
        ("distilled", "20 it started from"),
        ("random", "the chosen"),
        ("full", "all training"),
    ]
    assert columns[1][2:] == ("52.0 ± 2.0",) * 4 + ("5.0", "80.0", "75.0")
    assert columns[4][2:] == ("60.0 ± 2.0", "–", "–", "–", "–", "80.0", "75.0")
    columns = list(zip(*distance_grid(found), strict=True))
    assert columns[1] == ("distilled", "20", "0", "3 (1)", "5 (1)", "3 (1)", "5 (1)", "70.0 ± 10.0")
    assert [column[0] for column in columns[1:]] == ["distilled", "random", "held-out"]
    found["sets"]["distilled"]["distances"]["features"]["training"].update(least=0.0, median=2.1e-8)
    assert list(zip(*distance_grid(found), strict=True))[1][5:7] == ("0 (0)", "5 (1)")


def test_of_an_audit_that_counted_who_is_more_than_half_sure_nothing_is_said_to_be_right() -> None:
    found = copy.deepcopy(FOUND)
    found["sets"]["full"]["accuracy"] = found["sets"]["full"].pop("right")
    assert [row[-1] for row in area_grid(found)[-2:]] == ["–", "–"]
    assert [row[1] for row in area_grid(found)[-2:]] == ["80.0", "75.0"]


def test_an_area_of_one_image_has_no_error() -> None:
    assert area_text(attack(1.0, None)) == "100.0"


def test_words_call_clear_what_is_two_errors_from_guessing() -> None:
    said = list(words(FOUND))
    assert said[0].startswith("Held against 1\u202f110 training images, and 400 held-out ones")
    assert said[1] == "None of its 20 images is a copy of a training image."
    assert said[2] == "No attack tells training images from held-out ones better than guessing."
    assert said[-1] == ONLY_THESE
    found = copy.deepcopy(FOUND)
    own = found["sets"]["distilled"]
    own["copies"], own["attacks"]["loss"] = 3, attack(0.541)
    own["copied"] = {"images": 3, "attacks": attacks(0.97)}
    said = list(words(found))
    assert said[1] == "3 of its 20 images are copies of training images."
    assert said[2].startswith("The attack by loss (54 %) tells training images from held-out ones better than guessing")
    assert said[3].startswith(
        "Training images that were copied into it are told apart: by loss (97 %), calibrated (97 %), "
    )
    own["attacks"]["calibrated"] = attack(0.9)
    assert list(words(found))[2].startswith("The attacks by loss (54 %) and calibrated (90 %) tell training")


def test_terminal_and_file_hold_the_same_rows() -> None:
    console = Console(width=200, record=True)
    for table in terminal(FOUND):
        console.print(table)
    shown, kept = console.export_text(), markdown(FOUND)
    for row in (*area_grid(FOUND), *distance_grid(FOUND)):
        assert f"| {' | '.join(row)} |" in kept
        assert all(cell in shown for cell in row)
    assert ONLY_THESE in kept


def test_the_page_shows_the_audits_of_its_own_set_and_of_its_selections(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    assert "What it tells of its real images" not in webpage([Place(folder)])
    kept, own = Place(folder / "report" / "audit.json"), digest(read_artifact(Place(folder / "synthetic")))
    write_checked_json(kept, {**FOUND, "settings": "x", "set": own})
    page = webpage([Place(folder)])
    assert "What it tells of its real images" in page
    assert "52.0 ± 2.0" in page
    assert 'href="#r0-audits"' in page
    assert "guessing; chosen by" not in page
    write_checked_json(kept, {**FOUND, "settings": "x", "set": "another"})
    assert "What it tells of its real images" not in webpage([Place(folder)])

    artifact = read_artifact(Place(folder / "synthetic"))  # what `select` writes, and no set beside it
    herded = write_artifact(Place(folder / "herding"), replace(artifact, pixels=artifact.pixels[::-1].copy()))
    shutil.rmtree(folder / "synthetic")
    write_checked_json(kept, {**FOUND, "settings": "x", "set": herded})
    write_checked_json(Place(folder / "report" / f"audit_{'0' * 16}.json"), {**FOUND, "settings": "y", "set": own})
    page = webpage([Place(folder)], looks_at_data=False)
    assert "Real images chosen by herding" in page
    assert page.count("Who took part: area under the ROC curve, 50 = guessing; chosen by herding</h3>") == 1
    assert '<th scope="col" class="n">herding</th>' in page
    assert '<th scope="col" class="n">distilled</th>' not in page
