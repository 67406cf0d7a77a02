"""What an audit found, as tables and words: for the terminal, for a file and for a page.

What must stay true: a figure stands with its error, beside what guessing and what real images would get; and what the
audit does not prove is said each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from dasm_ray.plain import Tree
from dasm_ray.report.wording import grid, number

ATTACKS = {
    "loss": "by loss",
    "calibrated": "calibrated",
    "distance in pixels": "by pixels",
    "distance in features": "by features",
}
"""The attacks, as a heading says them."""

GROUPS = {"copied": "copied into it", "started from": "it started from"}
"""Training images that a set has more to do with than with others."""

SAID = {"copied": "that were copied into it", "started from": "that it started from"}

AREAS = "Who took part: area under the ROC curve, 50 = guessing"
DISTANCES = "How near: root mean square difference to the nearest real image, median (least)"

ONLY_THESE = (
    "An area of 50 says that these attacks cannot tell who took part, not that none can: nobody trained sets on halves "
    "of the data to attack this one, and a single image may be betrayed where the mean is not. It is no guarantee such "
    "as differential privacy gives, and labels, class names and counts are told openly."
)


OWN = "distilled"
"""The set that the audit is of, among its sets."""


def _sets(found: Tree, own: str) -> Iterator[tuple[str, Tree]]:
    """The sets of an audit by what they are called."""
    yield from ((own if name == OWN else name, of_set) for name, of_set in found["sets"].items())


def area_text(attack: Tree | None) -> str:
    """An area in % with its standard error."""
    if attack is None:
        return "–"
    error = "" if attack["error"] is None else f" ± {100 * attack['error']:.1f}"
    return f"{100 * attack['value']:.1f}{error}"


def area_grid(found: Tree, own: str = OWN) -> list[list[str]]:
    """Headings and rows: a column for each set, and for each group of images beside that of its set.

    ``own``: what the set itself is called.
    """
    columns = [["networks on", "who took part", *ATTACKS.values(), *(f"{words}, %" for words in BELOW)]]
    for name, of_set in _sets(found, own):
        who = "the chosen" if name == "random" else "all training"
        columns.append([name, who, *_areas(of_set["attacks"]), *_right(of_set)])
        columns += [
            [name, f"{number(of_set[group]['images'])} {words}", *_areas(of_set[group]["attacks"]), "", ""]
            for group, words in GROUPS.items()
            if group in of_set
        ]
    return [list(row) for row in zip(*columns, strict=True)]


BELOW = ("caught at 1 % false", "right of training", "right of held-out")


def _areas(attacks: Tree) -> list[str]:
    caught = (attacks["calibrated"] or {}).get("caught")
    return [*(area_text(attacks.get(name)) for name in ATTACKS), "–" if caught is None else f"{100 * caught:.1f}"]


def _right(of_set: Tree) -> list[str]:
    """In % of the images; an audit kept before that was counted does not know it."""
    shares = of_set.get("right")
    return [f"{100 * shares[side]:.1f}" if shares else "–" for side in ("training", "held_out")]


def distance_grid(found: Tree, own: str = OWN) -> list[list[str]]:
    """Headings and rows: a column for each set that has images, and one for what is usual between real images."""
    columns = [["images of", "images", "copies", *PLACES, "nearer to training, %"]]
    for name, of_set in _sets(found, own):
        if "distances" in of_set:
            near = of_set["distances"]
            spreads = [
                _spread(near[kind][side]) for kind in ("pixels", "features") for side in ("training", "held_out")
            ]
            nearer = area_text(near["pixels"]["nearer_to_training"])
            columns.append([name, number(of_set["images"]), number(of_set["copies"]), *spreads, nearer])
    usual = [_spread(found["usual"][kind]) for kind in ("pixels", "features")]
    columns.append(["held-out", "", "", usual[0], "", usual[1], "", ""])
    return [list(row) for row in zip(*columns, strict=True)]


PLACES = ("pixels, to training", "pixels, to held-out", "features, to training", "features, to held-out")


def _spread(spread: Tree) -> str:
    """The median and the least distance; what single precision leaves of 0 is 0."""
    median, least = (0.0 if spread[name] < ROUNDING else spread[name] for name in ("median", "least"))
    return f"{median:.3g} ({least:.3g})"


ROUNDING = 1e-6
"""Below this a distance of features, which are of the order of one, is that of equal images."""


def words(found: Tree) -> Iterator[str]:
    """What it comes to, and what it does not prove: a sentence each."""
    own, training, held_out = found["sets"][OWN], number(found["training"]), number(found["held_out"])
    yield f"Held against {training} training images, and {held_out} held-out ones that nothing here was made from."
    if own["copies"]:
        copies = "is a copy of a training image" if own["copies"] == 1 else "are copies of training images"
        yield f"{number(own['copies'])} of its {number(own['images'])} images {copies}."
    else:
        yield f"None of its {number(own['images'])} images is a copy of a training image."
    clear = _clear(own["attacks"])
    told = f"The attack{'s' * (len(clear) > 1)} {_listed(clear)} tell{'s' * (len(clear) == 1)}" if clear else ""
    better = "training images from held-out ones better than guessing"
    yield f"{told} {better}, by more than two standard errors." if clear else f"No attack tells {better}."
    for group in GROUPS:
        clear = _clear(own.get(group, {}).get("attacks", {}))
        if clear:
            yield f"Training images {SAID[group]} are told apart: {_listed(clear)}."
    yield ONLY_THESE


def _clear(attacks: Tree) -> list[str]:
    """The attacks whose area is more than two errors above guessing, each with it."""
    found = {name: attacks.get(name) for name in ATTACKS}
    return [
        f"{ATTACKS[name]} ({100 * attack['value']:.0f} %)"
        for name, attack in found.items()
        if attack is not None and attack["error"] is not None and attack["value"] - 0.5 > 2 * attack["error"]
    ]


def _listed(names: Sequence[str]) -> str:
    """The names as a sentence has them."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def terminal(found: Tree) -> list[Table]:
    """Both tables for the terminal."""
    return [_table(AREAS, area_grid(found)), _table(DISTANCES, distance_grid(found))]


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def markdown(found: Tree) -> str:
    """Tables and words as a file."""
    parts = []
    for title, (headings, *rows) in ((AREAS, area_grid(found)), (DISTANCES, distance_grid(found))):
        lines = [f"{title}\n", f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join([*parts, *words(found)]) + "\n"


def section(found: Tree, selection: str = "") -> Tree:
    """Tables and words for a page: of the set itself, or of a selection of real images by its name."""
    own, suffix = (selection, f"; chosen by {selection}") if selection else (OWN, "")
    drawn = {AREAS: area_grid(found, own), DISTANCES: distance_grid(found, own)}
    grids = [grid(f"{title}{suffix}", rows[0], rows[1:]) for title, rows in drawn.items()]
    return {
        "title": f"Real images chosen by {selection}" if selection else "",
        "grids": grids,
        "says": list(words(found)),
    }
