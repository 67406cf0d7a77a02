"""How the data plane scales: each row prints what it has measured as one line of JSON. Bytes and CPU seconds, not time.

    python tests/benchmarks/scale.py tasks [classes]      bytes and driver CPU a task, beside Ray alone
    python tests/benchmarks/scale.py sort [classes images side]   spilled, read, written while a set is sorted
    python tests/benchmarks/scale.py second [classes images side] a second command on the same set
    python tests/benchmarks/scale.py nodes [classes images side]  bytes that each of three nodes fetches
    python tests/benchmarks/scale.py killed [classes images side] a whole run on four nodes, one killed in the middle
    python tests/benchmarks/scale.py large [images side workers]  memory of a run on a set larger than its object store
    python tests/benchmarks/scale.py photos [images side workers] three classes of large images: seconds, memory
    python tests/benchmarks/scale.py fetched [classes rounds]     bytes to the driver a task; how long it gives none
    python tests/benchmarks/scale.py evaluate [images side]       memory of one training on a set of factor 2
    python tests/benchmarks/scale.py artifact [images side]       memory of writing a set
    python tests/benchmarks/scale.py micro [slots real side width] memory and CPU of an idc step, whole and in pieces
    python tests/benchmarks/scale.py snapshot [parameters epochs] bytes and memory of one snapshot of an expert
    python tests/benchmarks/scale.py lanes [side slots lanes]     tasks of one group out at once, bytes a step
    python tests/benchmarks/scale.py walks [classes slots side steps batch]  bytes to and from a lane of mtt

`tasks`, `sort`, `fetched`, `evaluate` and `artifact` work in the earlier version as well
(``PYTHONPATH=OTHER/CHECKOUT``), so that both can be measured side by side.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from coordinator import Simulated, SimulatedPool, alone, coordinated, hosts_of
from PIL import Image
from ray._private.internal_api import get_memory_info_reply

from dasm_ray.config.keys import Data, Model, Runtime, TrainRecipe
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.augment import draw
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.matching.round import matching_of
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.networks.evaluate import evaluate_on, synthetic_samples
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.groups import Renewed, SegmentRun
from dasm_ray.runtime.pool import Done
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.worker import Job, RoundInputRefs, Worker, environment
from dasm_ray.store import tensors
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.datasets.blockcache import Kept
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

Figures = dict[str, Any]


def write_images(folder: Path, classes: int, images: int, side: int) -> Data:
    """A Parquet set of so many images of noise, in the order of a shuffle, as bitmaps: reading them costs little.

    Row groups have 100 rows, as the `datasets` library writes them for images.
    """
    draw = np.random.Generator(np.random.PCG64(0))
    labels = draw.permutation(np.arange(images) % classes)
    folder.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "train.parquet", schema, compression="none") as writer:
        for first in range(0, images, 100):
            rows = []
            for _ in labels[first : first + 100]:
                out = io.BytesIO()
                Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(out, "BMP")
                rows.append({"bytes": out.getvalue(), "path": "x.bmp"})
            writer.write_table(pa.table([pa.array(rows, kind), labels[first : first + 100]], schema=schema))
    # One image in ten is held out as validation, one in five as test, by its content.
    return Data(name="parquet", path=str(folder), val_share=0.1, test_share=0.2)


# --- tasks -------------------------------------------------------------------------------------------------------


def tasks(classes: int = 1000, total: int = 2000) -> Figures:
    """The coordinator with groups of one class, on workers that do nothing; and the same calls in a short loop."""
    workers, rounds = min(classes, 1000), max(10, total // classes)
    tree = {
        "data": {"name": "parquet", "path": "unset"},
        "synthetic": {"ipc": 1, "segments": 1, "group_size": 1},
        "matcher": {"rounds": rounds},
    }
    with tempfile.TemporaryDirectory() as folder, Session.open(Runtime(workers=2, gpus_per_worker=0), quiet) as _:
        data = write_images(Path(folder) / "set", classes, 12 * classes, 8)
        config = parse_config({**tree, "data": {**tree["data"], "path": data.path}})
        hosts = hosts_of(workers)
        real = load_real(open_source(config.data), config.data, quiet)
        if isinstance(real.splits, Mapping):  # the earlier version; a large set's blocks lie in the store
            blocks = {name: tuple(ray.put(block) for block in ray.get(list(of))) for name, of in real.splits.items()}
            real = replace(real, splits=blocks)
        plain = alone(hosts, workers, rounds, f"{folder}/alone")
        ours = coordinated(hosts, Job(config, real, "cpu"), workers, f"{folder}/segments")
    count = workers * rounds
    return {
        "classes": classes,
        "tasks": count,
        "bytes a task": max(Simulated.sizes),
        "driver ms a task": round(1000 * ours.cpu / count, 2),
        "Ray alone: ms a task": round(1000 * plain.cpu / count, 2),
        "tasks a second": round(count / ours.seconds),
        "Ray alone: tasks a second": round(count / plain.seconds),
        "ratio": round(plain.seconds / ours.seconds, 2),
    }


def fetched(classes: int = 100, rounds: int = 5) -> Figures:
    """Groups of one class of one image of 32 px, each kept after every round, on workers that do nothing."""
    tree = {
        "data": {"name": "digits"},
        "synthetic": {"ipc": 1, "segments": 1, "group_size": 1},
        "matcher": {"rounds": rounds},
        "runtime": {"checkpoint_seconds": 0},
    }
    with tempfile.TemporaryDirectory() as folder, Session.open(Runtime(workers=2, gpus_per_worker=0), quiet) as _:
        data = write_images(Path(folder) / "set", classes, 12 * classes, 8)
        config = parse_config({**tree, "data": {"name": "parquet", "path": data.path}})
        real = load_real(open_source(config.data), config.data, quiet)
        coordinated(hosts_of(classes), Job(config, real, "cpu"), classes, f"{folder}/segments", Fetching)
    return {
        "classes": classes,
        "tasks": classes * rounds,
        "bytes of pixels and velocities": 2 * 4 * classes * 3 * 32 * 32,
        "bytes fetched a task: answers": round(Fetching.answers / (classes * rounds)),
        "bytes fetched a task: pixels": round(Fetching.pixels / (classes * rounds)),
        "giving tasks is held for, ms at most": round(1000 * Fetching.held),
    }


class Fetching(SimulatedPool):
    """Counts the bytes that the driver is given: answers, and what it asks the object store for.

    And for how long it gives no task, from taking an answer until every worker that is free then has its next one.
    """

    answers = pixels = 0
    held = 0.0
    _since: float | None = None

    def _give(self) -> None:
        super()._give()
        if self._since is not None:
            Fetching.held, self._since = max(Fetching.held, time.perf_counter() - self._since), None

    def _answer(self, worker: Any, answer: Any) -> Any:
        self._since = self._since or time.perf_counter()
        done = super()._answer(worker, answer)
        Fetching.answers += 0 if done is None else len(pickle.dumps(done.value))
        return done

    def fetch(self, ref: Any) -> Any:  # type: ignore[override]
        """See Pool."""
        value = super().fetch(ref)
        Fetching.pixels += sum(array.nbytes for array in (value if isinstance(value, tuple) else (value,)))
        return value


def quiet(text: str) -> None:
    """Says nothing."""


# --- sort --------------------------------------------------------------------------------------------------------


class Watched:
    """What this process and all that it starts have read and written, by the kernel's count."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._first = self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> dict[int, dict[str, int]]:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(OSError, psutil.Error):
                lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
                self._seen[process.pid] = {name: int(value) for name, value in (line.split(": ") for line in lines)}
        return {pid: dict(found) for pid, found in self._seen.items()}

    def total(self, name: str) -> int:
        """Bytes since the beginning, of all processes."""
        return sum(found[name] - self._first.get(pid, {}).get(name, 0) for pid, found in self._seen.items())


