"""A segment's rounds on real workers: checkpoints, going on, going back, and stopping at numbers that are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_pool import LocalPool, blocks_of, local_real

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.matching.round import Assignment
from dasm_ray.core.networks.network import Network
from dasm_ray.core.start import initial_pixels
from dasm_ray.errors import NonFinite, SessionError, TaskLost
from dasm_ray.runtime import worker as worker_module
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.groups import Renewed, SegmentRun, groups_of
from dasm_ray.runtime.pool import Done, InputLost, Pool, Task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.worker import Job, RoundInputRefs, Worker
from dasm_ray.store.checkpoints import KeptPixels, group_name, read_group, round_name, write_group
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

ROUNDS = 3


def config_with(**matcher: object) -> RunConfig:
    return parse_config(
        {
            "data": {"name": "digits"},
            "model": {"width": 4, "depth": 1},
            "synthetic": {"ipc": 1, "segments": 1, "group_size": 4},
            "matcher": {"rounds": ROUNDS, "networks": 1, "lr_img": 0.01, "scale_lr": False, "batch_real": 8, **matcher},
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
    """A segment run of digits with everything around it, on a pool in this process or on Ray's."""

    def __init__(self, real: RealRefs, pool: Any, folder: Path, config: RunConfig) -> None:
        self.progress, self.asked = Progress(live=False), 0
        self.progress.stage("distil", 1)
        self.pool = pool
        job = Job(config, real, "cpu")
        blocks = Blocks(blocks_of(real))
        windows = [np.arange(count) for count in blocks.counts]
        self.start, _ = initial_pixels(config, blocks, windows, [np.empty(0, np.int64)] * 10, 0)
        network = Network(config.model, real.shape, 10, real.mean, real.std, compile=False)
        states = [network.initial(torch.Generator().manual_seed(seed)).numpy() for seed in range(5)]
        self.snapshots = pool.put(np.stack(states))
        earlier = pool.put(np.empty((10, 0, 1, 8, 8), np.float32))
        self.inputs = RoundInputRefs(pool.put([windows]), earlier, (self.snapshots,), ())
        self.starts = [pool.put(self.start[list(classes)]) for classes in groups_of(10, 4)]
        self.place = Place(folder)
        self.segment = SegmentRun(job, pool, self.progress, self.place, "key", 0, self.starts)

    def go(self) -> np.ndarray:
        groups = self.segment.run(self.inputs, self.renewed)
        return np.concatenate(list(KeptPixels(self.place, 0, "key", groups, 10, "pixels")))

    def renewed(self) -> Renewed:
        assert not self.segment._given, "inputs are made again while rounds are out"
        self.asked += 1
        return Renewed(self.inputs, self.starts)


def config_of(name: str | None) -> RunConfig:
    """Two steps a round; None: the small one as it is."""
    return config_with(name=name, steps=2, **({"inner_steps": 1} if name == "dsa" else {})) if name else config_with()


@pytest.fixture(scope="module")
def undisturbed(real: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], np.ndarray]:
    """What a segment comes to when nothing happens to it, made once."""
    return cache(lambda name: Run(real, LocalPool(), tmp_path_factory.mktemp("whole"), config_of(name)).go())


def test_rounds_on_workers_are_rounds_in_this_process(ray_session: object, real: RealRefs, tmp_path: Path) -> None:
    configs = [config_with(name="dsa", steps=2, inner_steps=1, lanes=lanes) for lanes in (1, 2)]
    here = [Run(real, LocalPool(), tmp_path / f"here {number}", each).go() for number, each in enumerate(configs)]
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
    ) as pool:
        images = load_real(open_source(configs[0].data), configs[0].data, lambda text: None)
        there = [Run(images, pool, tmp_path / f"there {number}", each).go() for number, each in enumerate(configs)]
    assert [each.tobytes() for each in there] == [each.tobytes() for each in here]
    assert there[0].tobytes() != there[1].tobytes()


