"""What programs call: light to import, found by dir() and help(), and the same results as of the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import SMALL
from sklearn.datasets import load_digits

import dasm_ray
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError, DasmError, DataError, RunDirError
from dasm_ray.store.place import Place

TREE: dict[str, Any] = yaml.safe_load(SMALL)

LIGHT = """
import json, sys, dasm_ray
names = dir(dasm_ray)
heavy = {"torch", "ray", "numpy", "pyarrow", "matplotlib"}
print(json.dumps([names, sorted(heavy & set(sys.modules)), dasm_ray.__doc__]))
"""


def test_importing_is_light_and_dir_lists_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=True)
    names, loaded, text = json.loads(done.stdout)
    assert loaded == []
    assert names == sorted([*dasm_ray.__all__, "__version__"])
    told = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert told >= set(dasm_ray.__all__), "help() begins with all of them"
    for name in dasm_ray.__all__:
        assert getattr(dasm_ray, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        dasm_ray.destill  # noqa: B018


def test_report_is_the_function_also_once_its_sub_package_was_imported() -> None:
    import dasm_ray.report.wording
    from dasm_ray.report.webpage import PAGE

    assert PAGE == "report/index.html"
    assert dasm_ray.report.__module__ == "dasm_ray.api"


# --- recipes -----------------------------------------------------------------------------------------------------


def test_a_recipe_is_the_same_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    expected = parse_config(TREE)
    for form in (str(tmp_path / "small.yaml"), tmp_path / "small.yaml", TREE, expected):
        assert dasm_ray.load_config(form) == expected


def test_a_text_alone_is_one_change() -> None:
    assert dasm_ray.load_config(TREE, "matcher.rounds=9") == dasm_ray.load_config(TREE, ["matcher.rounds=9"])


@pytest.mark.parametrize("changes", [{"matcher.rounds": 9, "data.path": "a b"}, ["matcher.rounds=9", "data.path=a b"]])
def test_keys_are_changed_by_a_mapping_or_by_texts_and_the_original_is_left_alone(changes: Any) -> None:
    before = json.dumps(TREE)
    found = dasm_ray.load_config(TREE, changes)
    assert (found.matcher.rounds, found.data.path) == (9, "a b")
    assert json.dumps(TREE) == before
    config = parse_config(TREE)
    assert dasm_ray.load_config(config, changes) == found
    assert config.matcher.rounds == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"matcher.round": 9}, "did you mean 'rounds'"), ({"data.path": object()}, "not JSON serializable")],
)
def test_what_is_wrong_with_a_key_is_said(changes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dasm_ray.load_config(TREE, changes)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dasm_ray.load(3), "3 names no place: int is no path"),
        (lambda: dasm_ray.load(b"runs/x"), "names no place: bytes is no path"),
        (lambda: dasm_ray.load_config(3), "config: 3 is no recipe"),
        (lambda: dasm_ray.load_config(None), "config: None is no recipe"),
        (lambda: dasm_ray.load_config(TREE, 3), "set: 3 must be a text or a list of texts"),
        (lambda: dasm_ray.load_config(TREE, "seed\udce9=1"), r"--set seed\\xe9=1: is not UTF-8; write it so"),
        (lambda: dasm_ray.load("d\udce9"), r"d\\xe9: the name is not UTF-8; rename it"),
        (lambda: dasm_ray.load_config(TREE, [3]), r"set: \[3\] must be a text or a list of texts"),
        (lambda: dasm_ray.distill(TREE, ipc="2"), "ipc: '2' must be a whole number"),
        (lambda: dasm_ray.distill(TREE, ipc=True), "ipc: True must be a whole number"),
        (lambda: dasm_ray.distill(TREE, seed="2"), "seed: .* not '2'"),
        (lambda: dasm_ray.distill(TREE, 3), "3 names no place"),
        (lambda: dasm_ray.distill(TREE, on_event=3), "on_event: 3 cannot be called"),
        (lambda: dasm_ray.distill(TREE, class_names=[1], data=([], [])), r"class_names: \[1\] must be"),
        (lambda: dasm_ray.compare(3), "config: 3 is no recipe"),
        (lambda: dasm_ray.compare(TREE, 3), "3 names no place"),
        (lambda: dasm_ray.compare(TREE, ipcs="12"), "ipcs: '1' must be a whole number"),
        (lambda: dasm_ray.compare(TREE, labels="sft"), "--labels sft: there is no such choice"),
        (lambda: dasm_ray.evaluate(3), "3 names no place"),
        (lambda: dasm_ray.evaluate("x", data_path=3), "3 names no place"),
        (lambda: dasm_ray.evaluate("x", network=3), "network: .3. must be"),
        (lambda: dasm_ray.audit("x", "8"), "networks: '8' must be a whole number"),
        (lambda: dasm_ray.incremental("x", 2.5), "steps: 2.5 must be a whole number"),
        (lambda: dasm_ray.report(3), "3 names no place"),
        (lambda: dasm_ray.report("x", to=3), "3 names no place"),
    ],
)
def test_an_argument_of_a_wrong_type_is_a_sentence(call: Any, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DasmError, match=said):
        call()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class_names: are those of data"):
        dasm_ray.distill(TREE, tmp_path / "run", class_names=["a"])
    with pytest.raises(DataError, match="there are 2 images and 1 label;"):
        dasm_ray.distill(TREE, tmp_path / "run", data=(np.zeros((2, 8, 8), np.uint8), [0]))
    with pytest.raises(ConfigError, match="names no run"):
        dasm_ray.report()
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_program_lie_beside_the_run_also_where_its_uri_has_options(s3_proxy: Any, tmp_path: Path) -> None:
    """They are kept before the run directory is taken, which another run has here."""
    where = f"?endpoint_override=127.0.0.1:{s3_proxy.server_port}&scheme=http"
    run = Place(f"s3://bucket/{tmp_path.name}/run{where}")
    (run / "something").write_text("of somebody else")
    with pytest.raises(RunDirError, match="so it is not a run directory"):
        dasm_ray.distill(TREE, run, data=(np.arange(960).reshape(15, 8, 8) % 256, np.arange(15) % 3))
    assert run.parent.names() == ["run", "run-data"]
    assert len(Place(f"s3://bucket/{tmp_path.name}/run-data{where}").names()) == 1


# --- a whole run -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_images_in_memory_from_arrays_to_table_page_and_evaluation(tmp_path: Path) -> None:
    scans = load_digits()
    images = (scans.images / 16 * 255).round().astype(np.uint8)[:600]
    events: list[dict[str, Any]] = []
    given: dict[str, Any] = {"data": (images, scans.target[:600]), "ipc": 1, "seed": 3, "on_event": events.append}
    result = dasm_ray.distill(TREE, tmp_path / "run", class_names=[f"digit {n}" for n in range(10)], **given)
    kinds = {event["kind"] for event in events}
    assert {"stage", "progress", "task"} <= kinds
    train = dasm_ray.load(result.place.uri)
    assert train.classes == tuple(f"digit {n}" for n in range(10))
    assert len(train) == 10 * 4
    shown = result._repr_html_()
    assert "distilled" in shown
    assert "digit 9" in shown
    heard = len(events)
    again = dasm_ray.distill(TREE, tmp_path / "run", class_names=[f"digit {n}" for n in range(10)], **given)
    assert (again.digest, len(events)) == (result.digest, heard), "what is done is given back"
    evaluated = dasm_ray.evaluate(result, {"evaluate.rows": ["distilled", "random"]}, seeds=2)
    assert [len(row.accuracies) for row in evaluated.rows if row.name == "distilled"] == [2]
    page = dasm_ray.report(result, to=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().lstrip().startswith("<!doctype html>")
    assert "iframe" in page._repr_html_()
    assert str(page) == str(Place(tmp_path / "page.html"))


@pytest.mark.usefixtures("ray_session")
def test_what_a_listener_raises_ends_the_run_which_can_go_on(tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        dasm_ray.distill(TREE, tmp_path / "run", on_event=stop)
    assert isinstance(dasm_ray.load_config(tmp_path / "run" / "config.yaml"), RunConfig)