@contextlib.contextmanager
def small_store(mebibytes: int) -> Iterator[None]:
    """A Ray of two cores whose object store is so small."""
    size = mebibytes << 20
    ray.init(address="local", num_cpus=2, object_store_memory=size, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def store_figures() -> Figures:
    """What Ray says of its object store: MiB spilled, and in files that stand in for memory that it lacks."""
    stats = get_memory_info_reply(ray._private.state.state).store_stats
    return {
        "spilled MiB": stats.spilled_bytes_total >> 20,
        "fallback MiB": stats.object_store_bytes_fallback >> 20,
    }


def sort(classes: int = 100, images: int = 20_000, side: int = 64) -> Figures:
    """A set sorted beside an object store of 80 MiB, and once more."""
    size = images * 3 * side * side
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASM_RAY_CACHE"] = folder
        data = write_images(Path(folder) / "set", classes, images, side)
        with small_store(80):
            found: Figures = {"classes": classes, "images": images, "decoded MiB": size >> 20}
            with Watched() as watched:
                began, cpu = time.perf_counter(), time.process_time()
                kept = load_real(open_source(data), data, quiet)
                found["seconds"] = round(time.perf_counter() - began, 2)
                found["driver CPU seconds"] = round(time.process_time() - cpu, 2)
            encoded = Path(folder, "set", "train.parquet").stat().st_size
            for name in ("rchar", "wchar", "write_bytes"):
                found[f"{name} / decoded"] = round(watched.total(name) / size, 2)
            found["of which the set's own files, read"] = round(encoded / size, 2)
            found |= store_figures()
            found["digest"] = kept.digest
    return found


def second(classes: int = 100, images: int = 20_000, side: int = 64) -> Figures:
    """What a second command on a set decodes, and its seconds until the images can be read."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASM_RAY_CACHE"] = folder
        data = write_images(Path(folder) / "set", classes, images, side)
        found: Figures = {"classes": classes, "images": images}
        with small_store(80):
            for command in ("first", "second"):
                counted = Counted()
                began = time.perf_counter()
                load_real(open_source(data), data, quiet, counted)
                found[f"{command}: decoded"] = counted.samples
                found[f"{command}: seconds"] = round(time.perf_counter() - began, 2)
    return found


class Counted(Progress):
    """Counts the images that are worked on."""

    def __init__(self) -> None:
        super().__init__(live=False)
        self.samples = 0

    def advance(self, n: int = 1, samples: int = 0, **metrics: float) -> None:
        """See Progress."""
        self.samples += samples
        super().advance(n, samples, **metrics)


# --- nodes -------------------------------------------------------------------------------------------------------


def nodes(classes: int = 60, images: int = 6000, side: int = 64) -> Figures:
    """Three nodes beside the head, each with a cache folder of its own, each of which reads a third of the classes."""
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        os.environ["DASM_RAY_CACHE"] = f"{folder}/cache0"
        data = write_images(Path(folder) / "set", classes, images, side)
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
        try:
            added = [
                cluster.add_node(num_cpus=1, **small, env_vars={"DASM_RAY_CACHE": f"{folder}/cache{number}"})
                for number in (1, 2, 3)
            ]
            ray.init(address=cluster.address, log_to_driver=False)
            real = load_real(open_source(data), data, quiet)
            read = ray.remote(num_cpus=1)(read_classes)
            thirds = np.array_split(np.arange(classes), 3)
            there = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in added]
            calls = [
                read.options(scheduling_strategy=at).remote(real, of) for at, of in zip(there, thirds, strict=True)
            ]
            found = ray.get(calls)
            here = read_classes(real, np.arange(classes))
            fetched = [bytes_below(Path(folder) / f"cache{number}") for number in range(4)]
        finally:
            ray.shutdown()
            cluster.shutdown()
    size = sum(int(counts.sum()) for counts in real.counts.values()) * 3 * side * side
    return {
        "decoded MiB": round(size / 2**20, 2),
        "kept on the head MiB": round(fetched[0] / 2**20, 2),
        "fetched by each MiB": [round(each / 2**20, 2) for each in fetched[1:]],
        "largest / third": round(max(fetched[1:]) / (size / 3), 3),
        "same images": [each for third in found for each in third] == here,
    }


def read_classes(real: Any, classes: np.ndarray) -> list[int]:
    """Checksums of all images of some classes, in every split, read as a worker reads them."""
    from zlib import crc32

    worker = Worker(1)
    found = []
    for label in classes:
        for split in ("train", "val", "test"):
            blocks = worker._blocks(Job(parse_config({"data": {"name": "digits"}}), real, "cpu"), split)
            first = int(blocks.starts[label])
            found.append(crc32(blocks.take(np.arange(first, first + int(blocks.counts[label]))).data))
    return found


# --- killed ------------------------------------------------------------------------------------------------------


def killed(classes: int = 40, images: int = 8000, side: int = 32) -> Figures:
    """A whole `distill` on four nodes, each with a cache folder of its own; the second dies in the first segment.

    Beside it the same recipe on this machine alone, with one worker.
    """
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        at = Path(folder)
        write_images(at / "set", classes, images, side)
        (at / "recipe.yaml").write_text(json.dumps(recipe_of(at / "set")))
        alone_in = ended(distilling(at, "one", "--workers", "1"))
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        os.environ["DASM_RAY_CACHE"] = str(at / "cache0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        try:
            caches = [str(at / f"cache{number}") for number in (1, 2, 3, 4)]
            added = [cluster.add_node(num_cpus=1, **small, env_vars={"DASM_RAY_CACHE": cache}) for cache in caches]
            process = distilling(at, "four", "--workers", "4", "--address", cluster.address)
            wait_for_rounds(at / "four", 6, process)
            cluster.remove_node(added[1], allow_graceful=False)
            seconds = ended(process)
        finally:
            cluster.shutdown()
        events = [json.loads(line) for line in (at / "four" / "events.jsonl").read_text().splitlines()]
        fetched = [round(bytes_below(at / f"cache{number}") / 2**20, 2) for number in range(5)]
        return {
            "same digest": digest_of(at / "one") == digest_of(at / "four"),
            "digest": digest_of(at / "four"),
            "tasks lost": max(event["lost"] for event in events if event["kind"] == "workers"),
            "kept on the head MiB": fetched[0],
            "fetched by each MiB": fetched[1:],
            "seconds": [round(alone_in), round(seconds)],
        }


def large(images: int = 20_000, side: int = 224, workers: int = 2) -> Figures:
    """Anonymous memory of the driver and its workers through a whole `distill`, beside an object store of 1 GB.

    Each step takes few images, so what grows with the set shows. Mapped files, such as the images, are not counted.
    """
    recipe = recipe_of(Path("unset")) | {
        "model": {"width": 8, "depth": 5},
        "experts": {"count": 2, "epochs": 1, "batch": 4},
        "matcher": {"rounds": 4, "networks": 2, "batch_real": 8, "micro": 4, "snapshots": [[0, 1]]},
        "probe": {"epochs": 20, "batch": 4},
        "evaluate": {"epochs": 2, "full_epochs": 1, "batch": 4, "seeds": 2, "rows": ["distilled", "random"]},
    }
    size = {"images": images, "decoded MiB": (images * 3 * side * side) >> 20}
    return size | watched(recipe, 10, images, side, workers)


def photos(images: int = 300, side: int = 224, workers: int = 2) -> Figures:
    """Three classes of large images in tiles of a third, from the set to the table: seconds, and memory of a worker."""
    training = {"batch": 8, "augment": "color_crop_flip"}
    recipe = recipe_of(Path("unset")) | {
        "model": {"width": 16, "depth": 5},
        "synthetic": {"ipc": 4, "segments": 2, "factor": 3},
        "experts": {"count": 2, "epochs": 10} | training,
        "probe": {"epochs": 20} | training,
        "matcher": {"rounds": 4, "networks": 3, "batch_real": 32, "micro": 8, "snapshots": [[0, 10]]},
        "evaluate": {"epochs": 30, "full_epochs": 10, "seeds": 2, "rows": ["distilled", "initial", "random"]}
        | training,
    }
    return {"images": images} | watched(recipe, 3, images, side, workers)


def watched(recipe: dict[str, Any], classes: int, images: int, side: int, workers: int) -> Figures:
    """A whole `distill` on a local cluster with a store of 1 GB: most memory at a time, seconds, digest."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        at = Path(folder)
        write_images(at / "set", classes, images, side)
        recipe = recipe | {"data": recipe["data"] | {"path": str(at / "set")}}
        (at / "recipe.yaml").write_text(json.dumps(recipe))
        os.environ["DASM_RAY_CACHE"] = str(at / "cache")
        store = {"object_store_memory": 10**9, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, **store})
        try:
            began = time.monotonic()
            process = distilling(at, "watched", "--workers", str(workers), "--address", cluster.address)
            most = memory_until_ended(process)
            ended(process)
            seconds = time.monotonic() - began
        finally:
            cluster.shutdown()
        return {
            "workers": workers,
            **{f"{name}, MiB at most": bytes_ >> 20 for name, bytes_ in most.items()},
            "digest": digest_of(at / "watched"),
            "seconds": round(seconds),
        }


