"""Snapshots by reference: the very bytes, from here or from the node that has them; a bound on what is kept."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from local_pool import Remote
from ray.exceptions import RayActorError

from dasm_ray.errors import ArtifactError
from dasm_ray.runtime import snapshots as module
from dasm_ray.runtime.pool import InputLost, Pool, Task
from dasm_ray.runtime.snapshots import Lazily, Reader, SnapshotRef, TrajectoryRef, lazily
from dasm_ray.store import trajectories
from dasm_ray.store.place import Place
from dasm_ray.store.trajectories import open_trajectory, trajectory_name, write_trajectory

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file

ROWS, PARAMETERS = 6, 100
ROW_BYTES = 4 * PARAMETERS
THERE = "ab" * 28


def arrays_of(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    snapshots = generator.normal(size=(ROWS, PARAMETERS)).astype(np.float32)
    curve = np.linspace(0, 1, ROWS, dtype=np.float32)
    return {"snapshots": snapshots, "velocity": snapshots[0], "accuracy": curve, "loss": curve}


def written(folder: Path, seed: int = 0, node: str = "") -> TrajectoryRef:
    write_trajectory(Place(folder), 0, "key", arrays_of(seed))
    found = open_trajectory(Place(folder), 0, "key")
    assert found is not None
    return replace(TrajectoryRef.of(Place(folder), "key", 0, found), node=node)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were read of files."""
    found: list[int] = []
    read = trajectories._read_row

    def noted(file: Place, span: Any, row: int) -> Any:
        found.append(row)
        return read(file, span, row)

    monkeypatch.setattr(trajectories, "_read_row", noted)
    return found


def test_only_what_is_used_is_read_and_nothing_twice(tmp_path: Path, reads: list[int]) -> None:
    reader, ref, expected = Reader(), written(tmp_path), arrays_of()["snapshots"]
    have = reader.have(ref)
    assert len(have) == ROWS
    assert have[2].tobytes() == expected[2].tobytes()
    assert have[-1].tobytes() == expected[-1].tobytes()
    assert [row.tobytes() for row in have[1:3]] == [row.tobytes() for row in expected[1:3]]
    assert reader.have(SnapshotRef(ref, 2)).tobytes() == expected[2].tobytes()  # type: ignore[union-attr]
    assert reads == [2, 5, 1]


def test_what_is_kept_is_bounded_and_what_was_used_last_stays(tmp_path: Path, reads: list[int]) -> None:
    reader = Reader(3 * ROW_BYTES)
    have = reader.have(written(tmp_path))
    for epoch in (0, 1, 2, 0, 3, 0, 2, 3):
        assert have[epoch] is not None
        assert reader._bytes == ROW_BYTES * len(reader._rows) <= 3 * ROW_BYTES
    assert reads == [0, 1, 2, 3]
    assert have[1] is not None
    assert reads == [0, 1, 2, 3, 1]


def test_a_row_larger_than_the_bound_is_kept_alone(tmp_path: Path, reads: list[int]) -> None:
    reader = Reader(ROW_BYTES - 1)
    have = reader.have(written(tmp_path))
    for epoch in (4, 4, 5, 4):
        assert have[epoch] is not None
        assert len(reader._rows) == 1
    assert reads == [4, 5, 4]


def test_a_file_of_an_earlier_version_is_verified_once(tmp_path: Path, reads: list[int]) -> None:
    kept = arrays_of()
    trajectories.tensors.write(Place(tmp_path) / trajectory_name(0), kept, {"key": "key", "expert": 0})
    found = open_trajectory(Place(tmp_path), 0, "key")
    assert found is not None
    reads.clear()
    have = Reader().have(TrajectoryRef.of(Place(tmp_path), "key", 0, found))
    assert np.stack(have).tobytes() == kept["snapshots"].tobytes()
    assert len(reads) == ROWS + 3 + ROWS


def test_a_file_that_is_replaced_or_removed_is_not_what_was_meant(tmp_path: Path) -> None:
    reader, ref = Reader(0), written(tmp_path)
    have = reader.have(ref)
    assert have[1] is not None
    written(tmp_path)
    assert have[2].tobytes() == arrays_of()["snapshots"][2].tobytes(), "the same bytes are"
    written(tmp_path, seed=1)
    with pytest.raises(InputLost, match=r"expert 0 in .*: its file is gone, or is another by now"):
        _ = have[1]
    (tmp_path / trajectory_name(0)).unlink()
    with pytest.raises(InputLost, match="its file is gone"):
        _ = have[1]
    written(tmp_path)
    assert have[1].tobytes() == arrays_of()["snapshots"][1].tobytes()


