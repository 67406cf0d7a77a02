"""Figures of a page: Matplotlib's SVG, in the colours and the type of the page that they stand in.

What must stay true: a figure has no colour of its own, so that it is read in the light and in the dark; it names no
place outside the page; and the same figures give the same bytes.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.shown import several
from dasm_ray.plain import Tree
from dasm_ray.report.chronicle import Stage, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "accent": "#010206",
    "second": "#010207",
    "bad": "#010208",
    "soft": "#010209",
    "paper": "#01020a",
}
"""Colours that stand for those of the page until the figure is drawn."""

INK, MUTED, LINE, ACCENT, SECOND, BAD, SOFT, PAPER = COLOURS.values()

STYLE: Tree = {
    "svg.fonttype": "none",  # text stays text, in the type of the page
    "svg.hashsalt": "dasm_ray",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

WIDTH = 4.6
"""Inches of a figure: a telephone shows it a little larger, so that its letters are read there."""

MOST_CLASSES = 24
"""Classes that a figure tells apart by name; of more, the ones with the largest figures."""

NAMES_A_LINE = 3
"""Names of series beside one another, above a figure."""

Draw = Callable[["Axes"], None]


def svg(draw: Draw, height: float, says: str) -> str:
    """A figure of WIDTH x ``height`` inches as SVG to be put into a page; ``says`` is read to who does not see it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class may be named in letters that Matplotlib's own type lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return at_home(out.getvalue(), says)


def at_home(drawn: str, says: str) -> str:
    """Matplotlib's SVG as part of a page: no head, names or style of its own, colours as variables."""
    body = drawn[drawn.index("<svg ") :]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    inside = body[body.index(">") + 1 :]
    box = re.search(r'viewBox="([\d. ]+)"', body)
    assert box is not None
    inside = _renamed(inside, f"f{zlib.crc32(body.encode()):x}")
    inside = re.sub(r'style="[^"]*"', _in_colours_of_the_page, inside)
    inside = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", inside)
    return f'<svg class="figure" viewBox="{box[1]}" role="img" aria-label="{html.escape(says)}">{inside}'


def named_by(key: str, drawn: str) -> str:
    """A figure whose names begin with ``key``: two runs may have the same figure on one page."""
    return re.sub(r'(id="|href="#|url\(#)(f[0-9a-f]+-)', rf"\1{key}-\2", drawn)


def _in_colours_of_the_page(style: re.Match[str]) -> str:
    written = style[0]
    for name, value in COLOURS.items():
        written = written.replace(value, f"var(--{name})")
    return written


def _renamed(inside: str, prefix: str) -> str:
    """Without names that nothing refers to; the others are the figure's own."""
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', inside))
    inside = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", inside)
    return re.sub(r'(href="#|url\(#)([\w.-]+)', rf"\1{prefix}-\2", inside)


# --- accuracies --------------------------------------------------------------------------------------------------


