"""The fair table: every way to a small set beside the others, trained alike, as mean ± std over seeds.

What must stay true: the terminal, the Markdown and the JSON show the same rows and the same figures and say how little
they may mean; a figure that cannot be known (the std of one seed, a gain over a row that is missing) is left out, never
made up.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import several, short
from dasm_ray.plain import Tree

HEADINGS = ("ipc", "network", "set", "labels", "seeds", "test", "validation", "IOR", "HLR", "ratio", "note")
WORDS = ("network", "set", "labels", "note")
LEGEND = (
    "Test accuracy in %, mean ± std over seeds, read once at the checkpoint that validation chose. "
    "IOR: points over random images with the same labels. HLR: points that hard labels stay below full data."
)


BEST = "selection: "
"""How the name of a row begins that is the best of several selections."""

OWN = "distilled"
"""What the row of a distilled set is called in its own table; of several arms of a study that it serves, `OWN: ARM`."""

FEW_IMAGES = 100
"""Test images below which a table says what one of them weighs."""


@dataclass(frozen=True)
class Row:
    """One set of images, trained on once a seed. Accuracies are shares in [0, 1]; only drawing makes them percent."""

    name: str
    accuracies: Sequence[float]  # test, one a seed
    validation: Sequence[float] = ()  # at the chosen checkpoint, one a seed
    labels: str = "hard"
    note: str = ""
    ipc: int | None = None  # where a table holds several sizes
    network: str = ""  # where it holds several architectures
    ratio: float | None = None  # bytes of the real set to bytes of this one, labels counted

    @property
    def mean(self) -> float:
        """Mean test accuracy over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for a single seed."""
        return _spread(self.accuracies)


def is_own(row: Row) -> bool:
    """Whether a row is of the distilled set that its table is about."""
    return row.name == OWN or row.name.startswith(f"{OWN}: ")


def ior(row: Row, rows: Sequence[Row]) -> float | None:
    """acc(S) - acc(random, same labels); None for the random and the full row, and where there is no such row."""
    baseline = _find(rows, "random", row.labels, row.network, row.ipc)
    return None if baseline is None or row.name in ("random", "full") else row.mean - baseline.mean


def hlr(row: Row, rows: Sequence[Row]) -> float | None:
    """acc(full) - acc(S, hard labels); None for the full row, for soft labels, and where there is no full row."""
    full = _find(rows, "full", "hard", row.network)
    return None if full is None or row.name == "full" or row.labels != "hard" else full.mean - row.mean


def cautions(rows: Sequence[Row], tested: int | None) -> list[str]:
    """What is to be known before anyone believes the figures.

    ``tested`` images are few (None: not known how many), there is one seed, or real images do as well.
    """
    said = []
    if tested is not None and tested < FEW_IMAGES:
        said.append(
            f"The test set has {several(tested, 'images')}: a figure moves by {100 / tested:.1f} points with each."
        )
    alone = dict.fromkeys(row.name for row in rows if len(row.accuracies) == 1)
    whose = "" if all(len(row.accuracies) == 1 for row in rows) else f" of {', '.join(alone)}"
    said += [f"One seed{whose}: no spread is known."] if alone else []
    against = (one(made, rows) for made in rows for one in (_against_its_start, _against_the_chosen))
    return said + [sentence for sentence in against if sentence]


def best_selection(made: Row, rows: Sequence[Row]) -> Row | None:
    """Of the sets of real images that were chosen for the same size, labels and network, the one validation prefers."""
    chosen = [row for row in rows if selection_of(row) in SELECTIONS and _is_beside(row, made)]
    return max(chosen, key=lambda row: statistics.fmean(row.validation or row.accuracies), default=None)


def _against_the_chosen(made: Row, rows: Sequence[Row]) -> str:
    """Empty where ``made`` is no distilled set, or is above the best selection by two standard errors."""
    is_made = selection_of(made) not in ("random", "initial", "full", *SELECTIONS)
    best = best_selection(made, rows) if is_made else None
    if best is None:
        return ""
    gain, seeds = made.mean - best.mean, min(len(made.accuracies), len(best.accuracies))
    chosen, where = selection_of(best), _where(made, rows)
    ours, theirs = f"{100 * made.mean:.1f}", f"{100 * best.mean:.1f}"
    if gain <= 0:
        return (
            f"{chosen} does at least as well as {made.name}{where}, {theirs} against {ours}: choosing takes seconds, "
            f"so take it."
        )
    error = math.hypot(made.std or 0.0, best.std or 0.0) / math.sqrt(seeds)
    if gain < 2 * error:
        return (
            f"{made.name} is not shown to be above {chosen}{where}, {ours} against {theirs}: the gain is under two "
            f"errors."
        )
    return ""


def _against_its_start(made: Row, rows: Sequence[Row]) -> str:
    """Empty unless ``made`` is a distilled set that the real images it began as equal."""
    start = _find(rows, "initial", made.labels, made.network, made.ipc)
    if made.name != "distilled" or start is None or made.mean > start.mean:
        return ""
    return (
        f"initial, the real images that distilled starts as, does at least as well{_where(made, rows)}, "
        f"{100 * start.mean:.1f} against {100 * made.mean:.1f}: matching takes away; try a smaller rate of the pixels."
    )


def _where(made: Row, rows: Sequence[Row]) -> str:
    """What tells this row of a set from its others, in brackets: network, size, and labels where it has both kinds."""
    kinds = {row.labels for row in rows if row.name == made.name}
    size = "" if made.ipc is None else f"{several(made.ipc, 'images')} a class"
    told_by = _join(made.network, size, f"{made.labels} labels" if len(kinds) > 1 else "")
    return f" ({told_by})" if told_by else ""


def render(rows: Sequence[Row], title: str = "", tested: int | None = None) -> RenderableType:
    """The table for a terminal of 80 columns, or one for every size and network; notes stand below, where is room.

    ``tested``: images of the test set.
    """
    notes = dict.fromkeys(f"{row.name}, {row.labels} labels: {row.note}" for row in rows if row.note)
    caption = Text("\n".join([LEGEND, *cautions(rows, tested), *notes]))
    groups = _groups(rows)
    if len(groups) <= 1:
        return _drawn(rows, rows, title, ("ipc", "network", "note"), caption)
    left_out = ("ipc", "network", "note", "seeds", "validation")
    tables = [_drawn(group, rows, _join(title, name), left_out) for name, group in groups.items()]
    return Group(*tables, caption)


def grid(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[float]]], caption: str) -> Table:
    """Accuracies, one a seed, by row and column, as a table of mean ± std."""
    if any(len(cell) == 1 for cells in rows.values() for cell in cells):
        caption += " One seed: no spread is known."
    table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, cells in rows.items():
        table.add_row(name, *(_mean_and_spread(cell) for cell in cells))
    return table


def _drawn(
    part: Sequence[Row], rows: Sequence[Row], title: str, left_out: Sequence[str], caption: Text | None = None
) -> Table:
    """Some of the ``rows`` as a table."""
    table = Table(title=Text(title) if title else None, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    shown = [heading for heading in _shown(rows) if heading not in left_out]
    for heading in shown:
        table.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=heading not in WORDS)
    for row in part:
        cells = _cells_of(row, rows)
        table.add_row(*(Text(cells[heading]) for heading in shown), style="bold" if row.name == "distilled" else None)
    return table


def told(row: Row) -> tuple[str, str]:
    """A row in two texts: of which set, and its test accuracy in %."""
    labels = f", {row.labels} labels" if row.labels != "hard" else ""
    return f"{row.name}{labels}", _mean_and_spread(row.accuracies)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one size and network, by what tells them apart; the full data stand with every size."""
    sizes = {(row.network, row.ipc): None for row in rows if row.name != "full"}
    names = {key: _join(key[0], "" if key[1] is None else f"{several(key[1], 'images')} a class") for key in sizes}
    return {
        name: [row for row in rows if row.network == network and (row.ipc == ipc or row.name == "full")]
        for (network, ipc), name in names.items()
    }


