"""What a study says: every arm beside its opponent, pair by pair, and what each factor of a screen does.

What must stay true: the terminal, the Markdown and the JSON show the same figures; a difference is of pairs alone, its
error over distillation seeds; an error that cannot be known is left out, never made up; what is not done yet or has
failed is said.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dasm_ray.config.shown import several
from dasm_ray.config.study import Screened, Study
from dasm_ray.core.paired import BySeed, Mean, main_effects, paired, pooled
from dasm_ray.plain import Tree

MEASURES = ("validation", "test", "easy", "middle", "hard")
"""Accuracies of a training: of the split, and of the validation images by third of difficulty."""

LEGEND = (
    "Accuracies in %, mean ± standard deviation over distillation seeds, of each the mean over evaluation seeds. "
    "Differences in points, mean ± standard error over pairs at one distillation seed; ** where it is larger than two "
    "standard errors. Validation decides; test is read once a training, at the checkpoint that validation chose."
)
EFFECTS = (
    "Effect of a factor: points of high over low, ± standard error over distillation seeds; 'spare': the error that "
    "columns without a factor show."
)
COSTS = ("seconds", "class_steps", "images", "steps")
FEW_PAIRS = 5
"""Pairs below which two standard errors promise less than they seem to."""


@dataclass(frozen=True)
class Tried:
    """One arm at one size and distillation seed: its trainings, one an evaluation seed, or why it ``failed``.

    A training has ``seed``, ``step`` and the MEASURES that were asked for, as shares in [0, 1].
    """

    arm: str
    source: str
    labels: str
    ipc: int
    seed: int
    trainings: tuple[Tree, ...]
    steps: int
    seconds: float | None
    class_steps: int
    images: int
    digest: str
    folder: str | None
    failed: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that it was made with; {}: not kept

    def mean(self, measure: str) -> float | None:
        """The mean over evaluation seeds; None where the measure was not asked for."""
        values = [training.get(measure) for training in self.trainings]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None


# --- figures -----------------------------------------------------------------------------------------------------


def summary(study: Study, known: Sequence[Tried], tested: int) -> Tree:
    """All that a study says as plain values for JSON: shares in [0, 1] with all their digits, None where unknown."""
    return {
        "name": study.name,
        "data": study.config.data.name,
        "against": study.against,
        "seeds": list(study.seeds),
        "evaluation_seeds": study.config.evaluate.seeds,
        "tested": tested if study.reads_test else None,
        "arms": [_arm(study, arm.name, ipc, known) for ipc in study.ipcs for arm in study.arms],
        "effects": [effect for ipc in study.ipcs for effect in _effects(study, ipc, known)],
        "cautions": [
            *_cautions(study, known),
            *_of_unlike_work(study, known),
            *_of_lost_runs(study, known),
            *_of_unlike_versions(known),
        ],
        "failed": [
            f"{tried.arm} of {tried.ipc} at seed {tried.seed}: {tried.failed}" for tried in known if tried.failed
        ],
    }


def _arm(study: Study, name: str, ipc: int, known: Sequence[Tried]) -> Tree:
    mine = [tried for tried in known if (tried.arm, tried.ipc) == (name, ipc) and not tried.failed]
    against = study.against if study.against != name else None
    by_measure = {measure: _by_seed(known, name, ipc, measure) for measure in MEASURES}
    seconds = [tried.seconds for tried in mine if tried.seconds is not None]
    return {
        "arm": name,
        "ipc": ipc,
        "done": len(mine),
        **{measure: _level(values) for measure, values in by_measure.items()},
        "evaluation_std": _evaluation_std(mine),
        "differences": {
            measure: _as_json(paired(values, _by_seed(known, against, ipc, measure)))
            for measure, values in by_measure.items()
            if against is not None
        },
        "seconds": statistics.fmean(seconds) if seconds else None,
        "class_steps": mine[0].class_steps if mine else None,
        "images": mine[0].images if mine else None,
        "steps": mine[0].steps if mine else None,
    }


def _by_seed(known: Sequence[Tried], name: str, ipc: int, measure: str) -> BySeed:
    """The measure of an arm by distillation seed, where it is known."""
    means = {tried.seed: tried.mean(measure) for tried in known if (tried.arm, tried.ipc) == (name, ipc)}
    return {seed: value for seed, value in means.items() if value is not None}


def _level(values: BySeed) -> Tree | None:
    found = list(values.values())
    if not found:
        return None
    return {
        "mean": statistics.fmean(found),
        "std": statistics.stdev(found) if len(found) > 1 else None,
        "by_seed": {str(seed): value for seed, value in values.items()},
    }


def _evaluation_std(mine: Sequence[Tried]) -> float | None:
    """The standard deviation of validation accuracy over evaluation seeds, pooled over sets; None of one seed."""
    each = [[training["validation"] for training in tried.trainings] for tried in mine]
    variances = [statistics.variance(values) for values in each if len(values) > 1]
    return statistics.fmean(variances) ** 0.5 if variances else None


def _as_json(mean: Mean | None) -> Tree | None:
    return None if mean is None else {"mean": mean.value, "error": mean.error, "pairs": mean.pairs}


def _effects(study: Study, ipc: int, known: Sequence[Tried]) -> Iterator[Tree]:
    """What each factor of the screen does at a size, by every measure that is known."""
    screen = study.screen
    if screen is None:
        return
    found = {measure: _effects_on(screen, ipc, known, measure) for measure in MEASURES}
    for number, factor in enumerate(screen.factors):
        means = {measure: _as_json(effects[number]) for measure, (effects, _) in found.items()}
        if any(mean is not None for mean in means.values()):
            yield {"factor": factor, "ipc": ipc, **means, "spare": {m: spare for m, (_, spare) in found.items()}}


def _effects_on(
    screen: Screened, ipc: int, known: Sequence[Tried], measure: str
) -> tuple[list[Mean | None], float | None]:
    """The effect of every factor, and the error that columns without one show (None: there are none)."""
    runs = [_by_seed(known, name, ipc, measure) for name in screen.runs]
    if screen.kind == "leave_one_out":
        return [paired(runs[0], without) for without in runs[1:]], None
    effects, count = main_effects(screen.design, runs), len(screen.factors)
    return effects[:count], pooled([effect for effect in effects[count:] if effect is not None])


def _cautions(study: Study, known: Sequence[Tried]) -> Iterator[str]:
    """What keeps the figures from meaning much."""
    total = len(study.arms) * len(study.ipcs) * len(study.seeds)
    if len(known) < total:
        yield f"{len(known)} of {total} sets are done; the rest is missing here."
    if len(study.seeds) == 1:
        yield "One distillation seed: no difference has an error, and none is shown to be more than chance."
    elif len(study.seeds) < FEW_PAIRS:
        yield (
            f"{len(study.seeds)} distillation seeds: with so few pairs chance alone passes two standard errors more "
            f"often than one time in twenty; take {FEW_PAIRS} or more before a claim."
        )
    if study.config.evaluate.base_seed is not None and len(study.seeds) > 1:
        yield "All distillation seeds share the draws of their trainings (evaluate.base_seed): errors leave these out."


def _of_unlike_work(study: Study, known: Sequence[Tried]) -> Iterator[str]:
    """Arms that were given another number of matching steps than their opponent."""
    for ipc in study.ipcs:
        work = {tried.arm: tried.class_steps for tried in known if tried.ipc == ipc and tried.class_steps}
        unlike = [name for name, steps in work.items() if study.against in work and steps != work[study.against]]
        if unlike:
            size = several(ipc, "images")
            yield f"At {size} a class not as many class-steps as {study.against}: {', '.join(unlike)}."


def _of_lost_runs(study: Study, known: Sequence[Tried]) -> Iterator[str]:
    """Seeds at which a crossed screen has no effects, since each needs all runs of the design."""
    screen = study.screen
    if screen is None or screen.kind == "leave_one_out":
        return
    for ipc in study.ipcs:
        failed = [tried for tried in known if tried.failed and tried.ipc == ipc and tried.arm in screen.runs]
        if failed:
            left = len(set(study.seeds) - {tried.seed for tried in failed})
            kept = f"effects are of {several(left, 'seeds')} alone" if left else "there are no effects"
            names = ", ".join(dict.fromkeys(tried.arm for tried in failed))
            yield (
                f"At {several(ipc, 'images')} a class {kept}, since {names} failed, and an effect needs every run of "
                "the design."
            )


def _of_unlike_versions(known: Sequence[Tried]) -> Iterator[str]:
    """Packages of which several versions made these sets: last bits differ between them, and more may."""
    for package in sorted({package for tried in known for package in tried.versions}):
        found = sorted({tried.versions[package] for tried in known if package in tried.versions})
        if len(found) > 1:
            yield f"Made by {package} {' and '.join(found)}: pairs across versions may differ by more than their arms."


# --- drawing -----------------------------------------------------------------------------------------------------

Lines = list[list[str]]
"""The cells of a table, its headings first."""

SPLITS, BY_THIRD = MEASURES[:2], MEASURES[2:]


def tables(found: Tree) -> dict[str, Lines]:
    """The tables of a summary by their titles: of each size accuracies and costs, and the effects at last."""
    drawn: dict[str, Lines] = {}
    for ipc in dict.fromkeys(arm["ipc"] for arm in found["arms"]):
        arms, size = [arm for arm in found["arms"] if arm["ipc"] == ipc], f"{several(ipc, 'images')} a class"
        drawn[size] = _accuracies(found, arms, SPLITS)
        if any(arm[measure] is not None for arm in arms for measure in BY_THIRD):
            drawn[f"{size}, validation images by difficulty"] = _accuracies(found, arms, BY_THIRD)
        drawn[f"{size}, cost"] = _costs(arms)
    if found["effects"]:
        drawn["main effects"] = _effects_table(found)
    return drawn


def _accuracies(found: Tree, arms: Sequence[Tree], wanted: Sequence[str]) -> Lines:
    measures = [measure for measure in wanted if any(arm[measure] is not None for arm in arms)]
    compared = measures if found["against"] is not None else []
    is_first = tuple(wanted) == SPLITS
    seeds = ["seeds"] if is_first else []
    lines = [["arm", *seeds, *measures, *(f"Δ {measure}" for measure in compared)]]
    for arm in arms:
        levels = [_percent(arm[measure]) for measure in measures]
        gains = [_points(arm["differences"].get(measure)) for measure in compared]
        done = [f"{arm['done']}/{len(found['seeds'])}"] if is_first else []
        lines.append([arm["arm"], *done, *levels, *gains])
    return lines


def _costs(arms: Sequence[Tree]) -> Lines:
    """Of distilling a set; real images and starts cost nothing here."""
    headings = ["arm", "seconds", "class-steps", "images", "steps of a training"]
    return [headings, *([arm["arm"], *(_count(arm[name]) for name in COSTS)] for arm in arms)]


def _count(number: float | None) -> str:
    return f"{number:,.0f}" if number else "–"


def _effects_table(found: Tree) -> Lines:
    effects = found["effects"]
    measures = [measure for measure in MEASURES if any(effect[measure] is not None for effect in effects)]
    lines = [["factor", "ipc", *measures, *(f"spare, {measure}" for measure in measures)]]
    for effect in found["effects"]:
        spare = [effect["spare"][measure] for measure in measures]
        errors = ["" if error is None else f"{100 * error:.1f}" for error in spare]
        lines.append(
            [effect["factor"], str(effect["ipc"]), *(_points(effect[measure]) for measure in measures), *errors]
        )
    without = [column for column, cells in enumerate(zip(*lines[1:], strict=True)) if not any(cells)]
    return [[cell for column, cell in enumerate(line) if column not in without] for line in lines]


def _percent(level: Tree | None) -> str:
    if level is None:
        return "–"
    spread = "" if level["std"] is None else f" ± {100 * level['std']:.1f}"
    return f"{100 * level['mean']:.1f}{spread}"


def _points(found: Tree | None) -> str:
    """A difference in points with its error, marked where it is clear."""
    if found is None:
        return "–"
    mean = Mean(found["mean"], found["error"], found["pairs"])
    error = "" if mean.error is None else f" ± {100 * mean.error:.1f}"
    return f"{100 * mean.value:+.1f}{error}{' **' if mean.is_clear else ''}"


def title_of(found: Tree) -> str:
    """What the study is, in a line."""
    against = f"; Δ: less {found['against']}" if found["against"] is not None else ""
    return (
        f"{found['name']}: {found['data']}, {len(found['seeds'])} distillation × {found['evaluation_seeds']} "
        f"evaluation seeds{against}"
    )


def notes(found: Tree) -> list[str]:
    """What stands below the tables."""
    return [
        LEGEND,
        *([EFFECTS] if found["effects"] else []),
        *found["cautions"],
        *map("failed: {}".format, found["failed"]),
    ]


def markdown(found: Tree) -> str:
    """The summary as GitHub Markdown, ending in a newline."""
    parts = [f"# {title_of(found)}", ""]
    for title, lines in tables(found).items():
        rule = ["---" if column == 0 else "---:" for column in range(len(lines[0]))]
        drawn = [[cell.replace("|", "\\|").replace("**", "\\*\\*") for cell in line] for line in lines]
        parts += [f"## {title}", "", *("| " + " | ".join(line) + " |" for line in [drawn[0], rule, *drawn[1:]]), ""]
    return "\n".join([*parts, "\n\n".join(note.replace("**", "\\*\\*") for note in notes(found)), ""])


def render(found: Tree) -> RenderableType:
    """The summary for a terminal of 80 columns, a table a size."""
    drawn = [_drawn(title, lines) for title, lines in tables(found).items()]
    return Group(Text(title_of(found), style="bold"), *drawn, Text("\n".join(notes(found))))


def _drawn(title: str, lines: Lines) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for column, heading in enumerate(lines[0]):
        table.add_column(Text(heading), justify="right" if column else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*(Text(cell) for cell in line))
    return table
