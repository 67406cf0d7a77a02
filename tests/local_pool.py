"""A pool without Ray: tasks are calls in this process, one after another, so that a run takes milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.method.run import Run, whitened
from dasm_ray.runtime.decoding import RealRefs, index_of, told
from dasm_ray.runtime.parts import opened_here
from dasm_ray.runtime.plan import Shape
from dasm_ray.runtime.pool import Done, InputLost, Task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.snapshots import OnDisk, Reader
from dasm_ray.runtime.worker import Worker
from dasm_ray.store.datasets.blockcache import BlockCache, Index, Kept, part_name
from dasm_ray.store.datasets.blockfile import write_part
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.fingerprint import fingerprint
from dasm_ray.store.datasets.shards import Source
from dasm_ray.store.datasets.sorting import merge, pieces, write_chunk
from dasm_ray.store.datasets.splits import SPLITS
from dasm_ray.store.place import Place


@dataclass(frozen=True, eq=False)
class LocalRef:
    """What a reference is here: the value itself, its arrays not to be written to, as in shared memory."""

    value: Any


def put(value: Any) -> LocalRef:
    for array in value if isinstance(value, tuple | list) else (value,):
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return LocalRef(value)


def fetch(ref: Any) -> Any:
    return [each.value for each in ref] if isinstance(ref, list) else ref.value


def read(ref: OnDisk) -> np.ndarray:
    """What a reference to an expert's file means: snapshots (E+1, P), or one (P,)."""
    found = Reader().have(ref)
    return found if isinstance(found, np.ndarray) else np.stack(found)


class Napping(Worker):
    """A worker with one more thing to do."""

    def nap(self, seconds: float) -> int:
        """Waits, so that every worker gets one; the process id."""
        time.sleep(seconds)
        return os.getpid()


class LocalPool:
    """Does what ``runtime.pool.Pool`` does, in this process and on one thread. ``done`` names all tasks that were done.

    ``lose``: names of tasks that are said, once each, to have lost what they read.
    """

    alive, lost = 1, 0
    put, fetch = staticmethod(put), staticmethod(fetch)

    def __init__(self, lose: Iterable[str] = ()) -> None:
        self._worker, self._tasks, self._lose = Napping(1, fetch), [], set(lose)
        self.done: list[str] = []

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def run(self, tasks: Iterable[Task]) -> Generator[Done]:
        self._tasks.extend(tasks)
        return self.results()

    def results(self) -> Generator[Done]:
        try:
            while self._tasks:
                yield self._do(self._tasks.pop(0))
        finally:
            self._tasks.clear()

    def _do(self, task: Task) -> Done:
        if task.name in self._lose:
            self._lose.remove(task.name)
            return Done(task, None, error=InputLost(f"{task.name}: an object that it reads is gone"))
        arguments = [fetch(each) if isinstance(each, LocalRef) else each for each in task.args]
        try:
            answer = getattr(self._worker, task.method)(*arguments)
        except InputLost as error:
            return Done(task, None, error=error)
        self.done.append(task.name)
        first, *others = answer if task.outputs > 1 else (answer,)
        return Done(task, first, tuple(map(put, others)))


