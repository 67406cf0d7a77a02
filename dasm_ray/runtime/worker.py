"""The worker: one actor class whose methods are the roles of the house, thin shells around ``core`` and ``store``.

One process serves all stages, so torch is imported and a step compiled once per worker. What must stay true: a method's
result depends on its arguments alone; whatever a worker keeps between calls only saves time.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import ObjectRef

from dasm_ray.config.keys import RunConfig
from dasm_ray.core import selection
from dasm_ray.core.augment import draw
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.matching.lane import moved, walk_lane
from dasm_ray.core.matching.round import Assignment, Matching, Surroundings, distil_round, matching_of
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.evaluate import Labels, Outcome, evaluate_on, synthetic_samples
from dasm_ray.core.networks.expert import Trajectory, spread, taught, train_expert
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import mean_loss, read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Samples, TensorSamples
from dasm_ray.core.networks.training import steps_for, train
from dasm_ray.core.scoring import Scored, features_of, score_range, static_range
from dasm_ray.core.seed import numpy_generator, torch_generator
from dasm_ray.core.start import initial_pixels
from dasm_ray.core.whiten import Sums, Whitening, fit, sums_of
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import read_trajectory, write_trajectory
from dasm_ray.store.place import Place

PACE_STEPS = 6
"""Steps that are timed, the first of which compiles and does not count."""

Metrics = dict[str, Any]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What every task of a run needs to know: a few hundred bytes and references."""

    config: RunConfig
    real: RealRefs
    device: str
    whitening: ObjectRef | None = None
    """Of a dict of arrays ``mean`` and ``matrix``."""

    def network(self) -> Network:
        """The run's network, without parameters."""
        real, config = self.real, self.config
        whitening = None
        if self.whitening is not None:
            whitening = Whitening(**{name: torch.tensor(array) for name, array in ray.get(self.whitening).items()})
        classes, compile_it = len(real.class_names), config.runtime.compile
        return Network(config.model, real.shape, classes, real.mean, real.std, self.device, compile_it, whitening)


@dataclass(frozen=True)
class Around:
    """References behind a ``core.matching.round.Surroundings``: nothing here is fetched before a worker needs it."""

    windows: ObjectRef
    earlier: ObjectRef
    beside: tuple[ObjectRef, ...]  # pixels of every group, in class order; empty where nobody trains on the set
    experts: tuple[ObjectRef, ...]
    probes: tuple[ObjectRef, ...]


