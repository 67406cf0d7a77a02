"""What a run will take: counts are exact, times are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from local_pool import WALKS, again, fetch, local_run, small

from dasm_ray.config.gains import Size, verdict
from dasm_ray.core.matching import round
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks import expert
from dasm_ray.method.dasm import distil
from dasm_ray.method.estimate import (
    Estimate,
    Stage,
    _compiling,
    _evaluation,
    _memory_keys,
    _size,
    count_of,
    estimate,
    shortage,
    work_ahead,
    work_of,
)
from dasm_ray.method.experts import train_experts
from dasm_ray.runtime import worker
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Pace, Worker

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
    assert [stage.name for stage in found.stages] == ["experts", "probes", "distil", "evaluate"]
    assert found.stages[2].tasks == tasks
    assert found.moved_each_round == moved
    assert all(stage.seconds > 0 for stage in found.stages)
    assert found.useful_workers == max(stage.tasks for stage in found.stages)
    assert (found.device_memory, found.worker_memory > 0) == (0, True)


RESIDUAL: dict[str, Any] = {"rounds": 2, "networks": 2, "steps": 2, "batch_real": 8, "context": "residual"}
COUNTED: dict[str, dict[str, Any]] = {
    "idc": {"matcher": {"name": "idc", "network": "train", "inner_samples": 200, "polish": 0.5, **RESIDUAL}},
    "idc at experts": {"matcher": RESIDUAL, "synthetic": {"group_size": 3}},
    "dsa": {"matcher": {"name": "dsa", "inner_steps": 4, **RESIDUAL}},
    "cafe": {"matcher": {"name": "cafe", **RESIDUAL}, "synthetic": {"group_size": None}},
    "dm": {"matcher": {"name": "dm", "bank_share": 0.5, **RESIDUAL}, "synthetic": {"group_size": 3}},
    "lanes": {"matcher": {"name": "dm", "lanes": 2, **RESIDUAL}},
    "union": {"matcher": {"name": "dm", **RESIDUAL, "batch_syn": 1, "context": "union"}, "synthetic": {"ipc": 4}},
    "mtt": WALKS | {"matcher": {"name": "mtt", "rounds": 2, "augment": "crop", "bank_share": 0.5}},
}


@pytest.mark.parametrize("sections", COUNTED.values(), ids=COUNTED)
def test_steps_are_counted_as_a_run_takes_them(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    """Against a run: each training step, matching step, and batch of earlier segments."""
    taken: Counter[str] = Counter()

    def counted(module: ModuleType, name: str, kind: str) -> None:
        plain = getattr(module, name)

        def training(*given: Any, **more: Any) -> Iterator[Any]:
            for state in plain(*given, **more):
                taken[kind] += 1
                yield state

        def call(*given: Any, **more: Any) -> Any:
            taken[kind] += 1
            return plain(*given, **more)

        monkeypatch.setattr(module, name, training if name == "train" else call)

    for module, name, kind in (
        *((expert, "train", "bank"), (worker, "train", "probe"), (round, "train", "inner")),
        *((round.Loop, "stepped", "matching"), (round.Loop, "_mean_of", "earlier"), (Student, "backward", "matching")),
    ):
        counted(module, name, kind)
    run = local_run(small(**sections), tmp_path, digits)
    experts = train_experts(run)
    taken.clear()
    distil(run, experts)
    found = count_of(run.config, _size(run))._asdict()
    assert taken == Counter({kind: many for kind, many in found.items() if kind != "experts"})


@pytest.mark.parametrize("kind", ["idc", "dm", "mtt"])
def test_each_kind_of_step_is_timed(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At a second a step a stage takes as many seconds as it has steps."""
    monkeypatch.setattr(worker, "_paced", lambda _, network, once: Pace((), 1.0 + 0 * float(once()), 1, 0, 0))
    sections = {name: dict(section) for name, section in COUNTED[kind].items()}
    sections["matcher"]["bank_share"] = 0.5
    run = local_run(small(**sections), tmp_path, digits)
    count, found = count_of(run.config, _size(run)), estimate(run)
    seconds = {stage.name: stage.seconds for stage in found.stages}
    table = seconds.pop("evaluate")
    in_distilling = count.inner + count.matching + count.earlier
    assert seconds == {"experts": count.experts, "probes": count.probe, "bank": count.bank, "distil": in_distilling}
    assert table == _evaluation(run.config, 10, int(digits.counts["train"].sum()), 1.0, 1.0)[1]


def test_a_step_is_timed_on_the_classes_of_a_group(digits: RealRefs, tmp_path: Path) -> None:
    for name, classes in (("dm", (0, 1, 2)), ("idc", (0,)), ("cafe", tuple(range(10)))):
        synthetic = {"group_size": None if name == "cafe" else 3}
        run = local_run(small(matcher={"name": name, "batch_real": 8}, synthetic=synthetic), tmp_path, digits)
        timed = Worker(1, fetch)
        loop = timed._loop_of_steps(timed._network(run.job), run.job)
        assert (loop.where.classes, loop.together) == (classes, [list(classes)])


def test_a_training_is_timed_on_no_more_images_than_there_are(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[str, int]]] = {"train": []}
    plain = worker.train

    def train(network: Any, samples: Any, recipe: Any, **more: Any) -> Any:
        seen["train"].append((recipe.augment, min(recipe.batch, len(samples))))
        return plain(network, samples, recipe, **more)

    monkeypatch.setattr(worker, "train", train)
    matcher = {"name": "dsa", "rounds": 1, "networks": 1, "steps": 2, "augment": "crop", "batch_real": 8}
    estimate(local_run(small(matcher=matcher, evaluate={"batch": 64}, probe={"batch": 50}), tmp_path, digits))
    usual = "color_crop"
    assert seen["train"] == [(usual, 128), (usual, 20), (usual, 64), (usual, 20), ("crop", 20)]


def test_rows_of_soft_labels_are_tasks_of_the_table() -> None:
    """As many trainings as rows are shown: the three of a set that learned labels stand there twice."""
    rows = len(small().evaluate.rows)
    assert _evaluation(small(), 10, 1000, 1.0, 1.0)[0] == 2 * rows
    tasks, seconds = _evaluation(small(**WALKS), 10, 1000, 1.0, 0.0)
    assert tasks == 2 * (rows + 3)
    assert seconds == 2 * (rows - 1 + 3) * (3 * 20 // 20)


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
