"""What pairs of measurements say: differences and main effects, with the standard error that their spread gives.

What must stay true: an error that cannot be known, of one pair, is None, and what has no partner is in no pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROUNDING = 1e-9
"""An error below is none: shares of images that are equal differ by their last bits alone."""


class Mean(NamedTuple):
    """A mean of so many values, and its standard error s / sqrt(n), where n > 1."""

    value: float
    error: float | None
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether it is further from 0 than two standard errors. Pairs that differ by the very same show no error."""
        return self.error is not None and self.error > ROUNDING and abs(self.value) > 2 * self.error


BySeed = Mapping[int, float]
"""A measurement for each distillation seed."""


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean with its standard error; None of nothing."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error, len(values))


def paired(one: BySeed, other: BySeed) -> Mean | None:
    """The mean difference ``one`` - ``other`` over the seeds that both have; None where they share none."""
    return mean_of([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def contrast(levels: Sequence[bool], responses: Sequence[float]) -> float:
    """The main effect of a factor: the mean response of the runs where it is high less that of the others."""
    high = [response for level, response in zip(levels, responses, strict=True) if level]
    low = [response for level, response in zip(levels, responses, strict=True) if not level]
    return statistics.fmean(high) - statistics.fmean(low)


def main_effects(design: Sequence[Sequence[bool]], runs: Sequence[BySeed]) -> list[Mean | None]:
    """The main effect of every column of a crossed ``design``, over the seeds at which all of its runs were done."""
    seeds = sorted(set.intersection(*(set(run) for run in runs)))
    responses = [[run[seed] for run in runs] for seed in seeds]
    return [mean_of([contrast(levels, found) for found in responses]) for levels in zip(*design, strict=True)]


def pooled(effects: Sequence[Mean]) -> float | None:
    """The standard error of an effect as columns without a factor give it: the root of their mean square."""
    return math.sqrt(statistics.fmean(effect.value**2 for effect in effects)) if effects else None
