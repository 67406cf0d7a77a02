"""The worker: one actor class whose methods are the roles of the house, thin shells around ``core`` and ``store``.

One process serves all stages, so torch is imported and a step compiled once per worker. What must stay true: a method's
result depends on its arguments alone; whatever a worker keeps between calls only saves time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef

from dasm_ray.config import RunConfig
from dasm_ray.core import compiled, selection
from dasm_ray.core.evaluate import Outcome, evaluate_on, synthetic_samples
from dasm_ray.core.expert import train_expert
from dasm_ray.core.matching.gradient import Matching
from dasm_ray.core.real import Blocks
from dasm_ray.core.scoring import Scored, features_of, score_range, static_range
from dasm_ray.core.seed import torch_generator
from dasm_ray.core.segment import Assignment, Surroundings, distil_round, initial_pixels, matching_of
from dasm_ray.core.train import Network, RealSamples, Samples, TensorSamples, steps_for, train
from dasm_ray.runtime.real import RealRefs
from dasm_ray.store import trajectories
from dasm_ray.store.rundir import Place

Metrics = dict[str, Any]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What every task of a run needs to know: a few hundred bytes and references."""

    config: RunConfig
    real: RealRefs
    device: str

    def network(self) -> Network:
        """The run's network, without parameters."""
        real, config = self.real, self.config
        return Network(
            config.model, real.shape, len(real.class_names), real.mean, real.std, self.device, config.runtime.compile
        )


@dataclass(frozen=True)
class Around:
    """References behind a ``core.segment.Surroundings``: nothing here is fetched before a worker needs it."""

    windows: ObjectRef
    earlier: ObjectRef
    beside: tuple[ObjectRef, ...]  # pixels of every group, in class order; empty where nobody trains on the set
    experts: tuple[ObjectRef, ...]
    probes: tuple[ObjectRef, ...]


