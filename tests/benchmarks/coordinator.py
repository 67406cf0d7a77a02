"""The coordinator with very many workers: prints tasks a second, against Ray alone, its memory and bytes a task.

    python tests/benchmarks/coordinator.py [workers] [rounds] [seconds a task]

Workers are simulated: a few real actors answer for all of them, after a pause, with what a round gives back. Everything
else is real: the coordinator, the pool, Ray's calls and object store, checkpoints. "Ray alone" is calls to the same
actors in one loop over ``ray.wait`` that keeps every worker busy, whose last round is written as ours is. What a task
costs by the number of classes is a row of scale.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import replace
from inspect import isawaitable, signature
from typing import Any, NamedTuple

import numpy as np
import psutil
import ray

from dasm_ray.config.keys import Runtime
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.matching.round import Assignment
from dasm_ray.runtime.decoding import load_real
from dasm_ray.runtime.groups import SegmentRun
from dasm_ray.runtime.pool import Pool
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.worker import Job, Keeping, RoundInputRefs, RoundMetrics, Worker
from dasm_ray.store.checkpoints import segment_pixels
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

IS_KEPT_BY_WORKERS = "initial" in signature(Worker.distil).parameters
"""Unlike in the earlier version, where pixels go through the coordinator."""
HOSTS = 4
SHAPE = (1, 1, 3, 32, 32)
"""One stored image of one class."""


class Host:
    """Answers for many workers at once, each after a ``pause`` in seconds."""

    def __init__(self, pause: float) -> None:
        self._pause = pause

    async def call(self, function: Any, *args: Any) -> Any:
        answer = function(self, *args)
        return await answer if isawaitable(answer) else answer

    async def distil(self, *arguments: Any) -> tuple[RoundMetrics, Any]:
        _, where, _, state, *kept = arguments
        initial, keeping = kept or ((), None)  # the earlier version's coordinator keeps checkpoints itself
        pixels, velocity = state or (await initial[0], np.zeros(SHAPE, np.float32))
        await asyncio.sleep(self._pause)
        if keeping is not None:
            from dasm_ray.runtime.worker import write_standing

            after = replace(where, round=where.round + 1)
            write_standing(keeping.place, keeping.key, after, pixels + 1, velocity, await initial[0])
            return RoundMetrics((), [1.0], 64, is_kept=True), (pixels + 1, velocity)
        return RoundMetrics((), [1.0], 64), (pixels + 1, velocity)


class Simulated:
    """What the pool takes for an actor: its calls go to a host."""

    sizes: list[int] = []  # noqa: RUF012
    """Of the first calls: bytes of their arguments."""

    def __init__(self, host: Any) -> None:
        self.__ray_call__, self.distil = _Counted(host.call), _Counted(host.distil)


class _Counted:
    """A method of a host that counts what its calls carry; the first argument, what to run there, is not counted."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def options(self, **settings: Any) -> _Counted:
        return _Counted(self._method.options(**settings))

    def remote(self, *args: Any) -> Any:
        if len(args) > 1 and len(Simulated.sizes) < 20:
            Simulated.sizes.append(bytes_of(args[1:]))
        return self._method.remote(*args)


class SimulatedPool(Pool):
    """A pool whose actors are simulated."""

    def __init__(self, hosts: list[Any], **settings: Any) -> None:
        super().__init__(Worker, (1,), num_cpus=1, num_gpus=0, **settings)
        self._hosts, self._hired = hosts, 0

    def _hire(self) -> Simulated:
        self._hired += 1
        return Simulated(self._hosts[self._hired % len(self._hosts)])

    def _dismiss(self, actor: Any) -> None:
        pass


def bytes_of(args: tuple[Any, ...]) -> int:
    """What arguments add to a task as Ray sends it: values serialised, references by id and owner."""
    worker = ray._private.worker.global_worker
    context, owner_of = worker.get_serialization_context(), worker.core_worker.get_owner_address
    return sum(
        len(each.binary()) + len(owner_of(each))
        if isinstance(each, ray.ObjectRef)
        else len(context.serialize(each).to_bytes())
        for each in args
    )


class Cost(NamedTuple):
    """What all tasks took: seconds, CPU seconds of the driver, and bytes that it grew by."""

    seconds: float
    cpu: float
    grown: int


