"""The commands of a run as functions: a configuration and a run directory in, files out; what is on disk is done.

    real images -> experts -> for each segment: probes -> scores -> windows -> start -> rounds -> artifact -> table

What they are made of is in `dasm_ray.method` and `dasm_ray.studies`. What must stay true: running the same
configuration on the same directory again goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from dasm_ray.config.afterwards import RELABELLING
from dasm_ray.config.compared import Plan, check
from dasm_ray.config.digests import config_digest, digest_of
from dasm_ray.config.keys import Model, RunConfig
from dasm_ray.config.parsing import parse_config, repeated
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import escaped, several
from dasm_ray.config.space import Sweep
from dasm_ray.config.study import Study
from dasm_ray.errors import ArtifactError, ConfigError, RunFailure
from dasm_ray.method.choices import choices, random_choice, stored_images
from dasm_ray.method.dasm import distil
from dasm_ray.method.estimate import estimate as measured
from dasm_ray.method.estimate import shortage, work_ahead
from dasm_ray.method.experts import soft_labels, train_experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run, begun, check_against_data, connected, opened
from dasm_ray.method.scores import scores_before
from dasm_ray.method.sets import Choice, distilled_set, flattened, images_of, selected_set, stored
from dasm_ray.plain import Tree
from dasm_ray.report import audited, differences, notebook, standings
from dasm_ray.report.board import board_of, check_board
from dasm_ray.report.differences import Tried
from dasm_ray.report.page import draw_few, draw_first
from dasm_ray.report.standings import Line
from dasm_ray.report.table import Row, from_json, told
from dasm_ray.report.webpage import report
from dasm_ray.report.wording import size
from dasm_ray.runtime.machine import read_machine
from dasm_ray.runtime.opening import check_relabelling, open_checked, settled, with_compiling, with_precision
from dasm_ray.runtime.plan import memory_for_workers
from dasm_ray.runtime.progress import Progress, clock_text
from dasm_ray.runtime.session import Session
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact, write_card
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.description import artifact_place
from dasm_ray.store.findings import (
    REPORT,
    RESULTS,
    STUDY_COLUMNS,
    TRAININGS,
    claimed_comparison,
    claimed_study,
    claimed_sweep,
    find,
    set_aside,
    trial_place,
    write_trainings,
)
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RECORD, RunDir
from dasm_ray.studies import audit as audits
from dasm_ray.studies import incremental
from dasm_ray.studies.cells import Accuracies, cells_place
from dasm_ray.studies.comparison import Comparison
from dasm_ray.studies.finished import opened_again, sets_again
from dasm_ray.studies.laboratory import Laboratory, rows_of
from dasm_ray.studies.ranking import agreement, try_networks
from dasm_ray.studies.rows import evaluate_rows
from dasm_ray.studies.tables import Shown, keep_table, kept_table, stem_for


@dataclass(frozen=True)
class Result:
    """What a finished run is: its artifact and its table."""

    place: Place
    digest: str
    rows: list[Row]
    title: str
    tested: int | None = None
    """Images of the test set; None where an older table does not say."""

    def _repr_html_(self) -> str:
        """The table and the images, as a notebook shows them."""
        pictures = notebook.picture(read_artifact(artifact_place(self.place)))
        return notebook.table(self.rows, self.title, self.tested) + pictures


@dataclass(frozen=True)
class Table:
    """A finished comparison: where it lies, and its rows."""

    place: Place
    rows: list[Row]
    title: str
    tested: int | None = None

    def _repr_html_(self) -> str:
        return notebook.table(self.rows, self.title, self.tested)


@dataclass(frozen=True)
class Swept:
    """A finished sweep: where it lies, a line for every trial, and the result of the one that validation prefers."""

    place: Place
    lines: list[Line]
    title: str
    best: Result


@dataclass(frozen=True)
class Studied:
    """A finished study: where it lies, and what it says, as ``report.differences.summary`` has it."""

    place: Place
    summary: Tree


# --- the commands ------------------------------------------------------------------------------------------------


def distill(
    config: RunConfig, run: str | Place | None = None, on_event: Callable[[Tree], None] | None = None
) -> Result:
    """Distils the real set of ``config`` into RUN/synthetic and evaluates it. ``run``: a folder or URI, or runs/NAME.

    ``on_event`` gets each fact that the log gets, as it happens; what it raises ends the run, which can go on.

    Raises a DasmError; an interrupted run goes on when it is called again.
    """
    where = run or f"runs/{config.name}"
    check_board(config, Place(where))
    with RunDir.open(where, settled(config, where)) as record:
        damage = None
        try:
            finished = _finished(record)
        except ArtifactError as error:  # what the set was made of lies beside it
            finished, damage = None, error
        if finished is not None:
            return finished
        with board_of(record.config, record.place) as board:
            with begun(record, on_event=_heard_by(board, on_event)) as open_run:
                if damage is not None:
                    open_run.progress.note(f"{damage}; it is written again from its segments")
                result = _distilled(open_run)
            if board is not None:
                board.finish(read_artifact(record.place / "synthetic"), result.rows)
            return result


def _heard_by(*listeners: Callable[[Tree], None] | None) -> Callable[[Tree], None]:
    """Passes an event on to each listener that there is."""

    def tell(event: Tree) -> None:
        for listen in listeners:
            if listen is not None:
                listen(event)

    return tell


def _distilled(run: Run) -> Result:
    """The steps of a run: experts, segments, artifact, table."""
    run.progress.expect(_stages(run.config), work_ahead(run))
    experts = train_experts(run)
    made = distil(run, experts)
    artifact = distilled_set(run, made.segments)
    stamp = write_artifact(run.place / "synthetic", artifact)
    sets = {"distilled": flattened(made.segments), "initial": flattened(made.starts)}
    rows = evaluate_rows(run, sets, run.config.synthetic.factor, experts, cells_place(run))
    write_card(run.place / "synthetic", artifact, [told(row) for row in rows], draw_few(artifact)[0])
    result = _reported(run, rows, stamp, config_digest(run.config))
    if run.config.runtime.page:
        _draw_page(run.place, run.progress)
    return result


def describe_data(config: RunConfig, png: str | None = None) -> list[str]:
    """What the real images of ``config`` are, a few lines.

    ``png``: where to draw the first ones of each class; a last line says what there was no room for. Decodes hardly
    any, and starts nothing. Raises a DataError for a set that cannot be used.
    """
    source, said = open_checked(config), list[str]()
    if png is not None:
        drawn, says = draw_first(source, config.data)
        Place(png).write_bytes(drawn)
        said = [f"drawn to {png}: {says}"] if says else []
    return [*source.found.lines(), *said]


def _stages(config: RunConfig) -> int:
    """How many stages a run shows, from its experts on: what is on disk already is passed over."""
    read = {SELECTIONS[row].reads for row in config.evaluate.rows if row in SELECTIONS}
    before_segments, of_segments = len(("experts", "static scores")), len(("probes", "scores", "distil"))
    without_probes = 1  # the first segment has experts in their stead
    segments, matcher = config.synthetic.segments, config.matcher
    of_method = [matcher.strata, *[matcher.bank_share > 0] * (segments - 1)]
    of_polish = [config.rounds_of(segments) > 0]
    of_set = of_segments * segments - without_probes + sum(of_method) + sum(of_polish)
    return before_segments + of_set + len(read) + len(("evaluate", *["page"] * config.runtime.page))


def experts(config: RunConfig, run: str | None = None) -> list[str]:
    """Trains the experts of ``config``, or finds them.

    Returns two lines an expert: validation accuracy in % and loss on training images, from the initialisation on.
    """
    with opened(config, run or f"runs/{config.name}") as open_run:
        trained = train_experts(open_run)
    lines = []
    for number, (accuracy, loss) in enumerate(zip(trained.accuracies, trained.losses, strict=True)):
        lines.append(f"expert {number} accuracy: " + " ".join(f"{100 * share:.1f}" for share in accuracy))
        lines.append(f"expert {number} loss:     " + " ".join(f"{nats:.3f}" for nats in loss))
    return lines


def estimate(config: RunConfig) -> list[str]:
    """What ``config`` will take on the workers that are there: a line a fact. Measures a few steps; writes nothing."""
    with connected(with_compiling(with_precision(config)), Place(f"runs/{config.name}"), only_measures=True) as run:
        whole = replace(run, config=run.config.for_classes(run.classes))
        found, workers = measured(whole), run.session.workers
    lines = [
        f"{stage.name:24} {clock_text(stage.wall(workers))} on {several(workers, 'workers')}, "
        f"{clock_text(stage.seconds)} of work in {several(stage.tasks, 'parallel tasks')}"
        for stage in found.stages
    ]
    first, later = found.compiling
    if first:
        lines.append(
            f"{'compile':24} {clock_text(first)} the first time on a machine, then {clock_text(later)} in each worker"
        )
    total = first + sum(stage.wall(workers) for stage in found.stages)
    memory = memory_for_workers(read_machine())
    short = shortage(found, workers, memory) if run.session.started_here else None
    facts = {
        "in all": f"{clock_text(total)}{', with the first compiling' * (first > 0)}, whitening and scoring not counted",
        "memory of a worker": size(found.worker_memory) + ", as measured",
        **({"more than there is": f"{size(memory)} for {several(workers, 'workers')}; {short}"} if short else {}),
        "memory on its GPU": size(found.device_memory) if found.device_memory else "none",
        "object store": size(found.object_store) + " on each node",
        "sorted images": f"{size(found.sorted_images)} in data.cache, twice that while they are sorted",
        "disk": size(found.disk),
        "moved by a round's task": size(found.moved_each_round),
        "useful workers": f"{found.useful_workers} at most",
    }
    return lines + [f"{name:24} {fact}" for name, fact in facts.items()]


def score_summary(config: RunConfig, run: str | None = None) -> list[str]:
    """Scores every training image before the first segment, into RUN/scores.

    Returns a line a class: mean difficulties, what share the probe gets wrong, and what share the window holds.
    """
    with opened(config, run or f"runs/{config.name}") as open_run:
        trained = train_experts(open_run)
        found = scores_before(open_run, 0, trained, Probes(open_run, 0, trained, []))
        names = open_run.real.class_names
    lines = [f"{'class':16} {'images':>7} {'dynamic':>8} {'static':>8} {'wrong':>6} {'window':>7}"]
    for label, name in enumerate(names):
        mine = found.label == label
        dynamic, static = found.dynamic[mine].mean(), found.static[mine].mean()
        wrong, seen = found.wrong[mine].mean(), found.window[mine].mean()
        lines.append(f"{name[:16]:16} {mine.sum():7} {dynamic:8.3f} {static:8.3f} {wrong:6.1%} {seen:7.1%}")
    return lines


def select(config: RunConfig, method: str, run: str | None = None) -> tuple[Place, str]:
    """Writes a class-balanced selection of real images as an artifact, RUN/METHOD; returns its place and digest."""
    with opened(config, run or f"runs/{config.name}") as open_run:
        if method == "random":
            picked: Choice = random_choice(open_run, 0)
        else:
            picked = choices(open_run, train_experts(open_run), [method])[method]
        return _kept_set(open_run.place / method, selected_set(open_run, *stored_images(open_run, picked)))


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

    A later table of other settings in the same folder stands beside the first, under a digest of its settings.
    ``ipcs`` and ``networks`` (ARCH or ARCH:NORM) unset: those of the first recipe. Sets and cells that are on disk are
    not computed again, so it goes on where it was stopped.
    """
    configs, plan = (
        [with_compiling(with_precision(config)) for config in configs],
        Plan(ipcs, selections, labels, networks),
    )
    check(configs, plan)
    with claimed_comparison(Place(run or "runs/comparison")) as place:
        with connected(configs[0], place) as open_run:
            shown = Shown(_settings_of(configs, plan), open_run.session.device)
            stem, tested = stem_for(place, shown), tested_by(open_run)
            rows = Comparison(open_run, configs, plan).rows(stem)
        title = f"{configs[0].data.name}; {several(configs[0].evaluate.seeds, 'seeds')}"
        keep_table(place, stem, rows, title, tested, shown)
        if configs[0].runtime.page:
            with Progress() as progress:
                _draw_page(place, progress)
        return Table(place, rows, title, tested)


