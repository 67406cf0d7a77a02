"""Networks ranked by a set: what each is trained on, and Spearman's correlation with the full data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from local_pool import local_run, small

from dasm_ray.config.keys import Model
from dasm_ray.method.sets import selected_set
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.studies.ranking import agreement, name_of, try_networks

MODELS = [Model(width=width, depth=1) for width in (1, 2, 3, 4, 5)]


def found_of(ours: list[float], theirs: list[float]) -> dict[tuple[str, str], list[float]]:
    found = {("distilled", name_of(model)): [value] for model, value in zip(MODELS, ours, strict=False)}
    return found | {("full", name_of(model)): [value] for model, value in zip(MODELS, theirs, strict=False)}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [9, 5, -1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 3, 6, 2.5], 1 - 6 * 8 / 120),
        ([1, 5, 5, 9], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_agreement_by_hand(ours: list[float], theirs: list[float], expected: float) -> None:
    assert agreement(found_of(ours, theirs), "distilled", MODELS[: len(ours)]) == pytest.approx(expected)


def test_networks_that_are_all_alike_say_nothing() -> None:
    assert math.isnan(agreement(found_of([1, 1], [1, 2]), "distilled", MODELS[:2]))


def test_every_network_is_trained_on_the_set_on_random_images_and_on_all(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    artifact = selected_set(run, np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32))
    found = try_networks(run, artifact, MODELS[1:3], None)
    names = [name_of(model) for model in MODELS[1:3]]
    assert set(found) == {(row, name) for row in ("distilled", "random", "full") for name in names}
    assert np.mean(found["full", names[1]]) > np.mean(found["distilled", names[1]]), "noise teaches less than digits"
