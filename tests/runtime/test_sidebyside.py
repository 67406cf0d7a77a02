"""A round in lanes as its tasks, and segments in lanes by any number of workers, after losses and when gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_pool import LocalPool, blocks_of, fetch, local_real

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.matching.parallel import Moment, match_in_lane, moved_by
from dasm_ray.core.matching.round import Assignment, RoundInputs, matching_of
from dasm_ray.core.networks.network import Network
from dasm_ray.core.start import initial_pixels
from dasm_ray.errors import SessionError
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.groups import Renewed, SegmentRun, groups_in
from dasm_ray.runtime.pool import Done, InputLost, Task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.sidebyside import LaneRound
from dasm_ray.runtime.worker import GroupKept, Job, Keeping, LaneMetrics, RoundInputRefs, RoundMetrics, Worker
from dasm_ray.store.checkpoints import KeptPixels, read_group
from dasm_ray.store.place import Place

LANES = 2

METHODS: list[dict[str, Any]] = [
    {"name": "idc"},
    {"name": "idc", "network": "train", "networks": 1, "steps": 2, "inner_samples": 64},
    {"name": "dsa", "networks": 1, "steps": 2, "inner_steps": 1, "batch_real": 4},
    {"name": "dm"},
    {"name": "cafe", "steps": 2, "inner_steps": 1},
]


def config_with(seconds: float = 0, **matcher: object) -> RunConfig:
    tree = {
        "data": {"name": "digits"},
        "model": {"width": 4, "depth": 1},
        "synthetic": {"ipc": 1, "segments": 1, "group_size": None if matcher.get("name") == "cafe" else 5},
        "matcher": {"rounds": 2, "networks": 2, "lanes": LANES, "lr_img": 0.01, "scale_lr": False, "batch_real": 8},
        "runtime": {"compile": False, "checkpoint_seconds": seconds},
    }
    return parse_config({**tree, "matcher": tree["matcher"] | matcher})


@pytest.fixture(scope="module")
def real() -> RealRefs:
    return local_real(config_with())


# --- the tasks of a round --------------------------------------------------------------------------------------------


def an_answer(task: Task, distance: float = 1.0) -> Done:
    """What a worker says of a task; its references are told apart by the task's name."""
    if task.method == "match_lane":
        return Done(task, LaneMetrics((), distance, 40), (f"slopes of {task.name}", f"network of {task.name}"))
    return Done(task, GroupKept((), is_kept=True), (f"state after {task.name}",))


def test_a_step_follows_all_lanes_in_their_order_whoever_is_done_first(real: RealRefs) -> None:
    job, inputs = Job(config_with(networks=1, steps=2), real, "cpu"), RoundInputRefs("w", "e", (), ())
    keeping, said = Keeping(Place("/"), "key"), [4.0, 2.0]
    round = LaneRound(job, Assignment(0, 1, 5, (3, 4)), None)
    lanes = round.ready(inputs, "start", None)
    assert [task.name for task in lanes] == [
        f"segment 1, group 1, round 5, state 0, step 0, lane {lane}" for lane in range(LANES)
    ]
    assert all(task.args[5:] == (None, None, ("start",)) for task in lanes), "at rest, and no network yet"
    assert round.take(an_answer(lanes[1], said[1])) is None
    assert round.ready(inputs, "start", None) == []
    assert round.take(an_answer(lanes[0], said[0])) is None
    assert not round.is_ending
    (step,) = round.ready(inputs, "start", None)
    slopes = tuple(f"slopes of {task.name}" for task in lanes)
    assert step.args[3:] == (None, slopes, ("start",), None)
    assert round.ready(inputs, "start", None) == [], "it is asked for once"
    assert round.take(an_answer(step)) is None

    lanes = round.ready(inputs, "start", None)
    networks = [f"network of segment 1, group 1, round 5, state 0, step 0, lane {lane}" for lane in range(LANES)]
    state = f"state after {step.name}"
    assert [task.args[5:] for task in lanes] == [(state, network, ()) for network in networks]
    for lane, task in enumerate(lanes):
        assert round.take(an_answer(task, 2 * said[lane])) is None
    assert round.is_ending
    (last,) = round.ready(inputs, "start", keeping)
    assert last.args[5:] == (("start",), keeping), "what is kept holds where the group began"
    assert round.take(an_answer(last)) == RoundMetrics((), [4.5], 2 * LANES * 40, is_kept=True)
    assert round.state == f"state after {last.name}"


def test_another_state_begins_with_networks_of_its_own(real: RealRefs) -> None:
    round = LaneRound(Job(config_with(), real, "cpu"), Assignment(0, 0, 0, (0,)), "state")
    inputs = RoundInputRefs("w", "e", (), ())
    for task in round.ready(inputs, "start", None):
        round.take(an_answer(task))
    (step,) = round.ready(inputs, "start", None)
    round.take(an_answer(step))
    lanes = round.ready(inputs, "start", None)
    assert [task.args[2] for task in lanes] == [Moment(1, 0)] * LANES
    assert all(task.args[6] is None for task in lanes)