def _settings_of(configs: Sequence[RunConfig], plan: Plan) -> str:
    """The digest of what a comparison's table hangs on: recipes, the plan, and how each other network is trained."""
    judged = [config_digest(configs[0].under(network)) for network in plan.networks]
    return digest_of(*map(config_digest, configs), astuple(plan), *judged)


def study(plan: Study, run: str | None = None) -> Studied:
    """Tries every arm of a study at every size and seed, into STUDY/study.md, results.json and trainings.parquet.

    These are written as outcomes come, and again at each start; those of other settings stay, under a digest of them.
    Sets and outcomes that are on disk are not computed again, so it goes on where it was stopped, and grows by arms,
    sizes and seeds. Raises RunFailure where no arm could be finished.
    """
    with claimed_study(Place(run or f"runs/{plan.name}"), plan.name) as place:
        with connected(plan.config, place) as open_run:
            tested = tested_by(open_run)
            laboratory = Laboratory(
                open_run, plan, lambda found: _keep_study(place, plan, found, tested, laboratory.outcomes)
            )
            for name in set_aside(place, laboratory.outcomes):
                open_run.progress.note(f"results of other settings are in {place / name}")
            known = laboratory.work()
        if all(tried.failed for tried in known):
            raise RunFailure(f"{place}: no arm could be finished; {place / REPORT} says why")
        if plan.config.runtime.page and any(tried.folder for tried in known):
            with Progress() as progress:
                _draw_page(place, progress)
        return Studied(place, differences.summary(plan, known, tested))