def accuracies(rows: Sequence[tuple[str, float, float | None, bool]]) -> str:
    """Rows of a table: name, mean and spread in %, and whether it is the one that the page is about."""

    def draw(axes: Axes) -> None:
        for y, (_, mean, spread, is_own) in enumerate(rows):
            colour = ACCENT if is_own else MUTED
            if spread:
                axes.plot([mean - spread, mean + spread], [y, y], color=colour, linewidth=2, alpha=0.5)
            axes.plot([mean], [y], "o", color=colour, markersize=7 if is_own else 5)
            label = f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"
            axes.annotate(
                label, (mean + (spread or 0), y), (8, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low = min(mean - (spread or 0) for _, mean, spread, _ in rows)
        high = max(mean + (spread or 0) for _, mean, spread, _ in rows)
        axes.set_xlim(max(0, low - 3), high + max(6.0, (high - low) * 0.3))
        axes.set_xticks([tick for tick in axes.get_xticks() if low - 3 <= tick <= min(100, high + 3)])
        axes.set_xlabel("test accuracy, %")
        axes.spines["left"].set_visible(False)

    said = "; ".join(f"{name} {mean:.1f} %" for name, mean, _, _ in rows)
    return svg(draw, 0.75 + 0.32 * len(rows), f"Test accuracy of networks trained on each set: {said}")


def differences(rows: Sequence[tuple[str, float, float | None]], what: str) -> str:
    """Arms of a study: name, gain in points and its standard error; what is clear of zero stands out."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=LINE, linewidth=1)
        for y, (_, gain, error) in enumerate(rows):
            colour = ACCENT if error is not None and abs(gain) > 2 * error else MUTED
            if error:
                axes.plot([gain - 2 * error, gain + 2 * error], [y, y], color=colour, linewidth=2, alpha=0.5)
            axes.plot([gain], [y], "o", color=colour, markersize=6)
            end = gain + 2 * (error or 0)
            axes.annotate(f"{gain:+.1f}", (end, y), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.set_xlabel("points")
        axes.spines["left"].set_visible(False)

    said = "; ".join(f"{name} {gain:+.1f}" for name, gain, _ in rows)
    return svg(draw, 0.75 + 0.32 * len(rows), f"{what}: {said}")


def _legible(name: str) -> str:
    """A name for a legend, which leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def against(
    series: Mapping[str, Sequence[tuple[float, float, float | None]]], x: str, levels: Mapping[str, float], what: str
) -> str:
    """Accuracy in % against something that is counted: points (x, mean, spread) by series, and level lines by name."""

    def draw(axes: Axes) -> None:
        for (name, points), style in zip(series.items(), _styles(), strict=False):
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            axes.errorbar(
                xs, ys, [point[2] or 0 for point in points], label=_legible(name), markersize=5, elinewidth=1.2, **style
            )
        for name, level in levels.items():
            axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(name, (1, level), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=8, color=MUTED)  # fmt: skip
        values = sorted({point[0] for points in series.values() for point in points})
        if values[0] > 0 and values[-1] / values[0] >= 8:
            axes.set_xscale("log")
        if len(values) <= 8 and all(value == int(value) for value in values):  # numbers of images, not of seconds
            axes.set_xticks(values, [f"{value:.0f}" for value in values])
            axes.minorticks_off()
        axes.margins(x=0.12, y=0.15)
        axes.set_xlabel(x)
        axes.set_ylabel("test accuracy, %")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        _legend_above(axes)

    said = "; ".join(
        f"{name}: " + ", ".join(f"{mean:.1f} % at {at:g}" for at, mean, _ in points) for name, points in series.items()
    )
    lines = math.ceil(len(series) / NAMES_A_LINE)
    return svg(draw, 3.2 + 0.17 * max(0, lines - 6), f"{what}. {said}")


def _styles() -> Iterator[Tree]:
    """Ways to draw one series after another: two colours and grey, then other marks, then hollow ones and other lines.

    They begin anew after 72, since no series may be left out.
    """
    for fill, line in itertools.cycle((("full", "-"), ("none", "--"), ("left", ":"), ("top", "-."))):
        for marker in "osD^vP":
            for colour in (ACCENT, SECOND, MUTED):
                yield {"color": colour, "marker": marker, "linewidth": 1.4, "fillstyle": fill, "linestyle": line}


# --- difficulty --------------------------------------------------------------------------------------------------


def window_paths(shares: NDArray[np.float64]) -> str:
    """The window of each segment over all real images from easy to hard: ``shares`` (segments, bins) in [0, 1]."""
    segments, bins = shares.shape

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 100, bins + 1)
        for segment, of_bins in enumerate(shares):
            for left, right, share in zip(edges[:-1], edges[1:], of_bins, strict=True):
                axes.fill_between(
                    [left, right], segment - 0.4, segment + 0.4, color=ACCENT, alpha=float(share), linewidth=0
                )
            axes.plot([0, 100, 100, 0, 0], segment + np.array([-0.4, -0.4, 0.4, 0.4, -0.4]), color=LINE, linewidth=0.8)
            if of_bins.sum() > 0:
                middle = float((of_bins * (edges[:-1] + edges[1:]) / 2).sum() / of_bins.sum())
                axes.plot([middle], [segment], "|", color=INK, markersize=14, markeredgewidth=1.6)
        axes.set_yticks(range(segments), [f"segment {segment + 1}" for segment in range(segments)])
        axes.set_ylim(segments - 0.45, -0.55)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100], ["easiest", "25 %", "50 %", "75 %", "hardest"])
        axes.set_xlabel("real images of each class by difficulty under the experts")
        axes.spines[["left", "bottom"]].set_visible(False)

    said = ", ".join(f"segment {k + 1} sees {of.mean():.0%} of the images" for k, of in enumerate(shares))
    return svg(draw, 0.85 + 0.42 * min(segments, 14), f"Which real images each segment may see: {said}")


def difficulty(dynamic: NDArray[np.float64], in_window: NDArray[np.bool_], segment: int) -> str:
    """How hard every real image is under the probe before ``segment``, and which of them the segment may see."""

    def draw(axes: Axes) -> None:
        top = max(float(np.quantile(dynamic, 0.99)), float(dynamic.min()) + 1e-9)
        edges = np.linspace(float(dynamic.min()), top, 41)
        clipped = np.minimum(dynamic, top)
        every, seen = (np.histogram(part, edges)[0] for part in (clipped, clipped[in_window]))
        width = np.diff(edges)
        axes.bar(edges[:-1], every, width, align="edge", color=SOFT, label="all real images")
        axes.bar(edges[:-1], seen, width, align="edge", color=ACCENT, label="in the window")
        axes.set_ylabel("images")
        axes.set_xlabel("difficulty under the probe (the last bar holds all beyond)")
        _legend_above(axes)

    said = f"{len(dynamic)} real images, {in_window.mean():.0%} of them in the window of segment {segment + 1}"
    return svg(draw, 2.0, f"Difficulty of all real images before segment {segment + 1}: {said}")


