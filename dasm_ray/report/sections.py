"""One run as the sections of a page: what was run and found, what came out, how it got there, time, bytes, and again.

What must stay true: a section says nothing that the run has not; a figure stands beside the words for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import yaml

from dasm_ray.config.digests import config_digest, result_keys
from dasm_ray.config.shown import escaped, several, short
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.report import audited, figures
from dasm_ray.report.gallery import gallery
from dasm_ray.report.gathered import Gathered, real_bytes, stored_bytes
from dasm_ray.report.table import LEGEND, WORDS, Row, as_cells, best_selection, cautions, is_own, selection_of
from dasm_ray.report.wording import duration, figure, grid, number, percent, points, share, size, thinned
from dasm_ray.store.datasets.found import COPIES, leaks

METHOD = (
    "The set is made in segments, one after another. Before each, a probe is trained on the segments so far and looks "
    "at every real image: what it still gets wrong says what the next segment may see. Before the first segment, "
    "experts after one epoch stand in for the probe."
)
AGAIN = (
    "This configuration gives the same bytes for any number of workers, on the same kind of hardware, with the "
    "versions below. Where images lie is no part of it: add --set data.path=FOLDER where they are not built in."
)


def sections(run: Gathered, key: str, room: int) -> Tree:
    """All that the template shows of one run; ``key`` tells its names on the page apart, ``room``: bytes of images."""
    return {
        "key": key,
        "name": escaped(run.name),
        "lead": lead(run),
        "status": status(run),
        "tiles": list(_tiles(run)),
        "settings": list(_settings(run)),
        "found": list(found_in(run.found)),
        "table": table(run.rows, run.tested) if run.rows else None,
        "accuracies": _named(key, _accuracies(run.rows)) if run.rows else None,
        "gallery": gallery(run, room),
        "remarks": [escaped(remark, 400) for remark in dict.fromkeys(run.remarks)],
        "method": [_named(key, drawn) for drawn in _method(run)],
        "method_says": METHOD,
        "audits": [audited.section(found, escaped(selection, 40)) for selection, found in run.audits.items()],
        "timeline": _named(key, _timeline(run)) if run.log.stages else None,
        "losses": list(_losses(run)),
        "counts": list(_counts(run)),
        "again_says": AGAIN,
        "commands": f"dasm-ray distill config.yaml --run runs/{escaped(run.name, 100)}",
        "identity": list(_identity(run)),
        "yaml": _yaml(run),
    }


def _named(key: str, drawn: Tree) -> Tree:
    return figure(drawn["title"], figures.named_by(key, str(drawn["svg"])), drawn["says"])


# --- what was run ------------------------------------------------------------------------------------------------


def lead(run: Gathered) -> str:
    """What the page says first."""
    synthetic, classes = run.config.synthetic, len(run.class_names)
    what = f"{number(synthetic.ipc * classes)} synthetic images" if classes else "Synthetic images"
    real = f"{number(run.real_count)} real images" if run.real_count else "the real images"
    among = f" in {classes} classes" if classes else ""
    made = f"{what} in place of {real} of {run.config.data.name}: {synthetic.ipc} a class{among}"
    return f"{made}, distilled by {run.config.matcher.name}.{_of_accuracies(run)}"


def _of_accuracies(run: Gathered) -> str:
    own, random, full = run.row, run.row_of("random"), run.row_of("full")
    if own is None:
        return ""
    if len(run.own) > 1:
        each = ", ".join(f"{percent(row)} as {arm}, {row.labels} labels" for arm, row in run.own.items())
        return f" Of the test images, networks trained on them get right: {each}."
    best = best_selection(own, run.rows)
    said = f" Networks trained on them get {percent(own)} of the test images right"
    said += f", on as many random images {percent(random)}" if random else ""
    said += f", on as many chosen by {selection_of(best)} {percent(best)}" if best else ""
    return said + (f", on all of the real ones {percent(full)}." if full else ".")


def status(run: Gathered) -> str:
    """How far a run has come that is not done; empty for one that is."""
    if run.is_done:
        return ""
    if not run.log.stages:
        return "Not finished: its log names no stage yet."
    stage, last = run.log.stages[-1], run.log.last
    when = "" if last is None else time.strftime(", %Y-%m-%d %H:%M UTC", time.gmtime(last))
    named = escaped(f"{stage.name} {stage.detail}".strip(), 80)
    return f"Not finished: {named}, {stage.done} of {stage.total} done{when}. The same command goes on from there."


def _tiles(run: Gathered) -> Iterator[Tree]:
    """The figures that are seen first."""
    yield from _tiles_of_accuracy(run)
    made, real, log = run.config.synthetic.ipc * len(run.class_names), run.real_count, run.log
    if made and real:
        yield {"value": f"{short(real / made)}×", "label": "fewer images", "note": f"{number(made)} for {number(real)}"}
    if log.seconds:
        crew = f"{several(log.workers, 'workers')}, " if log.workers > 1 else ""
        yield {"value": duration(log.seconds), "label": "of work", "note": f"{crew}{several(log.losses, 'tasks')} lost"}


def _tiles_of_accuracy(run: Gathered) -> Iterator[Tree]:
    own, random, full = run.row, run.row_of("random"), run.row_of("full")
    if own is None:
        return
    for arm, row in run.own.items():
        spread = "one seed" if row.std is None else f"± {100 * row.std:.1f} over {len(row.accuracies)} seeds"
        label = "test accuracy" if len(run.own) == 1 else f"test accuracy, {arm}"
        yield {"value": f"{100 * row.mean:.1f} %", "label": label, "note": spread}
    best = best_selection(own, run.rows)
    if random is not None:
        yield {"value": points(own.mean - random.mean), "label": "points over random images", "note": ""}
    if best is not None:
        gain = points(own.mean - best.mean)
        yield {"value": gain, "label": f"points over {selection_of(best)}", "note": "the best selection"}
    if full is not None:
        yield {"value": points(own.mean - full.mean), "label": "points to all real images", "note": ""}


def _settings(run: Gathered) -> Iterator[tuple[str, str]]:
    config = run.config
    synthetic, model, many = config.synthetic, config.model, config.synthetic.segments
    tiles = f", {synthetic.factor**2} tiles each" if synthetic.factor > 1 else ""
    yield "real images", config.data.name
    yield "synthetic", f"{several(synthetic.ipc, 'images')} a class{tiles}, in {several(many, 'segments')}"
    yield "base matcher", f"{config.matcher.name}, {several(config.matcher.rounds, 'rounds')} a segment"
    yield "windows", config.window.policy
    yield "network", f"{config.network_name}, width {model.width}" + (f", depth {model.depth}" if model.depth else "")
    yield "experts", f"{config.experts.count}, {several(config.experts.epochs, 'epochs')} each"
    yield "evaluation", f"{several(config.evaluate.seeds, 'seeds')}, {several(config.evaluate.epochs, 'epochs')}"
    yield "seed", str(config.seed)


# --- what was found in the data ----------------------------------------------------------------------------------

ROLES = {"train": "training images", "val": "validation images", "test": "test images"}
CALLED = {"train": "training", "val": "validation", "test": "test"}


def found_in(found: Values) -> Iterator[tuple[str, str]]:
    """The findings of a set, as far as they are of the types that this package writes."""
    shape, names, counts = _numbers(found.get("shape")), _listed(found.get("class_names")), found.get("counts")
    if isinstance(found.get("form"), str):
        yield "form", escaped(found["form"])
    if len(shape) == 3:
        yield "images", f"{shape[1]} × {shape[2]} pixels, {'colour' if shape[0] == 3 else 'grey'}"
    for role, words in ROLES.items():
        of_role = _numbers(counts.get(role)) if isinstance(counts, Mapping) else []
        if of_role:
            yield (
                CALLED[role],
                f"{number(sum(of_role))} {words[len(CALLED[role]) :].strip()}, {_held_out(found, role, of_role)}",
            )
    if names:
        listed = ", ".join(escaped(name, 40) for name in names[:20])
        yield "classes", f"{len(names)}: {listed}{', …' if len(names) > 20 else ''}"
    yield from _oddities(found)


def _held_out(found: Values, role: str, of_role: Sequence[int]) -> str:
    """How images of a split are spread over classes, and whether the split is the set's own."""
    least, most = min(of_role), max(of_role)
    spread = f"{least} a class" if least == most else f"{least} to {most} a class"
    roles = [split.get("role") for split in _listed(found.get("splits")) if isinstance(split, Mapping)]
    return spread + (", held out from the training images by their content" if roles and role not in roles else "")


