"""Scores of a range against a loop over single samples, and the same bits for any cut."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import COUNTS, RECIPE, generator, toy_blocks, toy_network

from dasm_ray.core.networks import reading
from dasm_ray.core.networks.expert import expert_labels
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import read_all, statistics_of
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import train
from dasm_ray.core.scoring import _few_of_each, features_of, score_range, shard_ranges, static_range

TOTAL, BATCH = sum(COUNTS), 4


def nets(network: Network, count: int = 3, steps: int = 2) -> list[Tensor]:
    """Networks that know something: each trained for a few steps."""
    samples = RealSamples(network, toy_blocks())
    return [
        list(train(network, samples, RECIPE, steps=steps, generator=generator(seed)))[-1][1] for seed in range(count)
    ]


def trajectories(network: Network, count: int = 2, epochs: int = 5) -> list[Tensor]:
    """Trajectories (E+1, P) whose later snapshots forget: they swing between trained and random networks."""
    made = []
    for seed in range(count):
        flats = [network.initial(generator(100 * seed + epoch)) for epoch in range(epochs + 1)]
        for epoch in range(1, epochs + 1, 2):
            flats[epoch] = nets(network, 1, steps=6)[0]
        made.append(torch.stack(flats))
    return made


def probabilities(network: Network, flat: Tensor, place: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Class probabilities (K,), last hidden layer (d,) and label of one sample, read alone, in float64."""
    samples = RealSamples(network, toy_blocks())
    images, labels = samples.take(np.array([place]))
    logits, hidden = network.read(flat, statistics_of(network, flat, samples), images)
    raised = np.exp(logits[0].double().numpy() - float(logits.max()))
    return raised / raised.sum(), hidden[0].double().numpy(), int(labels[0])


def slow_score(score: str, p: np.ndarray, hidden: np.ndarray, label: int) -> float:
    residual = p - np.eye(len(p))[label]
    return {
        "loss": -float(np.log(p[label])),
        "el2n": float(np.sqrt((residual**2).sum())),
        "margin": float(np.delete(p, label).max() - p[label]),
        "grand": float(np.linalg.norm(np.outer(residual, np.append(hidden, 1)))),
    }[score]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("score", ["loss", "el2n", "margin", "grand"])
def test_a_range_is_scored_as_one_by_one(score: str, norm: str) -> None:
    network, first, last = toy_network(norm), 8, 27
    ensemble = nets(network)
    scored = score_range(network, toy_blocks(), ensemble, score, first, last, BATCH)
    assert scored.score.dtype == np.float64
    assert scored.wrong.dtype == bool
    expected, wrong = [], []
    for place in range(first, last):
        seen = [probabilities(network, flat, place) for flat in ensemble]
        expected.append(np.mean([slow_score(score, *one) for one in seen]))
        wrong.append(int(np.mean([p for p, _, _ in seen], axis=0).argmax()) != seen[0][2])
    np.testing.assert_allclose(scored.score, expected, rtol=2e-6, atol=1e-6)
    assert scored.wrong.tolist() == wrong
    assert 0 < sum(wrong) < len(wrong), "the case must hold both"


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("shards", [2, 5])
def test_the_cut_changes_no_bit(norm: str, shards: int) -> None:
    network, blocks = toy_network(norm), toy_blocks()
    ensemble, experts = nets(network, 2), trajectories(network)
    whole = score_range(network, blocks, ensemble, "loss", 0, TOTAL, BATCH)
    static = static_range(network, blocks, experts, "el2n", 2, 0, TOTAL, BATCH)
    ranges = shard_ranges(TOTAL, BATCH, shards)
    assert len(ranges) == shards
    cut = [score_range(network, blocks, ensemble, "loss", *one, BATCH) for one in ranges]
    cut_static = [static_range(network, blocks, experts, "el2n", 2, *one, BATCH) for one in ranges]
    for together, parts in ((whole, cut), (static, cut_static)):
        assert np.concatenate([part.score for part in parts]).tobytes() == together.score.tobytes()
        assert np.concatenate([part.wrong for part in parts]).tobytes() == together.wrong.tobytes()


@pytest.mark.parametrize("at_once", [1, 3, 4, 7, 10, 64])
def test_images_that_are_read_few_at_once_are_read_with_the_same_ones_in_any_cut(at_once: int) -> None:
    whole = list(_few_of_each(0, 47, 10, at_once))
    assert [place for start, end in whole for place in range(start, end)] == list(range(47))
    for cuts in ([0, 10, 47], [0, 20, 30, 47], [0, 10, 20, 30, 40, 47]):
        parts = [part for first, last in pairwise(cuts) for part in _few_of_each(first, last, 10, at_once)]
        assert parts == whole


