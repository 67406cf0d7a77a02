"""The stages of a run as functions: a configuration and a run directory in, files out; what is on disk is done.

    real images -> experts -> for each segment: probes -> scores -> windows -> start -> rounds -> artifact -> table

What must stay true: running the same configuration on the same directory again goes on where it stopped and ends with
the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config import RunConfig, apply_override, digest_of, parse_config, what
from dasm_ray.core.models import default_depth
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import random
from dasm_ray.core.train import steps_for
from dasm_ray.core.window import window
from dasm_ray.errors import ArtifactError, ConfigError, DataError, TaskLost, UserError
from dasm_ray.report.table import Row, as_json, markdown
from dasm_ray.runtime.actors import Around, Job, Worker
from dasm_ray.runtime.coordinator import SegmentRun
from dasm_ray.runtime.pool import Done, Pool, Ref, Task, fetch, put
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.real import RealRefs, load_real
from dasm_ray.runtime.session import Session
from dasm_ray.store import scores as scores_store
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.rundir import Place, RunDir, versions

Indices = NDArray[np.int64]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """What a finished run is: its artifact and its table."""

    place: Place
    digest: str
    rows: list[Row]
    title: str


# --- the commands ------------------------------------------------------------------------------------------------


def distill(config: RunConfig, run: str | None = None) -> Result:
    """Distils the real set of ``config`` into RUN/synthetic and evaluates it. ``run``: a folder or URI, or runs/NAME.

    Raises a DasmError; an interrupted run goes on when it is called again.
    """
    uri = run or f"runs/{config.name}"
    finished = _finished(uri, config)
    if finished is not None:
        return finished
    with _opened(config, uri) as here:
        trained = train_experts(here)
        pixels, initial = distil_segments(here, trained)
        artifact = _artifact(here, pixels)
        stamp = write_artifact(here.place / "synthetic", artifact)
        sets = {"distilled": _flat(pixels), "initial": _flat(initial)}
        return _reported(here, evaluate_rows(here, sets, config.synthetic.factor, trained, stamp), stamp)


def experts(config: RunConfig, run: str | None = None) -> list[list[float]]:
    """Trains the experts of ``config`` (or finds them); returns their validation accuracies per epoch (E+1)."""
    with _opened(config, run or f"runs/{config.name}") as here:
        return train_experts(here).accuracies


def score_summary(config: RunConfig, run: str | None = None) -> list[str]:
    """Scores every training image before the first segment, into RUN/scores.

    Returns a line a class: mean difficulties, what share the probe gets wrong, and what share the window holds.
    """
    with _opened(config, run or f"runs/{config.name}") as here:
        trained = train_experts(here)
        found, names = _scores(here, 0, trained, [], _StaticScores(here, trained)), here.real.class_names
    lines = [f"{'class':16} {'images':>7} {'dynamic':>8} {'static':>8} {'wrong':>6} {'window':>7}"]
    for label, name in enumerate(names):
        mine = found.label == label
        dynamic, static = found.dynamic[mine].mean(), found.static[mine].mean()
        wrong, seen = found.wrong[mine].mean(), found.window[mine].mean()
        lines.append(f"{name[:16]:16} {mine.sum():7} {dynamic:8.3f} {static:8.3f} {wrong:6.1%} {seen:7.1%}")
    return lines


def select(config: RunConfig, method: str, run: str | None = None) -> tuple[Place, str]:
    """Writes a class-balanced selection of real images as an artifact, RUN/METHOD; returns its place and digest."""
    with _opened(config, run or f"runs/{config.name}") as here:
        chosen = _random_choice(here, 0) if method == "random" else _selections(here, train_experts(here))[method]
        (done,) = _all(here, [Task("selected images", "images", (here.job, chosen), outputs=2)])
        images = fetch(done.refs[0])
        artifact = _artifact(here, None, images, np.repeat(np.arange(here.classes), here.config.synthetic.ipc))
        place = here.place / method
        return place, write_artifact(place, artifact)


def evaluate(path: str, overrides: Iterable[str] = ()) -> Result:
    """Evaluates a run directory anew, or an artifact alone, under changes of evaluate, runtime or data.path.

    A run's table is written to RUN/report. An artifact alone has no initialisation and no experts to select by, and
    nothing is written beside it.
    """
    place, changes = Place(path), list(overrides)
    if (place / "dataset.json").exists():
        return _evaluate_artifact(place, changes)
    config = _changed(RunDir.read(path).config, changes)
    stamp = digest(read_artifact(place / "synthetic"))
    with _connected(config, place) as here:
        trained = train_experts(here)
        pixels, initial = distil_segments(here, trained)
        sets = {"distilled": _flat(pixels), "initial": _flat(initial)}
        return _reported(here, evaluate_rows(here, sets, config.synthetic.factor, trained, stamp), stamp)


def _evaluate_artifact(place: Place, changes: list[str]) -> Result:
    artifact = read_artifact(place)
    kept = artifact.provenance.get("config")
    if kept is None:
        raise ArtifactError(
            f"{place}: does not say which configuration made it, so there is nothing to compare it with"
        )
    config = _changed(parse_config(kept), changes)
    stamp = digest(artifact)
    with _connected(config, place) as here:
        if (here.real.class_names, here.real.shape) != (artifact.class_names, artifact.pixels.shape[1:]):
            raise ArtifactError(f"{place}: its classes or image shape are not those of {config.data.name}")
        sets = {"distilled": (artifact.pixels, artifact.labels)}
        rows = evaluate_rows(here, sets, artifact.factor, None, stamp)
        return Result(place, stamp, rows, _title(config))


def _changed(config: RunConfig, changes: list[str]) -> RunConfig:
    """A kept configuration under changes that leave its artifact what it is."""
    tree = config.model_dump(mode="json")
    for change in changes:
        if not change.startswith(("evaluate.", "runtime.", "data.path", "data.download")):
            raise ConfigError(f"--set {change}: after distillation only evaluate, runtime and data.path can be changed")
        apply_override(tree, change)
    return parse_config(tree)


# --- a run that is open ------------------------------------------------------------------------------------------


@dataclass
class _Here:
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

    def take_notices(self, notices: Sequence[str]) -> None:
        """Says each thing that workers have to say once."""
        for notice in notices:
            if notice not in self.said:
                self.said.add(notice)
                self.progress.note(notice)


@contextlib.contextmanager
def _opened(config: RunConfig, uri: str) -> Iterator[_Here]:
    """The run directory under lock, a session, the real data and a pool of workers.

    A directory made for a run that cannot be meant is taken away again, so that the mended run can have its name.
    """
    is_new, was_begun = not Place(uri).exists(), False
    try:
        with RunDir.open(uri, config) as record, _connected(config, record.place, record.event) as here:
            was_begun = True
            yield here
    except UserError:
        if is_new and not was_begun and Place(uri).exists():
            Place(uri).delete()
        raise


@contextlib.contextmanager
def _connected(config: RunConfig, place: Place, event: Callable[..., None] | None = None) -> Iterator[_Here]:
    """The same without a lock: for reading a run that is there."""
    with Progress(event) as progress, Session.open(config.runtime, progress.note) as session:
        progress.note(f"{config.name}: {session}, results in {place}")
        real = load_real(config.data, progress.note, progress)
        _check_against_data(config, real)
        job = Job(config, real, session.device)
        key = distil_key(config, real, session.device)
        with _pool(config, session, progress) as pool:
            yield _Here(config, place, job, pool, progress, key, session)


def distil_key(config: RunConfig, real: RealRefs, device: str) -> str:
    """The digest of everything that scores and segments depend on; how they are evaluated is no part of it."""
    kept = {name: value for name, value in what(config).items() if name != "evaluate"}
    return digest_of(kept, real.digest, device)


def _pool(config: RunConfig, session: Session, progress: Progress) -> Pool:
    runtime = config.runtime
    threads = str(session.num_cpus)
    return Pool(
        Worker,
        (session.num_cpus,),
        count=session.workers,
        num_cpus=session.num_cpus,
        num_gpus=session.num_gpus,
        max_lost=runtime.max_lost,
        task_seconds=runtime.task_minutes * 60,
        notice=progress.note,
        env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )


def _check_against_data(config: RunConfig, real: RealRefs) -> None:
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


def _all(here: _Here, tasks: Sequence[Task], told: Callable[[Done], None] = lambda done: None) -> list[Done]:
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
        here.progress.workers(here.pool.alive)
        told(done)
    return [answers[task.name] for task in tasks]


# --- experts and scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experts:
    """References to the experts' snapshots (E+1, P) and first epochs (P,); their accuracies (E+1,)."""

    snapshots: tuple[Ref, ...]
    early: tuple[Ref, ...]
    accuracies: list[list[float]]