class Worker:
    """A process that does tasks. ``threads`` are its torch threads, which are part of what a result depends on."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._networks: dict[str, Network] = {}
        self._matchings: dict[str, Matching] = {}

    def nap(self, seconds: float) -> int:
        """Waits, so that every worker gets one; the process id."""
        time.sleep(seconds)
        return os.getpid()

    # --- experts, probes, scores ---------------------------------------------------------------------------------

    def expert(
        self, job: Job, place: Place, key: str, number: int
    ) -> tuple[Metrics, NDArray[np.float32], NDArray[np.float32]]:
        """Trains expert ``number`` and writes its file, or reads the file if it is there.

        Returns metrics, its snapshots (E+1, P) and the one after the first epoch (P,).
        """
        kept = trajectories.read(place, number, key)
        if kept is not None:
            metrics = {"accuracy": kept.accuracy.tolist(), "trained": False, **_noted()}
            return metrics, kept.snapshots, kept.snapshots[1]
        network = self._network(job)
        generator = torch_generator(job.config.seed, "expert", number)
        snapshots, accuracy = train_expert(
            network, _real(network, job, "train"), _real(network, job, "val"), job.config.experts, generator
        )
        trajectories.write(place, number, key, snapshots, accuracy)
        return {"accuracy": accuracy.tolist(), "trained": True, **_noted()}, snapshots, snapshots[1]

    def probe(
        self, job: Job, segment: int, member: int, pixels: tuple[ObjectRef], labels: NDArray[np.int64]
    ) -> tuple[Metrics, NDArray[np.float32]]:
        """Trains one member on the earlier segments' ``pixels`` (N, C, H, W): metrics, parameters (P,)."""
        network = self._network(job)
        samples = synthetic_samples(network, ray.get(pixels[0]), labels, job.config.synthetic.factor)
        recipe = job.config.probe
        generator = torch_generator(job.config.seed, "probe", segment, member)
        steps = steps_for(len(samples), recipe)
        for _, flat, loss in train(network, samples, recipe, steps=steps, generator=generator, decay=True):
            last, final = flat, loss
        return {"loss": float(final), **_noted()}, last.cpu().numpy()

    def score(self, job: Job, probes: tuple[ObjectRef, ...], first: int, last: int) -> Scored:
        """Scores the training images [first, last) under the probes."""
        network, recipe = self._network(job), job.config.score
        ensemble = [torch.tensor(probe, device=job.device) for probe in ray.get(list(probes))]
        return score_range(network, _blocks(job, "train"), ensemble, recipe.dynamic, first, last, recipe.batch)

    def score_statically(self, job: Job, experts: tuple[ObjectRef, ...], first: int, last: int) -> Scored:
        """Scores the training images [first, last) under the experts."""
        network, recipe = self._network(job), job.config.score
        trained = [torch.tensor(snapshots, device=job.device) for snapshots in ray.get(list(experts))]
        blocks = _blocks(job, "train")
        return static_range(network, blocks, trained, recipe.static, recipe.early, first, last, recipe.batch)

    # --- distillation --------------------------------------------------------------------------------------------

    def initialise(
        self, job: Job, segment: int, windows: Sequence[NDArray[np.int64]], used: Sequence[NDArray[np.int64]]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
        """Where a segment starts: the within-class indices used, and pixels (K, m, C, H, W)."""
        pixels, chosen = initial_pixels(job.config, _blocks(job, "train"), windows, used, segment)
        return chosen, pixels

    def distil(
        self, job: Job, where: Assignment, around: Around, state: tuple[Pixels, Pixels]
    ) -> tuple[Metrics, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """One round of one group: metrics, and new (pixels, velocity) (classes, m, C, H, W) each."""
        began = time.perf_counter()
        pixels, velocity = state
        surroundings = Surroundings(
            blocks=_blocks(job, "train"),
            windows=ray.get(around.windows),
            earlier=ray.get(around.earlier),
            beside=np.concatenate([group[0] for group in ray.get(list(around.beside))])
            if around.beside
            else np.empty((0, 0), np.float32),
            experts=ray.get(list(around.experts)),
            probes=ray.get(list(around.probes)),
        )
        pixels, velocity, distances = distil_round(
            self._matching(job), job.config, where, surroundings, pixels, velocity
        )
        matcher = job.config.matcher
        samples = len(distances) * matcher.steps * len(where.classes) * matcher.batch_real
        seconds = time.perf_counter() - began
        return {"distances": distances, "samples": samples, "seconds": seconds, **_noted()}, (pixels, velocity)

    # --- baselines and evaluation --------------------------------------------------------------------------------

    def select(self, job: Job, label: int, ipc: int, experts: tuple[ObjectRef, ...]) -> dict[str, NDArray[np.int64]]:
        """Within-class indices (ipc,) that each method chooses from one class by an expert's features."""
        network = self._network(job)
        flat = torch.tensor(ray.get(list(experts))[0][-1], device=job.device)
        features = features_of(network, _blocks(job, "train"), flat, label, job.config.score.batch)
        return {method: choose(features, ipc) for method, choose in SELECTIONS.items()}

    def images(self, job: Job, indices: NDArray[np.int64]) -> tuple[None, NDArray[np.float32]]:
        """Training images at global indices, as pixels (N, C, H, W) in [0, 1]."""
        return None, _blocks(job, "train").take(indices).astype(np.float32) / np.float32(255)

    def evaluate(self, job: Job, row: str, seed: int, steps: int, training: tuple[str, Any]) -> tuple[Outcome, Metrics]:
        """One training of one row of the table. ``training``: ("synthetic", ((pixels,), labels, factor)),
        ("real", indices (N,)) or ("full", None).
        """
        network, recipe = self._network(job), job.config.evaluate
        outcome = evaluate_on(
            network,
            _training_samples(network, job, training),
            recipe,
            steps=steps,
            checkpoints=recipe.checkpoints,
            validation=_real(network, job, "val"),
            test=_real(network, job, "test"),
            generator=torch_generator(job.config.seed, "evaluate", row, seed),
        )
        return outcome, _noted()

    # --- what a worker keeps -------------------------------------------------------------------------------------

    def _network(self, job: Job) -> Network:
        key = repr(
            (job.config.model, job.real.shape, job.real.mean, job.real.std, job.device, job.config.runtime.compile)
        )
        if key not in self._networks:
            self._networks[key] = job.network()
        return self._networks[key]

    def _matching(self, job: Job) -> Matching:
        key = repr((job.config.matcher, job.config.synthetic, job.config.model, job.real.mean))
        if key not in self._matchings:
            self._matchings[key] = matching_of(self._network(job), job.config)
        return self._matchings[key]


SELECTIONS = {"herding": selection.herding, "k_center": selection.k_center}


def _blocks(job: Job, split: str) -> Blocks:
    """A split in place: views of the node's one copy in shared memory."""
    return Blocks(ray.get(list(job.real.splits[split])))


def _real(network: Network, job: Job, split: str) -> RealSamples:
    return RealSamples(network, _blocks(job, split))


def _training_samples(network: Network, job: Job, training: tuple[str, Any]) -> Samples:
    kind, content = training
    if kind == "full":
        return _real(network, job, "train")
    if kind == "real":
        chosen = RealSamples(network, _blocks(job, "train"), content)
        return TensorSamples(*chosen.take(np.arange(len(content))))
    (pixels,), labels, factor = content
    return synthetic_samples(network, ray.get(pixels), labels, factor)


def _noted() -> Metrics:
    """What this process has to say since it was last asked."""
    notices, compiled.fallbacks[:] = list(compiled.fallbacks), []
    return {"notices": notices, "pid": os.getpid()}