def memory_until_ended(process: subprocess.Popen[str]) -> dict[str, int]:
    """Bytes of anonymous memory at most of a driver, of one worker, of all workers and of all together."""
    most = {"driver": 0, "a worker": 0, "workers": 0, "in all": 0}
    while process.poll() is None:
        driver = anonymous(process.pid)
        nodes = [each for each in psutil.Process().children(recursive=True) if each.pid != process.pid]
        workers = [anonymous(each.pid) for each in nodes if is_worker(each)]
        now = {"driver": driver, "a worker": max(workers, default=0), "workers": sum(workers)}
        for name, bytes_ in {**now, "in all": driver + sum(workers)}.items():
            most[name] = max(most[name], bytes_)
        time.sleep(0.5)
    return most


def anonymous(pid: int) -> int:
    """Bytes of memory that are a process's own and no file's; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) << 10
    return 0


def is_worker(process: psutil.Process) -> bool:
    """Whether it is one of Ray's workers; one that has begun no task counts as well, Ray's own agents do not."""
    with contextlib.suppress(psutil.Error):
        name = next((part for part in process.cmdline() if part.startswith("ray::")), "")
        return bool(name) and not name.strip().endswith("Agent")
    return False


def recipe_of(data: Path) -> dict[str, Any]:
    """Two segments of a small ConvNet, so many groups that four nodes have work at once."""
    return {
        "name": "killed",
        "data": {"name": "parquet", "path": str(data), "val_share": 0.1, "test_share": 0.2},
        "model": {"width": 8, "depth": 2},
        "synthetic": {"ipc": 2, "segments": 2},
        "experts": {"count": 2, "epochs": 2, "batch": 64},
        "matcher": {"rounds": 6, "networks": 6, "batch_real": 32, "snapshots": [[0, 2]]},
        "probe": {"epochs": 20},
        "score": {"early": 1},
        "evaluate": {"epochs": 20, "full_epochs": 1, "seeds": 1, "rows": ["distilled", "random"]},
        "runtime": {"compile": False, "page": False, "checkpoint_seconds": 2},
    }


def distilling(folder: Path, run: str, *options: str) -> subprocess.Popen[str]:
    """The command, whose images of this machine are kept in a folder of the run's own."""
    command = [sys.executable, "-m", "dasm_ray", "distill", str(folder / "recipe.yaml"), "--run", str(folder / run)]
    environment = os.environ | ({"DASM_RAY_CACHE": str(folder / "cache_of_one")} if run == "one" else {})
    return subprocess.Popen([*command, *options], env=environment, text=True, stderr=subprocess.PIPE)