class Remote:
    """A task of Ray as far as it is asked here; ``given`` are the options of the last call."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def options(self, **given: Any) -> Remote:
        self.given = given
        return self

    def remote(self, *args: Any) -> Any:
        return args


SMALL: dict[str, dict[str, Any]] = {
    "data": {"name": "digits"},
    "model": {"width": 4, "depth": 1},
    "synthetic": {"ipc": 2, "segments": 2, "group_size": 5},
    "experts": {"count": 2, "epochs": 3, "batch": 128},
    "matcher": {"rounds": 2, "networks": 1, "batch_real": 8, "lr_img": 0.01, "scale_lr": False, "snapshots": [[0, 3]]},
    "score": {"early": 1, "batch": 400},
    "probe": {"epochs": 4, "batch": 10, "members": 2},
    "evaluate": {"epochs": 3, "full_epochs": 1, "batch": 20, "seeds": 2, "checkpoints": 1},
    "runtime": {"compile": False, "checkpoint_seconds": 0, "page": False},
}
"""A run of digits that takes a second or two in this process; a page would take twice as long."""

WALKS: dict[str, dict[str, Any]] = {
    "synthetic": {"group_size": None},
    "matcher": {"name": "datm", "rounds": 2, "augment": "crop"},
    "trajectory": {"steps": 3, "batch": 10, "lanes": 2, "starts": [[0, 1, 2]], "epochs": 1, "threshold": 100},
}
"""What makes trajectories of it."""


def small(**sections: dict[str, Any]) -> RunConfig:
    """The small run with some keys changed; another matcher brings its own section."""
    tree = {name: dict(section) for name, section in SMALL.items()}
    for name, section in sections.items():
        is_another = name == "matcher" and "name" in section
        tree[name] = section if is_another else tree.get(name, {}) | section
    return parse_config(tree)


def shared_experts() -> dict[str, str]:
    """For ``experts`` of runs whose experts are not what is tested: trained once for all tests, by any process."""
    return {"cache": f"{os.environ['DASM_RAY_CACHE']}/experts"}


SESSION = Session(workers=1, shape=Shape(1, 0.0), device="cpu", started_here=False, connected_here=False)


def local_real(config: RunConfig) -> RealRefs:
    """The real images of a configuration, decoded and sorted here, or found."""
    source, said = open_source(config.data), list[str]()
    cache, key = BlockCache(config.data, said.append), fingerprint(source, config.data)
    index = cache.find(key)
    if index is None:
        with cache.alone(key, source.name):  # another process of the same tests may be at it
            index = cache.find(key) or _decoded(config, source, cache, key)
    return _refs(cache.kept(key), index, source.class_names)


def _decoded(config: RunConfig, source: Source, cache: BlockCache, key: str) -> Index:
    shards = [shard for of_split in source.shards.values() for shard in of_split]
    with cache.making(key, 0) as making:
        facts = [write_chunk(making.chunks, n, shard, config.data, source.cut) for n, shard in enumerate(shards)]
        work = pieces(np.stack([each.counts for each in facts]), source.shape)
        merged = [each for piece in work for each in merge(making, piece, source.shape)]
        index = index_of(merged, source.shape, told(facts))
        index.write(making.place)
    return index


def _refs(kept: Kept, index: Index, class_names: tuple[str, ...]) -> RealRefs:
    return RealRefs(kept, index.counts, index.shape, class_names, index.mean, index.std, index.digest)


def blocks_of(real: RealRefs, split: str = "train") -> list[np.ndarray]:
    """The images of every class, in place."""
    parts, nothing = opened_here(real.kept, real.digest).split(split), np.empty((0, *real.shape), np.uint8)
    assert len(parts) == np.count_nonzero(parts.counts), "each class is one part here"
    of_class = iter(parts)
    return [next(of_class) if count else nothing for count in parts.counts]


def with_blocks(real: RealRefs, folder: Path, **blocks: list[np.ndarray]) -> RealRefs:
    """The same set, kept in a folder, with other images in some splits."""
    of_split = {split: blocks.get(split) or blocks_of(real, split) for split in SPLITS}
    parts = {}
    for split, of_class in of_split.items():
        (folder / "other" / "blocks" / split).mkdir(parents=True)
        files = [folder / "other" / part_name(split, label, 0) for label in range(len(of_class))]
        parts[split] = tuple((write_part(*each),) for each in zip(files, of_class, strict=True))
    index = Index(real.shape, parts, (), real.mean, real.std, real.digest, {})
    index.write(Place(folder / "other"))
    return _refs(Kept(str(folder), "other"), index, real.class_names)


def local_run(config: RunConfig, folder: Path, real: RealRefs, pool: LocalPool | None = None) -> Run:
    """An open run in this process."""
    run = Run(config, Place(folder), pool or LocalPool(), Progress(live=False), SESSION, real)  # type: ignore[arg-type]
    return whitened(run)


def again(run: Run, config: RunConfig) -> Run:
    """The same directory and images under another configuration, with a pool of its own."""
    return whitened(replace(run, config=config, pool=LocalPool(), whitening=None))  # type: ignore[arg-type]
