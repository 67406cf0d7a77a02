"""The commands of a run as functions: a configuration and a run directory in, files out; what is on disk is done.

    real images -> experts -> for each segment: probes -> scores -> windows -> start -> rounds -> artifact -> table

What they are made of is in `dasm_ray.method` and `dasm_ray.studies`. What must stay true: running the same
configuration on the same directory again goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dasm_ray.config.digests import what
from dasm_ray.config.keys import Model, RunConfig
from dasm_ray.config.parsing import apply_overrides, parse_config, parse_result_keys
from dasm_ray.config.shown import escaped, masked
from dasm_ray.config.space import Sweep
from dasm_ray.errors import ArtifactError, ConfigError, RunFailure
from dasm_ray.method.choices import random_choice, selections
from dasm_ray.method.dasm import distil_segments
from dasm_ray.method.estimate import estimate as measured
from dasm_ray.method.experts import taught, train_experts, whiten
from dasm_ray.method.run import Here, check_against_data, connected, opened, run_all
from dasm_ray.method.scores import StaticScores, scores_before
from dasm_ray.method.sets import Images, artifact_of, flattened, training_on
from dasm_ray.report import standings as trials
from dasm_ray.report.standings import Line
from dasm_ray.report.table import Row, as_json, markdown
from dasm_ray.runtime.pool import Task, fetch
from dasm_ray.runtime.progress import Progress, clock_text
from dasm_ray.runtime.session import Session
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.findings import claim_comparison, claimed_sweep, find, trial_place
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir
from dasm_ray.studies.cells import Accuracies
from dasm_ray.studies.comparison import Comparison, Plan, check
from dasm_ray.studies.incremental import learn_incrementally as memory_of
from dasm_ray.studies.ranking import agreement, try_networks
from dasm_ray.studies.rows import evaluate_rows

AFTERWARDS = ("evaluate.", "runtime.", "data.path", "data.download")
"""What can be changed once a set is there."""

WITH_PATH = ("folder", "parquet", "tiny_imagenet")
"""Sets that are nowhere unless `data.path` says where."""


@dataclass(frozen=True)
class Result:
    """What a finished run is: its artifact and its table."""

    place: Place
    digest: str
    rows: list[Row]
    title: str


@dataclass(frozen=True)
class Table:
    """A finished comparison: where it lies, and its rows."""

    place: Place
    rows: list[Row]
    title: str


@dataclass(frozen=True)
class Swept:
    """A finished sweep: where it lies, a line for every trial, and the result of the one that validation prefers."""

    place: Place
    lines: list[Line]
    title: str
    best: Result


# --- the commands ------------------------------------------------------------------------------------------------


def distill(config: RunConfig, run: str | None = None) -> Result:
    """Distils the real set of ``config`` into RUN/synthetic and evaluates it. ``run``: a folder or URI, or runs/NAME.

    Raises a DasmError; an interrupted run goes on when it is called again.
    """
    uri = run or f"runs/{config.name}"
    finished = _finished(uri, config)
    if finished is not None:
        return finished
    with opened(config, uri) as here:
        whiten(here)
        trained = train_experts(here)
        segments, initial = distil_segments(here, trained)
        artifact = artifact_of(here, segments)
        stamp = write_artifact(here.place / "synthetic", artifact)
        sets = {"distilled": flattened(segments), "initial": flattened(initial)}
        return _reported(here, evaluate_rows(here, sets, config.synthetic.factor, trained, stamp), stamp)


def experts(config: RunConfig, run: str | None = None) -> list[str]:
    """Trains the experts of ``config``, or finds them.

    Returns two lines an expert: validation accuracy in % and loss on training images, from the initialisation on.
    """
    with opened(config, run or f"runs/{config.name}") as here:
        whiten(here)
        trained = train_experts(here)
    lines = []
    for number, (accuracy, loss) in enumerate(zip(trained.accuracies, trained.losses, strict=True)):
        lines.append(f"expert {number} accuracy: " + " ".join(f"{100 * share:.1f}" for share in accuracy))
        lines.append(f"expert {number} loss:     " + " ".join(f"{nats:.3f}" for nats in loss))
    return lines


def estimate(config: RunConfig) -> list[str]:
    """What ``config`` will take on the workers that are there: a line a fact. Measures a few steps; writes nothing."""
    with connected(config, Place(f"runs/{config.name}")) as here:
        found, workers = measured(here), here.session.workers
    lines = [
        f"{stage.name:24} {clock_text(stage.wall(workers))} on {workers} worker{'s' * (workers > 1)}, "
        f"{clock_text(stage.seconds)} of work in {stage.tasks} parallel tasks"
        for stage in found.stages
    ]
    total = sum(stage.wall(workers) for stage in found.stages)
    facts = {
        "in all": f"{clock_text(total)}, whitening, scoring and compiling not counted",
        "memory of a worker": _size(found.worker_memory) + ", as measured",
        "memory on its GPU": _size(found.device_memory) if found.device_memory else "none",
        "object store": _size(found.object_store) + " on each node",
        "disk": _size(found.disk),
        "moved by a round's task": _size(found.moved_each_round),
        "useful workers": f"{found.useful_workers} at most",
    }
    return lines + [f"{name:24} {fact}" for name, fact in facts.items()]


def _size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def score_summary(config: RunConfig, run: str | None = None) -> list[str]:
    """Scores every training image before the first segment, into RUN/scores.

    Returns a line a class: mean difficulties, what share the probe gets wrong, and what share the window holds.
    """
    with opened(config, run or f"runs/{config.name}") as here:
        whiten(here)
        trained = train_experts(here)
        found, names = scores_before(here, 0, trained, [], StaticScores(here, trained)), here.real.class_names
    lines = [f"{'class':16} {'images':>7} {'dynamic':>8} {'static':>8} {'wrong':>6} {'window':>7}"]
    for label, name in enumerate(names):
        mine = found.label == label
        dynamic, static = found.dynamic[mine].mean(), found.static[mine].mean()
        wrong, seen = found.wrong[mine].mean(), found.window[mine].mean()
        lines.append(f"{name[:16]:16} {mine.sum():7} {dynamic:8.3f} {static:8.3f} {wrong:6.1%} {seen:7.1%}")
    return lines


def select(config: RunConfig, method: str, run: str | None = None) -> tuple[Place, str]:
    """Writes a class-balanced selection of real images as an artifact, RUN/METHOD; returns its place and digest."""
    with opened(config, run or f"runs/{config.name}") as here:
        whiten(here)
        if method == "random":
            chosen = random_choice(here, 0)
        else:
            chosen = selections(here, train_experts(here), [method])[method]
        (done,) = run_all(here, [Task("selected images", "images", (here.job, chosen), outputs=2)])
        artifact = artifact_of(here, None, fetch(done.refs[0]))
        place = here.place / method
        return place, write_artifact(place, artifact)


def compare(
    configs: Sequence[RunConfig],
    *,
    ipcs: tuple[int, ...] = (),
    selections: tuple[str, ...] = ("random", "herding", "k_center"),
    labels: tuple[str, ...] = ("hard",),
    networks: tuple[str, ...] = (),
    run: str | None = None,
) -> Table:
    """Recipes and selections in one fair table, in RUN/table.md, table.json and table.parquet.

    ``ipcs`` and ``networks`` (ARCH or ARCH:NORM) unset: those of the first recipe. Sets and cells that are on disk are
    not computed again, so it goes on where it was stopped.
    """
    plan = Plan(ipcs, selections, labels, networks)
    check(configs, plan)
    place = Place(run or "runs/comparison")
    claim_comparison(place)
    with connected(configs[0], place) as here:
        rows = Comparison(here, configs, plan).rows()
    title = f"{configs[0].data.name}; {configs[0].evaluate.seeds} seeds"
    (place / "table.md").write_text(markdown(rows, title))
    (place / "table.json").write_json(as_json(rows, title))
    return Table(place, rows, title)


def sweep(plan: Sweep, run: str | None = None, *, resume: bool = False) -> Swept:
    """Runs the trials of a sweep, each in SWEEP/trials/NNN, and evaluates the one that validation prefers.

    With ``resume`` a sweep goes on where it was stopped: trials that are over are not begun again. Only the fair table
    at the end reads the test set. Needs ray[tune]. Writes table.md and table.parquet.
    """
    from dasm_ray.studies import trials as stage

    place = Place(run or f"runs/{plan.name}")
    with claimed_sweep(place, plan.definition, resume=resume), contextlib.ExitStack() as opened_here:
        if any(not find(place, trial.number).is_over for trial in plan.trials):
            with Progress() as progress:
                session = opened_here.enter_context(Session.open(plan.trials[0].config.runtime, progress.note))
                progress.note(f"{plan.name}: {len(plan.trials)} trials of {session}, results in {place}")
            stage.run_all_trials(plan, place, session)
        lines, title = stage.lines(plan, place), f"{plan.name}: {len(plan.trials)} trials"
        stage.write_table(place, lines)
        (place / "table.md").write_text(trials.markdown(lines, title))
        best = trials.best(lines)
        if best is None:
            raise RunFailure(f"{place}: no trial could be finished; {place / 'table.md'} says why")
        config = stage.config_in(place, plan.trials[best.trial])
        everyone = config.model_copy(update={"runtime": config.runtime.model_copy(update={"workers": None})})
        return Swept(place, lines, title, distill(everyone, str(trial_place(place, best.trial))))


def relabel(path: str, to: str, overrides: Iterable[str] = ()) -> tuple[Place, str]:
    """Writes the artifact in ``path``, a run directory or an artifact's own, into folder ``to`` with soft labels.

    They are the logits of the experts of the run that made it, which are trained if they are not on disk. Only keys of
    experts, runtime and data.path can be changed.
    """
    target = Place(to)
    if target.exists() and target.names():
        raise ArtifactError(f"{target}: is not empty; name a new folder")
    place = Place(path)
    run = place.parent if (place / "dataset.json").exists() else place
    changes, allowed = list(overrides), ("experts.", *AFTERWARDS)
    _check_allowed(changes, allowed)
    if not (run / "run.json").exists() and not any(change.startswith("experts.cache=") for change in changes):
        raise ConfigError(
            f"experts.cache: {place} stands alone, away from the run that made it; name the folder where its experts "
            f"are, or shall be trained, by --set experts.cache=FOLDER"
        )
    with _with_artifact(path, changes, allowed) as (here, artifact, _):
        images = Images(artifact.pixels, artifact.labels, None, artifact.is_normalised)
        (logits,) = taught(here, train_experts(here), [training_on(images, artifact.factor)])
    return target, write_artifact(target, replace(artifact, soft_labels=logits))


def evaluate(path: str, overrides: Iterable[str] = ()) -> Result:
    """Evaluates a run directory anew, or an artifact alone, under changes of evaluate, runtime or data.path.

    A run's table is written to RUN/report. An artifact alone has no initialisation and no experts to select by, and
    nothing is written beside it.
    """
    place, changes = Place(path), list(overrides)
    if (place / "dataset.json").exists():
        return _evaluate_artifact(path, changes)
    config = _changed(_unbound(RunDir.read(path).config), changes)
    stamp = digest(read_artifact(place / "synthetic"))
    with connected(config, place) as here:
        whiten(here)
        trained = train_experts(here)
        segments, initial = distil_segments(here, trained)
        sets = {"distilled": flattened(segments), "initial": flattened(initial)}
        return _reported(here, evaluate_rows(here, sets, config.synthetic.factor, trained, stamp), stamp)


def learn_incrementally(path: str, steps: int = 5, overrides: Iterable[str] = ()) -> Accuracies:
    """Class-incremental learning with the set in ``path`` as memory, beside random images.

    Test accuracies, one a seed, by ("distilled" or "random", "4 classes"). Under changes of evaluate, runtime or
    data.path; in a run directory, cells that are on disk are not computed again.
    """
    with _with_artifact(path, list(overrides)) as (here, artifact, cells):
        if not 1 <= steps <= here.classes:
            raise ConfigError(f"--steps {steps}: there are {here.classes} classes; take 1 to {here.classes} steps")
        return memory_of(here, artifact, steps, cells)


def rank(path: str, models: Sequence[Model], overrides: Iterable[str] = ()) -> tuple[Accuracies, dict[str, float]]:
    """Networks ranked by the set in ``path`` against their ranking by the full data, beside random images.

    Test accuracies, one a seed, by ("distilled", "random" or "full", network); Spearman's correlation with the full
    data of "distilled" and "random".
    """
    with _with_artifact(path, list(overrides)) as (here, artifact, cells):
        for model in models:
            check_against_data(here.config.model_copy(update={"model": model}), here.real)
        found = try_networks(here, artifact, models, cells)
    return found, {name: agreement(found, name, models) for name in ("distilled", "random")}


def convnets(widths: Sequence[int], depths: Sequence[int], norms: Sequence[str]) -> list[Model]:
    """A grid of ConvNets to rank; ConfigError for one that cannot be."""
    trees = [{"width": w, "depth": d, "norm": n} for w in widths for d in depths for n in norms]
    return [parse_config({"model": tree}).model for tree in trees]


@contextlib.contextmanager
def _with_artifact(
    path: str, changes: list[str], allowed: tuple[str, ...] = AFTERWARDS
) -> Iterator[tuple[Here, Artifact, Place | None]]:
    """A session for the artifact in ``path``, a run's or one alone; and where a run keeps its cells."""
    place = Place(path)
    folder = place if (place / "dataset.json").exists() else place / "synthetic"
    artifact = read_artifact(folder)
    config = _changed(_config_of(artifact, folder), changes, allowed)
    if config.data.path is None and config.data.name in WITH_PATH:
        raise ConfigError(f"data.path: {place} does not say where its images lie; name them by --set data.path=FOLDER")
    whitening = None
    if artifact.whitening_matrix is not None:
        whitening = {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}
    is_of_a_run = (folder.parent / "run.json").exists()
    with connected(config, folder.parent if is_of_a_run else place) as here:
        whiten(here, whitening)
        if (here.real.class_names, here.real.shape) != (artifact.class_names, artifact.pixels.shape[1:]):
            raise ArtifactError(f"{place}: its classes or image shape are not those of {config.data.name}")
        yield here, artifact, here.place / "report" / "cells" / "uses" if is_of_a_run else None


