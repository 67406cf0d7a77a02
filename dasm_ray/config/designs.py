"""Designs of experiments with two levels: which runs tell the effects of several factors apart.

What must stay true: in a crossed design every factor is high in half of the runs, and every two factors are high
together in a quarter, so that no main effect leans on another.
"""

from __future__ import annotations

import itertools

Design = tuple[tuple[bool, ...], ...]
"""A row a run, a column a factor; True: high."""

MOST_SCREENED = 11
"""Factors of a Plackett-Burman design of 12 runs."""

FEWEST_SCREENED = 5
"""The same: of fewer, two of the runs are one."""

MOST_CROSSED = 6
"""Factors of a full design: 64 runs."""

FIRST_ROW = "++-+++---+-"
"""Of the design of 12 runs (Plackett and Burman, The design of optimum multifactorial experiments, 1946, N = 12)."""


def plackett_burman() -> Design:
    """The 12 runs by 11 columns: the first row, moved on by one ten times, and a row of lows."""
    first = [sign == "+" for sign in FIRST_ROW]
    rows = [tuple(first[(column - shift) % MOST_SCREENED] for column in range(MOST_SCREENED)) for shift in range(11)]
    return (*rows, (False,) * MOST_SCREENED)


def full_factorial(factors: int) -> Design:
    """All 2^k combinations; the last factor changes fastest."""
    return tuple(itertools.product((False, True), repeat=factors))


def leave_one_out(factors: int) -> Design:
    """All factors high, then each of them low alone."""
    return tuple(tuple(column != left for column in range(factors)) for left in range(-1, factors))
