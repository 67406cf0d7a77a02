"""Trials by Ray Tune: which runs when, in a placement group of its own, and which is stopped early.

What must stay true: Tune decides, and keeps nothing that a sweep could not go on without. What trials found is on disk
before they report it, so the next session gives Tune what is left and tells the scheduler again what is known; what
Tune writes (pickles among it) is never read. Import this module only where a sweep is run: it needs ray[tune].
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dasm_ray.errors import ResourceError
from dasm_ray.plain import Tree
from dasm_ray.runtime.plan import GIB
from dasm_ray.runtime.session import Session
from dasm_ray.store.place import Place

try:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
except ImportError as error:
    raise ResourceError(f"ray.tune: cannot be imported ({error}); pip install 'dasm-ray[sweep]'") from None

Report = Callable[[int, float], None]
"""Tells the segments that are done and the validation accuracy, in [0, 1]; does not return if the trial is stopped."""

Given = Any
"""What all trials are given, whatever that is; it must be picklable."""

Run = Callable[[int, Given, Report], None]
"""A trial, by its number: with what all trials are given, and a way to report."""

TuneTrial = Any
"""A trial as Tune has it, which is not typed."""

WAIT_NOTICE_SECONDS = 60.0
"""Without a running trial for this long, say so; again and again."""

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep has its own table
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that cannot be run ends without a report
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints a box on stdout, whatever its verbosity
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


@dataclass(frozen=True)
class Stopping:
    """When trials are compared: from ``grace`` segments on, at each power of ``reduction`` times that, one in
    ``reduction`` goes on (ASHA, Li et al. 2020). ``segments``: of a whole trial."""

    grace: int
    reduction: int
    segments: int


@dataclass(frozen=True)
class Callbacks:
    """What a sweep hears: a report (number, segments, accuracy), an end, whether early or not (number), now and then
    for how many seconds no trial could be run, and at last who was not finished (number, why)."""

    on_report: Callable[[int, int, float], None]
    on_end: Callable[[int], None]
    on_wait: Callable[[float], None]
    on_failure: Callable[[int, str], None]


def run_trials(
    run: Run,
    given: Given,
    numbers: Sequence[int],
    *,
    session: Session,
    stopping: Stopping | None,
    known: Mapping[int, Sequence[float]],
    retries: int,
    scratch: Place,
    callbacks: Callbacks,
) -> None:
    """Runs the trials ``numbers``, each with ``session.workers`` bundles of the session's shape.

    ``known``: accuracies by segment that other trials reported in earlier sessions. A trial whose process is lost is
    begun again up to ``retries`` times; other errors too, and then ``callbacks.on_failure`` hears of it. Tune's own
    files go to ``scratch``.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def trial(config: dict[str, int], given: Given) -> None:
        run(config["trial"], given, _report)

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, given=given), bundles(session)),
        param_space={"trial": tune.grid_search(list(numbers))},
        tune_config=tune.TuneConfig(scheduler=_scheduler(stopping, known), reuse_actors=True),
        run_config=tune.RunConfig(
            name="session",
            storage_path=scratch.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[_Listener(callbacks)],
        ),
    )
    for result in tuner.fit():
        if result.error is not None:
            callbacks.on_failure(result.config["trial"], _reason(result.error))


def bundles(session: Session) -> tune.PlacementGroupFactory:
    """What a trial holds: nothing for its own process, which waits for its workers, and a bundle for each of them.

    Whatever a trial starts is placed in its own bundles, so trials never wait for one another half-way.
    """
    shape = session.shape
    needs = {"CPU": float(shape.num_cpus), "GPU": shape.num_gpus, "memory": shape.memory * GIB}
    bundle = {name: amount for name, amount in needs.items() if amount}
    return tune.PlacementGroupFactory([{}, *([bundle] * session.workers)], strategy="PACK")


def _report(segments: int, accuracy: float) -> None:
    tune.report({"segments": segments, "validation": accuracy})


def _reason(error: Exception) -> str:
    """What a trial raised, or how it was lost, in a line."""
    return str(getattr(error, "cause", None) or error).strip().partition("\n")[0][:300]


def _scheduler(stopping: Stopping | None, known: Mapping[int, Sequence[float]]) -> TrialScheduler:
    """A scheduler that knows what earlier sessions found; Tune saves trials, but not what its scheduler knows."""
    if stopping is None:
        return FIFOScheduler()
    asha = ASHAScheduler(
        time_attr="segments",
        metric="validation",
        mode="max",
        max_t=stopping.segments,
        grace_period=stopping.grace,
        reduction_factor=stopping.reduction,
    )
    for number, accuracies in known.items():
        earlier = _Earlier(f"earlier_{number}")
        asha.on_trial_add(None, earlier)
        for segment, accuracy in enumerate(accuracies, start=1):
            asha.on_trial_result(None, earlier, {"segments": segment, "validation": accuracy})
    return asha


@dataclass(frozen=True)
class _Earlier:
    """All that ASHA asks of a trial."""

    trial_id: str


class _Listener(tune.Callback):
    """Passes on what Tune says of its trials. Tune pickles it at the start, for a use that it is not put to here."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._idle_since = self._spoken_at = time.monotonic()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: object) -> None:
        now = time.monotonic()
        if any(trial.status == "RUNNING" for trial in trials):
            self._idle_since = self._spoken_at = now
        elif now - self._spoken_at > WAIT_NOTICE_SECONDS:
            self._spoken_at = now
            self._callbacks.on_wait(now - self._idle_since)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Tree, **_: object
    ) -> None:
        if "segments" in result:
            self._callbacks.on_report(trial.config["trial"], result["segments"], result["validation"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: object) -> None:
        self._callbacks.on_end(trial.config["trial"])