def wait_for_rounds(run: Path, rounds: int, process: subprocess.Popen[str], seconds: float = 600) -> None:
    """Until so many tasks of the first segment are done."""
    events, end = run / "events.jsonl", time.monotonic() + seconds
    while (
        not events.exists()
        or sum(
            event["kind"] == "progress" and event["stage"] == "distil" and event["done"] >= rounds
            for event in map(json.loads, events.read_text().splitlines())
        )
        == 0
    ):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, f"no {rounds} rounds after {seconds:.0f} s"
        time.sleep(0.2)


def ended(process: subprocess.Popen[str], seconds: float = 900) -> float:
    """Seconds until it has ended well."""
    began = time.monotonic()
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said[-2000:]
    return time.monotonic() - began


def digest_of(run: Path) -> str:
    return str(json.loads((run / "synthetic" / "dataset.json").read_text())["digest"])


def bytes_below(folder: Path) -> int:
    """Bytes of the sorted images in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.arrow"))


# --- evaluate ----------------------------------------------------------------------------------------------------


def evaluate(images: int = 300, side: int = 224) -> Figures:
    """A training of four steps on stored images of factor 2, mapped as a worker has them, by a small network."""
    draw, classes, model = np.random.default_rng(0), 10, Model(width=4, depth=5)
    network = Network(model, (3, side, side), classes, (0.5,) * 3, (0.25,) * 3, compile=False)
    held_out = [draw.integers(0, 256, (10, 3, side, side), np.uint8) for _ in range(classes)]
    with tempfile.NamedTemporaryFile() as file:
        stored = np.memmap(file.name, np.float32, "w+", shape=(images, 3, side, side))
        for image in stored:
            image[:] = draw.random(image.shape, np.float32)
        stored.flush()
        labels, pixels = (
            np.arange(images) % classes,
            np.asarray(np.memmap(file.name, np.float32, "r", shape=stored.shape)),
        )
        with Anonymous() as memory:
            recipe = TrainRecipe(epochs=1, batch=20)
            samples, real = synthetic_samples(network, pixels, labels, 2), RealSamples(network, Blocks(held_out))
            draws, settings = torch.Generator().manual_seed(0), {"steps": 4, "checkpoints": 1}
            outcome = evaluate_on(network, samples, recipe, **settings, validation=real, test=real, generator=draws)
    return {
        "images": images,
        "side": side,
        "stored MB": round(pixels.nbytes / 1e6),
        "anonymous memory grows by, MB": round(memory.most / 1e6),
        "validation and test": [outcome.validation, outcome.test],
    }


def artifact(images: int = 450, side: int = 224) -> Figures:
    """A set written as an artifact out of pixels that are mapped, and read."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        stored = np.memmap(f"{folder}/pixels", np.float32, "w+", shape=(images, 3, side, side))
        for image in stored:
            image[:] = draw.random(image.shape, np.float32)
        labels, names = np.arange(images) % 10, tuple("abcdefghij")
        facts: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "factor": 1, "step_size": None}
        plain: dict[str, Any] = {
            "recipe": {"model": {}, "training": {"lr": 0.02}},
            "provenance": {},
            "soft_labels": None,
        }
        whole = Artifact(np.asarray(stored), labels, np.zeros(images, np.int32), class_names=names, **facts, **plain)
        with Anonymous() as writing:
            stamp = write_artifact(Place(folder) / "set", whole)
        with Anonymous() as reading:
            assert digest(read_artifact(Place(folder) / "set")) == stamp
    return {
        "pixels MB": round(stored.nbytes / 1e6),
        "written: anonymous memory grows by, MB": round(writing.most / 1e6),
        "read: anonymous memory grows by, MB": round(reading.most / 1e6),
        "digest": stamp,
    }