def _evaluate_artifact(path: str, changes: list[str]) -> Result:
    with _with_artifact(path, changes) as (here, artifact, _):
        stamp = digest(artifact)
        sets = {"distilled": Images(artifact.pixels, artifact.labels, artifact.soft_labels, artifact.is_normalised)}
        rows = evaluate_rows(here, sets, artifact.factor, None, stamp)
        return Result(Place(path), stamp, rows, _title(here.config))


def _config_of(artifact: Artifact, place: Place) -> RunConfig:
    """What made the artifact: of its own words only what can change a result.

    Where images and experts lie is known to the run that it lies in, if it does; else it has to be said. Where Ray is
    has to be said always: a file that came from elsewhere must not choose whom this machine talks to.
    """
    kept = artifact.provenance.get("config")
    if not isinstance(kept, dict):
        raise ArtifactError(
            f"{place}: does not say which configuration made it, so there is nothing to compare it with"
        )
    try:
        config = parse_result_keys(kept)
    except ConfigError as error:
        raise ArtifactError(f"{place} was made by another version of dasm_ray: {error.problems[0]}") from None
    if (place.parent / "run.json").exists():
        config = parse_config(_overlaid(RunDir.read(str(place.parent)).config.model_dump(), what(config)))
    return _unbound(config)


