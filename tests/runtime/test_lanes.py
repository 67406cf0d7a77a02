"""Rounds of lanes on real workers: as in one process, checkpoints, going on and back, stopping when they explode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_pool import LocalPool, local_real

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.matching.lane import draw_start, moved, walk_lane
from dasm_ray.core.matching.setstate import SetState, whole
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks.network import Network
from dasm_ray.errors import NonFinite, SessionError, TaskLost
from dasm_ray.runtime import lanes as module
from dasm_ray.runtime import worker as worker_module
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.lanes import Guides, LaneRun
from dasm_ray.runtime.pool import Done, InputLost, Pool, Task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.worker import Job, Worker
from dasm_ray.store.checkpoints import read_group, write_group
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

ROUNDS, M = 3, 2


def config_with(**trajectory: object) -> RunConfig:
    return parse_config(
        {
            "data": {"name": "digits"},
            "model": {"width": 4, "depth": 1},
            "synthetic": {"ipc": M, "segments": 1},
            "experts": {"epochs": 4},
            "matcher": {"name": "datm", "rounds": ROUNDS, "augment": "crop"},
            "trajectory": {"steps": 3, "batch": 10, "lanes": 2, "starts": [[0, 1, 3]], "threshold": 100, **trajectory},
            "runtime": {"compile": False, "checkpoint_seconds": 0},
        }
    )


@pytest.fixture(scope="module")
def real() -> RealRefs:
    return local_real(config_with())


@pytest.fixture
def pool() -> LocalPool:
    return LocalPool()


class Run:
    """A segment of digits with two experts, and the same by hand."""

    def __init__(self, real: RealRefs, pool: Any, folder: Path, config: RunConfig, spoil: float = 0.0) -> None:
        self.config, self.job, self.pool = config, Job(config, real, "cpu"), pool
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(10, M, 1, 8, 8, generator=generator).numpy()
        logits = torch.randn(10, M, 10, generator=generator).numpy()
        self.state = SetState.at_rest(pixels, logits, -3.0)
        self.earlier = (pixels[:, :1] / 2, logits[:, :1] / 2)
        self.network = Network(config.model, real.shape, 10, real.mean, real.std, compile=False)
        ways = [torch.stack([self.network.initial(generator) for _ in range(5)]) for _ in range(2)]
        self.experts = [way.numpy() + np.float32(spoil) for way in ways]
        progress = Progress(live=False)
        progress.stage("distil", 1)
        self.read = 0
        self.run = LaneRun(
            self.job,
            pool,
            progress,
            Place(folder),
            "key",
            0,
            self.state,
            self.earlier,
            self.references(),
            self.references,
            0,
        )

    def references(self) -> Guides:
        """The experts, as if from their files."""
        self.read += 1
        return Guides([self.pool.put(expert) for expert in self.experts])

    def by_hand(self) -> SetState:
        """All rounds one lane after another, in this process."""
        state, student = self.state, Student(self.network, soft=True)
        for round in range(ROUNDS):
            lanes = []
            for lane in range(2):
                who, when = draw_start(self.config, 0, round, lane, 2, 0)
                way, inputs = self.experts[who], whole(state, self.earlier)
                distance, (found,) = walk_lane(
                    student, self.config, (0, round, lane), *inputs, way[when], way[when + 2]
                )
                lanes.append((distance, found.spread(state.values)))
            state = moved(self.config, (0, 0), state, [lane[0] for lane in lanes], [lane[1] for lane in lanes])
        return state


def assert_same(one: Any, other: Any) -> None:
    one, other = (each._asdict() if isinstance(each, SetState) else each for each in (one, other))
    assert set(one) == set(other)
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def test_lanes_on_workers_are_lanes_by_hand(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with()
    with Pool(
        Worker,
        (1,),
        count=2,
        num_cpus=1,
        num_gpus=0,
        max_lost=1,
        task_seconds=120,
        idle_seconds=60,
        notice=lambda text: None,
    ) as workers:
        images = load_real(open_source(config.data), config.data, lambda text: None)
        run = Run(images, workers, tmp_path, config)
        final = run.run.run()
        monkeypatch.setattr(module, "SHARD_BYTES", 4 * M * 64 * 4)
        assert_same(Run(images, workers, tmp_path / "shards", config).run.run(), final)
    assert_same(final, run.by_hand())
    assert final.pixels.tobytes() != run.state.pixels.tobytes()
    kept = read_group(Place(tmp_path), 0, 0, "key")
    assert kept is not None
    assert kept[1] == ROUNDS
    assert_same(kept[0], final)


def test_lanes_in_this_process_are_lanes_by_hand(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    run = Run(real, pool, tmp_path, config_with())
    assert_same(run.run.run(), run.by_hand())


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("batch", [10, 3], ids=["many images seen", "few"])
def test_a_set_in_shards_has_the_bytes_of_one(
    real: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, batch: int
) -> None:
    """Also where it goes on from a checkpoint of the set as a whole, and after losses."""
    config = config_with(batch=batch)
    expected = Run(real, LocalPool(), tmp_path / "whole", config).run.run()
    cut = Run(real, LocalPool(), tmp_path / "cut", config)
    cut.run._one_round()
    cut.run._save()
    monkeypatch.setattr(module, "SHARD_BYTES", classes * M * 64 * 4)
    for folder, pool in (("shards", LocalPool()), ("cut", LocalPool()), ("lossy", LossyPool([3, 4]))):
        run = Run(real, pool, tmp_path / folder, config)
        assert len(run.run._state) == -(-10 // classes)
        assert_same(run.run.run(), expected)
        steps = [name for name in pool.done if "step of round 2" in name]
        assert len(steps) == -(-10 // classes)
    kept = read_group(Place(tmp_path / "shards"), 0, 0, "key")
    assert kept is not None
    assert_same(kept[0], expected)


def test_a_finished_segment_gives_no_tasks_and_one_cut_short_goes_on(
    real: RealRefs, pool: LocalPool, tmp_path: Path
) -> None:
    whole = Run(real, pool, tmp_path / "whole", config_with()).run.run()
    assert_same(Run(real, IdlePool(), tmp_path / "whole", config_with()).run.run(), whole)
    cut = Run(real, pool, tmp_path / "cut", config_with())
    cut.run._one_round()
    cut.run._save()
    resumed = Run(real, pool, tmp_path / "cut", config_with())
    assert (resumed.run.rounds_done, resumed.run.rounds_total) == (1, ROUNDS)
    assert_same(resumed.run.run(), whole)


class IdlePool(LocalPool):
    """A pool that is given nothing to do."""

    def submit(self, task: Task) -> None:
        raise AssertionError(f"{task.name} was given")

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        raise AssertionError("tasks were given")


class LossyPool(LocalPool):
    """A pool that loses the inputs of all tasks of certain calls of ``run``."""

    def __init__(self, lose: Sequence[int]) -> None:
        super().__init__()
        self._lost_runs, self._runs = set(lose), 0

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        call, self._runs = self._runs, self._runs + 1
        for done in super().run(tasks):
            yield Done(done.task, None, error=InputLost(done.task.name)) if call in self._lost_runs else done


@pytest.mark.parametrize(
    "lose",
    [[0], [3], [4], [2], [8], [3, 4]],
    ids=["first lanes", "later lanes", "a step", "a checkpoint", "the last checkpoint", "two in a row"],
)
def test_lost_inputs_send_the_set_back_to_disk(
    real: RealRefs, pool: LocalPool, tmp_path: Path, lose: list[int]
) -> None:
    whole = Run(real, pool, tmp_path / "whole", config_with()).run.run()
    lossy = Run(real, LossyPool(lose), tmp_path / "lossy", config_with())
    assert_same(lossy.run.run(), whole)
    assert lossy.read == 1 + len(lose), "experts may have been lost with the node"


@pytest.mark.parametrize("reached", [True, False], ids=["workers reach the folder", "they do not"])
def test_checkpoints_pass_the_driver_only_where_no_worker_can_write_them(
    real: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    pool, fetched = LocalPool(), []
    monkeypatch.setattr(worker_module, "_is_reached", lambda keeping: reached)
    run = Run(real, pool, tmp_path, config_with())
    fetch = pool.fetch
    monkeypatch.setattr(pool, "fetch", lambda ref: (fetched.append(ref), fetch(ref))[1])
    for round in range(1, ROUNDS + 1):
        run.run._one_round()
        kept = read_group(Place(tmp_path), 0, 0, "key")
        assert kept is not None
        assert kept[1] == round
        assert len(fetched) == (0 if reached else 2 * round), "values and velocities of the one shard"
    assert_same(run.run.run(), kept[0])
    assert_same(kept[0], run.by_hand())


def test_inputs_lost_again_and_again_end_the_run(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    run = Run(real, LossyPool(range(100)), tmp_path, config_with())
    with pytest.raises(TaskLost, match=r"segment 1, round 0, lane 0.*lost 4 times; .*runtime\.max_lost"):
        run.run.run()


def test_a_distance_that_is_no_number_stops_at_the_last_good_state(
    real: RealRefs, pool: LocalPool, tmp_path: Path
) -> None:
    run = Run(real, pool, tmp_path, config_with(), spoil=float("nan"))
    with pytest.raises(NonFinite, match=r"segment 1, round 0, lane 0: .* is nan\); .*lower trajectory\."):
        run.run.run()
    assert read_group(Place(tmp_path), 0, 0, "key") is None


def test_a_set_that_never_comes_within_the_threshold_stops(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    run = Run(real, pool, tmp_path, config_with(threshold=1e-6, patience=2))
    with pytest.raises(NonFinite, match=r"segment 1, round 1: for 2 rounds .*lower trajectory\.lr_img"):
        run.run.run()
    kept = read_group(Place(tmp_path), 0, 0, "key")
    assert kept is not None
    assert kept[1] == 1
    assert_same(kept[0], run.state)


def exploded(run: Run) -> str:
    """What a run says that stops since no student ends within the threshold."""
    with pytest.raises(NonFinite) as stopped:
        run.run.run()
    return str(stopped.value)


UNUSED = {"threshold": 1e-6, "patience": ROUNDS}
"""No student ends within the threshold, so that a run stops in its last round."""


@pytest.mark.parametrize("seconds", [0, 1000], ids=["each round on disk", "nothing on disk"])
@pytest.mark.parametrize("lose", ["round 1, lane 0", "step of round 1"])
def test_after_losses_a_run_stops_in_the_round_in_which_it_does_undisturbed(
    real: RealRefs, tmp_path: Path, lose: str, seconds: int
) -> None:
    config = config_with(**UNUSED)
    expected = exploded(Run(real, LocalPool(), tmp_path / "whole", config))
    assert f"round {ROUNDS - 1}: for {ROUNDS} rounds" in expected
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"checkpoint_seconds": seconds})})
    lossy = Run(real, LocalPool(lose=[f"segment 1, {lose}"]), tmp_path / "lossy", config)
    assert exploded(lossy) == expected
    assert lossy.read == 2, "something was lost"


class StoppedPool(LocalPool):
    """Somebody stops the run when it comes to a task."""

    def __init__(self, before: str) -> None:
        super().__init__()
        self._before = before

    def _do(self, task: Task) -> Done:
        if task.name == self._before:
            raise KeyboardInterrupt
        return super()._do(task)


@pytest.mark.parametrize("reached", [True, False], ids=["workers reach the folder", "they do not"])
@pytest.mark.parametrize("before", ["round 1, lane 0", "step of round 1", "checkpoint of round 2", "round 2, lane 1"])
def test_taken_up_again_a_run_stops_in_the_round_in_which_it_does_undisturbed(
    real: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, reached: bool
) -> None:
    config = config_with(**UNUSED)
    expected = exploded(Run(real, LocalPool(), tmp_path / "whole", config))
    monkeypatch.setattr(worker_module, "_is_reached", lambda keeping: reached)
    with pytest.raises(KeyboardInterrupt):
        Run(real, StoppedPool(f"segment 1, {before}"), tmp_path / "cut", config).run.run()
    for _ in range(2):  # the same command, once more, says it again
        assert exploded(Run(real, LocalPool(), tmp_path / "cut", config)) == expected


def test_a_checkpoint_that_does_not_say_how_many_rounds_were_unused_counts_as_none(
    real: RealRefs, pool: LocalPool, tmp_path: Path
) -> None:
    """An earlier version's: it is gone on from, and its rounds are not counted."""
    run = Run(real, pool, tmp_path, config_with(**UNUSED))
    write_group(Place(tmp_path), 0, 0, run.state._asdict(), ROUNDS - 1, "key")
    run = Run(real, pool, tmp_path, config_with(**UNUSED))
    assert run.run.rounds_done == ROUNDS - 1
    run.run.run()
    assert run.run.rounds_done == ROUNDS


class DeadPool(LocalPool):
    """Ray dies in the second round, and nothing can be fetched any more."""

    def _do(self, task: Task) -> Done:
        if task.name == "segment 1, round 1, lane 0":
            self.fetch = self._late  # type: ignore[method-assign]
            raise SessionError("Ray has died")
        return super()._do(task)

    def _late(self, ref: Any) -> Any:
        raise SessionError("cannot be had")


def test_a_state_that_dead_ray_does_not_give_keeps_its_older_checkpoint(real: RealRefs, tmp_path: Path) -> None:
    run = Run(real, DeadPool(), tmp_path, config_with())
    run.run._saved_at = float("inf")  # no checkpoint but the last
    with pytest.raises(SessionError, match="Ray has died"):
        run.run.run()
    assert read_group(Place(tmp_path), 0, 0, "key") is None


def test_a_round_in_which_one_student_ends_within_the_threshold_is_of_use(
    real: RealRefs, pool: LocalPool, tmp_path: Path
) -> None:
    run = Run(real, pool, tmp_path, config_with()).run
    assert run._checked([200.0, 300.0]) == 1
    assert run._checked([200.0, 99.0]) == 0
