"""A run that is open: its files under lock, its session and workers, the real images, and whitening where it is asked.

What must stay true: a run directory is taken by one command at a time, whatever was started is closed, and nobody sees
images that are not whitened where the configuration says that they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.core.networks.convnet import default_depth
from dasm_ray.core.networks.reading import fewest_pixels
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.core.selection import CROPS
from dasm_ray.core.whiten import CHUNK
from dasm_ray.errors import ConfigError, DataError, TaskLost, UserError
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.metrics import Metrics
from dasm_ray.runtime.opening import check_settled, open_checked, settled
from dasm_ray.runtime.plan import GIB
from dasm_ray.runtime.pool import Done, Pool, Task, task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.turns import Hearing
from dasm_ray.runtime.worker import Answer, Job, Worker, environment
from dasm_ray.store import tensors
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir

WHITENING = "whitening.safetensors"
WHITENING_PARTS = 8
"""Tasks that a fit is cut into: fixed, so that sums do not depend on the number of workers."""


@dataclass(frozen=True)
class Origin:
    """What experts, scores and segments come of: a configuration, the digest of the images, and the device."""

    config: RunConfig
    data: str
    device: str

    @property
    def key(self) -> str:
        """The digest of everything that scores and segments depend on; how they are evaluated is no part of it."""
        kept = {name: value for name, value in result_keys(self.config).items() if name != "evaluate"}
        return digest_of(kept, self.data, self.device)

    @property
    def expert_key(self) -> str:
        """The digest of everything that affects an expert; how many there are does not, so some of them are usable."""
        config = self.config
        runtime = config.runtime.rounding(self.device)
        recipe = {name: value for name, value in result_keys(config.experts).items() if name != "count"}
        return digest_of(recipe, result_keys(config.model), result_keys(config.data), config.seed, runtime, self.data)

    def shared_place(self, run: Place) -> Place:
        """Where experts and what they need lie: under the key of experts, in the run or a shared cache."""
        cache = self.config.experts.cache
        return (Place(cache) if cache else run / "experts") / self.expert_key


@dataclass
class Run:
    """An open run: its files, its workers, its images, and what every task needs to know.

    ``origin``: what its files come of, where that is not what the run is open with now.
    """

    config: RunConfig
    place: Place
    pool: Pool
    progress: Progress
    session: Session
    real: RealRefs
    whitening: ObjectRef | None = None
    origin: Origin | None = None
    said: set[str] = field(default_factory=set)

    @cached_property
    def job(self) -> Job:
        """What every task needs to know: one object, so that it travels once."""
        return Job(self.config, self.real, self.session.device, self.whitening)

    @property
    def key(self) -> str:
        """The key of scores and segments, as `Origin` says."""
        return self._origin.key

    @property
    def expert_key(self) -> str:
        """The key of experts."""
        return self._origin.expert_key

    @property
    def shared_place(self) -> Place:
        """Where experts and what they need lie."""
        return self._origin.shared_place(self.place)

    @property
    def _origin(self) -> Origin:
        return self.origin or Origin(self.config, self.real.digest, self.session.device)

    @property
    def classes(self) -> int:
        return len(self.real.class_names)

    def of(self, segment: int) -> str:
        """Which segment of how many, for the display; after the last one, the polish."""
        if segment == self.config.synthetic.segments:
            return "polish"
        return f"segment {segment + 1} of {self.config.synthetic.segments}"

    def take_notices(self, notices: Sequence[str]) -> None:
        """Says each thing that workers have to say once."""
        for notice in notices:
            if notice not in self.said:
                self.said.add(notice)
                self.progress.note(notice)


# --- opening -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What a run inside a larger undertaking finds open already, and leaves open: a session and the real images."""

    session: Session
    real: RealRefs


@contextlib.contextmanager
def opened(config: RunConfig, uri: str | Place, given: Given | None = None, patience: float = 0) -> Iterator[Run]:
    """The run directory under lock (waited for up to ``patience`` seconds), a session, the real data and workers."""
    config = settled(config, uri) if given is None else config.for_classes(len(given.real.class_names))
    with RunDir.open(uri, config, patience) as record, begun(record, given) as run:
        yield run