def _join(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def markdown(rows: Sequence[Row], title: str = "", tested: int | None = None) -> str:
    """The table as GitHub Markdown, ending in a newline; ``tested``: images of the test set."""
    shown = _shown(rows)
    rule = ["---" if heading in WORDS else "---:" for heading in shown]
    body = [[cells[heading].replace("|", "\\|") for heading in shown] for cells in _cells(rows)]
    lines = ["| " + " | ".join(line) + " |" for line in (list(shown), rule, *body)]
    return "\n".join(
        [*([f"## {title}", ""] if title else []), *lines, "", "\n\n".join([LEGEND, *cautions(rows, tested)]), ""]
    )


def as_json(rows: Sequence[Row], title: str = "", tested: int | None = None) -> Tree:
    """The table as plain values for ``json.dumps``: shares in [0, 1] with all their digits, None where unknown."""
    return {
        "title": title,
        "tested": tested,
        "cautions": cautions(rows, tested),
        "rows": [
            {
                "name": row.name,
                "labels": row.labels,
                "note": row.note,
                "accuracies": list(row.accuracies),
                "validation": list(row.validation),
                "mean": row.mean,
                "std": row.std,
                "ior": ior(row, rows),
                "hlr": hlr(row, rows),
                "ipc": row.ipc,
                "network": row.network,
                "ratio": row.ratio,
            }
            for row in rows
        ],
    }


def from_json(table: Tree) -> list[Row]:
    """The rows of a table that ``as_json`` wrote."""
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


def as_cells(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The headings under which some row says something, and the cells of each row under them."""
    shown = _shown(rows)
    return shown, [[cells[heading] for heading in shown] for cells in _cells(rows)]


def _cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [_cells_of(row, rows) for row in rows]


def _cells_of(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    return {
        "ipc": "" if row.ipc is None else str(row.ipc),
        "network": row.network,
        "set": row.name,
        "labels": row.labels,
        "seeds": str(len(row.accuracies)),
        "test": _mean_and_spread(row.accuracies),
        "validation": _mean_and_spread(row.validation),
        "IOR": _points(ior(row, rows)),
        "HLR": _points(hlr(row, rows)),
        "ratio": "" if row.ratio is None else short(row.ratio),
        "note": row.note,
    }


def _shown(rows: Sequence[Row]) -> tuple[str, ...]:
    """The headings under which some row says something."""
    filled = {heading for cells in _cells(rows) for heading, cell in cells.items() if cell not in ("", "–")}
    return tuple(heading for heading in HEADINGS if heading in filled)


def _mean_and_spread(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "–"
    spread = _spread(accuracies)
    mean = f"{100 * statistics.fmean(accuracies):.1f}"
    return mean if spread is None else f"{mean} ± {100 * spread:.1f}"


def _spread(accuracies: Sequence[float]) -> float | None:
    return statistics.stdev(accuracies) if len(accuracies) > 1 else None


def _points(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.1f}"


def selection_of(row: Row) -> str:
    """The row's name; the way that real images were chosen, where it stands for the best of several."""
    return row.name.removeprefix(BEST)


def _is_beside(row: Row, made: Row) -> bool:
    return (row.labels, row.network, row.ipc) == (made.labels, made.network, made.ipc)


def _find(rows: Sequence[Row], name: str, labels: str, network: str, ipc: int | None = None) -> Row | None:
    wanted = (name, labels, network, ipc)
    return next((row for row in rows if (row.name, row.labels, row.network, row.ipc) == wanted), None)
