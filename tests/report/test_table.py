"""The table's figures by hand, and its three forms against one another.

What must stay true: the terminal form is looked at through a console of 80 columns, as a user would.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from dasm_ray.report.table import (
    Row,
    as_cells,
    as_json,
    best_selection,
    cautions,
    from_json,
    grid,
    hlr,
    ior,
    markdown,
    render,
)

ROWS = [
    Row("distilled", [0.80, 0.82, 0.84], [0.81, 0.82, 0.83]),
    Row("initial", [0.70, 0.71, 0.72], [0.70, 0.70, 0.70], note="zero iterations, same parameterisation"),
    Row("random", [0.60, 0.62, 0.64], [0.60, 0.60, 0.60]),
    Row("k_center", [0.50, 0.52, 0.54], [0.50, 0.50, 0.50]),
    Row("random", [0.70, 0.71, 0.75], [0.70, 0.70, 0.70], labels="expert soft"),
    Row("distilled", [0.86, 0.87, 0.88], [0.85, 0.85, 0.85], labels="expert soft"),
    Row("full", [0.97], [0.98]),
]


def drawn(rows: list[Row], title: str = "") -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(render(rows, title))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def lines_of(text: str) -> dict[str, str]:
    """Each drawn line by its first two words, single spaces between words."""
    split = [line.split() for line in text.splitlines()]
    return {" ".join(words[:2]): " ".join(words) for words in split}


def test_mean_and_sample_standard_deviation() -> None:
    row = Row("distilled", [0.80, 0.82, 0.87])
    assert row.mean == pytest.approx(0.83)
    assert row.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))  # n - 1, not n


def test_one_seed_has_no_spread() -> None:
    assert Row("full", [0.97]).std is None
    assert lines_of(drawn([Row("full", [0.97])]))["full hard"] == "full hard 1 97.0"


def test_ior_is_over_random_images_with_the_same_labels() -> None:
    gains = [ior(row, ROWS) for row in ROWS]
    assert gains == [
        pytest.approx(0.20),
        pytest.approx(0.09),
        None,
        pytest.approx(-0.10),
        None,
        pytest.approx(0.15),
        None,
    ]


def test_hlr_is_below_full_data_and_for_hard_labels_only() -> None:
    gaps = [hlr(row, ROWS) for row in ROWS]
    assert gaps == [
        pytest.approx(0.15),
        pytest.approx(0.26),
        pytest.approx(0.35),
        pytest.approx(0.45),
        None,
        None,
        None,
    ]


def test_nothing_is_compared_with_a_row_that_is_missing() -> None:
    lone = [Row("distilled", [0.8, 0.9], labels="soft"), Row("random", [0.5, 0.6])]
    assert ior(lone[0], lone) is None, "random has other labels"
    assert hlr(lone[1], lone) is None, "there is no full row"
    assert lines_of(drawn(lone))["set labels"] == "set labels seeds test", "a column that knows nothing is not drawn"


def test_the_terminal_form_fits_80_columns_and_cuts_nothing() -> None:
    text = drawn(ROWS, "cifar10, 10 images a class")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "cifar10, 10 images a class" in text
    lines = lines_of(text)
    assert lines["distilled hard"] == "distilled hard 3 82.0 ± 2.0 82.0 ± 1.0 +20.0 +15.0"
    assert lines["random expert"] == "random expert soft 3 72.0 ± 2.6 70.0 ± 0.0 – –"
    assert lines["full hard"] == "full hard 1 97.0 98.0 – –"
    assert "initial, hard labels: zero iterations, same parameterisation" in text


def test_long_names_are_wrapped_and_not_cut() -> None:
    long = [Row("random images of the easiest two thirds", [0.1, 0.2], [0.1, 0.2], labels="mean of 10 experts"), *ROWS]
    text = drawn(long)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(word in text for word in ["easiest", "thirds", "experts"])


def test_square_brackets_are_text_and_not_markup() -> None:
    text = drawn([Row("[bold]x", [0.5, 0.5], note="range [0, 4]")], "[run]")
    assert "[bold]x" in text
    assert "range [0, 4]" in text
    assert "[run]" in text


def test_markdown_holds_the_same_figures() -> None:
    lines = markdown(ROWS, "digits").splitlines()
    assert lines[0] == "## digits"
    assert lines[2] == "| set | labels | seeds | test | validation | IOR | HLR | note |"
    assert lines[3] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    assert lines[4] == "| distilled | hard | 3 | 82.0 ± 2.0 | 82.0 ± 1.0 | +20.0 | +15.0 |  |"
    assert lines[5].endswith("| zero iterations, same parameterisation |")
    assert len(lines[4:]) >= len(ROWS)


def test_markdown_keeps_a_bar_inside_its_cell() -> None:
    assert "a \\| b" in markdown([Row("distilled", [0.5], note="a | b")])


def test_json_holds_every_digit_and_reads_back() -> None:
    tree = as_json(ROWS, "digits")
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert tree["title"] == "digits"
    first, last = tree["rows"][0], tree["rows"][-1]
    assert first["accuracies"] == [0.80, 0.82, 0.84]
    assert (first["mean"], first["std"]) == (pytest.approx(0.82), pytest.approx(0.02))
    assert (first["ior"], first["hlr"]) == (pytest.approx(0.20), pytest.approx(0.15))
    assert (last["std"], last["ior"], last["hlr"]) == (None, None, None)


def test_every_size_and_network_has_its_own_table_gains_and_full_row() -> None:
    rows = [
        Row("idc", [0.80, 0.82], ipc=1, network="convnet", ratio=12.5),
        Row("random", [0.60, 0.62], ipc=1, network="convnet", ratio=50),
        Row("idc", [0.90, 0.92], ipc=10, network="convnet", ratio=1.25),
        Row("random", [0.85, 0.85], ipc=10, network="convnet", ratio=5),
        Row("full", [0.97, 0.97], network="convnet", ratio=1),
        Row("idc", [0.50, 0.52], ipc=1, network="mlp", ratio=12.5),
        Row("random", [0.55, 0.55], ipc=1, network="mlp", ratio=50),
        Row("full", [0.91, 0.91], network="mlp", ratio=1),
    ]
    assert [round(100 * (ior(row, rows) or 0)) for row in rows] == [20, 0, 6, 0, 0, -4, 0, 0]
    assert [round(100 * (hlr(row, rows) or 0)) for row in rows] == [16, 36, 6, 12, 0, 40, 36, 0]
    text = drawn(rows, "toy")
    assert all(len(line) <= 80 for line in text.splitlines())
    heads = [" ".join(line.split()) for line in text.splitlines() if " a class" in line]
    assert heads == [
        "toy, convnet, 1 image a class", "toy, convnet, 10 images a class", "toy, mlp, 1 image a class"
    ]  # fmt: skip
    assert sum(line.split()[:1] == ["full"] for line in text.splitlines()) == 3
    assert "| 10 | convnet | idc |" in markdown(rows)
    assert [row["ratio"] for row in as_json(rows)["rows"]] == [12.5, 50, 1.25, 5, 1, 12.5, 50, 1]


# --- how little the figures may mean ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "tested", "said"),
    [
        (ROWS[:3], 100, []),
        (ROWS[:3], None, []),
        (ROWS[:3], 37, ["The test set has 37 images: a figure moves by 2.7 points with each."]),
        (ROWS, 1000, ["One seed of full: no spread is known."]),
        ([Row("random", [0.5]), Row("full", [0.9])], 1000, ["One seed: no spread is known."]),
        ([Row("full", [0.9])], 99, ["The test set has 99 images: a figure moves by 1.0 points with each.",
                                    "One seed: no spread is known."]),
    ],
    ids=["nothing", "nobody knows", "few images", "one row of one seed", "one seed", "both"],
)  # fmt: skip
def test_few_test_images_and_one_seed_are_said(rows: list[Row], tested: int | None, said: list[str]) -> None:
    assert cautions(rows, tested) == said
    assert as_json(rows, "digits", tested)["cautions"] == said
    assert as_json(rows, "digits", tested)["tested"] == tested
    console = Console(width=300, file=io.StringIO(), color_system=None)
    console.print(render(rows, "digits", tested))
    for text in (console.file.getvalue(), markdown(rows, "digits", tested)):  # type: ignore[attr-defined]
        text = " ".join(text.split())
        assert all(line in text for line in said)
        for words in ("One seed", "a figure moves"):
            assert (words in text) == (words in "".join(said))


def against(*selected: Row) -> list[str]:
    return cautions([Row("distilled", [0.80, 0.82, 0.84], [0.8, 0.8, 0.8]), *selected, Row("full", [0.9] * 3)], 1000)


def test_a_set_that_chosen_real_images_equal_is_said() -> None:
    assert against(Row("herding", [0.70, 0.71, 0.72]), Row("random", [0.9, 0.9, 0.9])) == []
    (better,) = against(Row("selection: herding", [0.82, 0.82, 0.82], note="before k_center"))
    assert better.startswith("herding does at least as well as distilled, 82.0 against 82.0")
    (close,) = against(Row("herding", [0.79, 0.80, 0.81]))  # 2 points, errors 1.2 and 0.6: 1.3 together
    assert close.startswith("distilled is not shown to be above herding, 82.0 against 80.0")
    assert against(Row("herding", [0.788, 0.790, 0.792])) == []  # 3 points are more than two errors of 1.16


def test_a_set_that_its_own_start_equals_is_said() -> None:
    assert against(Row("initial", [0.81, 0.81, 0.81])) == []
    (lost,) = against(Row("initial", [0.9, 0.9, 0.9]), Row("initial", [0.7, 0.7, 0.7], labels="soft"))
    assert lost.startswith(
        "initial, the real images that distilled starts as, does at least as well, 90.0 against 82.0"
    )


def test_the_best_selection_is_the_one_that_validation_prefers_at_this_size() -> None:
    made = Row("idc", [0.8, 0.8], [0.8, 0.8], ipc=1)
    rows = [
        Row("herding", [0.85, 0.85], [0.6, 0.6], ipc=1),
        Row("k_means", [0.75, 0.75], [0.7, 0.7], ipc=1),
        Row("k_center", [0.90, 0.90], [0.9, 0.9], ipc=10),
        Row("ccs", [0.90, 0.90], [0.9, 0.9], ipc=1, labels="soft"),
    ]
    best = best_selection(made, [made, *rows])
    assert best is rows[1]
    assert best_selection(made, [made]) is None
    assert cautions([made, rows[1]], None) == []


def test_sentences_of_both_kinds_of_labels_name_them() -> None:
    rows = [
        Row(name, [share, share], labels=labels, ipc=1)
        for labels in ("hard", "soft")
        for name, share in (("idc", 0.5), ("herding", 0.6))
    ]
    assert [sentence.partition(":")[0] for sentence in cautions(rows, None)] == [
        f"herding does at least as well as idc (1 image a class, {labels} labels), 60.0 against 50.0"
        for labels in ("hard", "soft")
    ]
    starts = [replace(row, name={"idc": "distilled", "herding": "initial"}[row.name], ipc=None) for row in rows]
    for labels, said in zip(("hard", "soft"), cautions(starts, None), strict=True):
        assert f"does at least as well ({labels} labels), 60.0" in said


def test_a_table_of_several_sizes_says_it_once() -> None:
    rows = [Row("random", [0.5], ipc=1), Row("random", [0.6], ipc=2)]
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(render(rows, "", 10))
    assert console.file.getvalue().count("One seed") == 1  # type: ignore[attr-defined]
    assert console.file.getvalue().count("moves by 10.0 points") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("accuracies", "is_said"), [([0.5], True), ([0.5, 0.6], False)])
def test_a_grid_of_one_seed_says_so(accuracies: list[float], is_said: bool) -> None:
    table = grid("uses", ["4 classes"], {"random": [accuracies]}, "Test accuracy in %.")
    assert str(table.caption).endswith("One seed: no spread is known.") == is_said


def test_cells_are_those_of_the_markdown() -> None:
    rows = [Row("distilled", [0.5, 0.6], note="9 steps"), Row("random", [0.4])]
    headings, cells = as_cells(rows)
    lines = [line[2:-2].split(" | ") for line in markdown(rows).splitlines() if line.startswith("|")]
    assert [list(headings), *cells] == [lines[0], *lines[2:]]


def test_rows_come_back_from_plain_values() -> None:
    rows = [Row("distilled", [0.5, 0.6], [0.4, 0.5], "soft", "9 steps", 10, "mlp", 2.5), Row("full", [0.9])]
    found = from_json(json.loads(json.dumps(as_json(rows))))
    assert as_json(found) == as_json(rows)