def expert_key(here: _Here) -> str:
    """The digest of everything that affects an expert."""
    config = here.config
    runtime = (config.runtime.cpus_per_worker, config.runtime.compile, here.job.device)
    return digest_of(
        what(config.experts), what(config.model), what(config.data), config.seed, runtime, here.real.digest
    )


def train_experts(here: _Here) -> Experts:
    """Experts as tasks, a file each under their key; those on disk are read."""
    key, recipe = expert_key(here), here.config.experts
    place = (Place(recipe.cache) if recipe.cache else here.place / "experts") / key
    place.make_dir()
    here.progress.stage("experts", recipe.count)

    def told(done: Done) -> None:
        here.progress.advance(samples=recipe.epochs * int(here.real.counts["train"].sum()) * done.value["trained"])

    tasks = [Task(f"expert {n}", "expert", (here.job, place, key, n), outputs=3) for n in range(recipe.count)]
    answers = _all(here, tasks, told)
    accuracies = [done.value["accuracy"] for done in answers]
    last = [accuracy[-1] for accuracy in accuracies]
    here.progress.note(f"experts: {len(last)} trained, validation accuracy {min(last):.1%} to {max(last):.1%}")
    return Experts(tuple(d.refs[0] for d in answers), tuple(d.refs[1] for d in answers), accuracies)


