"""A board reads as the log does, by TensorBoard's own reader; what fails on it costs a run nothing."""

from __future__ import annotations

import importlib.util
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError
from dasm_ray.report.board import FOLDER, Board, board_of, check_board, tag
from dasm_ray.report.gathered import gather
from dasm_ray.report.page import draw_few
from dasm_ray.store.artifact import read_artifact
from dasm_ray.store.events import read_events
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir

ASKED = parse_config({"data": {"name": "digits"}, "runtime": {"tensorboard": True}})


def read(run: Path) -> Any:
    """The event files of a run, as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(run / FOLDER), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A run that is there, whose log is told to a board once more."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def told(run: Path) -> None:
    place = Place(run)
    events = list(read_events(place))
    (run / "events.jsonl").unlink()  # at the start of a run the log is empty
    board = Board(RunDir.read(place).config, place)
    for event in events:
        board({name: value for name, value in event.items() if name != "time"})
    kept = gather(place, looks_at_data=False)
    assert kept.artifact is not None
    board.finish(kept.artifact, kept.rows)
    board.close()


def test_curves_and_images_are_those_of_the_run(run: Path) -> None:
    events = list(read_events(Place(run)))
    told(run)
    board = read(run)
    curves = {name: [(each.step, each.value) for each in board.Scalars(name)] for name in board.Tags()["scalars"]}
    for segment in ("segment 1 of 2", "segment 2 of 2"):
        logged = [
            (each["done"], each["distance"]) for each in events if each.get("detail") == segment and "distance" in each
        ]
        curve = curves[tag(f"distance/distil {segment}")]
        assert [step for step, _ in curve] == [step for step, _ in logged]
        np.testing.assert_allclose([value for _, value in curve], [value for _, value in logged], rtol=1e-6)
        assert tag(f"samples_per_second/distil {segment}") in curves
    accuracies = [each["accuracy"] for each in events if each["kind"] == "probe"]
    np.testing.assert_allclose([value for _, value in curves["probe/accuracy"]], accuracies, rtol=1e-6)
    assert [step for step, _ in curves["probe/accuracy"]] == [0, 1]
    rows = gather(Place(run), looks_at_data=False).rows
    for row in rows:
        ((step, value),) = curves[tag(f"accuracy/{row.name} {row.labels}")]
        assert step == 2
        assert value == pytest.approx(row.mean, rel=1e-6)
    assert [each.step for each in board.Images("images/segments")] == [1, 2]
    (whole,) = board.Images("images/set")
    drawn = Image.open(io.BytesIO(draw_few(read_artifact(Place(run) / "synthetic"))[0]))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(whole.encoded_image_string)).convert("L")), drawn)
    first = Image.open(io.BytesIO(board.Images("images/segments")[0].encoded_image_string))
    assert (first.width * 2, first.height) == drawn.size, "one image of each class, of two"


def test_a_later_driver_goes_on_where_the_curves_are(run: Path) -> None:
    board = Board(ASKED, Place(run))
    board({"kind": "probe", "accuracy": 0.5})
    board({"kind": "workers", "workers": 2, "lost": 1})
    board.close()
    found, events = read(run), list(read_events(Place(run)))
    assert [each.step for each in found.Scalars("probe/accuracy")] == [2]
    tasks = sum(each["kind"] == "task" for each in events)
    assert [(each.step, each.value) for each in found.Scalars("workers/lost")] == [(tasks, 1.0)]


def test_a_board_that_cannot_be_written_costs_a_run_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("a file in its place")
    with board_of(ASKED, Place(tmp_path)) as board:
        assert board is not None
        board({"kind": "probe", "accuracy": 0.5})
        board({"kind": "probe", "accuracy": 0.5})
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / FOLDER}: cannot be written (")
    assert (tmp_path / FOLDER).read_text() == "a file in its place"


def test_a_run_that_could_not_begin_has_no_folder(tmp_path: Path) -> None:
    with board_of(ASKED, Place(tmp_path)) as board:
        assert board is not None
        board({"kind": "note", "text": "2 workers"})
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_asks_for_none_has_none(tmp_path: Path) -> None:
    with board_of(parse_config({"data": {"name": "digits"}}), Place(tmp_path)) as board:
        assert board is None
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_had_is_said_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_board(ASKED, Place(tmp_path))
    with pytest.raises(
        ConfigError, match=r"^runtime.tensorboard: writes to folders of this machine only, and s3://b/run"
    ):
        check_board(ASKED, Place("s3://b/run"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^runtime.tensorboard: needs TensorBoard; pip install 'dasm-ray\[tensorboard"
    ):
        check_board(ASKED, Place(tmp_path))
    check_board(parse_config({"data": {"name": "digits"}}), Place(tmp_path))