def _oddities(found: Values) -> Iterator[tuple[str, str]]:
    """What was done to images, and what is to be known before a figure is believed."""
    for what, many in _pairs(found.get("converted")):
        yield "converted", f"{many} {what}"
    equal = found.get("equal")
    if isinstance(equal, int) and equal:
        yield "equal", several(equal, *COPIES)
    for role, many in _pairs(found.get("leaked")):
        things, one = leaks(ROLES.get(role, role))
        yield "warning", f"{many} {one if many == '1' else things}"
    for left in _listed(found.get("left_out")):
        if isinstance(left, Mapping):
            yield "left out", escaped(f"{left.get('count')} {left.get('what')}", 2000)
    for note in _listed(found.get("notes")):
        yield "note", escaped(note, 2000)


def _listed(values: Plain) -> list[Plain]:
    return list(values) if isinstance(values, list | tuple) else []


def _numbers(values: Plain) -> list[int]:
    listed = _listed(values)
    return listed if all(isinstance(value, int) for value in listed) else []


def _pairs(values: Plain) -> Iterator[tuple[str, str]]:
    if isinstance(values, Mapping):
        yield from ((escaped(name, 100), escaped(value, 20)) for name, value in values.items())


# --- what came out -----------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], tested: int | None) -> Tree:
    """The fair table for the template."""
    headings, cells = as_cells(rows)
    drawn = [{"cells": of, "is_own": is_own(row)} for of, row in zip(cells, rows, strict=True)]
    below = [LEGEND, *cautions(rows, tested)]
    return {"caption": "test accuracies", "headings": headings, "words": WORDS, "rows": drawn, "below": below}