def coordinated(
    hosts: list[Any], job: Job, workers: int, folder: str, kind: type[SimulatedPool] = SimulatedPool
) -> Cost:
    """All rounds by the coordinator, with a pool of some ``kind``."""
    settings: dict[str, Any] = {"count": workers, "max_lost": 1, "task_seconds": 600, "idle_seconds": 600}
    initial = np.zeros((workers, *SHAPE[1:]), np.float32)
    windows = ray.put([[np.arange(100)] * workers])
    inputs = RoundInputRefs(windows, ray.put(np.empty((workers, 0, *SHAPE[2:]), np.float32)), (), ())
    memory = psutil.Process().memory_info().rss
    progress = Progress(live=False)
    with kind(hosts, notice=print, **settings) as pool:
        starts = [pool.put(pixels[None]) for pixels in initial] if IS_KEPT_BY_WORKERS else initial
        run = SegmentRun(job, pool, progress, Place(folder), "key", 0, starts)
        progress.stage("distil", run.rounds_total)
        began, cpu = time.perf_counter(), time.process_time()
        ended = run.run(inputs, lambda: inputs)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    pixels = segment_pixels(Place(folder), 0, workers, "pixels")
    assert pixels is not None, f"no checkpoint of {ended}"
    assert (pixels == job.config.matcher.rounds).all()  # every round of every group was done, once
    return Cost(seconds, cpu, psutil.Process().memory_info().rss - memory)


def alone(hosts: list[Any], workers: int, rounds: int, folder: str) -> Cost:
    """The same calls in the shortest loop, of tasks that carry nothing but their group's state; the last are kept."""
    waiting: dict[Any, tuple[int, int, Any]] = {}
    keeping, initial = Keeping(Place(folder), "key"), ray.put(np.zeros(SHAPE, np.float32))
    memory = psutil.Process().memory_info().rss

    def give(number: int, round: int, state: Any) -> None:
        host = hosts[number % len(hosts)]
        kept = ((initial,), keeping) if round + 1 == rounds else ()
        arguments = (None, Assignment(0, number, round, (number,)), None, state, *kept)
        value, state = host.distil.options(num_returns=2).remote(*arguments)
        waiting[value] = (number, round, state)

    began, cpu = time.perf_counter(), time.process_time()
    for number in range(workers):
        give(number, 0, ray.put((np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32))))
    while waiting:
        first, others = ray.wait(list(waiting), num_returns=1, timeout=1)
        also = ray.wait(others, num_returns=len(others), timeout=0)[0] if first and others else []
        for value in [*first, *also]:
            number, round, state = waiting.pop(value)
            ray.get(value)
            if round + 1 < rounds:
                give(number, round + 1, state)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Cost(seconds, cpu, psutil.Process().memory_info().rss - memory)


def hosts_of(workers: int, pause: float = 0) -> list[Any]:
    """Actors that answer for so many workers, started, each task after a pause in seconds."""
    host = ray.remote(Host).options(num_cpus=0, max_concurrency=2 * workers)
    hosts = [host.remote(pause) for _ in range(HOSTS)]
    ray.get([each.call.remote(lambda _: None) for each in hosts])
    return hosts


def main(workers: int = 1000, rounds: int = 10, pause: float = 1.0) -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    config = parse_config(
        {
            "data": {"name": "digits"},
            "synthetic": {"ipc": 1, "segments": 1, "group_size": 1},
            "matcher": {"rounds": rounds},
        }
    )
    with Session.open(Runtime(workers=2, gpus_per_worker=0), print), tempfile.TemporaryDirectory() as folder:
        hosts = hosts_of(workers, pause)
        job = Job(config, load_real(open_source(config.data), config.data, print), "cpu")
        plain = alone(hosts, workers, rounds, f"{folder}/alone")
        ours = coordinated(hosts, job, workers, f"{folder}/ours")
    tasks = workers * rounds
    print(
        f"{workers} workers, {tasks} tasks of {pause:g} s: Ray alone {tasks / plain.seconds:.0f} a second, coordinator "
        f"{tasks / ours.seconds:.0f} a second, ratio {plain.seconds / ours.seconds:.2f}; driver grew by "
        f"{ours.grown / 2**20:.0f} MiB ({ours.grown / workers / 1024:.0f} KiB a worker); {max(Simulated.sizes)} bytes "
        f"of arguments a task"
    )


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, int, float), sys.argv[1:], strict=False)))
