"""What a trial of a sweep is before Tune has it, and what is kept of it after; the rest is tried with Tune itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_pool import local_run, shared_experts, small

from dasm_ray.config.space import Scheduler, Sweep, Trial
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.sets import flattened
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.findings import Finding, keep, keep_stopped, read_trials
from dasm_ray.store.place import Place

trials = pytest.importorskip("dasm_ray.studies.trials", reason="needs ray[tune]")


def sweep_of(*rates: float) -> Sweep:
    made = [Trial(n, {"matcher.lr_img": rate}, small(matcher={"lr_img": rate})) for n, rate in enumerate(rates)]
    return Sweep("rates", tuple(made), Scheduler(), 1)


def test_trials_share_the_experts_of_the_sweep_unless_they_name_a_place_of_their_own() -> None:
    trial = sweep_of(0.1).trials[0]
    found = trials.config_in(Place("/sweep"), trial)
    assert (found.experts.cache, found.name) == ("/sweep/experts", "run_000")
    own = Trial(3, {}, small(experts={"cache": "/mine"}))
    assert trials.config_in(Place("/sweep"), own).experts.cache == "/mine"


def test_a_line_says_what_is_known_of_a_trial(tmp_path: Path) -> None:
    place, sweep = Place(tmp_path), sweep_of(0.1, 0.2, 0.3, 0.4)
    keep(place, 0, Finding(begun=1, accuracies=((0.5, 0.7), (0.8, 0.6)), seconds=3.0, done=True))
    keep(place, 1, Finding(begun=2, accuracies=((0.5, 0.5),), seconds=1.0))
    keep_stopped(place, 1)
    keep(place, 2, Finding(begun=1, failed="matcher.lr_img: too high"))
    lines = trials.lines(sweep, place)
    assert [(line.trial, line.segments, line.stopped, line.failed) for line in lines] == [
        (0, 2, False, ""),
        (1, 1, True, ""),
        (2, 0, False, "matcher.lr_img: too high"),
        (3, 0, False, ""),
    ]
    trials.write_table(place, lines)
    rows = read_trials(place / "table.parquet")
    assert rows[0]["mean"] == pytest.approx(0.7)
    assert rows[3]["mean"] is None


def test_validation_never_asks_for_the_test_set(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(experts=shared_experts()), tmp_path, digits)
    heard: list[tuple[float, ...]] = []
    made = distil(run, train_experts(run), lambda frozen: heard.append(trials._validated(run, frozen)))
    assert [len(accuracies) for accuracies in heard] == [2, 2]
    assert len(flattened(made.segments).labels) == 20
    kept = [path.read_text() for path in (tmp_path / "validation").glob("*.json")]
    assert len(kept) == 4
    assert all('"test": null' in text for text in kept)