@contextlib.contextmanager
def begun(record: RunDir, given: Given | None = None, on_event: Callable[[Tree], None] | None = None) -> Iterator[Run]:
    """A run in a directory that is held: a session, the real data and workers. ``on_event`` hears what the log does.

    A directory made for a run that cannot be begun is taken away again, so that the mended run can have its name.
    """
    has_begun = False

    def event(**fields: Plain) -> None:
        record.event(**fields)
        if on_event is not None:
            on_event(fields)

    try:
        with connected(record.config, record.place, event, given) as run:
            has_begun = True
            for caution in record.cautions():
                run.progress.note(caution)
            yield run
    except UserError:
        if not has_begun:
            record.discard()
        raise


@contextlib.contextmanager
def connected(
    config: RunConfig,
    place: Place,
    event: Callable[..., None] | None = None,
    given: Given | None = None,
    *,
    whitening: Values | None = None,
    only_measures: bool = False,
) -> Iterator[Run]:
    """The same without a lock: for reading a run that is there.

    ``whitening``: its arrays, where they are known. ``only_measures`` opens without fitting one, for what keeps
    nothing.
    """
    check_settled(config)
    with Progress(event) as progress, contextlib.ExitStack() as own:
        if given is None:
            source = open_checked(config)  # first, since what can be refused without Ray shall be
            session = own.enter_context(Session.open(config.runtime, progress.note))
        else:
            session = given.session
        progress.listen(Metrics(config.name))
        progress.begin()
        progress.note(f"{config.name}: {session}, results in {place}")
        real = given.real if given else load_real(source, config.data, progress.note, progress)
        check_against_data(config, real)
        with _pool(config, session, progress) as pool:
            run = Run(config, place, pool, progress, session, real)
            yield run if only_measures else whitened(run, whitening)


def under(run: Run, config: RunConfig, real: RealRefs) -> Run:
    """The same workers and place for another configuration, unless it asks for workers of another shape."""
    one, other = run.config.runtime, config.runtime
    assert (one.cpus_per_worker, one.gpus_per_worker) == (other.cpus_per_worker, other.gpus_per_worker)
    return whitened(replace(run, config=config, real=real, whitening=None))


def _pool(config: RunConfig, session: Session, progress: Progress) -> Pool:
    runtime = config.runtime
    shape = session.shape
    return Pool(
        Worker,
        (shape.num_cpus,),
        count=session.workers,
        num_cpus=shape.num_cpus,
        num_gpus=shape.num_gpus,
        memory=shape.memory * GIB,
        max_lost=runtime.max_lost,
        task_seconds=runtime.task_minutes * 60,
        idle_seconds=runtime.idle_seconds,
        notice=progress.note,
        on_task=progress.task,
        on_tick=Hearing(progress.compiling),
        env=environment(shape.num_cpus),
    )


def check_against_data(config: RunConfig, real: RealRefs) -> None:
    """What can only be known once the data are: refused before anything is trained."""
    synthetic, size = config.synthetic, min(real.shape[1:])
    depth = config.model.depth or default_depth(size)
    if size >> depth < 1:
        raise ConfigError(
            f"model.depth: {depth} blocks halve {size} pixels to nothing; use at most {size.bit_length() - 1}"
        )
    if synthetic.factor > size:
        raise ConfigError(f"synthetic.factor: {synthetic.factor} tiles do not fit into {size} pixels; lower it")
    wanted = synthetic.ipc * config.start_factor**2
    for name, count in zip(real.class_names, real.counts["train"], strict=True):
        if count < wanted:
            raise DataError(
                f"class {name!r}: has {count} training images, but synthetic.ipc {synthetic.ipc} at factor "
                f"{synthetic.factor} starts from {wanted}; lower synthetic.ipc or leave the class out"
            )
    if "patches" in config.evaluate.rows:
        _check_patches(config, real)
    _check_batch_normalisation(config, real)
    for split in ("val", "test"):
        if not real.counts[split].sum():
            raise DataError(f"{config.data.name}: the {split} split is empty; raise data.{split}_share")


def _check_patches(config: RunConfig, real: RealRefs) -> None:
    """DataError where a class gives too few crops for the row of patches, which comes when all is distilled."""
    packed = config.synthetic.ipc * config.synthetic.factor**2
    for name, count in zip(real.class_names, real.counts["train"], strict=True):
        if count * CROPS < packed:
            raise DataError(
                f"class {name!r}: has {count} training images, which give {count * CROPS} crops, but the row patches "
                f"packs {packed}; leave patches out of evaluate.rows or lower synthetic.ipc"
            )