def _keep_study(place: Place, plan: Study, known: list[Tried], tested: int, outcomes: Mapping[str, str]) -> None:
    found = differences.summary(plan, known, tested)
    write_trainings(place / TRAININGS, rows_of(known), STUDY_COLUMNS)
    write_checked_json(place / RESULTS, {**found, "outcomes": dict(outcomes)})
    (place / REPORT).write_text(differences.markdown(found))


def sweep(plan: Sweep, run: str | None = None, *, resume: bool = False) -> Swept:
    """Runs the trials of a sweep, each in SWEEP/trials/NNN, and evaluates the one that validation prefers.

    With ``resume`` a sweep goes on where it was stopped: trials that are over are not begun again. Only the fair table
    at the end reads the test set. Needs ray[tune]. Writes table.md and table.parquet.
    """
    from dasm_ray.studies import trials  # Tune is needed by nothing else

    folder = Place(run or f"runs/{plan.name}")
    with claimed_sweep(folder, plan.definition, resume=resume) as place, contextlib.ExitStack() as own:
        is_over = all(find(place, trial.number).is_over for trial in plan.trials)
        if not is_over:
            trials.check_images(plan)
            with Progress() as progress:
                session = own.enter_context(Session.open(plan.trials[0].config.runtime, progress.note))
                progress.note(f"{plan.name}: {several(len(plan.trials), 'trials')} of {session}, results in {place}")
            trials.run_all_trials(plan, place, session)
        lines, title = trials.lines(plan, place), f"{plan.name}: {several(len(plan.trials), 'trials')}"
        trials.write_table(place, lines)
        (place / "table.md").write_text(standings.markdown(lines, title))
        best = standings.best(lines)
        if best is None:
            raise RunFailure(f"{place}: no trial could be finished; {place / 'table.md'} says why")
        config = trials.config_in(place, plan.trials[best.trial])
        everyone = config.model_copy(update={"runtime": config.runtime.model_copy(update={"workers": None})})
        swept = Swept(place, lines, title, distill(everyone, trial_place(place, best.trial)))
        if config.runtime.page and not is_over:
            with Progress() as progress:
                _draw_page(place, progress)
        return swept