def test_all_rounds_are_done_and_on_disk(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    run = Run(real, pool, tmp_path, config_with())
    pixels = run.go()
    assert pixels.shape == (10, 1, 1, 8, 8)
    assert not np.array_equal(pixels, run.start)
    for number, classes in enumerate(groups_of(10, 4)):
        kept = read_group(Place(tmp_path), 0, number, "key")
        assert kept is not None
        arrays, round = kept
        assert round == ROUNDS
        assert arrays["pixels"].tobytes() == pixels[list(classes)].tobytes()
        assert arrays["initial"].tobytes() == run.start[list(classes)].tobytes()


def test_a_finished_segment_gives_no_tasks(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    pixels = Run(real, pool, tmp_path, config_with()).go()
    again = Run(real, pool, tmp_path, config_with())
    assert again.segment.rounds_done == again.segment.rounds_total == 3 * ROUNDS
    before = len(pool.done)
    assert again.go().tobytes() == pixels.tobytes()
    assert len(pool.done) == before


def test_going_on_from_any_round_gives_the_same_bytes(
    real: RealRefs, pool: LocalPool, undisturbed: Callable[[str | None], np.ndarray], tmp_path: Path
) -> None:
    whole = undisturbed(None)
    short = Run(real, pool, tmp_path / "cut", config_with())
    short.segment._rounds = 1
    short.go()
    assert Run(real, pool, tmp_path / "cut", config_with()).go().tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ["idc", "dsa"])
@pytest.mark.parametrize("seconds", [0, 1000], ids=["each round on disk", "nothing on disk"])
def test_lost_inputs_send_a_group_back_to_disk(
    real: RealRefs,
    pool: LocalPool,
    undisturbed: Callable[[str | None], np.ndarray],
    tmp_path: Path,
    name: str,
    seconds: int,
) -> None:
    """A node goes with what all groups read in their second round: with barriers that is one loss, not three."""
    config, whole = config_of(name), undisturbed(name)
    runtime = config.runtime.model_copy(update={"max_lost": 1 if name == "dsa" else 3, "checkpoint_seconds": seconds})
    run = Run(real, pool, tmp_path / "lossy", config.model_copy(update={"runtime": runtime}))
    take, lost = run.segment._take, set()

    def lossy(done: Done) -> Any:
        where = done.task.args[1]
        if where.round == 1 and where.group not in lost:
            lost.add(where.group)
            done = Done(done.task, None, error=InputLost("gone"))
        return take(done)

    run.segment._take = lossy  # type: ignore[method-assign]
    assert run.go().tobytes() == whole.tobytes()
    assert lost == {0, 1, 2}
    assert run.asked == run.segment._lost


@pytest.mark.parametrize("name", ["idc", "dsa"])
def test_what_comes_home_after_a_loss_counts_for_the_round_that_it_is_of(
    real: RealRefs, pool: LocalPool, undisturbed: Callable[[str | None], np.ndarray], tmp_path: Path, name: str
) -> None:
    """One group loses its input in the last round, while others come home from it; nothing was on disk."""
    config, whole = config_of(name), undisturbed(name)
    runtime = config.runtime.model_copy(update={"checkpoint_seconds": 1000})
    run = Run(real, pool, tmp_path / "lossy", config.model_copy(update={"runtime": runtime}))
    take, lost = run.segment._take, []

    def lossy(done: Done) -> Any:
        if done.task.args[1].round == ROUNDS - 1 and not lost:
            lost.append(done.task.name)
            done = Done(done.task, None, error=InputLost("gone"))
        return take(done)

    run.segment._take = lossy  # type: ignore[method-assign]
    assert run.go().tobytes() == whole.tobytes()
    assert (len(lost), run.asked) == (1, 1)


def test_inputs_lost_again_and_again_end_the_run(real: RealRefs, pool: LocalPool, tmp_path: Path) -> None:
    run = Run(real, pool, tmp_path, config_with())
    run.segment._job = replace(
        run.segment._job,
        config=parse_config({**config_with().model_dump(mode="json"), "runtime": {"max_lost": 2, "compile": False}}),
    )
    take = run.segment._take
    run.segment._take = lambda done: take(Done(done.task, None, error=InputLost("gone")))  # type: ignore[method-assign]
    with pytest.raises(TaskLost, match=r"lost 3 times; .*runtime\.max_lost"):
        run.go()


def test_a_distance_that_is_no_number_stops_at_the_last_good_state(
    real: RealRefs, pool: LocalPool, tmp_path: Path
) -> None:
    run = Run(real, pool, tmp_path, config_with())
    spoiled = np.full_like(pool.fetch(run.snapshots), np.nan)
    run.inputs = replace(run.inputs, experts=(pool.put(spoiled),))
    with pytest.raises(NonFinite, match=r"segment 1, group \d, round 0, network state 0: .*last good state is kept"):
        run.go()
    assert read_group(Place(tmp_path), 0, 0, "key") is None


class Unseen(LocalPool):
    """Whoever holds it cannot look at what references refer to; workers can."""

    def fetch(self, ref: Any) -> Any:  # type: ignore[override]
        raise AssertionError("nothing needs the pixels here")


@pytest.mark.parametrize("name", ["idc", "dsa"])
def test_pixels_stay_with_the_workers(
    real: RealRefs, undisturbed: Callable[[str | None], np.ndarray], tmp_path: Path, name: str
) -> None:
    config, whole = config_of(name), undisturbed(name)
    assert Run(real, Unseen(), tmp_path / "run", config).go().tobytes() == whole.tobytes()
    again = Run(real, Unseen(), tmp_path / "run", config)
    assert again.segment.rounds_done == again.segment.rounds_total
    assert again.go().tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ["idc", "dsa"])