def _check_batch_normalisation(config: RunConfig, real: RealRefs) -> None:
    """ConfigError where a step would normalise a single value: that makes it 0, and nothing is learned, in silence."""
    if config.model.norm != "batch":
        return
    pixels = fewest_pixels(config.model, real.shape, len(real.class_names))
    for key, images in _images_a_step(config, int(real.counts["train"].sum()), len(real.class_names)).items():
        if pixels * images == 1:
            raise ConfigError(
                f"{key}: a step would see one image, of which {config.model.arch} at last leaves one pixel, and batch "
                f"normalisation makes that 0, so that nothing is learned; raise {key} or data.image_size, or take "
                f"another model.norm"
            )


def _images_a_step(config: RunConfig, images: int, classes: int) -> dict[str, int]:
    """How many images the networks are shown at once, by the key that says so."""
    synthetic, matcher = config.synthetic, config.matcher
    tiles = synthetic.factor**2
    distilled = classes * synthetic.ipc * tiles
    found = {
        "experts.batch": min(config.experts.batch, images),
        "probe.batch": min(config.probe.batch, classes * config.sizes[0] * tiles),
        "evaluate.batch": min(config.evaluate.batch, distilled),
    }
    if config.is_trajectory:
        return found | {"trajectory.batch": min(config.trajectory.batch, distilled)}
    together = classes if config.base.family == "distribution" else 1
    slots = min(max(1, matcher.batch_syn // tiles), min(config.sizes))
    return found | {"matcher.batch_real": together * matcher.batch_real, "synthetic.ipc": together * slots * tiles}


# --- tasks -------------------------------------------------------------------------------------------------------


def run_all(run: Run, tasks: Sequence[Task], on_done: Callable[[Done], object] = lambda done: None) -> list[Done]:
    """Runs tasks to the end; answers in the order of the tasks. ``on_done`` hears each as it comes."""
    answers: dict[str, Done] = {}
    with contextlib.closing(run.pool.run(tasks)) as results:  # at once, also where on_done raises
        for done in results:
            if done.error is not None:
                raise TaskLost(
                    f"{done.task.name}: what it reads was lost with its node; run the same command again to go on"
                )
            answers[done.task.name] = done
            if isinstance(done.value, Answer):
                run.take_notices(done.value.notices)
            run.progress.workers(run.pool.alive, run.pool.lost)
            on_done(done)
    return [answers[each.name] for each in tasks]


# --- whitening ---------------------------------------------------------------------------------------------------


def whitened(run: Run, known: Values | None = None) -> Run:
    """The run with its whitening, where the configuration asks for one: ``known``, read from its file, or fitted."""
    if run.config.data.zca is None:
        return run
    return replace(run, whitening=run.pool.put(dict(known)) if known else _whitening(run))


def kept_whitening(folder: Place, config: RunConfig, data: str) -> Values | None:
    """The arrays of the whitening in the folder of experts, for images of digest ``data``; None unless it is usable."""
    file = folder / WHITENING
    if not file.exists():
        return None
    arrays, note = tensors.read(file)
    tensors.check_key(file, note, _whitening_key(config, data))
    return dict(arrays) if all(np.isfinite(array).all() for array in arrays.values()) else None


def _whitening_key(config: RunConfig, data: str) -> str:
    return digest_of(config.data.zca, data)


def _whitening(run: Run) -> ObjectRef:
    """Reference to the arrays of the whitening, fitted on all training images, or read."""
    file, key = run.shared_place / WHITENING, _whitening_key(run.config, run.real.digest)
    kept = kept_whitening(run.shared_place, run.config, run.real.digest)
    if kept is not None:
        return run.pool.put(dict(kept))
    if file.exists():
        run.progress.note(f"{file}: holds numbers that are not finite; the whitening is fitted again")
    count = int(run.real.counts["train"].sum())
    run.progress.stage("whitening", WHITENING_PARTS + 1)
    tasks = [
        task(f"whitening, images {first} to {last - 1}", Worker.whitening_sums, run.job, first, last)
        for first, last in shard_ranges(count, CHUNK, WHITENING_PARTS)
    ]
    parts = tuple(done.refs[0] for done in run_all(run, tasks, lambda _: run.progress.advance()))
    (fitted,) = run_all(run, [task("whitening", Worker.fit_whitening, run.job, file, key, parts)])
    run.progress.advance(WHITENING_PARTS + 1 - len(tasks))
    return run.pool.put(run.pool.fetch([fitted.refs[0]])[0])  # here it stays, whichever node goes