def relabel(path: str, to: str, overrides: Iterable[str] = ()) -> tuple[Place, str]:
    """Writes the artifact in ``path``, a run directory or an artifact's own, into folder ``to`` with soft labels.

    They are the logits of the experts of the run that made it, which are trained if they are not on disk. Only keys of
    experts, runtime and data.path can be changed.
    """
    changes = list(overrides)
    target = check_relabelling(path, to, changes)
    with opened_again(path, changes, RELABELLING) as kept:
        training = stored(kept.run, images_of(kept.artifact), kept.artifact.factor)
        (logits,) = soft_labels(kept.run, train_experts(kept.run), [training])
    return _kept_set(target, replace(kept.artifact, soft_labels=logits))


def _kept_set(place: Place, artifact: Artifact) -> tuple[Place, str]:
    """A set of which no table is known, written with its card; its place and digest."""
    stamp = write_artifact(place, artifact)
    write_card(place, artifact, picture=draw_few(artifact)[0])
    return place, stamp


def evaluate(path: str, overrides: Iterable[str] = (), network: str | None = None) -> Result:
    """Evaluates a run directory anew, or an artifact alone, under changes of evaluate, runtime or data.path.

    A run's table is written to RUN/report, beside its own as table_DIGEST where the settings differ. Nothing is
    distilled: the set, where it began and the experts are those that the run has kept, and only experts that are gone
    are trained, under the changes. Raises ArtifactError for other images, and where the start is asked for and gone.
    An artifact alone has no initialisation and no experts to select by, and nothing is written beside it. ``network``:
    another than the run's, ARCH, ARCH:NORM, or the caller's own MODULE:FUNCTION or timm:NAME, which is imported and
    run.
    """
    place, changes = Place(path), list(overrides)
    if (place / "dataset.json").exists():
        return _evaluate_artifact(path, changes, network)
    own = RunDir.read(path).config
    with opened_again(path, changes) as kept:
        run, (sets, experts) = kept.run, sets_again(kept)
        rows = evaluate_rows(run, sets, kept.artifact.factor, experts, kept.cells, network)
        shown = run if network is None else replace(run, config=run.config.under(network))
        return _reported(shown, rows, digest(kept.artifact), config_digest(own), network)


