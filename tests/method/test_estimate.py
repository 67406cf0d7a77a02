"""What a run will take: counts are exact, times are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_pool import WALKS, again, local_run, small

from dasm_ray.config.gains import Size, verdict
from dasm_ray.method.dasm import distil
from dasm_ray.method.estimate import (
    Estimate,
    Stage,
    _compiling,
    _memory_keys,
    estimate,
    shortage,
    work_ahead,
    work_of,
)
from dasm_ray.method.experts import train_experts
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Pace

LANES: dict[str, Any] = {"name": "idc", "rounds": 1, "networks": 2, "batch_real": 8, "snapshots": [[0, 3]], "lanes": 3}


def test_work_in_waves() -> None:
    assert Stage("distil", 5, 10.0).wall(2) == 6.0
    assert Stage("distil", 5, 10.0).wall(50) == 2.0


@pytest.mark.parametrize(
    ("sections", "tasks", "moved"),
    [
        ({}, 2, 2 * 8 * 5 * 1 * 64),
        ({"matcher": {"name": "cafe", "rounds": 1}, "synthetic": {"group_size": None}}, 1, 2 * 8 * 10 * 1 * 64),
        (WALKS, 2, 10 * 1 * (64 + 10) * 8),
        ({"matcher": LANES}, 2 * 3, 5 * 64 * (8 * 1 + 4 * 1)),
    ],
    ids=["groups", "all classes at once", "lanes", "lanes of groups"],
)
def test_tasks_and_bytes_follow_from_the_configuration(
    digits: RealRefs, tmp_path: Path, sections: dict[str, Any], tasks: int, moved: int
) -> None:
    found = estimate(local_run(small(**sections), tmp_path, digits))
    assert [stage.name for stage in found.stages] == ["experts", "distil", "evaluate"]
    assert found.stages[1].tasks == tasks
    assert found.moved_each_round == moved
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.useful_workers == max(stage.tasks for stage in found.stages)
    assert (found.device_memory, found.worker_memory > 0) == (0, True)


def test_an_estimate_keeps_nothing(digits: RealRefs, tmp_path: Path) -> None:
    estimate(local_run(small(), tmp_path / "run", digits))
    assert not (tmp_path / "run").exists()


def test_work_is_counted_step_by_step() -> None:
    """Against a loop over all that is done."""
    config = small(synthetic={"factor": 2, "ipc": 4}, matcher={"batch_syn": 12, "steps": 3, "rounds": 2, "networks": 5})
    steps = images = 0
    for _ in range(2 * 2 * 5 * 3):  # segments, rounds, states, steps
        for _ in range(10):
            steps += 1
            images += 8 + min(12 // 4, 2) * 4  # real, and a segment's two slots of four
    assert work_of(config, 10) == (steps, images)
    assert work_of(small(matcher=LANES), 10) == (2 * 1 * 2 * 3 * 10, 2 * 1 * 2 * 3 * 10 * (8 + 1))
    walks = small(**WALKS)
    assert work_of(walks, 10) == (2 * 2 * 2 * 3, 2 * 2 * 2 * 3 * 10)


def test_the_work_ahead_is_told_by_the_titles_of_the_stages(digits: RealRefs, tmp_path: Path) -> None:
    """Under another title a stage would not be timed."""
    config = small(matcher={"polish": 0.5, "rounds": 2, "networks": 1, "scale_lr": False, "snapshots": [[0, 3]]})
    run = local_run(config, tmp_path, digits)
    told: list[dict[str, Any]] = []
    run.progress.listen(lambda **event: told.append(event))
    distil(run, train_experts(run))
    ahead = work_ahead(run)
    titles = [f"{event['stage']} {event['detail']}".strip() for event in told if event["kind"] == "stage"]
    assert [title for title in titles if title in ahead] == list(ahead)[:-1]
    assert list(ahead) == ["experts", "distil segment 1 of 2", "distil segment 2 of 2", "distil polish", "evaluate"]
    assert sum(images for title, images in ahead.items() if "distil" in title) == work_of(config, 10).images
    training = int(digits.counts["train"].sum())
    assert ahead["experts"] == 2 * (3 * training // 128) * 128


@pytest.mark.parametrize(
    ("name", "memory", "keys"),
    [
        ("idc", (5, 6, 7), "set matcher.micro, or lower it"),
        ("idc", (5, 7, 7), "lower experts.batch and evaluate.batch"),
        ("mtt", (5, 6, 7), "lower trajectory.batch"),
    ],
)
def test_what_bounds_the_memory_of_a_worker_is_named(name: str, memory: tuple[int, ...], keys: str) -> None:
    config = small(**WALKS) if name == "mtt" else small()
    assert _memory_keys(config, [Pace((), 0.1, 1, each, 0) for each in memory]) == keys


def test_more_workers_than_memory_are_seen() -> None:
    found = Estimate((), 4 << 30, "set matcher.micro, or lower it", *[0] * 6, (0.0, 0.0))
    assert shortage(found, 2, 8 << 30) is None
    assert shortage(found, 3, 8 << 30) == "set matcher.micro, or lower it; or set runtime.workers to 2"
    assert shortage(found, 1, 3 << 30) == "set matcher.micro, or lower it"


def test_compiling_is_counted_where_steps_are_compiled(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    assert estimate(run).compiling == (0, 0)
    compiled = small(runtime={"compile": True})
    found = verdict(compiled, Size(**{s: int(c.sum()) for s, c in digits.counts.items()}, classes=10, shape=(1, 8, 8)))
    assert _compiling(again(run, compiled)) == (found.cold, found.warm)
    assert found.cold > found.warm > 0
    of_trainings = _compiling(again(run, small(runtime={"compile": "trainings"})))
    assert 0 < of_trainings[0] < found.cold
    assert 0 < of_trainings[1] < found.warm
    assert _compiling(again(run, small(runtime={"compile": None}))) == (0, 0), "small networks are not compiled"
