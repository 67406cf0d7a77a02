"""Paired differences and main effects against values that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dasm_ray.config.designs import full_factorial, plackett_burman
from dasm_ray.core.paired import Mean, contrast, main_effects, mean_of, paired, pooled


def test_a_paired_difference_has_the_error_of_its_differences() -> None:
    """Differences 1, 3, 2: mean 2, s = 1, standard error 1 / sqrt 3, whatever the arms' own spread."""
    base = {0: 50.0, 1: 60.0, 2: 70.0}
    arm = {0: 51.0, 1: 63.0, 2: 72.0}
    found = paired(arm, base)
    assert found is not None
    assert found == pytest.approx(Mean(2.0, 1 / math.sqrt(3), 3))
    assert found.is_clear, "2 > 2 / sqrt 3"
    assert not Mean(1.0, 0.5, 3).is_clear, "not more than two"


def test_pairs_that_differ_by_the_same_image_each_are_not_clear() -> None:
    """One of a hundred validation images more at both seeds: no spread is seen, which does not prove that it is 0."""
    found = paired({0: 0.51, 1: 0.53}, {0: 0.50, 1: 0.52})
    assert found is not None
    assert found.value == pytest.approx(0.01)
    assert not found.is_clear


def test_only_pairs_count() -> None:
    assert paired({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 7: 3.0}) == (0.5, None, 1)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert mean_of([]) is None
    lone = mean_of([5.0])
    assert lone is not None
    assert not lone.is_clear, "one value has no error"


def test_the_difference_with_oneself_is_nothing() -> None:
    assert paired({0: 1.0, 1: 4.0}, {0: 1.0, 1: 4.0}) == (0.0, 0.0, 2)


def test_a_contrast_by_hand() -> None:
    assert contrast([True, True, False, False], [5.0, 7.0, 1.0, 4.0]) == 6.0 - 2.5


def test_a_linear_response_gives_its_own_effects() -> None:
    """y = 3 + sum of c_j x_j with x = +-1/2: the effects are the c_j, and columns without a factor do nothing."""
    design, slopes = plackett_burman(), [0.9, -1.5, 0.25, 0.0, 2.0, -0.125, 4.0]
    weights = [*slopes, *[0.0] * 4]
    levels = [[0.5 if level else -0.5 for level in row] for row in design]
    response = [3 + sum(w * x for w, x in zip(weights, row, strict=True)) for row in levels]
    found = main_effects(design, [{0: value, 1: value + 10} for value in response])
    values = [effect.value for effect in found if effect is not None]
    assert values == pytest.approx(weights, abs=1e-12)
    assert [effect.error for effect in found if effect is not None] == pytest.approx([0.0] * 11, abs=1e-12)
    spare = [effect for effect in found[7:] if effect is not None]
    assert pooled(spare) == pytest.approx(0.0, abs=1e-12)


def test_noise_shows_in_both_errors() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    design = plackett_burman()
    noise = generator.normal(size=(12, 4))
    runs = [{seed: float(noise[run, seed]) for seed in range(4)} for run in range(12)]
    found = main_effects(design, runs)
    for column, effect in enumerate(found):
        each = [sum((1 if design[r][column] else -1) * noise[r, s] for r in range(12)) / 6 for s in range(4)]
        assert effect is not None
        assert effect.value == pytest.approx(sum(each) / 4)
        spread = sum((value - sum(each) / 4) ** 2 for value in each) / 3
        assert effect.error == pytest.approx(math.sqrt(spread / 4))
    kept = [effect for effect in found if effect is not None]
    assert pooled(kept[9:]) == pytest.approx(math.sqrt((kept[9].value ** 2 + kept[10].value ** 2) / 2))


def test_effects_are_counted_at_seeds_where_all_runs_are_done() -> None:
    runs = [{0: 1.0, 1: 5.0}, {0: 2.0}, {0: 4.0, 1: 5.0}, {0: 9.0, 1: 5.0}]
    found = main_effects(full_factorial(2), runs)
    assert found == [(5.0, None, 1), (3.0, None, 1)], "(4 + 9 - 1 - 2) / 2 and (2 + 9 - 1 - 4) / 2"
    assert main_effects(full_factorial(1), [{0: 1.0}, {1: 1.0}]) == [None]
    assert pooled([]) is None