# --- micro -------------------------------------------------------------------------------------------------------


def micro(slots: int = 1, real: int = 8, side: int = 224, width: int = 128) -> Figures:
    """An idc step of each of three classes, factor 3, ConvNet-5, eager: whole and in pieces, a process each."""
    found: Figures = {"decoded": 9 * slots, "real": real, "side": side, "width": width}
    for most in (0, 8, 4, 1):
        command = [sys.executable, __file__, "micro_alone", *map(str, (most, slots, real, side, width))]
        worker = {**os.environ, **environment(1)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=worker)
        found[f"micro {most or 'unset'}"] = json.loads(done.stdout)
    return found


def micro_alone(most: int, slots: int, real: int, side: int, width: int) -> Figures:
    """The same at one setting, in this process."""
    matcher: dict[str, Any] = {"micro": most} if most else {}
    config = parse_config({"synthetic": {"ipc": slots, "segments": 1, "factor": 3}, "matcher": matcher})
    network = Network(Model(width=width, depth=5), (3, side, side), 3, (0.5,) * 3, (0.25,) * 3, compile=False)
    matching, draws = matching_of(network, config), torch.Generator().manual_seed(0)
    flat = network.initial(draws)
    distances = []
    with Anonymous() as memory:
        began = time.process_time()
        for label in range(3):
            pixels = torch.rand(slots, 3, side, side, generator=draws)
            images = torch.randint(0, 256, (real, 3, side, side), generator=draws, dtype=torch.uint8)
            settings = torch.tensor([0.1, 1.0])
            stepped = matching.step(
                StepInputs(
                    *(flat, pixels, torch.zeros_like(pixels), images, torch.tensor(label), draw(1, draws)),
                    *(matching.nothing(flat), settings),
                )
            )
            distances.append(float(stepped.distance))
    return {
        "anonymous memory grows by, MB": round(memory.most / 1e6),
        "CPU seconds a class": round((time.process_time() - began) / 3, 1),
        "distances": [float(f"{distance:.5g}") for distance in distances],
    }


