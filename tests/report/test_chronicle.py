"""What is read out of the log of a run, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from dasm_ray.report.chronicle import Chronicle, Stage, Work, chronicle, kind_of


def at(time: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "kind": kind, **fields}


def stage(time: float, name: str, total: int = 2, detail: str = "", done: int = 0) -> dict[str, Any]:
    return at(time, "stage", stage=name, detail=detail, total=total, done=done)


SITTING = [
    at(100.0, "note", text="found"),
    stage(101.0, "data"),
    at(102.0, "progress", stage="data", done=2, total=2),
    at(103.0, "stage_end", stage="data", done=2, seconds=2.0),
    stage(103.0, "distil", 4, "segment 2 of 3"),
    at(105.0, "task", task="round 0", worker=1, seconds=1.5),
    at(105.0, "progress", stage="distil", detail="segment 2 of 3", done=1, total=4, distance=0.5),
    at(106.0, "task", task="round 1", worker=2, seconds=2.0, lost="node gone"),
    at(106.0, "workers", workers=1, lost=1),
]


def test_stages_tasks_and_distances() -> None:
    told = chronicle(SITTING)
    assert told.stages == [Stage("data", "", 0.0, 2.0, 2, 2), Stage("distil", "segment 2 of 3", 2.0, 5.0, 1, 4)]
    assert [each.is_whole for each in told.stages] == [True, False]
    assert told.work == [Work("round 0", 1, 2.5, 4.0), Work("round 1", 2, 3.0, 5.0, "node gone")]
    assert told.distances == {1: [(1, 0.5)]}
    assert (told.losses, told.workers, told.seconds, told.last) == (1, 2, 5.0, 106.0)
    assert told.by_stage == {"data": 2.0, "distil": 3.0}


def test_time_between_two_sittings_is_left_out_and_workers_are_others() -> None:
    later = [{**event, "time": event["time"] + 10_000} for event in SITTING]
    told = chronicle([*SITTING, *later])
    assert (told.seconds, told.resumed, told.losses) == (10.0, [5.0], 2)
    assert [task.worker for task in told.work] == [1, 2, 3, 4]
    assert told.workers == 2, "no more than two were there at once"
    assert told.stages[2] == Stage("data", "", 5.0, 7.0, 2, 2)


OPENED = "digits: 2 workers of 1 core and 0 GPUs on this machine, results in runs/digits"
FOUND = at(100.0, "data", name="digits")  # images that were kept: no stage finds them
DISTILLED = [
    stage(101.0, "distil", 4, "segment 1 of 1"),
    at(105.0, "stage_end", stage="distil", detail="segment 1 of 1", done=4),
]


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        pytest.param([at(99.0, "begin"), at(99.0, "note", text=OPENED), FOUND], 6.0, id="begin"),
        pytest.param([at(99.0, "note", text=OPENED), at(99.0, "task", task="pace", worker=1)], 6.0, id="note"),
        pytest.param([at(99.0, "note", text="data digits"), FOUND], 5.0, id="data"),
    ],
)
def test_however_a_driver_begins_the_pause_before_it_is_no_work(first: list[dict[str, Any]], seconds: float) -> None:
    sitting = [*first, *DISTILLED]
    hours = [{**event, "time": event["time"] + 8 * 3600} for event in sitting]
    told = chronicle([*sitting, *hours])
    assert (told.seconds, told.resumed, told.by_stage) == (2 * seconds, [seconds], {"distil": 8.0})
    killed = [*sitting[:-1], at(103.0, "progress", stage="distil", done=2, total=4), *hours]
    assert chronicle(killed).by_stage == {"distil": 6.0}, "a stage that was broken off ends with its last line"


def test_a_driver_that_did_nothing_is_no_sitting() -> None:
    idle = [at(5000.0, "begin"), at(5001.0, "note", text=OPENED), at(9000.0, "begin")]
    later = [{**event, "time": event["time"] + 8900} for event in SITTING]
    told = chronicle([at(100.0, "begin"), *SITTING, *idle, *later])
    assert (told.resumed, told.seconds) == ([6.0], 12.0)


def test_probes_and_the_data() -> None:
    told = chronicle([at(1, "data", name="digits", counts={"train": [1, 2]}), at(2, "probe", accuracy=0.25)])
    assert told.found == {"name": "digits", "counts": {"train": [1, 2]}}
    assert told.probes == [0.25]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"time": "now", "kind": "stage"},
        {"time": float("nan"), "kind": "stage"},
        {"time": 1, "kind": ["stage"]},
        {"time": 1, "kind": "take"},
        {"time": True, "kind": "probe", "accuracy": 0.5},
    ],
)
def test_lines_of_others_are_passed_over(event: dict[str, Any]) -> None:
    told = chronicle([event])
    assert (told.stages, told.work, told.probes) == ([], [], [])


def test_values_of_odd_types_are_read_as_nothing() -> None:
    odd = {"stage": ["x"], "detail": 3, "total": "many", "done": None, "distance": "near", "worker": {}, "seconds": []}
    told = chronicle([at(time, kind, **odd) for time, kind in enumerate(("stage", "progress", "task", "stage_end"))])
    assert told.stages == [Stage("", "", 0.0, 3.0, 0, 0)]
    assert told.work == [Work("", 0, 2.0, 2.0)]
    assert told.distances == {}


def test_an_empty_log() -> None:
    assert chronicle([]) == Chronicle()


def test_kinds_of_stages() -> None:
    names = ("scores before segment 2", "static scores", "distil")
    assert [kind_of(name) for name in names] == ["scores", "scores", "distil"]
