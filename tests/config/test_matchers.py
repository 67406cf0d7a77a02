"""The table of base matchers: every row names mathematics that is there, and keys that are."""

from __future__ import annotations

import pytest

from dasm_ray.config.keys import Matcher, RunConfig
from dasm_ray.config.matchers import MATCHERS
from dasm_ray.core.matching import distribution, gradient
from dasm_ray.core.matching.round import FAMILIES


@pytest.mark.parametrize("name", MATCHERS)
def test_a_row_names_mathematics_that_is_there(name: str) -> None:
    base = MATCHERS[name]
    assert base.family in {*FAMILIES, "trajectory"}
    compared = {"gradient": gradient.COMPARED, "distribution": distribution.COMPARED, "trajectory": ("parameters",)}
    assert base.compared in compared[base.family]
    assert (base.metric in gradient.METRICS) == (base.family == "gradient")


@pytest.mark.parametrize("name", MATCHERS)
def test_states_are_chosen_by_a_key_that_the_configuration_has(name: str) -> None:
    assert None in MATCHERS[name].states, "a matcher can be used with the key left unset"
    for network in MATCHERS[name].states:
        assert RunConfig(matcher=Matcher(name=name, network=network)).states == MATCHERS[name].states[network]  # type: ignore[arg-type]


def test_a_matcher_without_augmentation_is_another_row() -> None:
    for base in MATCHERS.values():
        if base.unaugmented is not None:
            other = MATCHERS[base.unaugmented]
            assert (other.family, other.compared, other.augments) == (base.family, base.compared, False)