def _accuracies(rows: Sequence[Row]) -> Tree:
    has_both = len({row.labels for row in rows}) > 1
    named = [
        (
            f"{row.name}, {row.labels} labels" if has_both and row.name != "full" else row.name,
            100 * row.mean,
            None if row.std is None else 100 * row.std,
            is_own(row),
        )
        for row in rows
    ]
    says = "A bar is one standard deviation over seeds to either side."
    return figure("Test accuracy of networks trained on each set", figures.accuracies(named), says)


# --- how it got there --------------------------------------------------------------------------------------------


def _method(run: Gathered) -> Iterator[Tree]:
    if run.scores:
        yield from _windows(run)
        yield from _accuracy_by_segment(run)
    if run.log.distances:
        series = {f"segment {k + 1}": thinned(path) for k, path in sorted(run.log.distances.items())}
        drawn = figures.lines(series, "rounds done, over all groups", "distance", "Matching distance by round")
        yield figure("Matching distance", drawn, "Between what networks make of real and of synthetic images.")
    if run.experts:
        yield from _experts(run)


def _windows(run: Gathered) -> Iterator[Tree]:
    """What each segment may see; what the probe gets wrong; how hard images are before the first and the last one."""
    says = "Real images from easy to hard; the stronger, the more of them are in the window. The stroke is its middle."
    yield figure("What each segment may see", figures.window_paths(run.window_paths()), says)
    drawn = figures.still_wrong(run.class_names, run.wrong())
    yield figure("What the probe still gets wrong", drawn, "Of each class, before every segment.")
    for segment in dict.fromkeys((0, len(run.scores) - 1)):
        scores = run.scores[segment]
        drawn = figures.difficulty(scores.dynamic, scores.window, segment)
        says = f"Of {number(len(scores.label))}, {share(float(scores.window.mean()))} are in the window."
        yield figure(f"Difficulty of all real images before segment {segment + 1}", drawn, says)


