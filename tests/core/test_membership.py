"""Membership inference: areas, errors and calibration against plain double loops, and against repeated drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dasm_ray.core.membership import area, calibrated, caught, log_odds


def slow_area(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Every pair, one by one."""
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in members for b in others)
    return won / (len(members) * len(others))


def slow_error(members: list[NDArray[np.float64]], others: NDArray[np.float64], is_shared: bool) -> float:
    """DeLong's, from the share of pairs that each image wins or loses, network by network."""
    wins = [[slow_area(np.array([a]), row) for a in mine] for mine, row in zip(members, others, strict=True)]
    losses = [
        sum(slow_area(mine, row[j : j + 1]) for mine, row in zip(members, others, strict=True)) / len(members)
        for j in range(others.shape[1])
    ]
    drawn = (
        [sum(column) / len(column) for column in zip(*wins, strict=True)]
        if is_shared
        else [won for row in wins for won in row]
    )
    return math.sqrt(np.var(drawn, ddof=1) / len(drawn) + np.var(losses, ddof=1) / len(losses))


@pytest.mark.parametrize("is_shared", [True, False])
def test_an_area_and_its_error_are_those_of_every_pair(is_shared: bool) -> None:
    draw = np.random.default_rng(0)
    members = [np.round(draw.normal(0.5, 1, 7), 1) for _ in range(3)]  # rounded, so that some are equal
    others = np.round(draw.normal(0, 1, (3, 9)), 1)
    found = area(members, others, is_shared=is_shared)
    assert found is not None
    expected = np.mean([slow_area(mine, row) for mine, row in zip(members, others, strict=True)])
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.error == pytest.approx(slow_error(members, others, is_shared), abs=1e-12)
    assert (found.members, found.others) == (7 if is_shared else 21, 9)


def test_the_error_is_how_much_areas_differ_from_draw_to_draw() -> None:
    draw = np.random.default_rng(1)
    drawn = [area([draw.normal(0.7, 1, 60)], draw.normal(0, 1, (1, 80))) for _ in range(400)]
    values, errors = zip(*((found.value, found.error) for found in drawn if found), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    assert np.mean(values) == pytest.approx(0.6897, abs=0.01), "Phi(0.7 / sqrt 2)"


def test_of_nothing_there_is_no_area_and_of_one_image_no_error() -> None:
    assert area([np.empty(0)], np.zeros((1, 3))) is None
    assert area([np.zeros(3)], np.zeros((1, 0))) is None
    one = area([np.ones(1)], np.zeros((1, 3)))
    assert one == (1.0, None, 1, 3)


def test_log_odds_are_those_of_the_probability_and_order_images_as_the_loss_does() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(50) % 4
    found = log_odds(logits, labels)
    for row, label, odds in zip(logits.double(), labels, found, strict=True):
        p = math.exp(row[label]) / sum(math.exp(value) for value in row)
        assert float(odds) == pytest.approx(math.log(p) - math.log1p(-p), rel=1e-6)
    loss = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert torch.equal(found.argsort(), loss.argsort(descending=True))
    assert log_odds(torch.tensor([[90.0, 0.0]]), torch.tensor([0])).item() == 90, "where p rounds to 1"


def test_calibration_takes_the_mean_of_the_networks_that_never_saw_the_image() -> None:
    draw = np.random.default_rng(2)
    scores, shadows = draw.normal(size=6), draw.normal(size=(4, 6))
    is_out = draw.random((4, 6)) < 0.6
    is_out[0], is_out[:, 5] = True, False
    found = calibrated(scores, shadows, is_out)
    for image in range(5):
        usual = [shadows[s, image] for s in range(4) if is_out[s, image]]
        assert found[image] == pytest.approx(scores[image] - sum(usual) / len(usual))
    assert np.isnan(found[5])


def test_what_is_caught_at_a_small_share_of_false_alarms() -> None:
    others = np.arange(200.0)[None]  # two of them may be above the threshold: it is 197
    assert caught([np.array([196.0, 197.0, 197.5, 500.0])], others) == 0.5
    assert caught([np.array([1.0])], others[:, :99]) is None, "of 99, none is one in a hundred"
    assert caught([np.empty(0)], others) is None