def test_what_workers_do_not_reach_is_written_and_read_here(
    real: RealRefs,
    undisturbed: Callable[[str | None], np.ndarray],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run directory that only the machine of the driver has: workers find no mark of it, and no file in it."""
    config, whole = config_of(name), undisturbed(name)

    monkeypatch.setattr(Worker, "_keep", lambda *_: False)
    monkeypatch.setattr(worker_module, "read_group", lambda *_: None)
    short = Run(real, LocalPool(), tmp_path / "far", config)
    short.segment._rounds = 1
    short.go()
    again = Run(real, LocalPool(), tmp_path / "far", config)
    assert again.segment.rounds_done == 3
    assert again.go().tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ["idc", "dsa"])
def test_a_checkpoint_is_kept_when_it_is_due_and_at_the_end(
    real: RealRefs, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of barriers all groups are kept at the same round, before the next begins."""
    config, written = config_of(name), []
    write = worker_module.write_standing

    def noted(place: Place, key: str, where: Assignment, *arrays: Any) -> None:
        written.append((where.group, where.round))
        write(place, key, where, *arrays)

    monkeypatch.setattr(worker_module, "write_standing", noted)
    for seconds, rounds in ((0, (1, 2, 3)), (1000, (3,))):
        runtime = config.runtime.model_copy(update={"checkpoint_seconds": seconds})
        Run(real, LocalPool(), tmp_path / str(seconds), config.model_copy(update={"runtime": runtime})).go()
        assert written == [(group, round) for round in rounds for group in range(3)]
        written.clear()


class DeadPool(LocalPool):
    """Ray dies after ``tasks`` tasks: what was known then is ended by SessionError, and only ``fetched`` can be had."""

    def __init__(self, tasks: int, fetched: int) -> None:
        super().__init__()
        self.tasks, self.fetched = tasks, fetched

    def _do(self, task: Task) -> Done:
        if len(self.done) == self.tasks:
            self.fetch = self._fetch_late  # type: ignore[method-assign]
            raise SessionError("Ray has died")
        return super()._do(task)

    def _fetch_late(self, ref: Any) -> Any:
        self.fetched -= 1
        if self.fetched < 0:
            raise SessionError("cannot be had")
        return ref.value


@pytest.mark.parametrize("fetched", [0, 1, 2, 6])  # of each group its state and where it began
def test_what_cannot_be_fetched_from_dead_ray_keeps_its_older_checkpoint(
    real: RealRefs, undisturbed: Callable[[str | None], np.ndarray], tmp_path: Path, fetched: int
) -> None:
    config = config_with()
    run = Run(real, DeadPool(tasks=5, fetched=fetched), tmp_path / "run", config)
    for group in run.segment._groups:
        group.saved_at = float("inf")  # no checkpoint but the last
    with pytest.raises(SessionError, match="Ray has died"):
        run.go()
    kept = [read_group(Place(tmp_path / "run"), 0, number, "key") for number in range(len(groups_of(10, 4)))]
    assert sum(each is not None for each in kept) == fetched // 2
    assert Run(real, LocalPool(), tmp_path / "run", config).go().tobytes() == undisturbed(None).tobytes()


@pytest.mark.parametrize(("fetched", "rounds"), [(5, 0), (6, 1)])
def test_rounds_that_are_barriers_are_written_all_or_none(
    real: RealRefs, tmp_path: Path, fetched: int, rounds: int
) -> None:
    """Checkpoints of different rounds would be of no use."""
    pool = DeadPool(tasks=0, fetched=fetched)
    run = Run(real, pool, tmp_path, config_with(name="dsa", steps=2, inner_steps=1))
    for group in run.segment._groups:
        group.round, group.state = 1, pool.put((run.start[list(group.classes)],) * 2)
    with pytest.raises(SessionError, match="Ray has died"):
        run.go()
    folder = Place(tmp_path) / round_name(0, 1)
    kept = [read_group(folder, 0, number, "key") for number in range(len(groups_of(10, 4)))]
    assert {0 if each is None else each[1] for each in kept} == {rounds}


# --- barriers: what is on disk whenever the driver is killed -----------------------------------------------------

BARRIERS = config_with(name="dsa", steps=2, inner_steps=1)


class Watched(LocalPool):
    """A pool that keeps a copy of the run directory as it is after each checkpoint of a group, as a kill leaves it."""

    def __init__(self, folder: Path, copies: Path) -> None:
        super().__init__()
        self.folder, self.copies = folder, copies
        self.kept: list[tuple[int, Path]] = []
        """The round of each checkpoint, and the copy."""

    def _do(self, task: Task) -> Done:
        done = super()._do(task)
        if task.method == "keep_group":
            copy = self.copies / str(len(self.kept))
            shutil.copytree(self.folder, copy)
            self.kept.append((task.args[1].round, copy))
        return done


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


FINISHED = [group_name(0, number) for number in range(3)]
"""The files of a segment that is done."""


@pytest.fixture
def killed(real: RealRefs, tmp_path: Path) -> list[tuple[int, Path]]:
    """What every kill after a checkpoint of a group leaves of a run, with the round of that checkpoint."""
    pool = Watched(tmp_path / "run", tmp_path / "copies")
    Run(real, pool, tmp_path / "run", BARRIERS).go()
    assert [round for round, _ in pool.kept] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert files_in(tmp_path / "run") == FINISHED
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    return pool.kept


def test_killed_between_checkpoints_a_run_goes_on_from_the_newest_round_that_all_groups_have(
    real: RealRefs, undisturbed: Callable[[str | None], np.ndarray], killed: list[tuple[int, Path]], tmp_path: Path
) -> None:
    for number, (round, folder) in enumerate(killed):
        whole = round if number % 3 == 2 else round - 1
        pool = Watched(folder, tmp_path / f"copies {number}")
        run = Run(real, pool, folder, BARRIERS)
        assert run.segment.rounds_done == 3 * whole
        assert len(files_in(folder)) == (3 if whole else 0), "of other rounds nothing is kept"
        assert run.go().tobytes() == undisturbed("dsa").tobytes()
        assert files_in(folder) == FINISHED
        assert all(len(files_in(copy)) <= 2 * 3 for _, copy in [(round, folder), *pool.kept]), "two rounds at most"


def test_killed_while_an_earlier_round_is_removed_a_run_goes_on_from_the_later_one(
    real: RealRefs, undisturbed: Callable[[str | None], np.ndarray], killed: list[tuple[int, Path]]
) -> None:
    _, folder = killed[5]
    (folder / round_name(0, 1) / group_name(0, 0)).unlink()
    run = Run(real, LocalPool(), folder, BARRIERS)
    assert run.segment.rounds_done == 3 * 2
    assert files_in(folder) == [f"{round_name(0, 2)}/{name}" for name in FINISHED]
    assert run.go().tobytes() == undisturbed("dsa").tobytes()


def test_a_checkpoint_that_is_lost_sends_groups_back_to_the_round_before(
    real: RealRefs, undisturbed: Callable[[str | None], np.ndarray], tmp_path: Path
) -> None:
    pool = LocalPool(lose=["segment 1, group 1, checkpoint of round 2"])
    assert Run(real, pool, tmp_path, BARRIERS).go().tobytes() == undisturbed("dsa").tobytes()
    assert [pool.done.count(f"segment 1, group 1, round {round}") for round in range(ROUNDS)] == [1, 2, 1]
    assert files_in(tmp_path) == FINISHED


def older(folder: Path, killed: list[tuple[int, Path]], rounds: tuple[int, ...]) -> None:
    """A run directory of an earlier version, which kept each group after any round in one and the same file."""
    for number, round in enumerate(rounds):
        arrays, _ = read_group(Place(killed[5][1]) / round_name(0, round), 0, number, "key") or pytest.fail("not there")
        write_group(Place(folder), 0, number, arrays, round, "key")


@pytest.mark.parametrize(
    ("rounds", "done"), [((2, 2, 2), 2), ((1, 1, 1), 1), ((2, 1, 1), 0), ((2, 2), 0)], ids=["2", "1", "mixed", "some"]
)
@pytest.mark.parametrize("seconds", [0, 1000], ids=["each round on disk", "the last alone"])
def test_a_run_directory_of_an_earlier_version_is_taken_up(
    real: RealRefs,
    undisturbed: Callable[[str | None], np.ndarray],
    killed: list[tuple[int, Path]],
    tmp_path: Path,
    rounds: tuple[int, ...],
    done: int,
    seconds: int,
) -> None:
    older(tmp_path / "older", killed, rounds)
    runtime = BARRIERS.runtime.model_copy(update={"checkpoint_seconds": seconds})
    pool = Watched(tmp_path / "older", tmp_path / "copies of it")
    run = Run(real, pool, tmp_path / "older", BARRIERS.model_copy(update={"runtime": runtime}))
    assert run.segment.rounds_done == 3 * done
    assert run.go().tobytes() == undisturbed("dsa").tobytes()
    assert all(len(files_in(copy)) <= 2 * 3 for _, copy in pool.kept)
    assert files_in(tmp_path / "older") == FINISHED


def test_groups_follow_the_configuration_alone() -> None:
    assert groups_of(10, 4) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert groups_of(10, None) == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert groups_of(1, None) == [(0,)]


def test_after_a_loss_groups_begin_where_what_was_made_again_says(
    real: RealRefs, undisturbed: Any, tmp_path: Path
) -> None:
    config, whole = config_of(None), undisturbed(None)
    runtime = config.runtime.model_copy(update={"checkpoint_seconds": 1000})
    run = Run(real, LocalPool(), tmp_path / "lossy", config.model_copy(update={"runtime": runtime}))
    take, lost = run.segment._take, list[str]()

    def lossy(done: Done) -> Any:
        if done.task.args[1].round == 1 and not lost:
            lost.append(done.task.name)
            done = Done(done.task, None, error=InputLost("gone"))
        return take(done)

    def renewed() -> Renewed:
        starts = [run.pool.put(run.start[list(classes)]) for classes in groups_of(10, 4)]
        for ref in run.starts:
            object.__setattr__(ref, "value", None)  # it went with the node
        return Renewed(run.inputs, starts)

    run.segment._take, run.renewed = lossy, renewed  # type: ignore[method-assign]
    assert run.go().tobytes() == whole.tobytes()
    assert len(lost) == 1
