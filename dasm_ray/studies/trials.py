"""Many trials of one recipe: what they share is made first, then each distils in a run directory of its own.

What must stay true: trials never see a test image, since they are given none; what a trial does depends on its
configuration alone; a trial that is over is never begun again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.shown import several
from dasm_ray.config.space import Sweep, Trial
from dasm_ray.core.networks.training import steps_for
from dasm_ray.errors import ConfigError, NonFinite, RunFailure, SessionError
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import are_trained, train_experts
from dasm_ray.method.run import Given, Run, check_against_data, connected, opened, under
from dasm_ray.method.scores import static_name, static_scores
from dasm_ray.method.sets import Segments, flattened, stored
from dasm_ray.report.standings import Line
from dasm_ray.runtime.autoscaler import grows
from dasm_ray.runtime.decoding import RealRefs, load_real
from dasm_ray.runtime.opening import open_checked
from dasm_ray.runtime.progress import Progress
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.tune import Callbacks, Report, Stopping, run_trials
from dasm_ray.store.datasets.fingerprint import read_keys
from dasm_ray.store.findings import find, keep, keep_stopped, trial_place, write_trials
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import cells_for, evaluate_cells
from dasm_ray.studies.rows import always, label_of

PATIENCE = 120.0
"""Seconds that a trial waits for its run directory: what a killed driver left behind may still have it."""


def check_images(sweep: Sweep) -> None:
    """Refuses trials whose real images cannot be used, as far as that can be seen without Ray."""
    for config in {_data_key(trial.config): trial.config for trial in sweep.trials}.values():
        open_checked(config)


def run_all_trials(sweep: Sweep, place: Place, session: Session) -> None:
    """Runs the trials that are not over. Raises RunFailure if some of them could not be finished for now."""
    trials = [Trial(trial.number, trial.values, config_in(place, trial)) for trial in sweep.trials]
    left = [trial for trial in trials if not find(place, trial.number).is_over]
    with Progress() as progress:
        one, together = _crews(session, left, progress)
        real = _seen_images(left, progress)
    _make_shared(left, place, together, real)
    sweeping = Sweeping(place, {trial.number: trial.config for trial in left}, one, real)
    errors = _carried_out(sweep, sweeping, len(trials))
    if errors:
        number, why = min(errors.items())
        raise RunFailure(
            f"{place}: {len(errors)} of {several(len(trials), 'trials')} did not finish, such as trial {number} "
            f"({why}); --resume tries them again"
        )


# --- before the trials -------------------------------------------------------------------------------------------


def config_in(place: Place, trial: Trial) -> RunConfig:
    """A trial's configuration as it is run: its experts are the sweep's, at an absolute place."""
    own = trial.config.experts.cache
    experts = trial.config.experts.model_copy(update={"cache": (Place(own) if own else place / "experts").uri})
    name = f"{trial.config.name}_{trial.number:03d}"  # tells the trials' metrics apart
    return trial.config.model_copy(update={"name": name, "experts": experts})


def _crews(session: Session, left: Sequence[Trial], progress: Progress) -> tuple[Session, Session]:
    """The session as one trial finds it open, and as all workers that can be had, for what trials share."""
    everyone = Session.open(left[0].config.runtime.model_copy(update={"workers": None}), lambda text: None)
    each = session.workers
    if session.started_here or not grows():
        if each > everyone.workers:
            progress.note(
                f"the cluster has room for {several(everyone.workers, 'workers')} and does not grow: "
                f"a trial gets as many"
            )
            each = everyone.workers
        most = everyone.workers
    else:
        most = max(everyone.workers, each * len(left))
    inside = replace(session, started_here=False, connected_here=False)
    return replace(inside, workers=each), replace(inside, workers=most)


def _seen_images(trials: Sequence[Trial], progress: Progress) -> dict[str, RealRefs]:
    """The real images of each data section, decoded once for all trials, without the test set.

    Raises UserError for trials that do not fit their images.
    """
    real: dict[str, RealRefs] = {}
    for trial in trials:
        key = _data_key(trial.config)
        if key not in real:
            found = load_real(open_checked(trial.config), trial.config.data, progress.note, progress)
            real[key] = replace(found, splits=tuple(name for name in found.splits if name != "test"))
        check_against_data(trial.config, real[key])
    return real


def _data_key(config: RunConfig) -> str:
    """Of what decoding depends on."""
    return digest_of(read_keys(config.data))


def _make_shared(trials: Sequence[Trial], place: Place, session: Session, real: dict[str, RealRefs]) -> None:
    """Trains the experts that trials have in common, once, with all workers, and finds the scores by them."""
    shared: dict[str, RunConfig] = {}
    for config in (trial.config for trial in trials):
        parts = (config.experts, config.model, config.data, config.score, config.runtime)
        shared.setdefault(digest_of(*map(result_keys, parts), config.seed), config)
    first = next(iter(shared.values()))
    given = Given(session, real[_data_key(first)])
    with connected(first, place, given=given, only_measures=True) as run:
        for config in shared.values():
            of_its_own = replace(run, config=config, real=real[_data_key(config)])
            if not _is_made(of_its_own):
                of_its_own = under(run, config, of_its_own.real)
                with contextlib.suppress(NonFinite):  # its trials find the same, and say so of themselves
                    static_scores(of_its_own, train_experts(of_its_own))


def _is_made(run: Run) -> bool:
    """Whether all that trials share is on disk."""
    return are_trained(run) and static_name(run) in run.shared_place.names()


# --- the trials --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweeping:
    """What every trial is given: where the sweep is, configurations by number, and images without the test set."""

    place: Place
    configs: dict[int, RunConfig]
    session: Session
    real: dict[str, RealRefs]


def _carried_out(sweep: Sweep, sweeping: Sweeping, count: int) -> dict[int, str]:
    """Lets Tune run the trials; why some were not finished, by number."""
    place, asha, errors = sweeping.place, sweep.scheduler, {}
    some = next(iter(sweeping.configs.values()))
    over = {n: find(place, n) for n in range(count) if n not in sweeping.configs}
    with Progress() as progress:
        progress.stage("trials", count, done=len(over))

        def on_report(number: int, segments: int, accuracy: float) -> None:
            of = sweeping.configs[number].synthetic.segments
            progress.note(f"trial {number}: validation {accuracy:.1%} after segment {segments} of {of}")

        def on_end(number: int) -> None:
            if not find(place, number).is_over:
                keep_stopped(place, number)
            progress.advance()

        def on_failure(number: int, why: str) -> None:
            errors[number] = why
            progress.note(f"trial {number}: not finished ({why})")

        def on_wait(seconds: float) -> None:
            needs = f"a trial needs {sweeping.session} at once"
            if seconds > some.runtime.task_minutes * 60:
                raise SessionError(f"no trial has run for {seconds / 60:.0f} minutes: {needs}; see `ray status`")
            progress.note(f"no trial has run for {seconds:.0f} s: {needs}; still waiting")

        run_trials(
            run_trial,
            sweeping,
            list(sweeping.configs),
            session=sweeping.session,
            stopping=None if asha.name == "all" else Stopping(asha.grace, asha.reduction, some.synthetic.segments),
            known={number: [fmean(seeds) for seeds in found.accuracies] for number, found in over.items()},
            retries=some.runtime.max_lost,
            scratch=place / "tune",
            callbacks=Callbacks(on_report, on_end, on_wait, on_failure),
        )
    return errors


def run_trial(number: int, sweeping: Sweeping, report: Report) -> None:
    """Distils trial ``number``, going on from what is on disk, and reports validation after every segment.

    Runs in a process of its own. What can never be done is kept as the trial's finding; other errors are raised, and
    the trial may be begun again.
    """
    place, config, began = sweeping.place, sweeping.configs[number], time.monotonic()
    before = find(place, number)
    found = replace(before, begun=before.begun + 1)
    keep(place, number, found)

    def after_each(run: Run, frozen: Segments) -> None:
        nonlocal found
        accuracies = (*found.accuracies[: len(frozen) - 1], _validated(run, frozen))
        found = replace(found, accuracies=accuracies, seconds=before.seconds + time.monotonic() - began)
        keep(place, number, found)
        if len(frozen) < config.synthetic.segments:
            report(len(frozen), fmean(accuracies[-1]))

    given = Given(sweeping.session, sweeping.real[_data_key(config)])
    try:
        with opened(config, trial_place(place, number), given, PATIENCE) as run:
            distil(run, train_experts(run), lambda frozen: after_each(run, frozen))
    except (ConfigError, NonFinite) as error:
        keep(place, number, replace(found, failed=str(error)))
        return
    keep(place, number, replace(found, done=True))
    report(len(found.accuracies), fmean(found.accuracies[-1]))


def _validated(run: Run, frozen: Segments) -> tuple[float, ...]:
    """Validation accuracy, one a seed, of networks trained on the segments so far as the fair table trains them.

    After the last segment these are the very trainings of the table's row, but for the test set.
    """
    factor, images = run.config.synthetic.factor, flattened(frozen)
    is_soft = images.logits is not None
    cells = cells_for(
        run,
        f"validate after segment {len(frozen)}",
        always(stored(run, images, factor, is_soft)),
        steps_for(len(images.labels) * factor**2, run.config.evaluate),
        run.place / "validation",
        label=label_of("distilled", "soft" if is_soft else "hard"),
        reads_test=False,
    )
    return tuple(cell["validation"] for cell in evaluate_cells(run, cells))


# --- after the trials --------------------------------------------------------------------------------------------


def lines(sweep: Sweep, place: Place) -> list[Line]:
    """What is known of every trial."""
    found = [(trial, find(place, trial.number)) for trial in sweep.trials]
    return [
        Line(
            trial=trial.number,
            values=trial.values,
            accuracies=known.accuracies[-1] if known.accuracies else (),
            segments=len(known.accuracies),
            of=trial.config.synthetic.segments,
            seconds=known.seconds,
            begun=known.begun,
            stopped=known.stopped,
            failed=known.failed,
        )
        for trial, known in found
    ]


def write_table(place: Place, found: Sequence[Line]) -> None:
    """Writes table.parquet, a row for every trial."""
    rows = [
        {
            **line.values,
            "trial": line.trial,
            "validation": list(line.accuracies),
            "mean": line.mean,
            "std": line.std,
            "segments": line.segments,
            "of": line.of,
            "stopped": line.stopped,
            "failed": line.failed or None,
            "seconds": line.seconds,
            "begun": line.begun,
        }
        for line in found
    ]
    write_trials(place / "table.parquet", rows, list(found[0].values))
