"""The table of base matchers: what each compares, at which network states, and which keys it reads.

A new variant of a family is one row here; a new family is one row and one file of mathematics in ``core.matching``.
What must stay true: nothing outside this file asks for a matcher by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["gradient", "distribution", "trajectory"]
States = Literal["experts", "fresh", "real", "synthetic"]
"""Where network states come from: snapshots of experts, fresh initialisations, or a network that is trained inside the
loop, on real images or on the synthetic set as it stands."""

Coupling = Literal["class", "group", "set"]
"""What one matching step sees at once: one class, the classes of a group, or all classes of the set."""


@dataclass(frozen=True)
class BaseMatcher:
    """One way to compare the synthetic set with the real one.

    ``compared`` names what of a network is held against each other, a row of the family's own table. ``states`` says by
    the key ``matcher.network`` where network states come from; None is the key left unset.
    """

    family: Family
    compared: str
    states: Mapping[str | None, States]
    couples: Coupling
    metric: str | None = None
    """The distance where ``matcher.metric`` is unset; None where there is no choice of one."""
    augments: bool = True
    unaugmented: str | None = None
    """The matcher that this one is when nothing is augmented."""
    learns_labels: bool = False


MATCHERS: dict[str, BaseMatcher] = {
    "idc": BaseMatcher("gradient", "convolutions", {None: "experts", "train": "real"}, "class", "mse"),
    "dc": BaseMatcher("gradient", "weights", {None: "synthetic"}, "class", "cos", augments=False),
    "dsa": BaseMatcher("gradient", "weights", {None: "synthetic"}, "class", "cos", unaugmented="dc"),
    "dm": BaseMatcher("distribution", "hidden", {None: "fresh", "experts": "experts"}, "group"),
    "cafe": BaseMatcher("distribution", "blocks", {None: "synthetic"}, "set"),
    "mtt": BaseMatcher("trajectory", "parameters", {None: "experts"}, "set"),
    "datm": BaseMatcher("trajectory", "parameters", {None: "experts"}, "set", learns_labels=True),
}