def _accuracy_by_segment(run: Gathered) -> Iterator[Tree]:
    """By validation where a sweep measured it; else by the probe, which was trained on the segments so far."""
    if run.validation:
        path = [(k + 1, 100 * float(np.mean(seeds))) for k, seeds in enumerate(run.validation)]
        name, says = "validation accuracy, %", "Of networks trained on the segments so far, on validation images."
    else:
        path = [(k, 100 * (1 - float(run.scores[k].wrong.mean()))) for k in range(1, len(run.scores))]
        name, says = (
            "training images known, %",
            "Of all real training images, by a probe trained on the segments so far.",
        )
    if len(path) > 1:
        drawn = figures.lines({"": path}, "segments", name, "Accuracy after each segment")
        yield figure("Accuracy after each segment", drawn, says)


def _experts(run: Gathered) -> Iterator[Tree]:
    kinds = (
        ("validation accuracy, %", 100, 0, "Experts: accuracy"),
        ("loss on training images", 1, 1, "Experts: loss"),
    )
    for words, scale, which, title in kinds:
        curves = {
            f"expert {n + 1}": [(epoch, scale * value) for epoch, value in enumerate(curve[which])]
            for n, curve in enumerate(run.experts[:MOST_EXPERTS])
        }
        says = f"Of {several(len(run.experts), 'networks')} trained on the real images."
        yield figure(title, figures.lines(curves, "epoch", words, f"{words} of experts by epoch"), says)


MOST_EXPERTS = 20
"""Curves of one figure."""


# --- time and bytes ----------------------------------------------------------------------------------------------


def _timeline(run: Gathered) -> Tree:
    log, again = run.log, len(run.log.resumed)
    says = "A bar is a task; red ones were lost with their worker and done again."
    if not log.work:
        says = "The log of this run does not name its workers."
    if again:
        lines, times = ("line", "once") if again == 1 else ("lines", f"{again} times")
        says += f" The run was gone on with {times}, at the dashed {lines}; the time between is left out."
    drawn = figures.timeline(log.work, log.stages, log.resumed, log.seconds)
    return figure("Who did what when", drawn, says)


def _losses(run: Gathered) -> Iterator[str]:
    for task in run.log.work:
        if task.lost:
            when = f"after {duration(task.end)} of work"
            yield escaped(f"{task.name}: lost by worker {task.worker} {when}, {task.lost}", 300)


def _counts(run: Gathered) -> Iterator[Tree]:
    log, stored, real = run.log, stored_bytes(run), real_bytes(run)
    stages = [[name, duration(took), share(took / max(log.seconds, 1e-9))] for name, took in log.by_stage.items()]
    if stages:
        yield grid("time by stage", ["stage", "time", "share"], stages, f"{duration(log.seconds)} of work in all.")
    if log.work:
        yield grid("who did how much", ["worker", "tasks", "busy", "lost"], list(_crew(run)))
    said = ""
    if stored and real:
        said = (
            f"The set's images and labels are {size(stored)}, the real ones' {size(real)}: {short(real / stored)} to 1."
        )
    yield grid("bytes on disk", ["part", "bytes"], [[name, size(count)] for name, count in run.sizes.items()], said)


def _crew(run: Gathered) -> Iterator[list[str]]:
    for worker in sorted({task.worker for task in run.log.work}):
        mine = [task for task in run.log.work if task.worker == worker]
        busy, lost = sum(task.end - task.start for task in mine), sum(bool(task.lost) for task in mine)
        yield [f"worker {worker}", str(len(mine)), duration(busy), str(lost)]


# --- again -------------------------------------------------------------------------------------------------------


def _identity(run: Gathered) -> Iterator[tuple[str, str]]:
    if run.digest is not None:
        yield "synthetic set", run.digest
    yield "configuration", config_digest(run.config)
    provenance = {} if run.artifact is None else run.artifact.provenance
    for name, words in (("data_digest", "real images"), ("device", "device")):
        if isinstance(provenance.get(name), str):
            yield words, escaped(provenance[name], 60)
    yield "versions", ", ".join(f"{escaped(name, 40)} {escaped(of, 40)}" for name, of in run.versions.items())


def _yaml(run: Gathered) -> str:
    """The configuration as a recipe, without what says where it was run."""
    named = {"name": run.name, **result_keys(run.config)}
    return yaml.safe_dump(_plain(named), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Plain) -> object:
    """Tuples as lists, and no key that is unset."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
