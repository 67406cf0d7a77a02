"""Figures: parts of a page without a colour, a name or a place of their own."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from dasm_ray.report import figures
from dasm_ray.report.chronicle import Stage, Work

ODD = "<b>$x$ & \N{CJK UNIFIED IDEOGRAPH-732B}"
"""A name that is markup, mathematics, and not in Matplotlib's own type."""

LOST = [Work("a", 1, 0.0, 2.0), Work("b", 2, 0.0, 1.0, "gone"), Work("b", 1, 2.0, 3.0)]
STAGES = [Stage("data", "", 0.0, 1.0, 1, 1), Stage("distil", "segment 1 of 2", 1.0, 3.0, 2, 2)]

DRAWN: dict[str, Callable[[], str]] = {
    "accuracies": lambda: figures.accuracies([(ODD, 60.0, 2.0, True), ("random", 50.0, None, False)]),
    "differences": lambda: figures.differences([(ODD, 1.2, 0.4), ("base", -0.3, 0.4), ("alone", 0.1, None)], "Gains"),
    "against": lambda: figures.against({ODD: [(1, 50.0, 1.0), (10, 60.0, None)]}, "size", {ODD: 90.0}, "What"),
    "window_paths": lambda: figures.window_paths(np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])),
    "difficulty": lambda: figures.difficulty(np.arange(50.0), np.arange(50) < 20, 0),
    "still_wrong": lambda: figures.still_wrong([ODD, "dog"], np.array([[0.5, 0.2], [0.25, 0.1]])),
    "lines": lambda: figures.lines({ODD: [(0, 1.0), (1, 2.0)], "b": [(0, 2.0)]}, "epoch", "loss", "Loss"),
    "timeline": lambda: figures.timeline(LOST, STAGES, [1.5], 3.0),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_at_home_in_a_page(name: str) -> None:
    drawn = DRAWN[name]()
    root = ET.fromstring(drawn)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert "http" not in drawn
    assert "<style" not in drawn
    assert "<b>" not in drawn
    assert re.findall(r"#(?!f[0-9a-f]+-)[\w-]+", re.sub(r'aria-label="[^"]*"', "", drawn)) == []
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(figures.COLOURS)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
    assert {node.get("id") for node in root.iter() if node.get("id")} == used
    assert DRAWN[name]() == drawn, "the same figures give the same bytes"


def test_a_figure_can_be_given_names_of_its_own() -> None:
    drawn = DRAWN["lines"]()
    once, twice = figures.named_by("r0", drawn), figures.named_by("r1", drawn)
    names = [{node.get("id") for node in ET.fromstring(each).iter() if node.get("id")} for each in (once, twice)]
    assert names[0]
    assert not names[0] & names[1]
    assert names[0] == set(re.findall(r'(?:href="#|url\(#)([^")]+)', once))


def test_names_are_text_as_they_are_spelt() -> None:
    texts = [node.text for node in ET.fromstring(DRAWN["still_wrong"]()).iter("text")]
    assert ODD in texts
    assert "before segment 1" in texts


def test_the_classes_that_are_hardest_are_shown_where_there_are_many() -> None:
    wrong = np.zeros((1, 100))
    wrong[0, 90:] = 0.5
    texts = {
        node.text for node in ET.fromstring(figures.still_wrong([f"c{n}" for n in range(100)], wrong)).iter("text")
    }
    assert {f"c{n}" for n in range(90, 100)} <= texts
    assert len({text for text in texts if text and text.startswith("c")}) == figures.MOST_CLASSES


def test_what_was_lost_is_red_and_said() -> None:
    drawn = DRAWN["timeline"]()
    assert drawn.count("var(--bad)") == 1
    assert "3 tasks on 2 workers, 1 of them lost" in drawn
    assert "var(--bad)" not in figures.timeline(LOST[:1], STAGES, [], 3.0)


def test_tasks_that_cannot_be_told_apart_are_one_bar_and_lost_ones_come_last() -> None:
    many = [Work(str(n), 1, n, n + 1.0) for n in range(10_000)]
    bars = figures.merged([*many, Work("x", 1, 20.0, 21.0, "gone")], 10_000.0)
    assert len(bars) <= figures.MOST_BARS + 1
    assert (bars[0].start, bars[-2].end, bars[-1].lost) == (0, 10_000.0, "gone")
    assert figures.merged(LOST, 3.0) == [LOST[0], LOST[2], LOST[1]]


def test_accuracy_says_its_figures_to_who_does_not_see_it() -> None:
    assert "random 50.0 %" in DRAWN["accuracies"]()
    assert "50.0 % at 1, 60.0 % at 10" in DRAWN["against"]()


@pytest.mark.parametrize(("seconds", "unit"), [(10, "seconds"), (600, "minutes"), (50_000, "hours")])
def test_units_of_time(seconds: float, unit: str) -> None:
    assert figures.unit_of(seconds)[0] == unit


def test_every_series_is_drawn_and_named_however_many_there_are() -> None:
    series = {f"arm {n:02}": [(2.0, 50.0 + n, 1.0)] for n in range(80)}
    drawn = figures.against(series, "size", {}, "What")
    texts = {node.text for node in ET.fromstring(drawn).iter("text")}
    assert series.keys() <= texts
    styles = list(itertools.islice(figures._styles(), 72))
    assert len({tuple(style.items()) for style in styles}) == 72
