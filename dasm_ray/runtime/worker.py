"""The worker: one actor class whose methods are the roles of the house, thin shells around ``core`` and ``store``.

One process serves all stages, so torch is imported and a step compiled once per worker. What must stay true: a method's
result depends on its arguments alone; whatever a worker keeps between calls only saves time.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from dasm_ray.config.gains import together
from dasm_ray.config.keys import Experts, RunConfig, TrainRecipe
from dasm_ray.core import selection
from dasm_ray.core.augment import draw
from dasm_ray.core.blocks import Blocks, Layout
from dasm_ray.core.device import multiply_as
from dasm_ray.core.matching.lane import moved, walk_lane
from dasm_ray.core.matching.parallel import Moment, match_in_lane, moved_by
from dasm_ray.core.matching.round import (
    Assignment,
    Loop,
    Matching,
    RoundInputs,
    distil_round,
    inner_recipe,
    matching_of,
)
from dasm_ray.core.matching.setstate import Cut, Earlier, RowGradient, SetState, SetValues, joined
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.membership import log_odds
from dasm_ray.core.nearness import Near, flat_levels, in_batches, nearest, numbered, shrunk_to, tiles_by_size
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.evaluate import Labels, Outcome, evaluate_on, synthetic_samples
from dasm_ray.core.networks.expert import Trajectory, continued, expert_labels, spread, train_expert
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import filled, mean_loss, read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples, Relabelled, Samples, TensorSamples, held
from dasm_ray.core.networks.training import Watch, steps_for, train
from dasm_ray.core.patches import drawn_crops, losses_of, packed
from dasm_ray.core.scoring import Scored, features_of, score_range, static_range
from dasm_ray.core.seed import numpy_generator, torch_generator
from dasm_ray.core.start import initial_pixels
from dasm_ray.core.whiten import CHUNK, Sums, Whitening, fit, sums_of
from dasm_ray.errors import NonFinite, RunDirError, StorageError
from dasm_ray.runtime import turns
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.parts import opened_here
from dasm_ray.runtime.pool import outputs
from dasm_ray.runtime.sharing import ObjectRef, Shared
from dasm_ray.runtime.snapshots import OnDisk, Reader, TrajectoryRef, lazily
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import KeptSet, not_finite, read_group, write_group, write_set
from dasm_ray.store.datasets.blockcache import Kept, SortedSet
from dasm_ray.store.place import Place
from dasm_ray.store.trajectories import (
    KeptTrajectory,
    Unfinished,
    add_epochs,
    open_trajectory,
    read_unfinished,
    trajectory_name,
    write_trajectory,
)

KEPT_MEMORY = 1 << 30
"""Bytes up to which the C library keeps what a step has freed for the next one, in a worker's environment.

By default it hands every large tensor back to the system and is given zeroed pages for the next: ten thousands of page
faults a step, a fifth of its time. Where the C library knows no such thresholds, nothing happens.
"""

PACE_STEPS = 6
"""Steps that are timed, the first of which compiles and does not count."""

Pixels = NDArray[np.float32]
Indices = NDArray[np.int64]


def environment(threads: int) -> dict[str, str]:
    """What a worker process of so many threads is started with."""
    kept = str(KEPT_MEMORY)
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # products on a GPU that give the same bits again
        "MALLOC_MMAP_THRESHOLD_": kept,
        "MALLOC_TRIM_THRESHOLD_": kept,
    }


# --- what a task is given ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job(Shared):
    """What every task of a run needs to know."""

    config: RunConfig
    real: RealRefs
    device: str
    whitening: ObjectRef | None = None
    """Of a dict of arrays ``mean`` and ``matrix``; there wherever the configuration asks for whitening."""

    @property
    def lasts(self) -> bool:
        """See Shared."""
        return True


@dataclass(frozen=True)
class RoundInputRefs(Shared):
    """References behind a ``core.matching.round.RoundInputs``: nothing is fetched before a worker needs it."""

    windows: ObjectRef
    earlier: ObjectRef
    experts: tuple[ObjectRef, ...]
    probes: tuple[ObjectRef, ...]
    current: tuple[ObjectRef, ...] = ()
    """States of every group, in class order; empty where nobody trains on the set."""
    strata: tuple[ObjectRef, ...] = ()
    """A class each; empty where real batches are not stratified."""
    bank: tuple[ObjectRef, ...] = ()
    frontier: tuple[ObjectRef, ...] = ()
    """A class each."""

    @property
    def lasts(self) -> bool:
        """Not where it is of one round: the states of all groups before it would stay in the store after it."""
        return not self.current


@dataclass(frozen=True)
class SetRefs(Shared):
    """References to a segment in shards, as lanes of trajectories read it: a lane fetches those that it draws from."""

    cut: Cut
    values: tuple[ObjectRef, ...]
    """Of `SetValues`."""
    earlier: tuple[ObjectRef, ...]
    """Pixels and labels of the frozen segments, of the same classes."""


@dataclass(frozen=True)
class Keeping(Shared):
    """Where the checkpoints of a run's groups are, and under which key."""

    place: Place
    key: str

    @property
    def lasts(self) -> bool:
        """See Shared."""
        return True


@dataclass(frozen=True)
class Stored(Shared):
    """To train on: stored images of a synthetic set. ``digest`` is of all that the training sees."""

    pixels: ObjectRef  # (N, C, H, W)
    labels: Labels  # (N,), or logits (N, K)
    factor: int
    is_normalised: bool
    digest: str