def _overlaid(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The tree with the values that are given set in it, section by section."""
    return tree | {
        name: _overlaid(tree.get(name) or {}, value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _unbound(config: RunConfig) -> RunConfig:
    """A kept configuration without the cluster that it was once run on; --address or RAY_ADDRESS names one."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"address": None})})


def _changed(config: RunConfig, changes: list[str], allowed: tuple[str, ...] = AFTERWARDS) -> RunConfig:
    """A kept configuration under changes that leave its artifact what it is."""
    _check_allowed(changes, allowed)
    tree = config.model_dump(mode="json")
    apply_overrides(tree, changes)
    return parse_config(tree)


def _check_allowed(changes: list[str], allowed: tuple[str, ...]) -> None:
    for change in changes:
        if not change.strip().startswith(allowed):
            known = ", ".join(name.removesuffix(".") for name in allowed)
            raise ConfigError(f"--set {escaped(masked(change), 120)}: after distillation only {known} can be changed")


# --- reporting ---------------------------------------------------------------------------------------------------


def _reported(here: Here, rows: list[Row], stamp: str) -> Result:
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
        Row(
            row["name"],
            row["accuracies"],
            row["validation"],
            row["labels"],
            row.get("note", ""),
            row.get("ipc"),
            row.get("network", ""),
            row.get("ratio"),
        )
        for row in table["rows"]
    ]
