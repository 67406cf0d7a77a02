"""Designs: balanced, orthogonal, and each factor left out once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dasm_ray.config.designs import Design, full_factorial, leave_one_out, plackett_burman


def signs(design: Design) -> np.ndarray:
    return np.where(np.array(design), 1, -1)


@pytest.mark.parametrize("design", [plackett_burman(), full_factorial(3)], ids=["Plackett-Burman", "full"])
def test_columns_of_crossed_designs_are_balanced_and_orthogonal(design: Design) -> None:
    runs, columns = signs(design).shape
    products = [[sum(signs(design)[r, a] * signs(design)[r, b] for r in range(runs)) for b in range(columns)]
                for a in range(columns)]  # fmt: skip
    assert products == [[runs * (a == b) for b in range(columns)] for a in range(columns)]
    assert signs(design).sum(0).tolist() == [0] * columns


def test_the_screen_of_twelve_runs_is_the_published_one() -> None:
    design = plackett_burman()
    assert (len(design), len(design[0])) == (12, 11)
    assert "".join("+" if level else "-" for level in design[0]) == "++-+++---+-"
    assert "".join("+" if level else "-" for level in design[1]) == "-++-+++---+", "moved on by one"
    assert design[-1] == (False,) * 11
    assert len(set(design)) == 12


def test_a_full_design_has_all_combinations() -> None:
    assert set(full_factorial(3)) == set(itertools.product((False, True), repeat=3))
    assert full_factorial(1) == ((False,), (True,))


def test_each_factor_is_left_out_once_after_none() -> None:
    assert leave_one_out(3) == (
        (True, True, True),
        (False, True, True),
        (True, False, True),
        (True, True, False),
    )