def test_a_damaged_row_is_said_to_be(tmp_path: Path) -> None:
    reader, ref = Reader(0), written(tmp_path)
    assert reader.have(ref)[0] is not None
    file, row = tmp_path / trajectory_name(0), arrays_of()["snapshots"][4].tobytes()
    data = file.read_bytes()
    file.write_bytes(data.replace(row, row[:-1] + bytes([row[-1] ^ 1])))
    with pytest.raises(ArtifactError, match=r"expert_0000.safetensors is damaged .row 4 of its snapshots"):
        _ = reader.have(ref)[4]
    assert reader.have(ref)[3] is not None


def test_a_reference_is_small_and_no_row_can_be_written_to(tmp_path: Path) -> None:
    ref = written(tmp_path)
    assert len(pickle.dumps(SnapshotRef(ref, 3))) < 500
    assert pickle.loads(pickle.dumps(ref)) == ref
    with pytest.raises(ValueError, match="read-only"):
        Reader().have(ref)[0][:] = 0


def test_what_is_made_lazily_is_made_when_it_is_asked_for() -> None:
    asked: list[int] = []

    def get(index: int) -> int:
        asked.append(index)
        return 10 * index

    twice = lazily(lambda value: 2 * value, Lazily(4, get))
    assert len(twice) == 4
    assert asked == []
    assert (twice[1], twice[-1], twice[1:3]) == (20, 60, [20, 40])
    assert asked == [1, 3, 1, 2]
    assert list(twice) == [0, 20, 40, 60]
    with pytest.raises(IndexError):
        _ = twice[4]


# --- other nodes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[TrajectoryRef, Remote]:
    """A folder that another node has, which reads in this process; here its file is not to be seen."""
    ref, remote, read = written(tmp_path, node=THERE), Remote(), module._row_there._function
    row = open_trajectory(ref.place, 0, "key")
    monkeypatch.setattr(module, "this_node", lambda: "here")
    monkeypatch.setattr(module, "_row_there", remote)
    monkeypatch.setattr(Reader, "_here", lambda *_: None)

    def answered(args: Any) -> Any:
        with monkeypatch.context() as there:
            there.setattr(Reader, "_here", lambda self, of, epoch: row.snapshot(epoch) if row else None)
            return read(*args)

    monkeypatch.setattr(module.ray, "get", answered)
    return ref, remote


def test_a_row_comes_from_the_node_that_has_its_file(elsewhere: tuple[TrajectoryRef, Remote]) -> None:
    ref, remote = elsewhere
    assert Reader().have(ref)[3].tobytes() == arrays_of()["snapshots"][3].tobytes()
    there = remote.given["scheduling_strategy"]
    assert (there.node_id, there.soft, remote.given["num_cpus"]) == (THERE, False, 0)


def test_a_row_whose_node_is_gone_is_lost(
    elsewhere: tuple[TrajectoryRef, Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr(module.ray, "get", gone)
    with pytest.raises(InputLost, match=r"expert 0 in .*: the node that has its file is gone"):
        _ = Reader().have(elsewhere[0])[3]


class Reading:
    """A worker that reads a row."""

    def row(self, ref: TrajectoryRef, epoch: int, node: str) -> bytes:
        """Its bytes; ``node``: the one that this worker thinks it is on, which sees no file."""
        if node:
            module.this_node = lambda: node
            Reader._here = lambda *_: None  # type: ignore[method-assign]
        return Reader().have(ref)[epoch].tobytes()  # type: ignore[return-value]


def test_rows_by_ray_itself_and_a_lost_file_is_a_lost_input(ray_session: object, tmp_path: Path) -> None:
    """One worker has no file and asks its node for the row; then the file goes, here and there."""
    ref = written(tmp_path, node=ray.get_runtime_context().get_node_id())
    with Pool(
        Reading, (), count=1, num_cpus=1, num_gpus=0, max_lost=0, task_seconds=300, idle_seconds=60,
        notice=lambda text: None,
    ) as pool:  # fmt: skip
        tasks = [Task("here", "row", (ref, 1, "")), Task("there", "row", (ref, 2, "elsewhere"))]
        answers = {done.task.name: done.value for done in pool.run(tasks)}
        expected = arrays_of()["snapshots"]
        assert answers == {"here": expected[1].tobytes(), "there": expected[2].tobytes()}
        (tmp_path / trajectory_name(0)).unlink()
        (done,) = pool.run([Task("lost", "row", (ref, 3, "elsewhere"))])
        assert isinstance(done.error, InputLost)