class _StaticScores:
    """The difficulty of every training image under the experts, found when first needed: (score, known), (N,) each."""

    def __init__(self, here: _Here, trained: Experts) -> None:
        self._here, self._trained = here, trained
        self._found: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None

    def get(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        if self._found is None:
            score, wrong = _sharded(self._here, "score_statically", "static scores", self._trained.snapshots)
            self._found = score, ~wrong
        return self._found


def _sharded(
    here: _Here, method: str, name: str, networks: tuple[Ref, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """All training images scored in shards: score and wrong, (N,) each, whatever the number of shards."""
    count, recipe = int(here.real.counts["train"].sum()), here.config.score
    ranges = shard_ranges(count, recipe.batch, recipe.shards or 2 * here.session.workers)
    here.progress.stage(name, len(ranges))
    tasks = [
        Task(f"{name}, images {first} to {last - 1}", method, (here.job, networks, first, last))
        for first, last in ranges
    ]
    answers = _all(here, tasks, lambda done: here.progress.advance(samples=len(done.value.score)))
    return np.concatenate([d.value.score for d in answers]), np.concatenate([d.value.wrong for d in answers])


def _probes(here: _Here, segment: int, trained: Experts, frozen: list[Pixels]) -> tuple[Ref, ...]:
    """Networks that know the segments so far; before the first, experts after one epoch."""
    if not frozen:
        return trained.early[: here.config.probe.members]
    pixels, labels = _flat(frozen)
    where = put(pixels)  # in a tuple it travels as a reference; on its own Ray would send the pixels
    members = here.config.probe.members
    here.progress.stage("probes", members, _of(here, segment))
    tasks = [
        Task(f"probe {m} before segment {segment + 1}", "probe", (here.job, segment, m, (where,), labels), 2)
        for m in range(members)
    ]
    return tuple(done.refs[0] for done in _all(here, tasks, lambda _: here.progress.advance()))


def _scores(
    here: _Here, segment: int, trained: Experts, frozen: list[Pixels], static_scores: _StaticScores
) -> scores_store.Scores:
    """What is known of every training image before a segment, and its window; read if it is on disk."""
    place = here.place / "scores"
    kept = scores_store.read(place, segment, here.key)
    if kept is not None:
        return kept
    static, known = static_scores.get()
    probes = _probes(here, segment, trained, frozen)
    dynamic, wrong = _sharded(here, "score", f"scores before segment {segment + 1}", probes)
    labels, index = _class_sorted(here.real.counts["train"])
    allowed = np.zeros(len(labels), bool)
    for label in range(here.classes):
        mine = np.flatnonzero(labels == label)
        seen = window(
            here.config.window,
            segment=segment,
            segments=here.config.synthetic.segments,
            dynamic=dynamic[mine],
            static=static[mine],
            wrong=wrong[mine],
            known=known[mine],
        )
        allowed[mine[seen]] = True
    found = scores_store.Scores(labels, index, dynamic, static, wrong, known, allowed)
    scores_store.write(place, segment, found, here.key)
    here.progress.note(
        f"segment {segment + 1}: the probe gets {1 - wrong.mean():.1%} of the training images right; "
        f"the window holds {allowed.mean():.0%}"
    )
    return found


def _class_sorted(counts: NDArray[np.int64]) -> tuple[Indices, Indices]:
    """Label and within-class index of every image in class-sorted order."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return labels, np.concatenate([np.arange(count, dtype=np.int64) for count in counts])


# --- segments ----------------------------------------------------------------------------------------------------


def distil_segments(here: _Here, trained: Experts) -> tuple[list[Pixels], list[Pixels]]:
    """All segments in sequence: their pixels (K, m, C, H, W) each, and where they started."""
    static_scores = _StaticScores(here, trained)
    frozen: list[Pixels] = []
    started: list[Pixels] = []
    windows: list[list[Indices]] = []
    used = [np.empty(0, np.int64) for _ in range(here.classes)]
    for segment in range(here.config.synthetic.segments):
        found = _scores(here, segment, trained, frozen, static_scores)
        windows.append([np.flatnonzero(found.window[found.label == label]) for label in range(here.classes)])
        (start,) = _all(
            here,
            [Task(f"start of segment {segment + 1}", "initialise", (here.job, segment, windows[-1], used), outputs=2)],
        )
        used = [np.concatenate(pair) for pair in zip(used, start.value, strict=True)]
        started.append(fetch(start.refs[0]))
        frozen.append(_one_segment(here, segment, trained, frozen, windows, started[-1]))
    return frozen, started


def _one_segment(
    here: _Here, segment: int, trained: Experts, frozen: list[Pixels], windows: list[list[Indices]], start: Pixels
) -> Pixels:
    """Distils one segment, from its checkpoint if there is one."""
    run = SegmentRun(here.job, here.pool, here.progress, here.place / "segments", here.key, segment, start)
    needs_probes = here.config.matcher.probe_share > 0 and run.rounds_done < run.rounds_total
    probes = _probes(here, segment, trained, frozen) if needs_probes else ()
    earlier = np.concatenate(frozen, axis=1) if frozen else np.empty((here.classes, 0, *here.real.shape), np.float32)
    seen, before = put(windows), put(earlier)
    snapshots = trained.snapshots if here.config.network == "experts" else ()
    here.progress.stage("distil", run.rounds_total, _of(here, segment), done=run.rounds_done)
    return run.run(lambda beside: Around(seen, before, beside, snapshots, probes))


def _of(here: _Here, segment: int) -> str:
    return f"segment {segment + 1} of {here.config.synthetic.segments}"


def _flat(segments: list[Pixels]) -> tuple[Pixels, Indices]:
    """Pixels (N, C, H, W) and labels (N,) of segments (K, m, C, H, W) each, by class, then segment."""
    together = np.concatenate(segments, axis=1)
    labels = np.repeat(np.arange(len(together), dtype=np.int64), together.shape[1])
    return together.reshape(-1, *together.shape[2:]), labels


# --- the artifact ------------------------------------------------------------------------------------------------


def _artifact(
    here: _Here, segments: list[Pixels] | None, images: Pixels | None = None, labels: Indices | None = None
) -> Artifact:
    """The finished set: distilled segments, or real ``images`` (N, C, H, W) with ``labels`` (N,)."""
    config, real = here.config, here.real
    if segments is not None:
        images, labels = _flat(segments)
        numbers = np.tile(np.repeat(np.arange(len(segments), dtype=np.int32), config.segment_ipc), here.classes)
    else:
        assert images is not None
        assert labels is not None
        numbers = np.zeros(len(images), np.int32)
    return Artifact(
        pixels=np.ascontiguousarray(images),
        labels=labels,
        segments=numbers,
        soft_labels=None,
        class_names=real.class_names,
        mean=real.mean,
        std=real.std,
        factor=config.synthetic.factor if segments is not None else 1,
        step_size=None,
        recipe={"model": what(config.model), "image_size": list(real.shape[1:]), "training": what(config.evaluate)},
        provenance={
            "config": config.model_dump(mode="json"),
            "config_digest": digest_of(what(config)),
            "data_digest": real.digest,
            "device": here.job.device,
            "versions": versions(),
        },
    )


# --- evaluation --------------------------------------------------------------------------------------------------


Set = tuple[Pixels, Indices]
"""Stored pixels (N, C, H, W) and labels (N,)."""


def evaluate_rows(here: _Here, sets: dict[str, Set], factor: int, trained: Experts | None, stamp: str) -> list[Row]:
    """The fair table: every row and seed a task; in a run, cells on disk are not computed again."""
    config = here.config
    training = _trainings(here, sets, factor, trained)
    small = steps_for(len(sets["distilled"][1]) * factor**2, config.evaluate)
    whole = steps_for(int(here.real.counts["train"].sum()), config.evaluate, config.evaluate.full_epochs)
    steps = {row: whole if row == "full" else small for row in training}
    key = digest_of(what(config.evaluate), stamp, here.key)
    place = here.place / "report" / "cells" / key if trained else None
    found: dict[Cell, Any] = {}
    wanted = [(row, seed) for row in training for seed in range(config.evaluate.seeds)]
    for cell in wanted:
        if place is not None and (file := place / _name_of(cell)).exists():
            found[cell] = file.read_json()
    here.progress.stage("evaluate", len(wanted), done=len(found))
    tasks = [
        Task(f"evaluate {row}, seed {seed}", "evaluate", (here.job, row, seed, steps[row], training[row](seed)))
        for row, seed in sorted(wanted, key=lambda cell: -steps[cell[0]])  # the longest first, so that none ends alone
        if (row, seed) not in found
    ]

    def told(done: Done) -> None:
        outcome, metrics = done.value
        here.take_notices(metrics["notices"])
        _, row, seed, count, _ = done.task.args
        found[row, seed] = {"validation": outcome.validation, "test": outcome.test, "step": outcome.step}
        if place is not None:
            (place / _name_of((row, seed))).write_json(found[row, seed])
        here.progress.advance(samples=count * config.evaluate.batch)

    _all(here, tasks, told)
    return _best_selection(_rows(config, training, steps, found))


Cell = tuple[str, int]
"""A row of the table and a seed."""


def _name_of(cell: Cell) -> str:
    return f"{cell[0]}_{cell[1]}.json"


def _rows(config: RunConfig, names: Iterable[str], steps: dict[str, int], found: dict[Cell, Any]) -> list[Row]:
    seeds = range(config.evaluate.seeds)
    return [
        Row(
            name,
            [found[name, seed]["test"] for seed in seeds],
            [found[name, seed]["validation"] for seed in seeds],
            note=f"{steps[name]} steps",
        )
        for name in names
    ]


def _best_selection(rows: list[Row]) -> list[Row]:
    """Of the selection methods only the one that validation prefers, under both names."""
    selections = [row for row in rows if row.name in ("herding", "k_center")]
    if len(selections) < 2:
        return rows
    best = max(selections, key=lambda row: float(np.mean(row.validation)))
    others = " and ".join(row.name for row in selections if row is not best)
    chosen = Row(
        f"selection: {best.name}", best.accuracies, best.validation, best.labels, f"{best.note}, before {others}"
    )
    kept = [chosen if row is best else row for row in rows]
    return [row for row in kept if row is chosen or row not in selections]


def _trainings(
    here: _Here, sets: dict[str, Set], factor: int, trained: Experts | None
) -> dict[str, Callable[[int], tuple[str, Any]]]:
    """For each row of the table: from the seed to what is trained on, as ``Worker.evaluate`` takes it."""
    wanted = here.config.evaluate.rows
    rows: dict[str, Callable[[int], tuple[str, Any]]] = {}
    for name, (pixels, labels) in sets.items():
        if name in wanted:
            rows[name] = _always("synthetic", ((put(pixels),), labels, factor))
    rows["random"] = lambda seed: ("real", _random_choice(here, seed))
    methods = [method for method in ("herding", "k_center") if method in wanted]
    if methods and trained is not None:
        chosen = _selections(here, trained)
        rows.update({method: _always("real", chosen[method]) for method in methods})
    if "full" in wanted:
        rows["full"] = _always("full", None)
    return rows


def _always(kind: str, content: Any) -> Callable[[int], tuple[str, Any]]:
    """The same training set for every seed."""
    return lambda seed: (kind, content)


def _random_choice(here: _Here, seed: int) -> Indices:
    """Global indices of a class-balanced random selection, another one for every seed."""
    counts = here.real.counts["train"]
    chosen = random(counts, here.config.synthetic.ipc, numpy_generator(here.config.seed, "random", seed))
    return _global(counts, chosen)


def _selections(here: _Here, trained: Experts) -> dict[str, Indices]:
    """Global indices chosen by each method, the classes as tasks."""
    ipc, classes = here.config.synthetic.ipc, range(here.classes)
    here.progress.stage("select", here.classes)
    tasks = [Task(f"select class {c}", "select", (here.job, c, ipc, trained.snapshots[:1])) for c in classes]
    answers = [done.value for done in _all(here, tasks, lambda _: here.progress.advance())]
    counts = here.real.counts["train"]
    return {method: _global(counts, [answer[method] for answer in answers]) for method in answers[0]}


def _global(counts: Indices, chosen: Sequence[Indices]) -> Indices:
    """Within-class indices per class as global ones (N,)."""
    starts = np.cumsum(counts) - counts
    return np.concatenate([start + np.sort(indices) for start, indices in zip(starts, chosen, strict=True)])


# --- reporting ---------------------------------------------------------------------------------------------------


def _reported(here: _Here, rows: list[Row], stamp: str) -> Result:
    """The table on disk and in hand."""
    title = _title(here.config)
    report = here.place / "report"
    (report / "table.md").write_text(markdown(rows, title))
    (report / "table.json").write_json({**as_json(rows, title), "digest": stamp})
    here.progress.note(f"synthetic set {here.place / 'synthetic'}, digest {stamp}")
    return Result(here.place, stamp, rows, title)


def _title(config: RunConfig) -> str:
    synthetic, seeds = config.synthetic, config.evaluate.seeds
    return (
        f"{config.data.name}, {synthetic.ipc} images a class (factor {synthetic.factor}), {config.matcher.name} in "
        f"{synthetic.segments} segment{'s' * (synthetic.segments > 1)}, {config.window.policy} windows; {seeds} seeds"
    )


def _finished(uri: str, config: RunConfig) -> Result | None:
    """The result of a run that has ended already, without starting anything."""
    place = Place(uri)
    table = place / "report" / "table.json"
    if not (table.exists() and (place / "synthetic" / "dataset.json").exists() and (place / "run.json").exists()):
        return None
    RunDir.open(uri, config).close()
    stamp = digest(read_artifact(place / "synthetic"))
    kept = table.read_json()
    if kept["digest"] != stamp:
        return None
    return Result(place, stamp, from_json(kept), kept["title"])


def from_json(table: dict[str, Any]) -> list[Row]:
    """The rows of a table that ``report.table.as_json`` wrote."""
    return [
        Row(row["name"], row["accuracies"], row["validation"], row["labels"], row.get("note", ""))
        for row in table["rows"]
    ]
