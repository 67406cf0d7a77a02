"""Numbers as people read them."""

from __future__ import annotations

import pytest

from dasm_ray.config.shown import short
from dasm_ray.report.table import Row
from dasm_ray.report.wording import duration, grid, number, percent, points, share, size, thinned


def test_accuracies() -> None:
    assert percent(Row("a", [0.5, 0.6])) == "55.0 ± 7.1 %"
    assert percent(Row("a", [0.5])) == "50.0 %"
    assert (points(0.145), points(-0.081)) == ("+14.5", "−8.1")


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59, "59 s"), (241.3, "4:01 min"), (3720, "1:02 h")])
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_numbers_of_things() -> None:
    assert number(1249).replace("\u202f", "_") == "1_249"
    assert [size(count) for count in (12, 20_000, 3.4e6, 5e12)] == ["12 bytes", "20 kB", "3.4 MB", "5 TB"]
    assert [size(count) for count in (999.7, 999_700, 1.5e12, 5e16)] == ["1 kB", "1 MB", "1.5 TB", "50,000 TB"]
    assert [short(value) for value in (0.0123, 12.34, 999.4, 999.7, 1250, 5000)] == [
        "0.0123", "12.3", "999", "1,000", "1,250", "5,000"
    ]  # fmt: skip
    assert [share(part) for part in (0.004, 0.5)] == ["under 1 %", "50 %"]


def test_cells_are_on_one_line() -> None:
    assert grid("x", ["a", "b"], [["1\n2", "\x1b"]])["rows"][0]["cells"] == ["1\\n2", "\\x1b"]


def test_a_curve_is_thinned_to_means() -> None:
    path = [(float(n), float(n % 2)) for n in range(1000)]
    assert thinned(path[:200]) == path[:200]
    thin = thinned(path, 10)
    assert [x for x, _ in thin] == [99.0 + 100 * n for n in range(10)]
    assert [y for _, y in thin] == [0.5] * 10
