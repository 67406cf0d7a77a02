"""The table of ways to choose real images: each reads something that there is, and can be asked for everywhere."""

from __future__ import annotations

import pytest

from dasm_ray.cli import main
from dasm_ray.config.keys import ROWS
from dasm_ray.config.parsing import parse_config
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.core.difficulty import SCORES


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_way_reads_features_crops_or_a_score_and_can_be_a_row(name: str) -> None:
    assert SELECTIONS[name].reads in {"features", "crops", "forgetting", *SCORES}
    assert parse_config({"evaluate": {"rows": ["distilled", "random", name]}}).evaluate.rows[-1] == name


def test_the_table_of_rows_and_the_command_line_list_every_way() -> None:
    assert [row for row in ROWS if row in SELECTIONS] == list(SELECTIONS)
    (method,) = (parameter for parameter in main.commands["select"].params if parameter.name == "method")
    assert list(method.type.choices) == ["random", *SELECTIONS]  # type: ignore[attr-defined]
