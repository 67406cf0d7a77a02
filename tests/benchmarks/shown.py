"""What was measured, in figures and as lines of a table.

What must stay true: a ratio is the median of those of pairs, each of two calls made one after the other, and its spread
is that of all pairs: the least and the most.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import spent

Outcome = Mapping[str, Any]

COLUMNS = (
    # the width of each column, and the two lines above it
    (12, "row", ""),
    (8, "width", ""),
    (24, "ours: CPU s (a second)", ""),
    (9, "twin: s", ""),
    (19, "twin / ours, CPU", "same allocator"),
    (19, "plain twin / ours", "as users start it"),
    (15, "wall, both", "same / as users"),
    (17, "memory MiB", "ours / twin"),
    (11, "of limit %", "ours / twin"),
    (8, "differ", ""),
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def figures(samples: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """What the samples of a row say: seconds of each form, and ratios of pairs to ours.

    Each sample holds what one call of ``ours``, ``twin`` (in the same process) and ``plain`` (the twin in a process of
    its own, as a user starts it) took, one after another.
    """
    forms = {form: {key: spread([s[form][key] for s in samples]) for key in samples[0][form]} for form in samples[0]}
    ratios = {
        f"{form}_{clock}": spread([s[form][clock] / s["ours"][clock] for s in samples])
        for form in ("twin", "plain")
        for clock in ("cpu", "wall")
    }
    return {"forms": forms, "ratios": ratios}


def head() -> str:
    """The lines above the table."""
    return "\n".join(_line([column[place] for column in COLUMNS]) for place in (1, 2))


def line(outcome: Outcome) -> str:
    """One row of the table, or why there is none."""
    name, width = outcome["row"], _width(outcome)
    if "failed" in outcome:
        return f"{_line((name, width))} could not be measured: {outcome['failed']}"
    ours, twin = (outcome["forms"][form]["cpu"]["median"] for form in ("ours", "twin"))
    ratios = outcome["ratios"]
    return _line(
        (
            name,
            width,
            f"{ours:.3f} ({outcome['units'] / ours:,.0f} {outcome['unit']})",
            f"{twin:.3f}",
            _ratio(ratios["twin_cpu"]),
            _ratio(ratios["plain_cpu"]),
            f"{ratios['twin_wall']['median']:.2f} / {ratios['plain_wall']['median']:.2f}",
            _both(outcome["memory"], _bytes),
            _both(shares(outcome), lambda share: "–" if share is None else f"{100 * share:.0f}"),
            f"{outcome['differ']:.0e}",
        )
    )


def shares(outcome: Outcome) -> dict[str, float | None]:
    """Of the fp32 limit of convolutions, by the FLOP of the twin; None where a row has next to none."""
    limit, work = outcome["limit"], outcome["work"]
    seconds = {form: outcome["forms"][form]["cpu"]["median"] for form in ("ours", "twin")}
    return {form: work / took / limit if work and outcome["width"] else None for form, took in seconds.items()}


def where_time_goes(outcomes: Iterable[Outcome]) -> str:
    """By row, the shares of ours, and what the ratio would be if only convolutions and products took time."""
    with_shares = [outcome for outcome in outcomes if "spent" in outcome and outcome["width"]]
    kinds = (*spent.KINDS, spent.REST)
    widths = (*(width for width, _, _ in COLUMNS[:2]), *(len(kind) for kind in kinds), 0)
    lines = [("", "", *kinds, "ratio to a plain twin, if convolutions and products were all")]
    for outcome in with_shares:
        found, ratio = outcome["spent"], outcome["ratios"]["plain_cpu"]["median"]
        told = (f"{100 * found[kind]:.0f} %" for kind in kinds)
        lines.append((outcome["row"], _width(outcome), *told, f"{ratio:.2f} → {spent.bound(found, ratio):.2f}"))
    text = ("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in lines)
    return "\n".join(["Where ours takes its time:", *(line.rstrip() for line in text)]) if with_shares else ""


def told(outcome: Outcome) -> str:
    """A row that is no pair of calls, on one line: the demo by stage, or a row of the runtime."""
    if "failed" in outcome:
        return f"{outcome['row']} could not be measured: {outcome['failed']}"
    match outcome["row"]:
        case "coordinator":
            return (
                f"coordinator with one worker / a bare loop of core calls: CPU {_ratio(outcome['ratios']['cpu'])}, "
                f"wall {_ratio(outcome['ratios']['wall'])}; pixels differ by {outcome['differ']:.0e}"
            )
        case "workers":
            return (
                f"two workers of one thread, times as fast as one: wall {_ratio(outcome['ratios']['wall'])}, where "
                f"two that share nothing are {_ratio(outcome['ratios']['apart'])}; pixels differ by "
                f"{outcome['differ']:.0e}"
            )
        case "rounds":
            return "a round, CPU seconds: " + ", ".join(
                f"{name} {seconds['median']:.3f}" for name, seconds in outcome["rounds"].items()
            )
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome["stages"].items())
    return (
        f"demo, wall seconds: {outcome['seconds']:.1f} in all; until the first stage {outcome['start']:.1f}, {stages}"
    )


def _width(outcome: Outcome) -> str:
    return str(outcome["width"] or "–") + " bf16" * (outcome.get("precision") == "bf16")


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(column[0]) for cell, column in zip(cells, COLUMNS, strict=False)).rstrip()


def _ratio(of: Mapping[str, float]) -> str:
    return f"{of['median']:.2f} ({of['least']:.2f}–{of['most']:.2f})"


def _both(of: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    return f"{text(of['ours'])} / {text(of['twin'])}"


def _bytes(of: Mapping[str, int] | None) -> str:
    if of is None:
        return "–"
    return f"> {of['more_than'] >> 20:,}" if "more_than" in of else f"{of['added'] / 2**20:,.0f}"