@dataclass(frozen=True)
class Chosen(Shared):
    """To train on: real images by global index, with their own labels or ``logits`` of soft ones."""

    indices: Indices  # (N,)
    logits: NDArray[np.float32] | None  # (N, K)
    digest: str


@dataclass(frozen=True)
class Everything:
    """To train on: all training images."""

    digest: str = "full"


Training = Stored | Chosen | Everything


class Beside(NamedTuple):
    """Images to hold real ones against: those of a training, or with ``held_out`` real ones that are in none.

    ``factor``: as small as tiles of so many a side, as a set of this factor packs them.
    """

    training: Stored | Chosen | None
    held_out: Indices = np.empty(0, np.int64)
    factor: int = 1


class ClassStanding(NamedTuple):
    """What a segment's start is chosen by, of one class: within-class indices, and the static score (n_c,)."""

    target: Indices
    """What the segment may see."""
    used: Indices
    """What started earlier segments."""
    frontier: Indices
    """What every probe gets wrong and the experts get right."""
    static: NDArray[np.float64]


# --- what a worker answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a worker says beside its result: sentences for whoever watches the run."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class ExpertMetrics(Answer):
    """Of an expert: validation accuracy in [0, 1] and loss in nats after each epoch, and the epochs trained now."""

    accuracy: list[float]
    loss: list[float]
    epochs: int
    kept: TrajectoryRef


@dataclass(frozen=True)
class Pace(Answer):
    """Seconds of one step, parameters of the network, and the most memory in bytes of process and device so far."""

    seconds: float
    parameters: int
    memory: int
    device_memory: int


@dataclass(frozen=True)
class RoundMetrics(Answer):
    """Of a round of a group: the matching distance at each network state, and real images worked on."""

    distances: list[float]
    samples: int
    is_kept: bool = False
    """Whether the worker has written the group's checkpoint."""


@dataclass(frozen=True)
class GroupKept(Answer):
    """Whether a checkpoint was written, as it is wherever the run directory can be reached."""

    is_kept: bool


@dataclass(frozen=True)
class LaneMetrics(Answer):
    """Of a lane: the distance of student and expert, or at its network state, and images worked on."""

    distance: float
    samples: int


@dataclass(frozen=True)
class SetMetrics(Answer):
    """Of a step of the set: the student's rate after it."""

    rate: float


@dataclass(frozen=True)
class Evaluated(Answer):
    """Of one training on a set."""

    outcome: Outcome


# --- the worker --------------------------------------------------------------------------------------------------


