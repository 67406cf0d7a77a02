"""Rows of the runtime: what the coordinator adds to the mathematics, what a second worker gives, and whether rounds
stay as fast as they were.

What must stay true: both sides of a pair do the same rounds on the same images, one after the other, and each says what
it came to, so that they can be compared.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import shown
import torch

from dasm_ray.config.keys import Model, RunConfig, Runtime
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.matching.round import Assignment, RoundInputs, distil_round, matching_of
from dasm_ray.core.networks.network import Network
from dasm_ray.core.seed import torch_generator
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.groups import Renewed, SegmentRun, groups_in
from dasm_ray.runtime.pool import Pool, Task, outputs
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.worker import Job, RoundInputRefs, Worker, environment
from dasm_ray.store.checkpoints import KeptPixels
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

Figures = dict[str, Any]

CLASSES, SIDE = 10, 8
"""Of scikit-learn's digits."""

DONE = {"alone": (1, 16, 256), "residual": (1, 16, 64, 256)}
"""Segments that are done when the time of a round is taken, by `matcher.context`: under `residual` a round reads
earlier images until they fill a batch (`matcher.batch_syn`), which 64 segments do here."""

IMAGES = (1000, 4000, 16000)
"""Training images at which the time of a round is taken."""


class Timed(Worker):
    """A worker that also does the rounds of all groups in one bare loop of core calls, and says its CPU seconds."""

    @outputs(2)
    def loop(self, job: Job, refs: RoundInputRefs, initial: Any) -> tuple[float, Any]:
        """CPU seconds of all rounds one after another, without a coordinator; and the pixels (K, m, C, H, W)."""
        inputs = RoundInputs(
            blocks=self._blocks(job, "train"),
            windows=self._fetch(refs.windows),
            earlier=self._fetch(refs.earlier),
            current=np.empty((0, 0), np.float32),
            experts=self._all(refs.experts),
            probes=(),
        )
        began, done = time.process_time(), []
        for number, classes in enumerate(groups_in(job.config, len(initial))):
            pixels, velocity = initial[list(classes)], np.zeros_like(initial[list(classes)])
            for round in range(job.config.matcher.rounds):
                where = Assignment(0, number, round, classes)
                pixels, velocity, _ = distil_round(self._matching(job), job.config, where, inputs, pixels, velocity)
            done.append(pixels)
        return time.process_time() - began, np.concatenate(done)

    def cpu(self) -> float:
        """CPU seconds of this process so far."""
        return time.process_time()


def recipe(quick: bool) -> RunConfig:
    """A segment of digits whose states are snapshots of an expert: two groups, four rounds each.

    A round is half a second of a processor with AVX-512, and more of others.
    """
    return parse_config(
        {
            "data": {"name": "digits"},
            "model": {"width": 8 if quick else 32, "depth": 2},
            "synthetic": {"ipc": 2, "segments": 1},
            "matcher": {
                "rounds": 2 if quick else 4,
                "networks": 1 if quick else 24,
                "batch_real": 64,
                "augment": "crop",
            }
            | {"lr_img": 0.01, "scale_lr": False, "snapshots": [[0, 1]]},
            "runtime": {"compile": False, "checkpoint_seconds": 1e6},
        }
    )


class Bench(NamedTuple):
    """A session with a set, and what rounds of it read."""

    job: Job
    inputs: RoundInputRefs
    initial: np.ndarray


