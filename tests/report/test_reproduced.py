"""What a recipe expects of itself, the signs on the way, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasm_ray.config.recipes import header_of, shipped
from dasm_ray.errors import ConfigError
from dasm_ray.report.reproduced import Expected, verdict, watched
from dasm_ray.report.table import Row

HEAD = """# For: something
# Minutes: 2
# Expected: 89.5 ± 1.1, random images 75.1 ± 7.2
# Data: built in
# Early: experts 92.0, distance 7.4
# Digest: e057c08859e7ca57, on a processor with AVX2
name: some
"""


def expected(tmp_path: Path, head: str = HEAD) -> Expected:
    (tmp_path / "some.yaml").write_text(head, encoding="utf-8")
    return Expected.of(tmp_path / "some.yaml")


def test_the_first_lines_say_what_comes_of_a_recipe(tmp_path: Path) -> None:
    assert expected(tmp_path) == Expected(89.5 / 100, 1.1 / 100, 0.92, 7.4, "e057c08859e7ca57")
    assert expected(tmp_path, "# Expected: 50.0 ± 0.4\n") == Expected(0.5, 0.004)


@pytest.mark.parametrize(
    "head", ["name: some\n", "# Expected: not measured\n", "#\n" * 20 + "# Expected: 50.0 ± 0.4\n"]
)
def test_a_recipe_without_a_figure_is_refused(tmp_path: Path, head: str) -> None:
    with pytest.raises(ConfigError, match="does not say what it comes to"):
        expected(tmp_path, head)


@pytest.mark.parametrize("path", shipped("recipe").values(), ids=shipped("recipe"))
def test_every_shipped_recipe_has_a_figure_or_is_refused(path: Path) -> None:
    if header_of(path).expected.startswith("not measured"):
        with pytest.raises(ConfigError):
            Expected.of(path)
    else:
        assert 0.1 < Expected.of(path).mean < 1


TRAINED = {"kind": "note", "text": "experts: 2 trained, validation accuracy 87.7% to 92.0%"}


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        (TRAINED, "early sign: accuracy of the best expert 0.92, as expected (0.92)"),
        (
            {"kind": "note", "text": "experts: 1 found, validation accuracy 88.9%"},
            "early sign: accuracy of the best expert 0.889, NOT as expected: the end will hardly be (0.92)",
        ),
        (
            {"kind": "progress", "stage": "distil", "distance": 10.3},
            "early sign: first matching distance 10.3, as expected (7.4)",
        ),
        (
            {"kind": "progress", "stage": "distil", "distance": 10.4},
            "early sign: first matching distance 10.4, NOT as expected: the end will hardly be (7.4)",
        ),
    ],
)
def test_a_sign_is_told_once(tmp_path: Path, fact: dict[str, object], said: str) -> None:
    told: list[str] = []
    hear = watched(expected(tmp_path), told.append)
    hear({"kind": "stage", "stage": "distil"})
    hear(fact)
    hear({**fact, "distance": 1.0} if "distance" in fact else fact)
    assert told == [said]


def test_nothing_is_said_of_what_a_recipe_does_not_expect(tmp_path: Path) -> None:
    told: list[str] = []
    hear = watched(Expected(0.5, 0.01), told.append)
    hear(TRAINED)
    hear({"kind": "progress", "stage": "distil", "distance": 8.4})
    assert told == []


@pytest.mark.parametrize(
    ("accuracies", "digest", "is_within", "parts"),
    [
        (
            [0.88, 0.90],
            "e057c08859e7ca57",
            True,
            ["reproduced 89.0 ± 1.4, expected 89.5 ± 1.1: within", "the same bytes"],
        ),
        ([0.90, 0.92], "0" * 16, True, ["91.0 ± 1.4", "two deviations are 3.6", "other bytes than e057c08859e7ca57"]),
        ([0.95, 0.95], "0" * 16, False, ["95.0 ± 0.0", "outside", "two deviations are 2.2"]),
        ([0.95], "0" * 16, False, ["reproduced 95.0, expected"]),
        ([0.95], "e057c08859e7ca57", True, ["within"]),
    ],
)
def test_within_is_two_deviations_of_the_difference_or_the_same_bytes(
    tmp_path: Path, accuracies: list[float], digest: str, is_within: bool, parts: list[str]
) -> None:
    found, sentence = verdict(expected(tmp_path), Row("distilled", accuracies), digest)
    assert found == is_within
    assert all(part in sentence for part in parts), sentence


def test_bytes_that_nobody_knows_are_said_to_be_unknown() -> None:
    assert "bytes not known" in verdict(Expected(0.5, 0.01), Row("distilled", [0.5, 0.5]), "0" * 16)[1]
