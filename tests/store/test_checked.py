"""JSON under strict rules and under a checksum: what was changed is not read, what has two readings is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasm_ray.errors import RunDirError
from dasm_ray.store.checked import (
    MOST_DEPTH,
    parse_json,
    read_at_most,
    read_checked_json,
    read_json,
    write_checked_json,
)
from dasm_ray.store.place import Place

VALUE = {"test": 1 / 3, "validation": 0.5, "step": 7, "rows": [["a", None, True]], "ä": {"10": 1, "9": 2}}


def test_what_is_written_is_read(place: Place) -> None:
    assert read_checked_json(place / "cell.json") is None
    write_checked_json(place / "cell.json", VALUE)
    assert read_checked_json(place / "cell.json") == VALUE
    assert (place / "cell.json").read_json()["test"] == 1 / 3, "others read the values where they always were"


def test_tuples_and_numbers_as_names_come_back_as_json_has_them(tmp_path: Path) -> None:
    write_checked_json(Place(tmp_path / "x"), {"a": (1, 2), "b": {10: 1, 9: 2}})
    assert read_checked_json(Place(tmp_path / "x")) == {"a": [1, 2], "b": {"10": 1, "9": 2}}


def test_a_number_that_is_none_is_never_kept(tmp_path: Path) -> None:
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_checked_json(Place(tmp_path / "x"), {"test": number})
    assert not (tmp_path / "x").exists()


def changed(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: changed(text, test=0.99),
        lambda text: changed(text, step=7.0),
        lambda text: changed(text, step="7"),
        lambda text: changed(text, more=1),
        lambda text: changed(text, checksum="0" * 64),
        lambda text: changed(text, checksum=None),
        lambda text: json.dumps({name: part for name, part in json.loads(text).items() if name != "checksum"}),
        lambda text: json.dumps({name: part for name, part in json.loads(text).items() if name != "step"}),
        lambda text: text.replace("{", '{"test": 0.99, ', 1),
        lambda text: text[:-5],
        lambda text: "",
        lambda text: "null",
        lambda text: "[1]",
        lambda text: "[" * 100_000,
        lambda text: '{"a": 1' + "0" * 6000 + "}",
    ],
)
def test_what_was_changed_is_not_read(tmp_path: Path, damage: Callable[[str], str]) -> None:
    write_checked_json(Place(tmp_path / "cell.json"), VALUE)
    (tmp_path / "cell.json").write_text(damage((tmp_path / "cell.json").read_text()))
    assert read_checked_json(Place(tmp_path / "cell.json")) is None


def test_another_layout_of_the_same_values_is_the_same(tmp_path: Path) -> None:
    write_checked_json(Place(tmp_path / "x"), VALUE)
    value = json.loads((tmp_path / "x").read_text())
    (tmp_path / "x").write_text(json.dumps(dict(reversed(value.items())), ensure_ascii=True))
    assert read_checked_json(Place(tmp_path / "x")) == VALUE


def test_every_flipped_bit_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path / "x")
    write_checked_json(place, VALUE)
    whole = place.read_bytes()
    refused = 0
    for at in range(len(whole)):
        for bit in (1, 16):
            place.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            found = read_checked_json(place)
            refused += found is None
            assert found in (None, VALUE)
    assert refused > len(whole)


def test_a_place_that_cannot_be_read_is_an_error_and_not_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunDirError, match="cannot be read"):
        read_checked_json(Place(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "it gives 'a' twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "it gives 'a' twice"),
        ('{"\\u001b": 1, "\\u001b": 2}', r"it gives '\\x1b' twice"),
        ("NaN", "it holds NaN, which is no number"),
        ("[-Infinity]", "it holds -Infinity, which is no number"),
        ("1e999", "it holds a number that is too large"),
        ("1" * 5000, "it holds a number of 5000 digits"),
        ("[" * 100_000, "it is nested deeper than 64"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "it is nested deeper than 64"),
        ("{'a': 1}", "it is not JSON: Expecting property name enclosed in double quotes in line 1"),
        ("", "it is not JSON"),
        ("1 2", "it is not JSON"),
    ],
)
def test_json_with_two_readings_or_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_json(text)


def test_the_deepest_that_is_read() -> None:
    assert parse_json("[" * (MOST_DEPTH - 1) + "]" * (MOST_DEPTH - 1))


def test_a_file_is_not_read_that_is_larger_than_can_be_right(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    for read in (lambda place: read_at_most(place, 100), read_json):
        with pytest.raises(ValueError, match="it has 1099511627776 bytes, and at most"):
            read(Place(tmp_path / "x"))
    (tmp_path / "x").write_bytes(b"abc")
    assert read_at_most(Place(tmp_path / "x"), 3) == b"abc"


@given(st.text() | st.text(alphabet='{}[]",:0123456789.eE-+tfnu \\', max_size=40))
def test_any_text_is_json_as_python_has_it_or_refused(text: str) -> None:
    try:
        found = parse_json(text)
    except ValueError:
        return
    assert found == json.loads(text)
