"""The worker's roles, called in this process: what they return depends on their arguments alone."""

from __future__ import annotations

import platform
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from local_pool import Napping, fetch, local_real, put

from dasm_ray.config.keys import Data
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.decode import decode_all
from dasm_ray.core.matching.round import Assignment
from dasm_ray.core.networks.network import Network
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.errors import RunDirError
from dasm_ray.runtime import worker as worker_module
from dasm_ray.runtime.decoding import load_real
from dasm_ray.runtime.pool import Pool, Task
from dasm_ray.runtime.snapshots import SnapshotRef
from dasm_ray.runtime.worker import Chosen, Everything, Job, Keeping, Stored, Worker, environment
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import read_group
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place
from dasm_ray.store.trajectories import open_trajectory, trajectory_name, unfinished_name

for module in (__name__, "local_pool"):
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])  # workers cannot import a test file


@pytest.fixture(scope="module")
def job() -> Job:
    config = parse_config(
        {
            "data": {"name": "digits"},
            "model": {"width": 4, "depth": 1},
            "synthetic": {"ipc": 2, "segments": 1},
            "experts": {"epochs": 4, "batch": 64},
            "probe": {"epochs": 2, "batch": 10},
            "evaluate": {"batch": 10, "checkpoints": 2},
            "score": {"batch": 128},
            "runtime": {"compile": False},
        }
    )
    return Job(config, local_real(config), "cpu")


@pytest.fixture
def worker() -> Worker:
    return Worker(1, fetch)


def test_an_expert_is_trained_once_and_found_after(job: Job, worker: Worker, tmp_path: Path) -> None:
    metrics = worker.expert(job, Place(tmp_path), "key", 3)
    assert metrics.epochs == 4
    assert (metrics.kept.number, metrics.kept.epochs, metrics.kept.key) == (3, 4, "key")
    (snapshots,) = worker._all((metrics.kept,))
    assert len(snapshots) == len(metrics.accuracy) == 5
    kept = open_trajectory(Place(tmp_path), 3, "key")
    assert kept is not None
    assert np.stack(snapshots).tobytes() == kept.arrays()["snapshots"].tobytes()
    again = Worker(1, fetch).expert(job, Place(tmp_path), "key", 3)
    assert again == replace(metrics, epochs=0)


def test_an_expert_of_an_earlier_version_is_gone_on_from(job: Job, worker: Worker, tmp_path: Path) -> None:
    """It wrote what it had whole each time, into a file like the last."""
    whole = worker.expert(job, Place(tmp_path / "whole"), "key", 1)
    part, shorter = Place(tmp_path / "part"), job.config.experts.model_copy(update={"epochs": 2})
    worker.expert(replace(job, config=job.config.model_copy(update={"experts": shorter})), part, "key", 1)
    found = open_trajectory(part, 1, "key")
    assert found is not None
    tensors.write(part / "unfinished_expert_0001.safetensors", found.arrays(), {"key": "key", "expert": 1})
    (part / trajectory_name(1)).delete()
    resumed = Worker(1, fetch).expert(job, part, "key", 1)
    assert resumed.epochs == 2
    assert resumed.kept.digest == whole.kept.digest
    assert part.names() == [trajectory_name(1)]


def test_a_whole_expert_of_an_earlier_version_is_taken_as_it_is(job: Job, worker: Worker, tmp_path: Path) -> None:
    place = Place(tmp_path)
    made = worker.expert(job, place, "key", 1)
    before = np.stack(worker._all((made.kept,))[0])
    found = open_trajectory(place, 1, "key")
    assert found is not None
    tensors.write(place / trajectory_name(1), found.arrays(), {"key": "key", "expert": 1})
    data = (tmp_path / trajectory_name(1)).read_bytes()
    taken = Worker(1, fetch).expert(job, place, "key", 1)
    assert taken.epochs == 0
    assert (taken.accuracy, taken.loss) == (made.accuracy, made.loss)
    assert np.stack(worker._all((taken.kept,))[0]).tobytes() == before.tobytes()
    assert (tmp_path / trajectory_name(1)).read_bytes() == data


