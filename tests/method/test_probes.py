"""Probes: experts after one epoch before the first segment, then networks trained on the segments so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, again, local_run, small

from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import Experts, train_experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Segment
from dasm_ray.runtime.decoding import RealRefs


@pytest.fixture
def run(digits: RealRefs, tmp_path: Path) -> Run:
    return local_run(small(), tmp_path, digits)


@pytest.fixture
def experts(run: Run) -> Experts:
    return train_experts(run)


def segment_of(seed: int) -> Segment:
    return Segment(np.random.Generator(np.random.PCG64(seed)).random((10, 1, 1, 8, 8), np.float32))


def trained(run: Run) -> list[str]:
    assert isinstance(run.pool, LocalPool)
    return [name for name in run.pool.done if name.startswith("probe")]


def test_before_the_first_segment_they_are_experts_after_one_epoch(run: Run, experts: Experts) -> None:
    assert Probes(run, 0, experts, []).networks == experts.early[:2]
    assert not trained(run)


def test_they_are_trained_when_first_asked_for_and_not_again(run: Run, experts: Experts) -> None:
    probes = Probes(run, 1, experts, [segment_of(0)])
    assert not trained(run)
    networks = probes.networks
    assert probes.networks == networks
    assert probes.loss() > 0
    assert trained(run) == ["probe 0 before segment 2", "probe 1 before segment 2"]


def test_after_a_loss_they_are_made_again_with_the_same_bytes(run: Run, experts: Experts) -> None:
    probes = Probes(run, 1, experts, [segment_of(0)])
    before = [run.pool.fetch(ref).tobytes() for ref in probes.networks]
    probes.forget()
    assert [run.pool.fetch(ref).tobytes() for ref in probes.networks] == before
    assert len(trained(run)) == 4


def test_they_know_all_segments_that_were_frozen_when_they_were_made(run: Run, experts: Experts) -> None:
    frozen = [segment_of(0)]
    probes = Probes(run, 1, experts, frozen)
    frozen.append(segment_of(1))
    both = Probes(run, 1, experts, frozen)
    one, other = (run.pool.fetch(each.networks[0]).tobytes() for each in (probes, both))
    assert one != other
    alone = Probes(run, 1, experts, frozen[:1])
    assert run.pool.fetch(alone.networks[0]).tobytes() == one


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ({"lr": 1e30}, r"probe\.lr \(now 1e\+30\)"),
        ({"weight_decay": 1e30}, r"probe\.weight_decay \(now 1e\+30\) or probe\.lr \(now 0\.01\)"),
        ({"momentum": 0.999, "lr": 1e25}, r"probe\.momentum \(now 0\.999\) or probe\.lr \(now 1e\+25\)"),
    ],
)
def test_a_probe_that_diverges_is_named_with_its_segment(
    run: Run, experts: Experts, recipe: dict[str, float], keys: str
) -> None:
    wild = again(run, small(probe=recipe))
    with pytest.raises(NonFinite, match=rf"^probe 0 before segment 2, between steps 0 and \d+: .*; lower {keys}$"):
        _ = Probes(wild, 1, experts, [segment_of(0)]).networks


def test_a_loss_of_probes_that_is_no_number_is_refused(run: Run, experts: Experts) -> None:
    probes = Probes(run, 1, experts, [segment_of(0)])
    probes._trained = (run.pool.put(np.full_like(run.pool.fetch(experts.early[0]), 1e30)),)
    with pytest.raises(NonFinite, match=r"probes before segment 2, at their end: .*; lower probe\.lr"):
        probes.loss()