@contextmanager
def opened(quick: bool, workers: int) -> Iterator[Bench]:
    """Ray with so many workers of one thread, and the set."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    config = recipe(quick)
    with Session.open(Runtime(workers=workers, cpus_per_worker=1, gpus_per_worker=0), _quiet):
        yield prepared(config, load_real(open_source(config.data), config.data, _quiet), ray.put)


def prepared(config: RunConfig, real: RealRefs, put: Callable[[Any], Any]) -> Bench:
    """What a segment of a set begins with, put where workers fetch it."""
    generator = torch_generator("benchmark", "rounds")
    network = Network(config.model, real.shape, CLASSES, real.mean, real.std, compile=False)
    expert = np.stack([network.initial(generator).numpy() for _ in range(2)])
    windows = put([[np.arange(count) for count in real.counts["train"]]])
    nothing = put(np.empty((CLASSES, 0, *real.shape), np.float32))
    initial = torch.rand(CLASSES, config.synthetic.ipc, *real.shape, generator=generator).numpy()
    return Bench(Job(config, real, "cpu"), RoundInputRefs(windows, nothing, (put(expert),), ()), initial)


def pool_of(workers: int) -> Pool:
    """Workers as a run has them."""
    return Pool(
        Timed,
        (1,),
        count=workers,
        num_cpus=1,
        num_gpus=0,
        max_lost=1,
        task_seconds=600,
        idle_seconds=600,
        notice=_quiet,
        env=environment(1),
    )


def _quiet(text: str) -> None:
    """Says nothing."""


def coordinated(bench: Bench, pool: Pool) -> np.ndarray:
    """All rounds by the coordinator: the pixels (K, m, C, H, W)."""
    with tempfile.TemporaryDirectory(prefix="dasm-ray-bench-") as folder:
        progress, place = Progress(live=False), Place(folder)
        groups = groups_in(bench.job.config, CLASSES)
        starts = [pool.put(bench.initial[list(classes)]) for classes in groups]
        run = SegmentRun(bench.job, pool, progress, place, "key", 0, starts)
        progress.stage("distil", run.rounds_total)
        count = run.run(bench.inputs, lambda: Renewed(bench.inputs, starts))
        return np.concatenate(list(KeptPixels(place, 0, "key", count, CLASSES, "pixels")))


def asked(pool: Pool, method: str, *arguments: Any, count: int = 1) -> Any:
    """The answer of a worker to a call that is no role of the house."""
    (done,) = pool.run([Task(f"{method} {time.monotonic()}", method, arguments, count)])
    return done.value, done.refs


# --- the rows ----------------------------------------------------------------------------------------------------


def coordinator(pairs: int, quick: bool) -> Figures:
    """A segment through the coordinator with one worker, beside a bare loop of core calls in the same process."""
    samples, differ = [], 0.0
    with opened(quick, 1) as bench, pool_of(1) as pool:

        def ours() -> tuple[dict[str, float], np.ndarray]:
            before, began, mine = asked(pool, "cpu")[0], time.perf_counter(), time.process_time()
            pixels = coordinated(bench, pool)
            wall, mine = time.perf_counter() - began, time.process_time() - mine
            return {"wall": wall, "cpu": asked(pool, "cpu")[0] - before + mine}, pixels

        def bare() -> tuple[dict[str, float], np.ndarray]:
            began = time.perf_counter()
            cpu, (ref,) = asked(pool, "loop", bench.job, bench.inputs, bench.initial, count=2)
            return {"wall": time.perf_counter() - began, "cpu": cpu}, pool.fetch(ref)

        for number in range(-1, pairs):  # the first of each loads what both need
            order = (ours, bare) if number % 2 else (bare, ours)
            took = {form.__name__: form() for form in order}
            differ = max(differ, float(np.abs(took["ours"][1] - took["bare"][1]).max()))
            if number >= 0:
                samples.append({name: clocks for name, (clocks, _) in took.items()})
    return {"samples": samples, "differ": differ, "ratios": _ratios(samples, "ours", "bare")}


def workers(pairs: int, quick: bool) -> Figures:
    """The same segment by two workers of one thread each, beside one: how many times as fast by the clock.

    What the machine itself gives two processes is taken in the same minute: each worker does the whole segment in a
    bare loop, so that two of them, which share nothing and wait for nobody, do twice the work of one.
    """
    samples, differ = [], 0.0
    with opened(quick, 3) as bench, pool_of(1) as single, pool_of(2) as double:  # a place for each worker

        def by(pool: Pool, count: int) -> tuple[dict[str, float], np.ndarray]:
            began = time.perf_counter()
            pixels = coordinated(bench, pool)
            wall, began = time.perf_counter() - began, time.perf_counter()
            _apart(bench, pool, count)
            return {"wall": wall, "apart": (time.perf_counter() - began) / count}, pixels

        forms = {"one": (single, 1), "two": (double, 2)}
        for number in range(-1, pairs):
            took = {name: by(*forms[name]) for name in (forms if number % 2 else reversed(forms))}
            differ = max(differ, float(np.abs(took["one"][1] - took["two"][1]).max()))
            if number >= 0:
                samples.append({name: clocks for name, (clocks, _) in took.items()})
    return {"samples": samples, "differ": differ, "ratios": _ratios(samples, "one", "two")}


def _apart(bench: Bench, pool: Pool, count: int) -> None:
    """The whole segment in a bare loop, by each of ``count`` workers for itself."""
    arguments = (bench.job, bench.inputs, bench.initial)
    for _ in pool.run([Task(f"loop {number} {time.monotonic()}", "loop", arguments, 2) for number in range(count)]):
        pass


def rounds(pairs: int, quick: bool) -> Figures:
    """CPU seconds of a round by segments that are done before it, and by training images."""
    times: dict[str, list[float]] = {}
    few, less = (3, 10) if quick else (12, 1)
    calls: dict[str, Callable[[], object]] = {}
    for context, segments in DONE.items():
        for done in segments:
            calls[f"{done} done {context}"] = partial(_round, context, done, IMAGES[0] // less, few, quick)
    for images in IMAGES:
        calls[f"{images} images"] = partial(_round, "residual", 1, images // less, few, quick)
    made = {name: call() for name, call in calls.items()}
    for number in range(-1, pairs):
        for name in made if number % 2 else reversed(made):
            began = time.process_time()
            made[name]()  # type: ignore[operator]
            if number >= 0:
                times.setdefault(name, []).append(time.process_time() - began)
    return {"samples": times, "rounds": {name: shown.spread(times[name]) for name in calls}}


def _round(context: str, done: int, images: int, networks: int, quick: bool) -> Callable[[], object]:
    """A round of five classes after so many segments, of as many images in training, in this process."""
    torch.set_num_threads(1)
    config = recipe(quick)
    matcher = config.matcher.model_copy(update={"networks": networks, "context": context})
    synthetic = config.synthetic.model_copy(update={"segments": done + 1, "ipc": 2 * (done + 1)})
    config = config.model_copy(update={"matcher": matcher, "synthetic": synthetic})
    generator, shape = torch_generator("benchmark", "round"), (1, SIDE, SIDE)
    network = Network(Model(width=config.model.width, depth=2), shape, CLASSES, (0.5,), (0.3,), compile=False)
    each = images // CLASSES
    levels = torch.randint(0, 256, (CLASSES, each, *shape), generator=generator, dtype=torch.uint8)
    inputs = RoundInputs(
        blocks=Blocks(list(levels.numpy())),
        windows=[[np.arange(each)] * CLASSES] * (done + 1),
        earlier=torch.rand(CLASSES, 2 * done, *shape, generator=generator).numpy(),
        current=np.empty((0, 0), np.float32),
        experts=[np.stack([network.initial(generator).numpy() for _ in range(2)])],
        probes=(),
    )
    matching, where = matching_of(network, config, done), Assignment(done, 0, 0, tuple(range(5)))
    pixels = torch.rand(5, 2, *shape, generator=generator).numpy()
    return lambda: distil_round(matching, config, where, inputs, pixels, np.zeros_like(pixels))


def _ratios(samples: list[dict[str, dict[str, float]]], one: str, other: str) -> dict[str, dict[str, float]]:
    return {clock: shown.spread([s[one][clock] / s[other][clock] for s in samples]) for clock in samples[0][one]}


RUNTIME: dict[str, Callable[[int, bool], Figures]] = {"coordinator": coordinator, "workers": workers, "rounds": rounds}
"""Rows without a column of the table each, told in a line."""


def main(name: str, pairs: int, quick: bool) -> Figures:
    """A row in this process, which `bench` starts for it alone."""
    return RUNTIME[name](pairs, quick)
