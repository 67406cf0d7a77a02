"""Several runs side by side: accuracy against images a class and against time, and a table of them.

What must stay true: runs that have no figure yet stand in the table without one, and in no figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dasm_ray.config.shown import escaped, several
from dasm_ray.plain import Tree
from dasm_ray.report import differences, figures
from dasm_ray.report.gathered import Gathered, gather, runs_in, table_of
from dasm_ray.report.sections import table
from dasm_ray.report.table import Row, ior
from dasm_ray.report.wording import duration, figure, grid, percent, points
from dasm_ray.store.checked import read_checked_json
from dasm_ray.store.findings import COMPARISON, RESULTS, STUDY, SWEEP
from dasm_ray.store.place import Place

SPREAD = "Bars are one standard deviation over seeds."


def side_by_side(places: Sequence[Place], runs: Sequence[Gathered]) -> Tree:
    """What the template shows above the single runs."""
    data = escaped(", ".join(dict.fromkeys(run.config.data.name for run in runs)), 100)
    done = sum(run.artifact is not None for run in runs)
    tables = [found for place in places for found in _own_tables(place)]
    title, lead = f"{len(runs)} runs on {data}", f"{len(runs)} runs on {data}, {done} of them done."
    study = _results(places[0]) if len(places) == 1 else None
    if study is not None:
        title, lead = escaped(study["name"], 100), escaped(differences.title_of(study), 300)
    return {
        "title": title,
        "lead": lead,
        "heading": "Side by side",
        "figures": [*_against(runs), *_by_size(places), *_differences(places)],
        "tables": [*tables, _summary(runs)],
    }


Points = tuple[float, float, float | None]
"""Where, mean and spread in %."""


def _series(found: Iterable[tuple[str, float, Row]]) -> dict[str, list[Points]]:
    """Points by name, from left to right."""
    series: dict[str, list[Points]] = {}
    for name, at, row in sorted(found, key=lambda each: each[1]):
        series.setdefault(name, []).append((at, 100 * row.mean, None if row.std is None else 100 * row.std))
    return series


def _level(full: Row | None) -> Mapping[str, float]:
    return {} if full is None else {"all real images": 100 * full.mean}


def _against(runs: Sequence[Gathered]) -> Iterator[Tree]:
    """Accuracy of distilled sets against their size, beside random images, and against the time they took."""
    done = [(run, row) for run in runs for row in run.own.values()]
    if not done:
        return
    several, called = len({run.config.data.name for run, _ in done}) > 1, _called(runs)
    own = [(name, float(run.config.synthetic.ipc), row) for name, (run, row) in zip(called, done, strict=True)]
    beside = {run.config.synthetic.ipc: run.row_of("random") for run, _ in done if not several}
    random = [("random", float(ipc), row) for ipc, row in beside.items() if row is not None]
    full = next((row for run, _ in done if not several and (row := run.row_of("full")) is not None), None)
    drawn = figures.against(_series([*own, *random]), "images a class", _level(full), "Accuracy against size")
    yield figure("Accuracy against size", drawn, f"Of networks trained on each set. {SPREAD}")
    timed = [(name, run.log.seconds, row) for name, (run, row) in zip(called, done, strict=True) if run.log.seconds]
    if timed:
        unit, size = figures.unit_of(max(seconds for _, seconds, _ in timed))
        scaled = [(name, seconds / size, row) for name, seconds, row in timed]
        drawn = figures.against(_series(scaled), f"{unit} of work", {}, "Accuracy against time")
        yield figure("Accuracy against time", drawn, f"From the first image read to the table. {SPREAD}")


def _called(runs: Sequence[Gathered]) -> Sequence[str]:
    """The series that each row of a run's own set is a point of: its matcher or, where that would have two points at a
    size, its arm or run, or all that tells runs apart."""
    of_data = len({run.config.data.name for run in runs if run.own}) > 1
    ways = [
        (*(way + f", {run.config.data.name}" * of_data for way in (run.config.matcher.name, arm)), whole)
        for run, name in zip(runs, names_of(runs), strict=True)
        for arm, (whole, _) in zip(run.own, _own_of(run, name), strict=True)
    ]
    sizes = [run.config.synthetic.ipc for run in runs for _ in run.own]
    *shorter, whole_names = zip(*ways, strict=True)
    each_once = (names for names in shorter if len(set(zip(names, sizes, strict=True))) == len(names))
    return next(each_once, whole_names)


def _by_size(places: Sequence[Place]) -> Iterator[Tree]:
    """The rows of a comparison against images a class."""
    for place in places:
        rows = table_of(place)[0] if (place / COMPARISON).exists() else []
        alike = [row for row in rows if (row.network, row.labels) == (rows[0].network, rows[0].labels)]
        sized = [(row.name, float(row.ipc), row) for row in alike if row.ipc is not None]
        if sized:
            level = _level(next((row for row in alike if row.name == "full"), None))
            drawn = figures.against(_series(sized), "images a class", level, "Every set of the comparison")
            yield figure("Every set of the comparison", drawn, f"Trained alike, {rows[0].labels} labels. {SPREAD}")


def _differences(places: Sequence[Place]) -> Iterator[Tree]:
    """What the arms of a study gain over its opponent at each size, by validation."""
    for found in filter(None, map(_results, places)):
        for ipc in dict.fromkeys(arm["ipc"] for arm in found["arms"]):
            arms = [arm for arm in found["arms"] if arm["ipc"] == ipc]
            drawn = [(arm["arm"], gain) for arm in arms if (gain := arm["differences"].get("validation"))]
            if drawn:
                title = f"Points over {escaped(found['against'], 60)} at {several(ipc, 'images')} a class"
                says = (
                    "Validation accuracy, pairs at one distillation seed. A bar is two standard errors to either side."
                )
                points = [(name, 100 * gain["mean"], _percent_or_none(gain["error"])) for name, gain in drawn]
                yield figure(title, figures.differences(points, title), says)


def _results(place: Place) -> Tree | None:
    """The figures of a study; None where there are none yet, or the place is something else."""
    return read_checked_json(place / RESULTS) if (place / STUDY).exists() else None


def _percent_or_none(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _own_tables(place: Place) -> Iterator[Tree]:
    """The table of a comparison, the trials of a sweep, or the tables of a study."""
    if (place / COMPARISON).exists():
        rows, _, tested = table_of(place)
        if rows:
            yield table(rows, tested)
    if (place / SWEEP).exists():
        yield _trials(place)
    found = _results(place)
    if found is not None:
        drawn = differences.tables(found).items()
        for number, (title, lines) in enumerate(drawn, 1):
            below = differences.notes(found) if number == len(drawn) else []
            yield {**grid(title, lines[0], lines[1:]), "below": [escaped(note, 400) for note in below]}


def _trials(place: Place) -> Tree:
    """Trials as validation orders them."""
    found = [(trial.name, gather(trial, looks_at_data=False)) for trial in runs_in(place)]
    scored = [(float(np.mean(run.validation[-1])) if run.validation else -1.0, name, run) for name, run in found]
    rows = [
        [
            name,
            f"{100 * mean:.1f}" if run.validation else "–",
            f"{len(run.validation)}/{run.config.synthetic.segments}",
        ]
        for mean, name, run in sorted(scored, key=lambda each: (not _is_whole(each[2]), -each[0], each[1]))
    ]
    return grid("trials", ["trial", "validation, %", "segments"], rows, "Validation chooses; only the best was tested.")


def _is_whole(run: Gathered) -> bool:
    """Whether a trial has distilled all of its segments: only such a one can be the best."""
    return len(run.validation) == run.config.synthetic.segments


def names_of(runs: Sequence[Gathered]) -> list[str]:
    """What each run is called: with its folder, where several have the same name, and else by its place among them."""
    names = [run.name for run in runs]
    folders = [f"{run.name} ({run.place.name})" if names.count(run.name) > 1 else run.name for run in runs]
    return [
        f"{name}, {folders[:place].count(name) + 1}" if folders.count(name) > 1 else name
        for place, name in enumerate(folders)
    ]


HEADINGS = ("run", "data", "matcher", "set", "images a class", "segments", "test, %", "over random", "work")


def _summary(runs: Sequence[Gathered]) -> Tree:
    rows = []
    for run, name in zip(runs, names_of(runs), strict=True):
        rows += [_line(run, called, own) for called, own in _own_of(run, name)] or [_line(run, name, None)]
    return {**grid("the runs", HEADINGS, rows), "words": HEADINGS[:4]}


def _own_of(run: Gathered, name: str) -> list[tuple[str, Row]]:
    """The rows of a run's own set, called ``name``, or where it serves several arms of a study, as each is."""
    return [(name if len(run.own) == 1 else f"{name}: {arm}", row) for arm, row in run.own.items()]


def _line(run: Gathered, name: str, own: Row | None) -> list[str]:
    config, gained = run.config, None if own is None else ior(own, run.rows)
    figures_of = ("–" if own is None else percent(own).removesuffix(" %"), "–" if gained is None else points(gained))
    sizes = (str(config.synthetic.ipc), str(config.synthetic.segments))
    names = (name, config.data.name, config.matcher.name, run.digest or "not done")
    return [*names, *sizes, *figures_of, duration(run.log.seconds) if run.log.seconds else "–"]