def test_shards_are_whole_batches_that_cover_everything_and_are_never_empty() -> None:
    for count, batch, shards in product((1, 2, 7, 8, 20, 41), (1, 3, 8, 50), (1, 2, 3, 5, 64)):
        ranges = shard_ranges(count, batch, shards)
        assert [place for first, last in ranges for place in range(first, last)] == list(range(count))
        assert all(first < last for first, last in ranges)
        assert all(first % batch == 0 for first, _ in ranges)
        assert len(ranges) == min(shards, -(-count // batch))
        pieces = [-(-(last - first) // batch) for first, last in ranges]
        assert max(pieces) - min(pieces) <= 1


@pytest.mark.parametrize("early", [1, 2, 3])
def test_the_static_score_is_the_mean_over_experts_and_their_first_epochs(early: int) -> None:
    network, first, last = toy_network(), 3, 34
    experts = trajectories(network)
    scored = static_range(network, toy_blocks(), experts, "el2n", early, first, last, BATCH)
    expected, wrong = [], []
    for place in range(first, last):
        parts = [
            slow_score("el2n", *probabilities(network, snapshots[epoch], place))
            for snapshots in experts
            for epoch in range(1, early + 1)
        ]
        expected.append(sum(parts) / len(parts))
        ends = [probabilities(network, snapshots[-1], place) for snapshots in experts]
        wrong.append(int(np.sum([p for p, _, _ in ends], axis=0).argmax()) != ends[0][2])
    np.testing.assert_allclose(scored.score, expected, rtol=2e-6, atol=1e-6)
    assert scored.wrong.tolist() == wrong
    assert 0 < sum(wrong) < len(wrong) / 2, "at the end most are known"


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_static_score_of_a_held_out_image_does_not_depend_on_the_others(norm: str) -> None:
    """Its normalisation is that of the training images, as where networks are evaluated."""
    network = toy_network(norm)
    experts, training = trajectories(network), RealSamples(network, toy_blocks())
    few, many = (toy_blocks(counts, seed=1) for counts in ((2, 1, 1), (2, 9, 9)))
    np.testing.assert_array_equal(few.take(np.arange(2)), many.take(np.arange(2)))
    one, other = (
        static_range(network, held_out, experts, "el2n", 2, 0, 2, BATCH, training).score for held_out in (few, many)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_of_trajectories_shorter_than_early_all_epochs_count() -> None:
    """As where the run scores by forgetting, which asks for none: ``early`` is its default then."""
    network, blocks = toy_network(), toy_blocks()
    experts = trajectories(network, epochs=2)
    by_all, asked = (static_range(network, blocks, experts, "el2n", early, 0, 20, BATCH) for early in (2, 3))
    assert asked.score.tobytes() == by_all.score.tobytes()
    assert asked.missed.tobytes() == by_all.missed.tobytes()


def test_forgetting_counts_over_whole_trajectories() -> None:
    network = toy_network()
    experts = trajectories(network)
    scored = static_range(network, toy_blocks(), experts, "forgetting", 1, 0, 20, BATCH)
    expected = []
    for place in range(20):
        counts = []
        for snapshots in experts:
            seen = [probabilities(network, flat, place) for flat in snapshots[1:]]
            right = [int(p.argmax()) == label for p, _, label in seen]
            lost = sum(a and not b for a, b in pairwise(right))
            counts.append(lost if any(right) else len(right))
        expected.append(sum(counts) / len(counts))
    assert scored.score.tolist() == expected
    assert len(set(expected)) > 2, "the case must hold samples of several kinds"


@pytest.mark.parametrize("label", range(len(COUNTS)))
def test_features_are_the_last_hidden_layer_of_one_class(label: int) -> None:
    network = toy_network()
    flat = nets(network, 1)[0]
    features = features_of(network, toy_blocks(), flat, label, BATCH)
    start = sum(COUNTS[:label])
    expected = [probabilities(network, flat, start + place)[1] for place in range(COUNTS[label])]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_soft_labels_are_the_mean_of_the_experts_that_are_right_or_of_all() -> None:
    network, blocks = toy_network(), toy_blocks()
    real, experts = RealSamples(network, blocks), [*nets(network, 2), network.initial(generator(9))]
    logits = [torch.cat([seen for seen, _, _ in read_all(network, flat, {}, real)]) for flat in experts]
    found, kinds = expert_labels(network, experts, real, real), set()
    for image, label in enumerate(blocks.labels):
        right = [each[image] for each in logits if int(each[image].argmax()) == label]
        torch.testing.assert_close(found[image], torch.stack(right or [each[image] for each in logits]).mean(0))
        kinds.add(len(right))
    assert {0, 1, 2} <= kinds


def test_holes_in_the_heap_go_back_where_images_are_too_large_to_be_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, blocks, given = toy_network(), toy_blocks(), []
    ensemble = nets(network)
    monkeypatch.setattr(reading, "tidy", lambda: given.append(1))
    at_once = score_range(network, blocks, ensemble, "loss", 0, 20, BATCH)
    assert not given
    monkeypatch.setattr(network, "read_at_once", lambda batch: min(batch, 2))
    in_pieces = score_range(network, blocks, ensemble, "loss", 0, 20, BATCH)
    assert given
    np.testing.assert_allclose(in_pieces.score, at_once.score, rtol=1e-5)