# --- segments --------------------------------------------------------------------------------------------------------


class Segment:
    """A segment of digits in lanes with everything around it, and the same by plain loops."""

    def __init__(self, real: RealRefs, pool: Any, folder: Path, config: RunConfig) -> None:
        self.progress, self.asked, self.config, self.pool = Progress(live=False), 0, config, pool
        self.progress.stage("distil", 1)
        self.blocks = Blocks(blocks_of(local_real(config)))
        self.windows = [np.arange(count) for count in self.blocks.counts]
        self.start, _ = initial_pixels(config, self.blocks, self.windows, [np.empty(0, np.int64)] * 10, 0)
        self.network = Network(config.model, real.shape, 10, real.mean, real.std, compile=False)
        states = [self.network.initial(torch.Generator().manual_seed(seed)).numpy() for seed in range(5)]
        self.snapshots, self.earlier = np.stack(states), np.empty((10, 0, 1, 8, 8), np.float32)
        self.groups, self.place = groups_in(config, 10), Place(folder)
        self.run = SegmentRun(
            *(Job(config, real, "cpu"), pool, self.progress, self.place, "key", 0, self.renewed().starts)
        )

    def renewed(self) -> Renewed:
        put = self.pool.put
        inputs = RoundInputRefs(put([self.windows]), put(self.earlier), (put(self.snapshots),), ())
        self.asked += 1
        return Renewed(inputs, [put(self.start[list(classes)]) for classes in self.groups])

    def go(self) -> bytes:
        groups = self.run.run(self.renewed().inputs, self.renewed)
        return np.concatenate(list(KeptPixels(self.place, 0, "key", groups, 10, "pixels"))).tobytes()

    def by_hand(self) -> bytes:
        """Rounds, groups, states, steps and lanes one after another."""
        config, matching = self.config, matching_of(self.network, self.config)
        pixels, velocity = self.start.copy(), np.zeros_like(self.start)
        for round in range(config.matcher.rounds):
            inputs = RoundInputs(
                self.blocks, [self.windows], self.earlier, pixels.copy(), [self.snapshots], [], bank=()
            )
            for number, classes in enumerate(self.groups):
                where, own, before = Assignment(0, number, round, classes), list(classes), [None] * LANES
                for state in range(config.matcher.networks):
                    for step in range(config.matcher.steps):
                        at, slopes = Moment(state, step), []
                        for lane in range(LANES):
                            found = match_in_lane(matching, config, where, at, lane, inputs, pixels[own], before[lane])
                            before[lane] = found.flat
                            slopes.append(found.slopes)
                        pixels[own], velocity[own] = moved_by(config, where, at, pixels[own], velocity[own], slopes)
        return pixels.tobytes()


class Several(LocalPool):
    """So many workers, each with a process of its own as far as that can be told: whoever is first to be done is drawn.

    ``loses``: every so-manieth task is done by a worker that is lost with its answer, and then by another. ``busy``:
    how many had a task when each was done.
    """

    def __init__(self, workers: int, seed: int = 0, loses: int = 0, lose: tuple[str, ...] = ()) -> None:
        super().__init__(lose)
        self._workers, self._draw = [Worker(1, fetch) for _ in range(workers)], np.random.default_rng(seed)
        self._loses, self.busy = loses, list[int]()

    def results(self) -> Any:
        while self._tasks:
            out = min(len(self._tasks), len(self._workers))
            self.busy.append(out)
            task = self._tasks.pop(int(self._draw.integers(out)))
            if self._loses and len(self.busy) % self._loses == 0:
                self._worker = Worker(1, fetch)
                self._do(task)
            self._worker = self._workers[int(self._draw.integers(len(self._workers)))]
            yield self._do(task)


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_workers_gives_the_bytes_of_plain_loops(
    real: RealRefs, tmp_path: Path, method: dict[str, Any]
) -> None:
    config = config_with(**method)
    whole = Segment(real, LocalPool(), tmp_path / "whole", config)
    expected = whole.by_hand()
    assert expected != whole.start.tobytes()
    assert whole.go() == expected
    for workers, loses in ((2, 5), (3, 0)):
        assert Segment(real, Several(workers, workers, loses), tmp_path / f"{workers}", config).go() == expected
    for number, classes in enumerate(groups_in(config, 10)):
        kept = read_group(Place(tmp_path / "whole"), 0, number, "key")
        assert kept is not None
        assert (kept[1], kept[0]["pixels"].shape) == (config.matcher.rounds, (len(classes), 1, 1, 8, 8))
        assert kept[0]["initial"].tobytes() == whole.start[list(classes)].tobytes()