def learn_incrementally(path: str, steps: int = 5, overrides: Iterable[str] = ()) -> Accuracies:
    """Class-incremental learning with the set in ``path`` as memory, beside random images.

    Test accuracies, one a seed, by ("distilled" or "random", "4 classes"). Under changes of evaluate, runtime or
    data.path; in a run directory, cells that are on disk are not computed again.
    """
    if steps < 1:
        raise ConfigError(f"--steps {steps}: classes come in one step at least")
    with opened_again(path, list(overrides)) as kept:
        classes = kept.run.classes
        if not 1 <= steps <= classes:
            raise ConfigError(f"--steps {steps}: there are {classes} classes; take 1 to {classes} steps")
        return incremental.learn_incrementally(kept.run, kept.artifact, steps, kept.cells)


def rank(path: str, models: Sequence[Model], overrides: Iterable[str] = ()) -> tuple[Accuracies, dict[str, float]]:
    """Networks ranked by the set in ``path`` against their ranking by the full data, beside random images.

    Test accuracies, one a seed, by ("distilled", "random" or "full", network); Spearman's correlation with the full
    data of "distilled" and "random".
    """
    with opened_again(path, list(overrides)) as kept:
        for model in models:
            check_against_data(kept.run.config.model_copy(update={"model": model}), kept.run.real)
        found = try_networks(kept.run, kept.artifact, models, kept.cells)
    return found, {name: agreement(found, name, models) for name in ("distilled", "random")}


def audit(path: str, networks: int = 8, overrides: Iterable[str] = ()) -> Tree:
    """How much the set in ``path`` tells of its real images; `studies.audit` says how, `docs/audit.md` what it means.

    ``networks``: how many are trained on random real images, two at least. Under changes of evaluate, runtime or
    data.path. In a run directory it is written to RUN/report, as audit.json and audit.md where it is the first, and
    networks that are on disk are not trained again.
    """
    if networks < 2:
        raise ConfigError(f"--networks {networks}: each is held against the others; take two at least")
    folder = artifact_place(Place(path))
    with opened_again(path, list(overrides)) as kept:
        segments = folder.parent / "segments" if folder.name == "synthetic" else None
        found = audits.audit(kept.run, kept.artifact, networks, kept.cells, segments)
        shown = digest_of(config_digest(kept.run.config), networks, digest(kept.artifact), kept.run.session.device)
        if (folder.parent / RECORD).exists():
            _keep_audit(folder.parent / "report", {**found, "settings": shown, "set": digest(kept.artifact)})
    return found