class Worker:
    """A process that does tasks. ``threads`` are its torch threads, which are part of what a result depends on.

    ``fetch`` gives what a reference, or each of a list of them, refers to.
    """

    def __init__(self, threads: int, fetch: Callable[[Any], Any] = ray.get) -> None:
        torch.set_num_threads(threads)
        turns.begin()
        self._fetch, self._reader = fetch, Reader()
        self._sets: dict[Kept, SortedSet] = {}
        self._splits: dict[tuple[Kept, str], Blocks] = {}
        self._networks: dict[str, Network] = {}
        self._matchings: dict[str, Matching] = {}
        self._students: dict[tuple[int, bool], Student] = {}

    # --- whitening -----------------------------------------------------------------------------------------------

    @outputs(2)
    def whitening_sums(self, job: Job, first: int, last: int) -> tuple[Answer, Sums]:
        """What the whitening needs of the training images [first, last)."""
        real = self._real(self._network(job), job, "train")
        chunks = (np.arange(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK))
        return _answer(), sums_of(real.take(chunk)[0] for chunk in chunks)

    @outputs(2)
    def fit_whitening(
        self, job: Job, place: Place, key: str, parts: tuple[ObjectRef, ...]
    ) -> tuple[Answer, dict[str, NDArray[np.float32]]]:
        """Fits the whitening and writes its file: arrays ``mean`` (D,) and ``matrix`` (D, D)."""
        assert job.config.data.zca is not None
        fitted = fit(self._all(parts), job.config.data.zca)
        arrays = {"mean": fitted.mean.cpu().numpy(), "matrix": fitted.matrix.cpu().numpy()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NonFinite(
                f"whitening: its matrix holds numbers that are not finite, and nothing of it is kept; raise data.zca "
                f"(now {job.config.data.zca:g})"
            )
        tensors.write(place, arrays, {"key": key})
        return _answer(), arrays

    # --- experts, probes, scores ---------------------------------------------------------------------------------

    def expert(self, job: Job, place: Place, key: str, number: int) -> ExpertMetrics:
        """Trains expert ``number`` and writes its file, unless that is there; goes on from the epochs on disk."""
        assert (job.whitening is None) == (job.config.data.zca is None), "experts see images as the run does"
        found, epochs, said = open_trajectory(place, number, key), 0, list[str]()
        if found is None or found.epochs < job.config.experts.epochs or not found.is_finite:
            epochs, said = self._train_expert(job, place, key, number, found)
            found = open_trajectory(place, number, key)
        if found is None:
            raise tensors.damaged(place / trajectory_name(number), "it is missing")
        accuracy, loss = (found.curve(name).tolist() for name in ("accuracy", "loss"))
        kept = TrajectoryRef.of(place, key, number, found)
        return ExpertMetrics((*said, *_notices()), accuracy, loss, epochs, kept)

    def _train_expert(
        self, job: Job, place: Place, key: str, number: int, whole: KeptTrajectory | None
    ) -> tuple[int, list[str]]:
        """Trains an expert from what is on disk of it: the epochs trained now, and what there is to say."""
        config, name, said = job.config, f"expert {number}", list[str]()
        kept = read_unfinished(place, number, key) if whole is None else Unfinished(whole.arrays(), 0, is_cut=False)
        expert, in_file = (None, 0) if kept is None else (Trajectory(**kept.arrays), kept.in_file)
        if kept is not None and kept.is_cut:
            said.append(f"{name}: what was last written of it in {place} is not whole, and is trained again")
        if expert is not None and not expert.is_finite:
            expert, in_file = None, 0
            said.append(f"{name}: its file in {place} is not finite, so it is trained again")
        kept_epochs = 0 if expert is None else expert.epochs
        network, saved_at = self._network(job), time.monotonic()
        real, validation = self._real(network, job, "train"), self._real(network, job, "val")
        generator_of = partial(torch_generator, config.seed, "expert", number)
        training = train_expert(network, real, validation, config.experts, generator_of, expert, name)
        for expert in training:
            is_due = time.monotonic() - saved_at >= config.runtime.checkpoint_seconds
            if is_due and expert.epochs < config.experts.epochs:
                in_file = add_epochs(place, number, key, vars(expert), in_file)
                saved_at = time.monotonic()
        assert expert is not None
        late = open_trajectory(place, number, key)  # two commands may share the folder: what one has read stays
        if late is None or late.epochs < config.experts.epochs or not late.is_finite:
            write_trajectory(place, number, key, vars(expert))
        return expert.epochs - kept_epochs, said

    def pace(self, job: Job, section: str = "experts", most: int | None = None) -> Pace:
        """The pace of a training as a section of the configuration says, compiled if it is.

        ``section``: ``inner`` is the network in the loop of a round. ``most``: images that there are to train on, where
        they may be fewer than a batch (unset: all real ones).
        """
        network, config = self._network(job), job.config
        recipe: TrainRecipe = inner_recipe(config) if section == "inner" else getattr(config, section)
        flatness = (recipe.rho, recipe.alpha) if isinstance(recipe, Experts) else (0.0, 0.0)
        blocks = self._blocks(job, "train")
        training = train(
            network,
            RealSamples(network, blocks, None if most is None else np.arange(min(most, len(blocks)))),
            recipe,
            steps=PACE_STEPS,
            generator=torch_generator("pace"),
            flatness=flatness,
        )
        return _paced(job, network, lambda: next(training).loss)

    def pace_matching(self, job: Job) -> Pace:
        """The pace of one matching step, of one class or of a group's, or of one student step of a walk."""
        network = self._network(job)
        if job.config.is_trajectory:
            return _paced(job, network, self._student_step(network, job))
        loop, state = self._loop_of_steps(network, job), itertools.count()
        return _paced(job, network, lambda: loop.match_at_one_network(next(state)))

    def pace_earlier(self, job: Job) -> Pace:
        """The pace of what a batch of earlier segments adds to a matching step."""
        network = self._network(job)
        matching, loop, generator = self._matching(job), self._loop_of_steps(network, job), torch_generator("pace")
        flat, draws = network.initial(generator), draw(1, generator).to(job.device)
        (places,) = loop.together
        pixels, label = loop.as_taken(loop.pixels[:, : loop.slots]), loop.labels[places[0]]
        return _paced(job, network, lambda: matching.mean(flat, pixels, label, draws).sum())

    def _student_step(self, network: Network, job: Job) -> Callable[[], torch.Tensor]:
        """A student's step there and back, on noise."""
        generator, config = torch_generator("pace"), job.config
        flat = network.initial(generator)
        size = min(config.trajectory.batch, network.classes * config.synthetic.ipc)
        images = torch.rand(size, *network.shape, generator=generator).to(job.device)
        labels = torch.rand(size, network.classes, generator=generator).to(job.device)
        student, step = self._student(job), torch.tensor(0.01, device=job.device)

        def once() -> torch.Tensor:
            after = student.forward(flat, images, labels, step)
            return student.backward(flat, images, labels, step, after)[0].sum()

        return once

    def _loop_of_steps(self, network: Network, job: Job) -> Loop:
        """A round of a group, or of a class, from noise that stays: one matching step at each network state.

        With all that a step has around it, as its real batch, but for what is timed on its own: earlier segments, and
        trainings between two steps.
        """
        config, generator, blocks = job.config, torch_generator("pace"), self._blocks(job, "train")
        alone = {"steps": 1, "lr_img": 0.0, "context": "alone", "snapshots": ((0, 1),), "strata": False}
        shares = {"frontier_share": 0.0, "probe_share": 0.0, "bank_share": 0.0}
        matcher = config.matcher.model_copy(update={**alone, **shares})
        classes = tuple(range(together(config, network.classes)))
        pixels = torch.rand(len(classes), max(config.sizes), *network.shape, generator=generator).numpy()
        nothing = np.empty((network.classes, 0, *network.shape), np.float32)
        windows = [[np.arange(count) for count in blocks.counts]]
        snapshot = network.initial(generator).cpu().numpy()[None]
        inputs = RoundInputs(blocks, windows, nothing, nothing, experts=[snapshot], probes=())
        where, alike = Assignment(0, 0, 0, classes), config.model_copy(update={"matcher": matcher})
        return Loop(self._matching(job), alike, where, inputs, pixels, np.zeros_like(pixels))

    @outputs(2)
    def probe(
        self, job: Job, segment: int, member: int, pixels: tuple[ObjectRef], labels: Labels
    ) -> tuple[Answer, NDArray[np.float32]]:
        """Trains one member on the earlier segments' ``pixels`` (N, C, H, W): its parameters (P,)."""
        network, config, recipe = self._network(job), job.config, job.config.probe
        stored = self._fetch(pixels[0])
        samples = synthetic_samples(network, stored, labels, config.synthetic.factor, config.is_trajectory)
        generator = torch_generator(config.seed, "probe", segment, member)
        steps = steps_for(len(samples), recipe)
        watch = Watch(f"probe {member} before segment {segment + 1}", "probe", recipe)
        training = train(network, samples, recipe, steps=steps, generator=generator, decay=True)
        for state in watch.over(training, steps):
            last = state
        return _answer(), last.flat.cpu().numpy()

    @outputs(2)
    def go_on(
        self, job: Job, segment: int, member: int, probe: tuple[ObjectRef], epochs: Sequence[float]
    ) -> tuple[Answer, NDArray[np.float32]]:
        """A probe goes on along all real images: snapshots (S, P) after so many ``epochs``."""
        network, config = self._network(job), job.config
        (flat,) = self._on_device(job, probe)
        generator = torch_generator(config.seed, "bank", segment, member)
        real, name = self._real(network, job, "train"), f"probe {member} before segment {segment + 1} on real images"
        return _answer(), continued(network, real, config.experts, flat, epochs, generator, name)

    def score(self, job: Job, probes: tuple[ObjectRef, ...], first: int, last: int) -> Scored:
        """Scores the training images [first, last) under the probes."""
        network, recipe = self._network(job), job.config.score
        ensemble = self._on_device(job, probes)
        return score_range(network, self._blocks(job, "train"), ensemble, recipe.dynamic, first, last, recipe.batch)

    def score_statically(
        self, job: Job, experts: tuple[ObjectRef, ...], first: int, last: int, split: str = "train"
    ) -> Scored:
        """Scores the images [first, last) of a split under the experts."""
        network, recipe = self._network(job), job.config.score
        on_device = partial(torch.tensor, device=job.device)
        trained = [lazily(on_device, snapshots) for snapshots in self._all(experts)]
        blocks, training = self._blocks(job, split), self._real(network, job, "train")
        return static_range(network, blocks, trained, recipe.static, recipe.early, first, last, recipe.batch, training)

    # --- distillation --------------------------------------------------------------------------------------------

    @outputs(2)
    def initialise(
        self,
        job: Job,
        segment: int,
        classes: Sequence[int],
        windows: Sequence[Indices],
        used: Sequence[Indices],
        chosen: Sequence[Indices] | None = None,
    ) -> tuple[list[Indices], Pixels]:
        """Where some classes of a segment start: the within-class indices used, and pixels (k, m, C, H, W).

        ``chosen``: what it starts from, class by class, where that is not drawn. For trajectories the pixels are
        normalised.
        """
        blocks = self._blocks(job, "train")
        pixels, taken = initial_pixels(job.config, blocks, windows, used, segment, chosen, classes)
        if job.config.is_trajectory:
            images = torch.tensor(pixels.reshape(-1, *pixels.shape[2:]), device=job.device)
            pixels = self._network(job).normalise(images).cpu().numpy().reshape(pixels.shape)
        return taken, pixels

    def choose_start(
        self, job: Job, segment: int, label: int, expert: tuple[ObjectRef], known: ClassStanding
    ) -> Indices:
        """Within-class indices (m f^2,) of what a segment of one class starts from, where it is chosen."""
        config = job.config
        features = self._expert_features(job, label, expert)
        count, generator = (
            config.sizes[segment] * config.start_factor**2,
            numpy_generator(config.seed, "loop", segment, label),
        )
        return selection.loop(features, count, *known, generator, covers=config.synthetic.init == "cover")

    def label_softly(self, job: Job, experts: tuple[ObjectRef, ...], training: Stored | Chosen) -> NDArray[np.float32]:
        """Soft labels by the experts' last snapshots for the images of a training: logits (N, K).

        Of a stored image that is decoded to several it is the mean of theirs.
        """
        network = self._network(job)
        last = [torch.tensor(snapshots[-1], device=job.device) for snapshots in self._all(experts)]
        samples = self._training_samples(network, job, training)
        logits = expert_labels(network, last, self._real(network, job, "train"), samples)
        if not logits.isfinite().all():
            raise NonFinite(
                f"soft labels: some logits of the experts are not finite, and none is kept; lower experts.lr "
                f"(now {job.config.experts.lr:g})"
            )
        decoded = len(samples) // len(training.labels if isinstance(training, Stored) else training.indices)
        return logits.view(-1, decoded, network.classes).mean(1).cpu().numpy()

    def loss_of(self, job: Job, probes: tuple[ObjectRef, ...], segment: int) -> float:
        """The mean loss of probes before ``segment`` on the training images by which experts' losses are recorded."""
        network = self._network(job)
        real = self._real(network, job, "train")
        flats = self._on_device(job, probes)
        losses = [mean_loss(network, flat, statistics_of(network, flat, real), spread(real)) for flat in flats]
        if not np.isfinite(losses).all():
            raise Watch(f"probes before segment {segment + 1}", "probe", job.config.probe).failed("at their end")
        return float(np.mean(losses))

    def walk(
        self, job: Job, where: tuple[int, int, int], refs: SetRefs, expert: tuple[ObjectRef], start: int
    ) -> tuple[LaneMetrics | RowGradient, ...]:
        """One lane of a round from start epoch ``start``: metrics, and what it says of each shard.

        ``where``: segment, round, lane.
        """

        def read(shard: int) -> tuple[SetValues, Earlier]:
            values, earlier = self._all((refs.values[shard], refs.earlier[shard]))
            return values, earlier

        (way,), trajectory = self._all(expert), job.config.trajectory
        ends = way[start], way[start + trajectory.epochs]
        distance, gradients = walk_lane(self._student(job), job.config, where, refs.cut, read, *ends)
        return LaneMetrics(_notices(), distance, trajectory.steps * trajectory.batch), *gradients

    @outputs(3)
    def move_set(
        self,
        job: Job,
        where: tuple[int, int],
        values: SetValues,
        speeds: SetValues,
        distances: Sequence[float],
        gradients: tuple[ObjectRef, ...],
    ) -> tuple[SetMetrics, SetValues, SetValues]:
        """The step that ends a round, of one shard: metrics, values and velocities anew. ``where``: segment, round."""
        dense = [found.spread(values) for found in self._all(gradients)]
        after = moved(job.config, where, SetState(*values, *speeds), distances, dense)
        return SetMetrics(_notices(), float(np.exp(after.log_step))), after.values, after.speeds

    def keep_set(
        self, keeping: Keeping, where: tuple[int, int], unused: int, shards: tuple[tuple[ObjectRef, ObjectRef], ...]
    ) -> GroupKept:
        """Writes the checkpoint of a segment that trajectories move. ``where``: segment, rounds done; ``unused``: see
        `KeptSet`; ``shards``: values and velocities."""
        if not _is_reached(keeping):
            return GroupKept(_notices(), is_kept=False)
        fetched = self._all([ref for shard in shards for ref in shard])
        state = joined(list(zip(fetched[::2], fetched[1::2], strict=True)))
        write_set(keeping.place, where[0], KeptSet(state._asdict(), where[1], unused), keeping.key)
        return GroupKept(_notices(), is_kept=True)

    @outputs(2)
    def distil(
        self,
        job: Job,
        where: Assignment,
        refs: RoundInputRefs,
        state: tuple[Pixels, Pixels] | None,
        initial: tuple[ObjectRef, ...] = (),
        keeping: Keeping | None = None,
    ) -> tuple[RoundMetrics, tuple[Pixels, Pixels]]:
        """One round of one group: metrics, and new (pixels, velocity) (classes, m, C, H, W) each.

        ``state``: those before the round; None where it is at rest at ``initial``, which is needed then. ``keeping``:
        where its checkpoint goes, which holds ``initial``, if the round ends in one.
        """
        pixels, velocity = state or self._at_rest(initial)
        inputs = self._round_inputs(job, where, refs)
        pixels, velocity, distances = distil_round(
            self._matching(job, where.segment), job.config, where, inputs, pixels, velocity
        )
        matcher = job.config.matcher
        samples = len(distances) * matcher.steps * len(where.classes) * matcher.batch_real
        after = replace(where, round=where.round + 1)
        is_kept = keeping is not None and self._keep(keeping, after, (pixels, velocity), initial[0])
        return RoundMetrics(_notices(), distances, samples, is_kept), (pixels, velocity)

    @outputs(3)
    def match_lane(
        self,
        job: Job,
        where: Assignment,
        at: Moment,
        lane: int,
        refs: RoundInputRefs,
        state: tuple[Pixels, Pixels] | None,
        before: NDArray[np.float32] | None = None,
        initial: tuple[ObjectRef, ...] = (),
    ) -> tuple[LaneMetrics, Pixels, NDArray[np.float32] | None]:
        """One lane of a matching step of a group: metrics, the gradient (G, s, C, H, W), and its network (P,).

        ``state`` and ``initial`` as for `distil`; ``before``: the network that the step before left, if it did.
        """
        pixels, _ = state or self._at_rest(initial)
        matching, inputs = self._matching(job, where.segment), self._round_inputs(job, where, refs)
        found = match_in_lane(matching, job.config, where, at, lane, inputs, pixels, before)
        samples = len(where.classes) * job.config.matcher.batch_real
        return LaneMetrics(_notices(), found.distance, samples), found.slopes, found.flat

    @outputs(2)
    def move_group(
        self,
        job: Job,
        where: Assignment,
        at: Moment,
        state: tuple[Pixels, Pixels] | None,
        slopes: tuple[ObjectRef, ...],
        initial: tuple[ObjectRef, ...] = (),
        keeping: Keeping | None = None,
    ) -> tuple[GroupKept, tuple[Pixels, Pixels]]:
        """The step that all lanes lead to: new (pixels, velocity).

        ``keeping``: where its checkpoint goes, which holds ``initial``, if the round ends here and in one.
        """
        after = moved_by(job.config, where, at, *(state or self._at_rest(initial)), self._all(slopes))
        ended = replace(where, round=where.round + 1)
        return GroupKept(_notices(), keeping is not None and self._keep(keeping, ended, after, initial[0])), after

    def keep_group(
        self, keeping: Keeping, where: Assignment, state: tuple[ObjectRef], initial: tuple[ObjectRef]
    ) -> GroupKept:
        """Writes the checkpoint of a group as it is before the round of ``where``."""
        return GroupKept(_notices(), self._keep(keeping, where, self._fetch(state[0]), initial[0]))

    def _keep(self, keeping: Keeping, where: Assignment, state: tuple[Pixels, Pixels], initial: ObjectRef) -> bool:
        """Whether a checkpoint was written: not from a node that does not reach the run directory."""
        if not _is_reached(keeping):
            return False
        write_standing(keeping.place, keeping.key, where, *state, self._fetch(initial))
        return True

    @outputs(3)
    def kept_group(
        self, keeping: Keeping, segment: int, group: int
    ) -> tuple[int | None, tuple[Pixels, Pixels] | None, Pixels | None]:
        """A group's checkpoint: the rounds done, (pixels, velocity), and where it began; nothing without one.

        Raises NonFinite for an older version's that is not finite.
        """
        kept = read_group(keeping.place, segment, group, keeping.key) if _is_reached(keeping) else None
        if kept is None:
            return None, None, None
        arrays, round = kept
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NonFinite(not_finite(keeping.place, segment))
        return round, (arrays["pixels"], arrays["velocity"]), arrays["initial"]

    # --- baselines and evaluation --------------------------------------------------------------------------------

    def select(
        self, job: Job, methods: Sequence[str], label: int, experts: tuple[ObjectRef, ...]
    ) -> dict[str, Indices]:
        """Within-class indices (ipc,) that each of ``methods`` chooses from one class by an expert's features."""
        features = self._expert_features(job, label, experts)
        ipc, seed = job.config.synthetic.ipc, job.config.seed
        return {
            method: selection.PICKS[method](features, ipc, numpy_generator(seed, method, label))[0]
            for method in methods
        }

    @outputs(2)
    def patches(self, job: Job, label: int, expert: tuple[ObjectRef]) -> tuple[Answer, Pixels]:
        """Stored images (1, ipc, C, H, W) of one class, packed from the patches that an expert knows best."""
        network, blocks, config = self._network(job), self._blocks(job, "train"), job.config
        flat = self._first_expert(job, expert)
        tiles, factor = config.synthetic.ipc * config.synthetic.factor**2, config.synthetic.factor
        generator = numpy_generator(config.seed, "patches", label)
        crops = drawn_crops(network, blocks, label, tiles, factor, generator)
        losses = losses_of(network, flat, self._real(network, job, "train"), crops, config.score.batch)
        (chosen,) = selection.PICKS["patches"](losses, tiles, generator)
        return _answer(), packed(crops, chosen)[None]

    @outputs(2)
    def strata(self, job: Job, label: int, experts: tuple[ObjectRef, ...]) -> tuple[Answer, Indices]:
        """Which of as many k-means strata as a real batch has images each image of one class is in (n_c,)."""
        generator = numpy_generator(job.config.seed, "strata", label)
        found = selection.strata(self._expert_features(job, label, experts), job.config.matcher.batch_real, generator)
        return _answer(), found

    @outputs(2)
    def judge(self, job: Job, experts: tuple[ObjectRef, ...], choices: Sequence[Indices]) -> tuple[Answer, list[float]]:
        """How well each of ``choices``, global indices (N,), tells the validation images apart by expert features."""
        network = self._network(job)
        real = self._real(network, job, "train")
        flat = self._first_expert(job, experts)
        statistics = statistics_of(network, flat, real)

        def features(samples: RealSamples) -> tuple[NDArray[np.float32], Indices]:
            read = ((seen, labels) for _, seen, labels in read_all(network, flat, statistics, samples))
            seen, labels = (column.cpu().numpy() for column in filled(read, len(samples)))
            return seen, labels

        seen, truth = features(self._real(network, job, "val"))
        chosen = [features(RealSamples(network, self._blocks(job, "train"), choice)) for choice in choices]
        return _answer(), [selection.ridge_accuracy(*each, network.classes, seen, truth) for each in chosen]

    @outputs(2)
    def images(self, job: Job, indices: Indices) -> tuple[Answer, Pixels]:
        """Training images at global indices, as pixels (N, C, H, W) in [0, 1]."""
        return _answer(), self._blocks(job, "train").take(indices).astype(np.float32) / np.float32(255)

    def evaluate(
        self,
        job: Job,
        row: str,
        seed: int,
        steps: int,
        training: Training,
        classes: tuple[int, ...] | None = None,
        reads_test: bool = True,
        name: str = "a training",
        reads_each: bool = False,
    ) -> Evaluated:
        """One training of one row of the table, called ``name``; ``classes``: which are asked for (unset: all).

        Without ``reads_test`` it is judged by validation alone; ``reads_each``: image by image as well.
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
            generator=torch_generator(job.config.evaluation_seed, "evaluate", row, seed),
            name=name,
            reads_each=reads_each,
        )
        return Evaluated(_notices(), outcome)

    # --- what a set tells of its real images ---------------------------------------------------------------------

    @outputs(2)
    def certainty(
        self, job: Job, file: Place | None, key: str, label: str, seed: int, steps: int, training: Training, name: str
    ) -> tuple[Answer, dict[str, NDArray[np.generic]]]:
        """Trains a network, called ``name``, and says how sure it is of every real image: log odds of its own label.

        Returns ``train`` (n,) and ``held_out`` (m,), validation images before test images; of which of them the largest
        logit is the label's, ``train right`` and ``held_out right``, bool; and the parameters ``flat`` (P,) of one that
        was trained on a stored set. Written to ``file``; what is there under the key is read.
        """
        if file is not None and file.exists():
            arrays, note = tensors.read(file)
            tensors.check_key(file, note, key)
            return _answer(), arrays
        network, recipe = self._network(job), job.config.evaluate
        samples, watch = self._training_samples(network, job, training), Watch(name, "evaluate", recipe)
        generator = torch_generator(job.config.evaluation_seed, "audit", label, seed)
        for state in watch.over(train(network, samples, recipe, steps=steps, generator=generator, decay=True), steps):
            flat = state.flat
        statistics = statistics_of(network, flat, samples)

        def asked(split: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            samples = self._real(network, job, split)
            read = read_all(network, flat, statistics, samples)
            said = ((log_odds(logits, labels), logits.argmax(1) == labels) for logits, _, labels in read)
            odds, is_right = filled(said, len(samples))
            if not odds.isfinite().all():
                raise watch.failed(f"by step {steps}, on the {split} images")
            return odds.float().cpu().numpy(), is_right.cpu().numpy()

        train_odds, train_right = asked("train")
        odds, is_right = map(np.concatenate, zip(asked("val"), asked("test"), strict=True))
        arrays = {"train": train_odds, "train right": train_right, "held_out": odds, "held_out right": is_right}
        if isinstance(training, Stored):
            arrays["flat"] = flat.cpu().numpy()
        if file is not None:
            tensors.write(file, arrays, {"key": key})
        return _answer(), arrays

    @outputs(2)
    def distances(
        self, job: Job, sets: Sequence[Beside], split: str, first: int, last: int, chosen: Indices
    ) -> tuple[Answer, list[Near]]:
        """How far the images of each of ``sets`` are from the real images [first, last) of a split, in levels 0..255.

        ``chosen``: indices whose nearest is asked for beside that of all.
        """
        blocks, batch = self._blocks(job, split), job.config.score.batch

        def near(tiles: NDArray[np.uint8]) -> Near:
            size = tiles.shape[2:]
            batches = in_batches(last, batch, first)
            passing = ((indices, flat_levels(blocks.take(indices), size, job.device)) for indices in batches)
            return nearest(flat_levels(tiles, size, job.device), passing, chosen)

        found = [numbered([(numbers, near(tiles)) for numbers, tiles in self._tiles(job, each)]) for each in sets]
        return _answer(), found

    @outputs(2)
    def feature_distances(
        self,
        job: Job,
        known: tuple[ObjectRef],
        seen_by_it: Stored,
        sets: Sequence[Beside],
        split: str,
        first: int,
        last: int,
        chosen: Indices,
    ) -> tuple[Answer, list[Near]]:
        """The same in the last hidden layer of a network trained on ``seen_by_it``, as ``certainty`` gave it."""
        network = self._network(job)
        flat = torch.tensor(self._fetch(known[0])["flat"], device=job.device)
        statistics = statistics_of(network, flat, self._training_samples(network, job, seen_by_it))
        batch = job.config.score.batch

        def features(samples: Samples) -> torch.Tensor:
            read = read_all(network, flat, statistics, samples, batch)
            return filled(((seen.flatten(1),) for _, seen, _ in read), len(samples))[0].double()

        blocks = self._blocks(job, split)  # batch by batch, so that nothing depends on where shards are cut
        passing = [(each, features(RealSamples(network, blocks, each))) for each in in_batches(last, batch, first)]
        return _answer(), [nearest(features(self._seen(network, job, each)), passing, chosen) for each in sets]

    def _tiles(self, job: Job, of: Beside) -> list[tuple[Indices, NDArray[np.uint8]]]:
        """The images of a set in groups of one size, with their numbers; those of stored images are its tiles."""
        match of.training:
            case Stored(pixels, _, factor):
                levels = np.rint(np.clip(self._fetch(pixels), 0, 1) * 255).astype(np.uint8)
                return list(tiles_by_size(levels, factor).values())
            case Chosen(indices):
                images = self._blocks(job, "train").take(indices)
            case None:
                images = self._held_out(job, of.held_out)
        return [(np.arange(len(images)), shrunk_to(images, next(iter(tiles_by_size(images[:1], of.factor)))))]

    def _seen(self, network: Network, job: Job, of: Beside) -> Samples:
        """The images of a set as a network sees them."""
        if of.training is not None:
            return self._training_samples(network, job, of.training)
        images = torch.from_numpy(self._held_out(job, of.held_out)).to(network.device)
        return TensorSamples(network.normalise(images), torch.zeros(len(images), dtype=torch.int64))

    def _held_out(self, job: Job, indices: Indices) -> NDArray[np.uint8]:
        """Real images of the validation split, and behind them of the test split, by index."""
        val, test = self._blocks(job, "val"), self._blocks(job, "test")
        is_val = indices < len(val)
        return np.concatenate([val.take(indices[is_val]), test.take(indices[~is_val] - len(val))])

    # --- what a worker keeps -------------------------------------------------------------------------------------

    def _all(self, refs: Sequence[ObjectRef]) -> list[Any]:
        """What each of several references refers to, brought here side by side; what is on disk as it is read."""
        stored = [ref for ref in refs if not isinstance(ref, OnDisk)]
        brought = iter(self._fetch(stored) if stored else ())
        return [self._reader.have(ref) if isinstance(ref, OnDisk) else next(brought) for ref in refs]

    def _of(self, refs: Sequence[ObjectRef], classes: Sequence[int]) -> dict[int, Any]:
        """What some classes' references refer to, of references by class; nothing where there are none."""
        wanted = classes if refs else ()
        return dict(zip(wanted, self._all([refs[label] for label in wanted]), strict=True))

    def _on_device(self, job: Job, refs: Sequence[ObjectRef]) -> list[torch.Tensor]:
        """Copies of the arrays that references refer to."""
        return [torch.tensor(array, device=job.device) for array in self._all(refs)]

    def _first_expert(self, job: Job, experts: tuple[ObjectRef, ...]) -> torch.Tensor:
        """The first of experts (P,), fully trained."""
        return torch.tensor(self._all(experts[:1])[0][-1], device=job.device)

    def _expert_features(self, job: Job, label: int, experts: tuple[ObjectRef, ...]) -> NDArray[np.float32]:
        """The last hidden layer (n_c, d) of a class's training images under the first expert, fully trained."""
        flat = self._first_expert(job, experts)
        return features_of(self._network(job), self._blocks(job, "train"), flat, label, job.config.score.batch)

    def _round_inputs(self, job: Job, where: Assignment, refs: RoundInputRefs) -> RoundInputs:
        """What a round of a group reads."""
        groups = [group[0] if isinstance(group, tuple) else group for group in self._all(refs.current)]
        return RoundInputs(
            blocks=self._blocks(job, "train"),
            windows=self._fetch(refs.windows),
            earlier=self._fetch(refs.earlier),
            current=np.concatenate(groups) if groups else np.empty((0, 0), np.float32),
            experts=self._all(refs.experts),
            probes=self._all(refs.probes),
            strata=self._of(refs.strata, where.classes),
            bank=self._all(refs.bank),
            frontier=self._of(refs.frontier, where.classes),
        )

    def _at_rest(self, initial: Sequence[ObjectRef]) -> tuple[Pixels, Pixels]:
        """A group before its first round."""
        pixels: Pixels = self._fetch(initial[0])
        return pixels, np.zeros_like(pixels)

    def _blocks(self, job: Job, split: str) -> Blocks:
        """A split in place: files of this node that are mapped as they are used, and what is on the device already."""
        real = job.real
        assert split in real.splits, f"nobody here may read the {split} split"
        if (real.kept, split) not in self._splits:
            if real.kept not in self._sets:
                self._sets[real.kept] = opened_here(real.kept, real.digest)
            parts = self._sets[real.kept].split(split)
            self._splits[real.kept, split] = Blocks(parts, Layout(parts.counts, parts.sizes, parts.shape))
        return self._splits[real.kept, split]

    def _real(self, network: Network, job: Job, split: str, classes: tuple[int, ...] | None = None) -> RealSamples:
        blocks = self._blocks(job, split)
        chosen = None if classes is None else np.flatnonzero(np.isin(blocks.labels, classes))
        return RealSamples(network, blocks, chosen)

    def _training_samples(self, network: Network, job: Job, training: Training) -> Samples:
        """What a training is to see."""
        match training:
            case Everything():
                return self._real(network, job, "train")
            case Chosen(indices, logits):
                real = RealSamples(network, self._blocks(job, "train"), indices)
                soft = None if logits is None else torch.tensor(logits, device=job.device).softmax(1)
                samples = real if soft is None else Relabelled(real, soft)
                return held(network, samples, network.whitening is not None)
            case Stored(pixels, labels, factor, is_normalised):
                return synthetic_samples(network, self._fetch(pixels), labels, factor, is_normalised)

    def _network(self, job: Job) -> Network:
        real, config = job.real, job.config
        compile_it, precision = config.runtime.compiles, config.runtime.precision
        multiply_as(precision, job.device)
        compiled.capture(compile_it == "graphs")
        key = repr((config.model, config.data, real.digest, job.device, compile_it, precision, job.whitening))
        if key not in self._networks:
            arrays = {} if job.whitening is None else self._fetch(job.whitening)
            whitening = Whitening(**{name: torch.tensor(array) for name, array in arrays.items()}) if arrays else None
            self._networks[key] = Network(
                *(config.model, real.shape, len(real.class_names), real.mean, real.std),
                *(job.device, compile_it, whitening, precision),
            )
        return self._networks[key]

    def _matching(self, job: Job, segment: int = 0) -> Matching:
        network, config = self._network(job), job.config
        key = repr((id(network), config.matcher, config.synthetic, config.depth_of(segment)))
        if key not in self._matchings:
            self._matchings[key] = matching_of(network, config, segment)
        return self._matchings[key]

    def _student(self, job: Job) -> Student:
        network = self._network(job)
        key = (id(network), job.config.learns_labels)
        return self._students.setdefault(key, Student(network, job.config.learns_labels))


def _is_reached(keeping: Keeping) -> bool:
    """Whether the run directory is to be had from here."""
    try:
        keeping.place.check()
    except (StorageError, RunDirError):  # gone, or not to be read by who this process runs as
        return False
    return True


def write_standing(
    place: Place, key: str, where: Assignment, pixels: Pixels, velocity: Pixels, initial: Pixels
) -> None:
    """Writes the checkpoint of a group as it stands before the round of ``where``."""
    arrays = {"pixels": pixels, "velocity": velocity, "initial": initial}
    write_group(place, where.segment, where.group, arrays, where.round, key)


def _paced(job: Job, network: Network, once: Callable[[], torch.Tensor | float]) -> Pace:
    """The median time of a few calls, the first of which compiles and does not count."""
    took = []
    for _ in range(PACE_STEPS):
        began = time.perf_counter()
        float(once())  # the number waits for the device
        took.append(time.perf_counter() - began)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device_memory = torch.cuda.max_memory_allocated() if job.device != "cpu" else 0
    return Pace(_notices(), float(np.median(took[1:])), sum(network.layout.sizes), memory, device_memory)


def _answer() -> Answer:
    return Answer(_notices())


def _notices() -> tuple[str, ...]:
    """What this process has to say since it was last asked."""
    notices, compiled.fallbacks[:] = tuple(compiled.fallbacks), []
    return notices
