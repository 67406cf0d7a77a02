"""The notebooks of docs/notebooks: their cells run one after another, and end where their words say."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def run_cells(name: str) -> tuple[dict[str, Any], list[Any]]:
    """The names that all cells leave, and what each shows: the value of its last line, if that is one."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "notebooks are kept without outputs"
            *body, last = ast.parse("".join(cell["source"])).body
            is_value = isinstance(last, ast.Expr)
            exec(compile(ast.Module([*body, *[last] * (not is_value)], []), name, "exec"), names)
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names) if is_value else None)  # type: ignore[attr-defined]
    return names, shown


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_own_photographs_make_a_network_that_knows_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, shown = run_cells("own_photographs")
    assert names["images"].shape == (240, 32, 32, 3)
    assert "flower" in shown[1]._repr_html_()
    assert names["train"].classes == ("temple", "flower")
    assert shown[-1] == names["accuracy"] > 0.7, "guessing gets half"


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_the_set_is_a_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names, _ = run_cells("memory")
    assert set(names["found"]) == {(m, p) for m in ("distilled", "random") for p in ("5 classes", "10 classes")}
    assert "40 images of 5 classes, 256 bytes each" in capsys.readouterr().out