def still_wrong(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    """What the probe gets wrong of every class before each segment: ``shares`` (segments, classes) in [0, 1]."""
    shown = sorted(np.argsort(-shares[-1], kind="stable")[:MOST_CLASSES].tolist())

    def draw(axes: Axes) -> None:
        for y, label in enumerate(shown):
            mine = 100 * shares[:, label]
            axes.plot([mine.min(), mine.max()], [y, y], color=LINE, linewidth=1.5, zorder=1)
            for segment, share in enumerate(mine):
                is_last = segment == len(mine) - 1
                strength = 1.0 if is_last else 0.45 + 0.35 * segment / max(len(mine) - 1, 1)
                name = f"before segment {segment + 1}" if y == 0 and segment in (0, len(mine) - 1) else None
                colour = ACCENT if is_last else MUTED
                axes.plot([share], [y], "o", color=colour, alpha=strength, markersize=5.5, label=name)
        axes.set_yticks(range(len(shown)), [_short(names[label]) for label in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("training images that the probe gets wrong, %")
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        _legend_above(axes)

    said = ", ".join(f"{names[label]} {shares[-1, label]:.0%}" for label in shown)
    return svg(
        draw, 1.0 + 0.22 * len(shown), f"Share of each class that the probe gets wrong before the last segment: {said}"
    )


def _legend_above(axes: Axes) -> None:
    """The legend where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=NAMES_A_LINE, borderpad=0, handlelength=1.2)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


# --- on the way --------------------------------------------------------------------------------------------------


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, what: str, *, is_log: bool = False
) -> str:
    """Curves by name, the later the stronger."""

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(series.items()):
            strength = 1.0 if len(series) == 1 else 0.45 + 0.55 * place / (len(series) - 1)
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            mark = "o" if len(points) < 12 else ""
            axes.plot(
                xs, ys, color=ACCENT, alpha=strength, linewidth=1.6, marker=mark, markersize=3.5, label=_legible(name)
            )
        if is_log:
            axes.set_yscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.locator_params(axis="x", integer=True)
        if 1 < len(series) <= 6:
            _legend_above(axes)

    said = "; ".join(
        f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in series.items() if points
    )
    return svg(draw, 2.6, f"{what}: {said}")


BANDS = (0.25, 0.45)
"""How strong the bars of stages are, in turn: weak enough for names to be read on them in the dark."""


def timeline(work: Sequence[Work], stages: Sequence[Stage], resumed: Sequence[float], seconds: float) -> str:
    """Who did what when: a line a worker, or the stages alone where the log names no worker; what was lost is red."""
    rows = sorted({task.worker for task in work})
    unit, size = unit_of(seconds)

    def bar(axes: Axes, start: float, end: float, y: float, colour: str, alpha: float, height: float = 0.62) -> None:
        axes.barh(y, max((end - start) / size, 0.002 * seconds / size), height, start / size, color=colour, alpha=alpha)

    def draw(axes: Axes) -> None:
        for place, stage in enumerate(stages):
            bar(axes, stage.start, stage.end, 0, SECOND, BANDS[place % 2])
            if stage.end - stage.start > 0.09 * seconds:
                middle = (stage.start + stage.end) / 2 / size
                axes.annotate(stage.name, (middle, 0), ha="center", va="center", fontsize=7.5, color=INK)
        for task in merged(work, seconds):
            place = rows.index(task.worker) + 1
            bar(axes, task.start, task.end, place, BAD if task.lost else ACCENT, 0.95 if task.lost else 0.6)
        for at in resumed:
            axes.axvline(at / size, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(rows) + 1), ["stages", *(f"worker {row}" for row in rows)])
        axes.set_ylim(len(rows) + 0.5, -0.5)
        axes.set_xlim(0, max(seconds / size, 1e-9))
        axes.set_xlabel(f"{unit} of work")
        axes.spines["left"].set_visible(False)

    lost = sum(bool(task.lost) for task in work)
    said = (
        f"{several(len(work), 'tasks')} on {several(len(rows), 'workers')}, {lost} of them lost"
        if work
        else f"{several(len(stages), 'stages')}"
    )
    return svg(draw, 0.8 + 0.34 * (1 + min(len(rows), 24)), f"Who did what when: {said}")


MOST_BARS = 2000


def merged(work: Sequence[Work], seconds: float) -> list[Work]:
    """Tasks as bars that can be told apart, lost ones last: those of a worker that follow closely are one bar."""
    least = seconds * len({task.worker for task in work}) / MOST_BARS
    bars: list[Work] = []
    for task in sorted(work, key=lambda task: (bool(task.lost), task.worker, task.start)):
        last = bars[-1] if bars else None
        follows = last is not None and (last.worker, bool(last.lost)) == (task.worker, bool(task.lost))
        if last is not None and follows and task.end - last.start <= least:
            bars[-1] = replace(last, end=max(last.end, task.end))
        else:
            bars.append(task)
    return bars


def unit_of(seconds: float) -> tuple[str, float]:
    """What so many seconds are best counted in, and how many seconds that is."""
    return ("hours", 3600.0) if seconds > 3 * 3600 else ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
