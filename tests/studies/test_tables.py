"""Tables on disk: none is written over one of other settings, and a damaged one is not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dasm_ray.report.table import Row
from dasm_ray.store.place import Place
from dasm_ray.studies.tables import Shown, keep_table, kept_table, stem_for

ROWS = [Row("distilled", [0.5, 0.6], [0.5, 0.5]), Row("random", [0.4, 0.5], [0.4, 0.4])]
ONE, OTHER = Shown("one", "cpu"), Shown("other", "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    return Place(tmp_path)


def written(folder: Place, shown: Shown, own: str | None = None) -> str:
    stem = stem_for(folder, shown, own)
    keep_table(folder, stem, ROWS, "some", 37, shown, digest="d")
    return stem


def test_a_table_is_read_back_under_its_settings_alone(folder: Place) -> None:
    assert kept_table(folder, "one") is None
    assert written(folder, ONE, "one") == "table"
    found = kept_table(folder, "one")
    assert found is not None
    assert (found["title"], found["digest"], found["tested"]) == ("some", "d", 37)
    assert kept_table(folder, "other") is None


def test_the_own_table_has_its_place_whoever_comes_first(folder: Place) -> None:
    other = written(folder, OTHER, "one")
    assert other.startswith("table_")
    assert written(folder, ONE, "one") == "table"
    assert written(folder, OTHER, "one") == other, "the same settings have the same name again"
    assert sorted(folder.names()) == ["table.json", "table.md", f"{other}.json", f"{other}.md"]


def test_another_device_is_another_table(folder: Place) -> None:
    written(folder, ONE, "one")
    elsewhere = written(folder, Shown("one", "cuda"), "one")
    assert elsewhere not in ("table", written(folder, OTHER, "one"))
    assert written(folder, ONE, "one") == "table"


def test_where_nobody_owns_the_place_the_first_table_does(folder: Place) -> None:
    assert written(folder, ONE) == "table"
    assert written(folder, OTHER) != "table"
    assert written(folder, ONE) == "table"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("0.5", "0.9", 1),
        lambda text: text[: len(text) // 2],
        lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != "checksum"}),
        lambda text: "",
    ],
    ids=["a figure changed", "cut off", "without a checksum", "emptied"],
)
def test_a_table_that_is_not_as_it_was_written_is_not_read(folder: Place, change: object) -> None:
    written(folder, ONE, "one")
    file = folder / "table.json"
    file.write_text(change(file.read_text()))  # type: ignore[operator]
    assert kept_table(folder, "one") is None
    assert written(folder, ONE, "one") == "table", "it is written anew in its place"
