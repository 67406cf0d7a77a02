"""The Parquet file of a comparison: what goes in comes out, and other tools read its columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dasm_ray.errors import RunDirError
from dasm_ray.store.comparison import SCHEMA, claim, read, write
from dasm_ray.store.rundir import Place

ROW = {
    "set": "idc", "ipc": 10, "labels": "hard", "network": "convnet", "seed": 0, "test": 1 / 3, "validation": 0.5,
    "step": 7, "steps": 9, "bytes": 1234, "digest": "ab",
}  # fmt: skip


def test_rows_come_back_with_all_their_digits(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "set": "full", "ipc": None}]
    write(Place(tmp_path) / "table.parquet", rows)
    assert read(Place(tmp_path) / "table.parquet") == rows
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column("test").to_pylist() == [1 / 3, 1 / 3]
    assert table.schema.names == SCHEMA.names


def test_a_missing_column_is_null_and_an_odd_value_is_refused(tmp_path: Path) -> None:
    write(Place(tmp_path) / "table.parquet", [{"set": "idc"}])
    assert read(Place(tmp_path) / "table.parquet")[0]["ipc"] is None
    with pytest.raises((TypeError, ValueError)):
        write(Place(tmp_path) / "table.parquet", [{**ROW, "seed": "one"}])


def test_a_folder_is_claimed_once_and_never_from_somebody_else(tmp_path: Path) -> None:
    place = Place(tmp_path / "mine")
    claim(place)
    write(place / "table.parquet", [ROW])
    claim(place)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("mine")
    with pytest.raises(RunDirError, match=r"photos holds holiday.txt and no comparison.json"):
        claim(Place(tmp_path / "photos"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.txt"]
