"""A run that is open: its files under lock, its session and workers, the real data, and what every task is told.

What must stay true: a run directory is taken by one command at a time, and whatever was started is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import RunConfig
from dasm_ray.core.networks.convnet import default_depth
from dasm_ray.errors import ConfigError, DataError, TaskLost, UserError
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.metrics import Metrics
from dasm_ray.runtime.plan import GIB
from dasm_ray.runtime.pool import Done, Pool, Task
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.worker import Job, Worker
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir


@dataclass
class Here:
    """An open run: its files, its workers, and what every task is told."""

    config: RunConfig
    place: Place
    job: Job
    pool: Pool
    progress: Progress
    key: str
    session: Session
    said: set[str] = field(default_factory=set)

    @property
    def real(self) -> RealRefs:
        return self.job.real

    @property
    def classes(self) -> int:
        return len(self.real.class_names)

    def of(self, segment: int) -> str:
        """Which segment of how many, for the display."""
        return f"segment {segment + 1} of {self.config.synthetic.segments}"

    def under(self, config: RunConfig, real: RealRefs) -> Here:
        """The same workers and place for another configuration, unless it asks for workers of another shape."""
        assert (config.runtime.cpus_per_worker, config.runtime.gpus_per_worker) == (
            self.config.runtime.cpus_per_worker,
            self.config.runtime.gpus_per_worker,
        )
        device = self.job.device
        return replace(self, config=config, job=Job(config, real, device), key=distil_key(config, real, device))

    def take_notices(self, notices: Sequence[str]) -> None:
        """Says each thing that workers have to say once."""
        for notice in notices:
            if notice not in self.said:
                self.said.add(notice)
                self.progress.note(notice)


@dataclass(frozen=True)
class Given:
    """What a run inside a larger undertaking finds open already, and leaves open: a session and the real images."""

    session: Session
    real: RealRefs


@contextlib.contextmanager
def opened(config: RunConfig, uri: str | Place, given: Given | None = None, patience: float = 0) -> Iterator[Here]:
    """The run directory under lock (waited for up to ``patience`` seconds), a session, the real data and workers.

    A directory made for a run that cannot be meant is taken away again, so that the mended run can have its name.
    """
    was_begun = False
    with RunDir.open(uri, config, patience) as record:
        try:
            with connected(config, record.place, record.event, given) as here:
                was_begun = True
                yield here
        except UserError:
            if not was_begun:
                record.discard()
            raise


@contextlib.contextmanager
def connected(
    config: RunConfig, place: Place, event: Callable[..., None] | None = None, given: Given | None = None
) -> Iterator[Here]:
    """The same without a lock: for reading a run that is there."""
    with Progress(event) as progress, contextlib.ExitStack() as own:
        session = given.session if given else own.enter_context(Session.open(config.runtime, progress.note))
        progress.listen(Metrics(config.name))
        progress.note(f"{config.name}: {session}, results in {place}")
        real = given.real if given else load_real(config.data, progress.note, progress)
        check_against_data(config, real)
        job = Job(config, real, session.device)
        key = distil_key(config, real, session.device)
        with _pool(config, session, progress) as pool:
            yield Here(config, place, job, pool, progress, key, session)


def distil_key(config: RunConfig, real: RealRefs, device: str) -> str:
    """The digest of everything that scores and segments depend on; how they are evaluated is no part of it."""
    kept = {name: value for name, value in what(config).items() if name != "evaluate"}
    return digest_of(kept, real.digest, device)


def _pool(config: RunConfig, session: Session, progress: Progress) -> Pool:
    runtime = config.runtime
    shape = session.shape
    threads = str(shape.num_cpus)
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
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
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
    wanted = synthetic.ipc * (synthetic.factor**2 if synthetic.init == "mix" else 1)
    for name, count in zip(real.class_names, real.counts["train"], strict=True):
        if count < wanted:
            raise DataError(
                f"class {name!r}: has {count} training images, but synthetic.ipc {synthetic.ipc} at factor "
                f"{synthetic.factor} starts from {wanted}; lower synthetic.ipc or leave the class out"
            )
    for split in ("val", "test"):
        if not real.counts[split].sum():
            raise DataError(f"{config.data.name}: the {split} split is empty; raise data.{split}_share")


def run_all(here: Here, tasks: Sequence[Task], told: Callable[[Done], None] = lambda done: None) -> list[Done]:
    """Runs tasks to the end; answers in the order of the tasks. ``told`` hears each as it comes."""
    answers: dict[str, Done] = {}
    for done in here.pool.run(tasks):
        if done.error is not None:
            raise TaskLost(
                f"{done.task.name}: what it reads was lost with its node; run the same command again to go on"
            )
        answers[done.task.name] = done
        if isinstance(done.value, dict):
            here.take_notices(done.value.get("notices", ()))
        here.progress.workers(here.pool.alive, here.pool.lost)
        told(done)
    return [answers[task.name] for task in tasks]