def test_one_group_keeps_as_many_workers_busy_as_it_has_lanes(real: RealRefs, tmp_path: Path) -> None:
    busy = {}
    for lanes in (1, 4):
        config = config_with(name="idc", lanes=lanes)
        config = config.model_copy(update={"synthetic": config.synthetic.model_copy(update={"group_size": 10})})
        pool = Several(8)
        Segment(real, pool, tmp_path / f"{lanes}", config).go()
        busy[lanes] = max(pool.busy)
    assert busy == {1: 1, 4: 4}


@pytest.mark.parametrize(
    ("method", "seconds"),
    [(METHODS[0], 0), (METHODS[0], 1000), (METHODS[2], 0), (METHODS[4], 1000)],
    ids=["idc, each round on disk", "idc, nothing on disk", "dsa, each round on disk", "cafe, nothing on disk"],
)
def test_what_lanes_and_steps_read_may_be_lost(
    real: RealRefs, tmp_path: Path, method: dict[str, Any], seconds: int
) -> None:
    config = config_with(seconds, **method)
    whole = Segment(real, LocalPool(), tmp_path / "whole", config).go()
    last = f"state {config.matcher.networks - 1}" + (", step 1" if config.matcher.steps > 1 else "")
    lose = [f"segment 1, group 0, round 1, {last}, lane 1", f"segment 1, group 0, round 0, {last}, its step"]
    if len(groups_in(config, 10)) > 1:
        lose.append(f"segment 1, group 1, round 1, {last}, lane 0")
    pool = Several(3, lose=tuple(lose))
    segment = Segment(real, pool, tmp_path / "lossy", config)
    assert segment.go() == whole
    assert not pool._lose, "all of them were asked for"
    assert segment.asked > 3 - (len(lose) == 2)


class Gone(Several):
    """What was read before inputs were made again cannot be read any more."""

    segment: Segment
    first: Any = None

    def _do(self, task: Task) -> Done:
        if task.method == "match_lane":
            self.first = self.first or task.args[4]
            if self.segment.asked > 2 and task.args[4] is self.first:
                return Done(task, None, error=InputLost("gone"))
        return super()._do(task)


def test_a_group_that_lost_nothing_goes_on_with_inputs_made_again(real: RealRefs, tmp_path: Path) -> None:
    """One group loses what it reads while the other is in a round."""
    config = config_with(1000)
    whole = Segment(real, LocalPool(), tmp_path / "whole", config).go()
    pool = Gone(2, lose=("segment 1, group 0, round 0, state 1, lane 1",))
    pool.segment = Segment(real, pool, tmp_path / "run", config)
    assert pool.segment.go() == whole
    assert (pool.segment.asked, pool.segment.run._lost) == (3, 1)


class DeadPool(LocalPool):
    """Ray dies after so many tasks; with ``fetches`` what was done by then can still be had."""

    def __init__(self, tasks: int, fetches: bool) -> None:
        super().__init__()
        self._left, self._fetches = tasks, fetches

    def _do(self, task: Task) -> Done:
        if len(self.done) == self._left:
            if not self._fetches:
                self.fetch = self._nothing  # type: ignore[method-assign]
            raise SessionError("Ray has died")
        return super()._do(task)

    def _nothing(self, ref: Any) -> Any:
        raise SessionError("cannot be had")


@pytest.mark.parametrize(
    ("method", "fetches"),
    [(METHODS[0], True), (METHODS[0], False), (METHODS[4], True)],
    ids=["idc", "idc, gone", "cafe"],
)
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(
    real: RealRefs, tmp_path: Path, method: dict[str, Any], fetches: bool
) -> None:
    config = config_with(**method)
    pool = LocalPool()
    whole = Segment(real, pool, tmp_path / "whole", config).go()
    rounds: set[int] = set()
    for tasks in range(len(pool.done) // 4, len(pool.done), len(pool.done) // 3):
        folder = tmp_path / str(tasks)
        with pytest.raises(SessionError, match="Ray has died"):
            Segment(real, DeadPool(tasks, fetches), folder, config).go()
        again = Segment(real, LocalPool(), folder, config)
        rounds.add(again.run.rounds_done)
        assert again.go() == whole
    assert len(rounds) > 1, "it went on from several rounds"


def test_pixels_of_a_group_in_lanes_stay_with_the_workers(real: RealRefs, tmp_path: Path) -> None:
    def unseen(ref: Any) -> Any:
        raise AssertionError("nothing needs the pixels here")

    for method in METHODS[:4:2]:
        config, pool = config_with(**method), LocalPool()
        whole = Segment(real, LocalPool(), tmp_path / f"{method['name']} seen", config).go()
        pool.fetch = unseen  # type: ignore[method-assign]
        assert Segment(real, pool, tmp_path / method["name"], config).go() == whole