class Worker:
    """A process that does tasks. ``threads`` are its torch threads, which are part of what a result depends on."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._splits: dict[tuple[ObjectRef, ...], Blocks] = {}
        self._networks: dict[str, Network] = {}
        self._matchings: dict[str, Matching] = {}
        self._students: dict[tuple[int, bool], Student] = {}

    def nap(self, seconds: float) -> int:
        """Waits, so that every worker gets one; the process id."""
        time.sleep(seconds)
        return os.getpid()

    # --- whitening ----------------------------------------------------------------------------------------------

    def whitening_sums(self, job: Job, first: int, last: int) -> tuple[None, Sums]:
        """What the whitening needs of the training images [first, last)."""
        real, size = self._real(self._network(job), job, "train"), job.config.score.batch
        chunks = (np.arange(start, min(start + size, last)) for start in range(first, last, size))
        return None, sums_of(real.take(chunk)[0] for chunk in chunks)

    def whitening(
        self, job: Job, place: Place, key: str, parts: tuple[ObjectRef, ...]
    ) -> tuple[None, dict[str, NDArray[np.float32]]]:
        """Fits the whitening and writes its file: arrays ``mean`` (D,) and ``matrix`` (D, D)."""
        assert job.config.data.zca is not None
        fitted = fit(ray.get(list(parts)), job.config.data.zca)
        arrays = {"mean": fitted.mean.cpu().numpy(), "matrix": fitted.matrix.cpu().numpy()}
        tensors.write(place, arrays, {"key": key})
        return None, arrays

    # --- experts, probes, scores ---------------------------------------------------------------------------------

    def expert(
        self, job: Job, place: Place, key: str, number: int
    ) -> tuple[Metrics, NDArray[np.float32], NDArray[np.float32]]:
        """Trains expert ``number`` and writes its file, going on from the epochs that are in a file already.

        Returns metrics, its snapshots (E+1, P) and the one after the first epoch (P,).
        """
        config, kept = job.config, read_trajectory(place, number, key)
        expert = None if kept is None else Trajectory(**kept)
        begun_at = 0 if expert is None else expert.epochs
        if begun_at < config.experts.epochs:
            network, saved_at = self._network(job), time.monotonic()
            real, validation = self._real(network, job, "train"), self._real(network, job, "val")
            generator_of = partial(torch_generator, config.seed, "expert", number)
            training = train_expert(network, real, validation, config.experts, generator_of, expert)
            for expert in training:
                is_due = time.monotonic() - saved_at >= config.runtime.checkpoint_seconds
                if is_due or expert.epochs == config.experts.epochs:
                    write_trajectory(place, number, key, vars(expert), config.experts.epochs)
                    saved_at = time.monotonic()
        assert expert is not None
        metrics = {
            "accuracy": expert.accuracy.tolist(),
            "loss": expert.loss.tolist(),
            "epochs": expert.epochs - begun_at,
        }
        return {**metrics, **_noted()}, expert.snapshots, expert.snapshots[1]

    def pace(self, job: Job, section: str = "experts") -> Metrics:
        """Seconds of one step of a training as a section of the config says, compiled if it is; parameters; memory."""
        network, recipe = self._network(job), getattr(job.config, section)
        flatness = (recipe.rho, recipe.alpha) if section == "experts" else (0.0, 0.0)
        training = train(
            network,
            self._real(network, job, "train"),
            recipe,
            steps=PACE_STEPS,
            generator=torch_generator("pace"),
            flatness=flatness,
        )
        seconds = _median_seconds(lambda: float(next(training).loss))  # the number waits for the device
        return {"seconds": seconds, "parameters": sum(network.layout.sizes), **_memory(job), **_noted()}

    def pace_matching(self, job: Job) -> Metrics:
        """Seconds of one matching step (of one class, for gradients), or of one student step of a walk; memory."""
        network, config = self._network(job), job.config
        generator, device = torch_generator("pace"), job.device
        flat = network.initial(generator)
        if config.is_trajectory:
            size = min(config.trajectory.batch, network.classes * config.synthetic.ipc)
            images = torch.rand(size, *network.shape, generator=generator).to(device)
            labels = torch.rand(size, network.classes, generator=generator).to(device)
            student, step = self._student(job), torch.tensor(0.01, device=device)

            def once() -> object:
                after = student.forward(flat, images, labels, step)
                return float(student.backward(flat, images, labels, step, after)[0].sum())
        else:
            matching = self._matching(job)
            slots = min(config.segment_ipc, max(1, config.matcher.batch_syn // config.synthetic.factor**2))
            shape = (network.classes,) if matching.at_once else ()
            pixels = torch.rand(*shape, slots, *network.shape, generator=generator).to(device)
            real = (*shape, config.matcher.batch_real, *network.shape)
            images = torch.randint(0, 256, real, generator=generator, dtype=torch.uint8).to(device)
            label, draws = torch.tensor(0, device=device), draw(1, generator).to(device)
            settings = torch.tensor([0.1, 1.0], device=device)
            velocity, earlier = torch.zeros_like(pixels), matching.nothing(flat)
            inputs = StepInputs(flat, pixels, velocity, images, label, draws, earlier, settings)

            def once() -> object:
                return float(matching.step(inputs).distance)

        return {"seconds": _median_seconds(once), **_memory(job), **_noted()}

    def probe(
        self, job: Job, segment: int, member: int, pixels: tuple[ObjectRef], labels: Labels
    ) -> tuple[Metrics, NDArray[np.float32]]:
        """Trains one member on the earlier segments' ``pixels`` (N, C, H, W): metrics, parameters (P,)."""
        network, config = self._network(job), job.config
        samples = synthetic_samples(
            network, ray.get(pixels[0]), labels, config.synthetic.factor, is_normalised=config.is_trajectory
        )
        recipe = job.config.probe
        generator = torch_generator(job.config.seed, "probe", segment, member)
        steps = steps_for(len(samples), recipe)
        for state in train(network, samples, recipe, steps=steps, generator=generator, decay=True):
            last = state
        return {"loss": float(last.loss), **_noted()}, last.flat.cpu().numpy()

    def score(self, job: Job, probes: tuple[ObjectRef, ...], first: int, last: int) -> Scored:
        """Scores the training images [first, last) under the probes."""
        network, recipe = self._network(job), job.config.score
        ensemble = [torch.tensor(probe, device=job.device) for probe in ray.get(list(probes))]
        return score_range(network, self._blocks(job, "train"), ensemble, recipe.dynamic, first, last, recipe.batch)

    def score_statically(self, job: Job, experts: tuple[ObjectRef, ...], first: int, last: int) -> Scored:
        """Scores the training images [first, last) under the experts."""
        network, recipe = self._network(job), job.config.score
        trained = [torch.tensor(snapshots, device=job.device) for snapshots in ray.get(list(experts))]
        blocks = self._blocks(job, "train")
        return static_range(network, blocks, trained, recipe.static, recipe.early, first, last, recipe.batch)

    # --- distillation --------------------------------------------------------------------------------------------

    def initialise(
        self, job: Job, segment: int, windows: Sequence[NDArray[np.int64]], used: Sequence[NDArray[np.int64]]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
        """Where a segment starts: the within-class indices used, and pixels (K, m, C, H, W).

        For trajectories the pixels are normalised.
        """
        pixels, chosen = initial_pixels(job.config, self._blocks(job, "train"), windows, used, segment)
        if job.config.is_trajectory:
            images = torch.tensor(pixels.reshape(-1, *pixels.shape[2:]), device=job.device)
            pixels = self._network(job).normalise(images).cpu().numpy().reshape(pixels.shape)
        return chosen, pixels

    def teach(self, job: Job, experts: tuple[ObjectRef, ...], training: tuple[str, Any]) -> NDArray[np.float32]:
        """Soft labels by the experts' last snapshots for images as `evaluate` takes them: logits (N, K).

        Of a stored image that is decoded to several it is the mean of theirs.
        """
        network = self._network(job)
        last = [torch.tensor(snapshots[-1], device=job.device) for snapshots in ray.get(list(experts))]
        samples = self._training_samples(network, job, training)
        assert isinstance(samples, TensorSamples)
        decoded = training[1][2] ** 2 if training[0] == "synthetic" else 1
        logits = taught(network, last, self._real(network, job, "train"), samples.images, samples.labels)
        return logits.view(-1, decoded, network.classes).mean(1).cpu().numpy()

    def loss_of(self, job: Job, probes: tuple[ObjectRef, ...]) -> float:
        """The mean loss of probes on the training images by which experts' losses are recorded."""
        network = self._network(job)
        real = self._real(network, job, "train")
        flats = [torch.tensor(probe, device=job.device) for probe in ray.get(list(probes))]
        losses = [mean_loss(network, flat, statistics_of(network, flat, real), spread(real)) for flat in flats]
        return float(np.mean(losses))

    def walk(
        self, job: Job, where: tuple[int, int, int], around: tuple[ObjectRef, ObjectRef, ObjectRef], start: int
    ) -> tuple[Metrics, dict[str, NDArray[np.float32]]]:
        """One lane of a round from start epoch ``start``: metrics, and the gradient of the segment.

        ``where``: segment, round, lane. ``around``: the segment's state, the earlier segments, one expert.
        """
        state, earlier, expert = ray.get(list(around))
        target, trajectory = expert[start + job.config.trajectory.epochs], job.config.trajectory
        distance, gradient = walk_lane(self._student(job), job.config, where, state, earlier, expert[start], target)
        return {"distance": distance, "samples": trajectory.steps * trajectory.batch, **_noted()}, gradient

    def move_set(
        self, job: Job, state: Any, distances: Sequence[float], gradients: tuple[ObjectRef, ...]
    ) -> tuple[Metrics, dict[str, NDArray[np.float32]]]:
        """The step that ends a round: metrics, and the segment's new state."""
        after = moved(job.config, state, distances, ray.get(list(gradients)))
        return {"rate": float(np.exp(after["log_step"])), **_noted()}, after

    def distil(
        self, job: Job, where: Assignment, around: Around, state: tuple[Pixels, Pixels]
    ) -> tuple[Metrics, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """One round of one group: metrics, and new (pixels, velocity) (classes, m, C, H, W) each."""
        began = time.perf_counter()
        pixels, velocity = state
        surroundings = Surroundings(
            blocks=self._blocks(job, "train"),
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

    def select(
        self, job: Job, methods: Sequence[str], label: int, experts: tuple[ObjectRef, ...]
    ) -> dict[str, NDArray[np.int64]]:
        """Within-class indices (ipc,) that each of ``methods`` chooses from one class by an expert's features."""
        network = self._network(job)
        flat = torch.tensor(ray.get(list(experts))[0][-1], device=job.device)
        features = features_of(network, self._blocks(job, "train"), flat, label, job.config.score.batch)
        ipc, generator = job.config.synthetic.ipc, numpy_generator(job.config.seed, "k_means", label)
        choices = {
            "herding": lambda: selection.herding(features, ipc),
            "k_center": lambda: selection.k_center(features, ipc),
            "k_means": lambda: selection.k_means(features, ipc, generator),
        }
        return {method: choices[method]() for method in methods}

    def judge(
        self, job: Job, experts: tuple[ObjectRef, ...], choices: Sequence[NDArray[np.int64]]
    ) -> tuple[Metrics, list[float]]:
        """How well each of ``choices``, global indices (N,), tells the validation images apart by expert features."""
        network = self._network(job)
        real = self._real(network, job, "train")
        flat = torch.tensor(ray.get(list(experts))[0][-1], device=job.device)
        statistics = statistics_of(network, flat, real)

        def features(samples: RealSamples) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            read = [(seen, labels) for _, seen, labels in read_all(network, flat, statistics, samples)]
            return tuple(torch.cat(column).cpu().numpy() for column in zip(*read, strict=True))  # type: ignore[return-value]

        seen, truth = features(self._real(network, job, "val"))
        chosen = [features(RealSamples(network, self._blocks(job, "train"), choice)) for choice in choices]
        shares = [selection.ridge_accuracy(*each, network.classes, seen, truth) for each in chosen]
        return _noted(), shares

    def images(self, job: Job, indices: NDArray[np.int64]) -> tuple[None, NDArray[np.float32]]:
        """Training images at global indices, as pixels (N, C, H, W) in [0, 1]."""
        return None, self._blocks(job, "train").take(indices).astype(np.float32) / np.float32(255)

    def evaluate(
        self,
        job: Job,
        row: str,
        seed: int,
        steps: int,
        training: tuple[str, Any],
        classes: tuple[int, ...] | None = None,
        reads_test: bool = True,
    ) -> tuple[Outcome, Metrics]:
        """One training of one row of the table; ``classes``: which are asked for (unset: all).

        ``training``: ("synthetic", ((pixels,), labels, factor, is_normalised)), ("real", (indices (N,), None or logits
        (N, K) of soft labels)) or ("full", None). Without ``reads_test`` it is judged by validation alone.
        """
        network, recipe = self._network(job), job.config.evaluate
        outcome = evaluate_on(
            network,
            self._training_samples(network, job, training),
            recipe,
            steps=steps,
            checkpoints=recipe.checkpoints,
            validation=self._real(network, job, "val", classes),
            test=self._real(network, job, "test", classes) if reads_test else None,
            generator=torch_generator(job.config.seed, "evaluate", row, seed),
        )
        return outcome, _noted()

    # --- what a worker keeps -------------------------------------------------------------------------------------

    def _blocks(self, job: Job, split: str) -> Blocks:
        """A split in place: views of the node's one copy in shared memory, and what of it is on the device already."""
        refs = job.real.splits[split]
        if refs not in self._splits:
            self._splits[refs] = Blocks(ray.get(list(refs)))
        return self._splits[refs]

    def _real(self, network: Network, job: Job, split: str, classes: tuple[int, ...] | None = None) -> RealSamples:
        blocks = self._blocks(job, split)
        return RealSamples(
            network, blocks, None if classes is None else np.flatnonzero(np.isin(blocks.labels, classes))
        )

    def _training_samples(self, network: Network, job: Job, training: tuple[str, Any]) -> Samples:
        kind, content = training
        if kind == "full":
            return self._real(network, job, "train")
        if kind == "real":
            indices, logits = content
            images, hard = self._real(network, job, "train").take(indices)
            return TensorSamples(images, hard if logits is None else torch.tensor(logits, device=job.device).softmax(1))
        (pixels,), labels, factor, is_normalised = content
        return synthetic_samples(network, ray.get(pixels), labels, factor, is_normalised)

    def _network(self, job: Job) -> Network:
        key = repr(
            (job.config.model, job.config.data, job.real.digest, job.device, job.config.runtime.compile, job.whitening)
        )
        if key not in self._networks:
            self._networks[key] = job.network()
        return self._networks[key]

    def _matching(self, job: Job) -> Matching:
        key = repr((job.config.matcher, job.config.synthetic, job.config.model, job.config.data, job.real.digest))
        if key not in self._matchings:
            self._matchings[key] = matching_of(self._network(job), job.config)
        return self._matchings[key]

    def _student(self, job: Job) -> Student:
        network = self._network(job)
        key = (id(network), job.config.learns_labels)
        return self._students.setdefault(key, Student(network, job.config.learns_labels))


def _median_seconds(once: Callable[[], object]) -> float:
    """Of a few calls, the first of which compiles and does not count."""
    took = []
    for _ in range(PACE_STEPS):
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    return float(np.median(took[1:]))


def _memory(job: Job) -> Metrics:
    """The most memory in bytes that this process has had: its own, and on its device."""
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory": own, "device_memory": torch.cuda.max_memory_allocated() if job.device != "cpu" else 0}


def _noted() -> Metrics:
    """What this process has to say since it was last asked."""
    notices, compiled.fallbacks[:] = list(compiled.fallbacks), []
    return {"notices": notices, "pid": os.getpid()}