def _keep_audit(folder: Place, found: Tree) -> None:
    """The audit on disk; one of other settings stands beside the first, under a digest of them."""
    first = read_checked_json(folder / "audit.json")
    is_first = first is None or first["settings"] == found["settings"]
    stem = "audit" if is_first else f"audit_{found['settings']}"
    (folder / f"{stem}.md").write_text(audited.markdown(found))
    write_checked_json(folder / f"{stem}.json", found)


def convnets(widths: Sequence[int], depths: Sequence[int], norms: Sequence[str]) -> list[Model]:
    """A grid of ConvNets to rank; ConfigError for one that cannot be, or that would be there twice."""
    options: dict[str, Sequence[int | str]] = {"--width": widths, "--depth": depths, "--norm": norms}
    for option, values in options.items():
        if not values:
            raise ConfigError(
                f"{option}: is empty, so that there is nothing to rank; leave the option out or name some"
            )
        for value in repeated(values):
            raise ConfigError(f"{option}: holds {escaped(value)} twice; leave one")
    trees = [{"width": w, "depth": d, "norm": n} for w in widths for d in depths for n in norms]
    return [parse_config({"model": tree}).model for tree in trees]


def _evaluate_artifact(path: str, changes: list[str], network: str | None) -> Result:
    with opened_again(path, changes) as kept:
        sets = {"distilled": images_of(kept.artifact)}
        rows = evaluate_rows(kept.run, sets, kept.artifact.factor, None, None, network)
        return Result(Place(path), digest(kept.artifact), rows, _title(kept.run.config, network), tested_by(kept.run))


# --- reporting ---------------------------------------------------------------------------------------------------


def _reported(run: Run, rows: list[Row], stamp: str, own: str, network: str | None = None) -> Result:
    """The table on disk and in hand; ``own``: the settings of the run itself. ``network``: another than its own."""
    title, tested, folder = _title(run.config, network), tested_by(run), run.place / "report"
    shown = Shown(config_digest(run.config), run.session.device)
    stem = stem_for(folder, shown, own)
    keep_table(folder, stem, rows, title, tested, shown, digest=stamp)
    run.progress.note(f"table {folder / stem}.md")
    run.progress.note(f"synthetic set {run.place / 'synthetic'}, digest {stamp}")
    return Result(run.place, stamp, rows, title, tested)


def _draw_page(place: Place, progress: Progress) -> None:
    """Draws the page of a run, a comparison, a study or a sweep; that it fails costs nothing finished its end."""
    progress.stage("page", 1)
    try:
        progress.note(f"page {report([place], is_own=True)}")
    except Exception as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        progress.note(f"the page could not be drawn ({why}); `dasm-ray report {place}` tries it again")
    progress.advance()


def tested_by(run: Run) -> int:
    """How many images a run's test set has."""
    return int(run.real.counts["test"].sum())


def _title(config: RunConfig, network: str | None = None) -> str:
    synthetic, seeds = config.synthetic, config.evaluate.seeds
    return (
        f"{config.data.name}, {several(synthetic.ipc, 'images')} a class (factor {synthetic.factor}), "
        f"{config.matcher.name} in {several(synthetic.segments, 'segments')}, {config.window.policy} windows; "
        f"{several(seeds, 'seeds')}"
        f"{'' if network is None else f', {escaped(network, 100)}'}"
    )


def _finished(record: RunDir) -> Result | None:
    """The result of a run that has ended already, without starting anything; None where its own table is not there."""
    place = record.place
    if not (place / "synthetic" / "dataset.json").exists():
        return None
    kept = kept_table(place / "report", config_digest(record.config))
    if kept is None:
        return None
    stamp = digest(read_artifact(place / "synthetic"))
    if kept["digest"] != stamp:
        return None
    return Result(place, stamp, from_json(kept), kept["title"], kept.get("tested"))