# --- snapshot ----------------------------------------------------------------------------------------------------


def snapshot(parameters: int = 320_010, epochs: int = 100) -> Figures:
    """One snapshot of an expert by reference, and as it was before, out of the whole trajectory; and bytes written.

    Written is a trajectory of a sixteenth of the parameters that is kept after each epoch.
    """
    from dasm_ray.runtime.snapshots import Reader, TrajectoryRef
    from dasm_ray.store.trajectories import add_epochs, open_trajectory, trajectory_name, write_trajectory

    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder)
        write_trajectory(place, 0, "key", _trajectory(draw, parameters, epochs))
        kept = open_trajectory(place, 0, "key")
        assert kept is not None
        ref, found = TrajectoryRef.of(place, "key", 0, kept), {}
        ways: dict[str, Callable[[int], np.ndarray]] = {
            "by reference": lambda epoch: Reader().have(ref)[epoch],
            "whole": lambda epoch: tensors.read(place / trajectory_name(0))[0]["snapshots"][epoch],
        }
        rows = {}
        for way, read in ways.items():
            with Watched() as watched, Anonymous() as memory:
                rows[way] = read(epochs // 2)
            found[f"{way}: bytes read / 4 P"] = round(watched.total("rchar") / (4 * parameters), 2)
            found[f"{way}: memory / 4 P"] = round(memory.most / (4 * parameters), 2)
        assert rows["by reference"].tobytes() == rows["whole"].tobytes()
        arrays = _trajectory(draw, parameters // 16, epochs)
        parts = [{name: array[:n] if name != "velocity" else array for name, array in arrays.items()}
                 for n in range(2, epochs + 2)]  # fmt: skip
        with Watched() as watched:
            in_file = 0
            for part in parts[:-1]:
                in_file = add_epochs(place, 1, "key", part, in_file)
            write_trajectory(place, 1, "key", arrays)
        size = arrays["snapshots"].nbytes
        found["added: bytes written / trajectory"] = round(watched.total("wchar") / size, 2)
        with Watched() as watched:
            for part in parts:
                tensors.write(place / trajectory_name(2), part, {"key": "key", "expert": 2})
        found["anew: bytes written / trajectory"] = round(watched.total("wchar") / size, 2)
    return {"parameters": parameters, "epochs": epochs, "bytes of a reference": len(pickle.dumps(ref)), **found}


def _trajectory(draw: np.random.Generator, parameters: int, epochs: int) -> dict[str, np.ndarray]:
    snapshots, curve = draw.random((epochs + 1, parameters), np.float32), np.zeros(epochs + 1, np.float32)
    return {"snapshots": snapshots, "velocity": snapshots[0], "accuracy": curve, "loss": curve}


class Anonymous:
    """The most anonymous memory that this process has beyond what it had: mapped files do not count."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Anonymous:
        self._first = self._most = self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def most(self) -> int:
        """Bytes."""
        return self._most - self._first

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self._most = max(self._most, self._look())

    def _look(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


# --- lanes -------------------------------------------------------------------------------------------------------


def lanes(side: int = 32, slots: int = 10, most: int = 4) -> Figures:
    """A group of five classes, ConvNet-3 of width 8, without lanes and in them, where workers are as many as wanted."""
    counts = {"train": np.full(5, 40)}
    names, mean, std = tuple("abcde"), (0.5,) * 3, (0.25,) * 3
    found: Figures = {"values of the group": 5 * slots * 3 * side * side}
    for each in (1, most):
        tree: dict[str, Any] = {
            "model": {"width": 8, "depth": 3},
            "synthetic": {"ipc": slots, "segments": 1, "group_size": 5},
            "matcher": {"rounds": 2, "networks": 4, "batch_real": 8, "lanes": each},
            "runtime": {"compile": False, "checkpoint_seconds": 1000},
        }
        with tempfile.TemporaryDirectory() as folder:
            real = RealRefs(Kept(folder, "noise"), counts, (3, side, side), names, mean, std, "noise")
            found[f"lanes {each}"] = lanes_alone(parse_config(tree), Path(folder), real)
    return found


def lanes_alone(config: Any, folder: Path, real: RealRefs) -> Figures:
    """The same at one setting, each task done by a worker in this process, the counting by the pool."""
    draw = np.random.default_rng(0)
    network = Network(config.model, real.shape, 5, real.mean, real.std, compile=False)
    states = np.stack([network.initial(torch.Generator().manual_seed(seed)).numpy() for seed in range(5)])
    images = [draw.integers(0, 256, (40, *real.shape), np.uint8) for _ in range(5)]
    start = draw.random((5, config.synthetic.ipc, *real.shape), np.float32)
    pool = Counting(Blocks(images))
    inputs = RoundInputRefs(Ref([[np.arange(40)] * 5]), Ref(start[:, :0]), (Ref(states),), ())
    progress = Progress(live=False)
    run = SegmentRun(Job(config, real, "cpu"), pool, progress, Place(folder), "key", 0, [Ref(start)])  # type: ignore[arg-type]
    progress.stage("distil", run.rounds_total)
    run.run(inputs, lambda: Renewed(inputs, [Ref(start)]))
    steps = config.matcher.rounds * config.matcher.networks
    return {
        "steps": steps,
        "tasks": len(pool.busy),
        "workers busy at once": max(pool.busy),
        "bytes moved a step": round(pool.bytes / steps),
        "and a value": round(pool.bytes / steps / start.size, 1),
    }


class Ref(NamedTuple):
    """A reference to what this process holds."""

    value: Any


class Counting:
    """A pool that does tasks itself: counts those that are out when one is done, and bytes of arrays to and from it."""

    alive = lost = 0

    def __init__(self, blocks: Blocks) -> None:
        self._worker, self._out = Worker(1, self.fetch), deque[Any]()
        self._worker._blocks = lambda job, split: blocks  # type: ignore[method-assign]
        self.busy, self.bytes = list[int](), 0

    put = staticmethod(Ref)

    @staticmethod
    def fetch(ref: Any) -> Any:
        """What a reference, or each of several, refers to."""
        return [each.value for each in ref] if isinstance(ref, list) else ref.value

    def submit(self, task: Any) -> None:
        """See Pool."""
        self._out.append(task)

    def run(self, tasks: Any) -> Iterator[Done]:
        """See Pool."""
        self._out.extend(tasks)
        return self.results()

    def results(self) -> Iterator[Done]:
        """See Pool."""
        while self._out:
            self.busy.append(len(self._out))
            task = self._out.popleft()
            arguments = [arg.value if isinstance(arg, Ref) else arg for arg in task.args]
            first, *others = getattr(self._worker, task.method)(*arguments)
            taken = [ref.value for arg in task.args for ref in refs_in(arg)]
            self.bytes += sum(map(_array_bytes, (*taken, *others)))
            yield Done(task, first, tuple(map(Ref, others)))


def refs_in(arg: Any) -> tuple[Ref, ...]:
    """References among the arguments of a task: one, or a tuple of them that the worker follows itself."""
    if isinstance(arg, Ref):
        return (arg,)
    return arg if isinstance(arg, tuple) and all(isinstance(each, Ref) for each in arg) else ()


def walks(classes: int = 100, slots: int = 10, side: int = 64, steps: int = 5, batch: int = 50) -> Figures:
    """A lane of mtt over noise as a worker does it, at several sizes of a shard, beside whole state and gradient."""
    from dasm_ray.core.matching.setstate import Cut, SetState, edges_of
    from dasm_ray.runtime.worker import SetRefs

    tree: dict[str, Any] = {
        "model": {"width": 8, "depth": 3},
        "synthetic": {"ipc": slots, "segments": 1},
        "experts": {"epochs": 1},
        "score": {"early": 1},
        "matcher": {"name": "mtt"},
        "trajectory": {"steps": steps, "batch": batch, "epochs": 1, "starts": [[0, 1, 1]]},
        "runtime": {"compile": False},
    }
    draw = np.random.default_rng(0)
    pixels = draw.random((classes, slots, 3, side, side), np.float32)
    state = SetState.at_rest(pixels, np.eye(classes, dtype=np.float32)[:, None].repeat(slots, 1), -4.0)
    before = sum(part.nbytes for part in state)
    found: Figures = {"images": classes * slots, "seen at most": steps * batch}
    found["whole"] = {"bytes to a lane": before, "bytes from it": before // 2}
    names, counts = tuple(map(str, range(classes))), {"train": np.ones(classes, np.int64)}
    real = RealRefs(Kept("nowhere", "noise"), counts, (3, side, side), names, (0.5,) * 3, (0.25,) * 3, "noise")
    config = parse_config(tree)
    network = Network(config.model, real.shape, classes, real.mean, real.std, compile=False)
    way = np.stack([network.initial(torch.Generator().manual_seed(seed)).numpy() for seed in (0, 1)])
    for most in (1 << 40, 1 << 24, 1):
        edges = edges_of(classes, pixels[0].nbytes, most)
        values = tuple(state.values.shards(edges))
        earlier = tuple((each.pixels[:, :0], each.labels[:, :0]) for each in values)
        taken: list[Any] = []

        def fetch(refs: Any, taken: list[Any] = taken) -> Any:
            taken.extend(refs)
            return refs

        worker, refs = Worker(1, fetch), SetRefs(Cut(edges, slots, 0), values, earlier)
        metrics, *gradients = worker.walk(Job(config, real, "cpu"), (0, 0, 0), refs, (way,), 0)
        found[f"{len(edges) - 1} shards"] = {
            "fetched": len([each for each in taken if len(each) == 3]),
            "bytes to a lane": sum(_array_bytes(each) for each in taken if each is not way),
            "bytes from it": sum(_array_bytes(each) for each in gradients),
            "distance": metrics.distance,
        }
    return found


def _array_bytes(value: Any) -> int:
    return sum(each.nbytes for each in (value if isinstance(value, tuple) else (value,)) if each is not None)


ROWS: dict[str, Callable[..., Figures]] = {
    "tasks": tasks,
    "sort": sort,
    "second": second,
    "nodes": nodes,
    "killed": killed,
    "large": large,
    "photos": photos,
    "fetched": fetched,
    "evaluate": evaluate,
    "artifact": artifact,
    "micro": micro,
    "micro_alone": micro_alone,
    "snapshot": snapshot,
    "lanes": lanes,
    "walks": walks,
}

if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    print(json.dumps(ROWS[sys.argv[1]](*map(int, sys.argv[2:]))))