def test_a_torn_epoch_is_trained_again_with_a_word(
    job: Job, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its last epoch ends the worker is killed, and the disk has not all of the one before."""
    whole = worker.expert(job, Place(tmp_path / "whole"), "key", 1)
    part, runtime = Place(tmp_path / "part"), job.config.runtime.model_copy(update={"checkpoint_seconds": 0})
    mine = replace(job, config=job.config.model_copy(update={"runtime": runtime}))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker_module, "write_trajectory", killed)
    with pytest.raises(KeyboardInterrupt):
        worker.expert(mine, part, "key", 1)
    monkeypatch.undo()
    file = tmp_path / "part" / unfinished_name(1)
    file.write_bytes(file.read_bytes()[:-5])
    resumed = Worker(1, fetch).expert(mine, part, "key", 1)
    assert resumed.epochs == 2
    assert resumed.notices == (f"expert 1: what was last written of it in {part} is not whole, and is trained again",)
    assert resumed.kept.digest == whole.kept.digest


def test_scores_do_not_depend_on_the_cut(job: Job, worker: Worker, tmp_path: Path) -> None:
    kept = worker.expert(job, Place(tmp_path), "key", 0).kept
    probes, experts = (SnapshotRef(kept, 1),), (kept,)
    count = int(job.real.counts["train"].sum())
    for method, networks in ((worker.score, probes), (worker.score_statically, experts)):
        whole = method(job, networks, 0, count)
        for shards in (2, 5):
            parts = [method(job, networks, *range_) for range_ in shard_ranges(count, job.config.score.batch, shards)]
            assert np.concatenate([part.score for part in parts]).tobytes() == whole.score.tobytes()
            assert np.concatenate([part.wrong for part in parts]).tobytes() == whole.wrong.tobytes()


def test_a_probe_follows_from_its_member_number(job: Job, worker: Worker) -> None:
    pixels = (put(np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32)),)
    labels = np.repeat(np.arange(10), 2)
    _, first = worker.probe(job, 1, 0, pixels, labels)
    _, same = Worker(1, fetch).probe(job, 1, 0, pixels, labels)
    _, other = worker.probe(job, 1, 1, pixels, labels)
    assert first.tobytes() == same.tobytes()
    assert not np.array_equal(first, other)


def test_selection_and_evaluation_of_real_images(job: Job, worker: Worker, tmp_path: Path) -> None:
    experts = (worker.expert(job, Place(tmp_path), "key", 0).kept,)
    chosen = worker.select(job, ("herding", "k_means"), 4, experts)
    assert set(chosen) == {"herding", "k_means"}
    assert all(len(set(indices.tolist())) == 2 for indices in chosen.values())
    everything = np.arange(int(job.real.counts["train"].sum()))
    one = worker.evaluate(job, "some", 0, 8, Chosen(everything, None, "some")).outcome
    same = worker.evaluate(job, "some", 0, 8, Everything()).outcome
    assert (one.validation, one.test) == (same.validation, same.test)
    _, images = worker.images(job, everything[:3])
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1


def test_a_stored_image_gets_the_mean_label_of_what_it_decodes_to(job: Job, worker: Worker, tmp_path: Path) -> None:
    experts = (worker.expert(job, Place(tmp_path), "key", 0).kept,)
    generator = np.random.Generator(np.random.PCG64(0))
    pixels, labels = generator.random((4, 1, 8, 8), np.float32), np.array([0, 1, 1, 2])
    found = worker.label_softly(job, experts, Stored(put(pixels), labels, 2, False, "a"))
    decoded = decode_all(pixels, 2).numpy()
    apart = worker.label_softly(job, experts, Stored(put(decoded), labels.repeat(4), 1, False, "b"))
    assert found.shape == (4, 10)
    assert np.allclose(found, apart.reshape(4, 4, 10).mean(1), atol=1e-5)
    real = worker.label_softly(job, experts, Chosen(np.arange(3), None, "c"))
    _, images = worker.images(job, np.arange(3))
    same = worker.label_softly(job, experts, Stored(put(images), np.zeros(3, np.int64), 1, False, "d"))
    assert np.allclose(real, same, atol=1e-5)


@pytest.mark.slow(60)
def test_four_workers_read_one_decoded_copy_which_is_not_in_the_store(ray_session: object, data_folder: Path) -> None:
    """CIFAR-10, 184 MB decoded, read by four workers.

    The C allocator is told to give large blocks back at once: else what it keeps for later (up to 400 MB a worker,
    after temporaries of mixed sizes) looks like a copy.
    """
    if not (data_folder / "cifar10").exists():
        pytest.skip(f"{data_folder / 'cifar10'} is missing")
    data = Data(name="cifar10", path=str(data_folder / "cifar10"))
    real = load_real(open_source(data), data, lambda text: None)
    decoded = sum(int(counts.sum()) for counts in real.counts.values()) * 3 * 32 * 32
    config = parse_config({"data": {"name": "cifar10"}, "model": {"width": 4}, "runtime": {"compile": False}})
    job = Job(config, real, "cpu")
    flat = ray.put(_network(job).initial(torch.Generator().manual_seed(0)).numpy())
    with Pool(
        Napping,
        (1,),
        count=4,
        num_cpus=0.5,
        num_gpus=0,
        max_lost=0,
        task_seconds=300,
        idle_seconds=60,
        notice=lambda text: None,
        env={"MALLOC_MMAP_THRESHOLD_": "1000000"},
    ) as pool:
        wait_for_all(pool, 4)
        list(pool.run([Task(f"warm {i}", "score", (job, (flat,), 0, 5000)) for i in range(4)]))
        before = {d.value: _private(d.value) for d in pool.run([Task(f"pid {i}", "nap", (1.0,)) for i in range(4)])}
        count = int(real.counts["train"].sum())
        list(pool.run([Task(f"score {i}", "score", (job, (flat,), 0, count)) for i in range(4)]))
        grown = [_private(pid) - was for pid, was in before.items()]
    assert len(before) == 4
    store = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)
    print(
        f"\ndecoded {decoded / 2**20:.0f} MiB; store holds {store / 2**20:.0f} MiB; "
        f"workers grew by {[f'{grow / 2**20:.0f}' for grow in grown]} MiB of their own"
    )
    assert store < decoded / 10
    assert max(grown) < decoded / 4, "a worker holds a copy of its own"


def wait_for_all(pool: Pool, count: int) -> None:
    """Until so many workers answer: on a busy machine the first have done all there is before the last has come."""
    deadline, seen = time.monotonic() + 120, set()
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} workers of {count} came"
        seen |= {done.value for done in pool.run([Task(f"nap {i}", "nap", (1.0,)) for i in range(count)])}


def _network(job: Job) -> Network:
    real = job.real
    return Network(job.config.model, real.shape, len(real.class_names), real.mean, real.std, compile=False)


def _private(pid: int) -> int:
    """Bytes of memory that a process has for itself; what it maps from the object store is not among them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


class Allocating:
    """Takes and frees tensors as a step does."""

    def faults(self) -> int:
        """Page faults of twenty steps of 256 MiB each, after some in which the heap has found its size."""
        for step in range(24):
            if step == 4:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(1 << 24) for _ in range(4)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs a C library with thresholds")
def test_a_worker_keeps_the_memory_of_a_step_for_the_next(ray_session: object) -> None:
    """Without the environment each step takes its 65 536 pages from the system anew."""
    found = []
    for env in (environment(1), {"OMP_NUM_THREADS": "1"}):
        with Pool(
            Allocating, (), count=1, num_cpus=1, num_gpus=0, max_lost=0, task_seconds=60, idle_seconds=60,
            notice=lambda text: None, env=env,
        ) as pool:  # fmt: skip
            (done,) = pool.run([Task("faults", "faults", ())])
            found.append(done.value)
    kept, given_back = found
    assert given_back > 20 * 65_536 / 2
    assert kept < given_back / 5


def test_a_checkpoint_is_written_where_the_run_directory_is_reached(worker: Worker, tmp_path: Path) -> None:
    """A run directory on another machine has no claim here, whatever else has its name."""
    pixels, velocity, initial = (np.full((2, 1, 1, 8, 8), value, np.float32) for value in (0.1, 0.2, 0.3))
    where, state = Assignment(0, 3, 5, (6, 7)), (put((pixels, velocity)),)
    there = Keeping(Place(tmp_path).within("claim") / "segments", "key")
    assert not worker.keep_group(there, where, state, (put(initial),)).is_kept
    assert worker.kept_group(there, 0, 3) == (None, None, None)
    assert not list(tmp_path.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:  # as a worker of another user finds it
        patch.setattr(Place, "check", lambda self: (_ for _ in ()).throw(RunDirError("Permission denied")))
        assert not worker.keep_group(there, where, state, (put(initial),)).is_kept
        assert worker.kept_group(there, 0, 3) == (None, None, None)
    (tmp_path / "claim").write_text("")
    assert worker.keep_group(there, where, state, (put(initial),)).is_kept
    round, found, began = worker.kept_group(there, 0, 3)
    assert round == 5
    assert [array.tobytes() for array in (*found, began)] == [each.tobytes() for each in (pixels, velocity, initial)]
    assert read_group(Place(tmp_path) / "segments", 0, 3, "key") is not None
