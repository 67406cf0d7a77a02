"""Probes: experts after one epoch before the first segment, then networks trained on the segments so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, again, local_run, read, shared_experts, small

from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import Experts, train_experts
from dasm_ray.method.probes import Probes, walk_of
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Segment
from dasm_ray.runtime.decoding import RealRefs


@pytest.fixture
def run(digits: RealRefs, tmp_path: Path) -> Run:
    return local_run(small(experts=shared_experts()), tmp_path, digits)


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
    probes._trained = (run.pool.put(np.full_like(read(experts.early[0]), 1e30)),)
    with pytest.raises(NonFinite, match=r"probes before segment 2, at their end: .*; lower probe\.lr"):
        probes.loss()


# --- the bank --------------------------------------------------------------------------------------------------------


def with_bank(digits: RealRefs, folder: Path, **sections: dict[str, object]) -> tuple[Run, Experts]:
    experts = shared_experts() | sections.pop("experts", {})
    run = local_run(small(experts=experts, **sections), folder, digits)  # type: ignore[arg-type]
    return run, train_experts(run)


def test_probes_go_on_along_the_real_images_once_a_segment(digits: RealRefs, tmp_path: Path) -> None:
    run, experts = with_bank(digits, tmp_path, matcher={"bank_share": 0.5})
    probes = Probes(run, 1, experts, [segment_of(0)])
    bank = run.pool.fetch(list(probes.bank))
    assert probes.bank == probes.bank
    assert [member.shape[0] for member in bank] == [5, 5]
    for member, probe in zip(bank, run.pool.fetch(list(probes.networks)), strict=True):
        np.testing.assert_array_equal(member[0], probe)
        assert len({snapshot.tobytes() for snapshot in member}) == 5
    assert isinstance(run.pool, LocalPool)
    assert [name for name in run.pool.done if name.startswith("bank")] == [
        "bank 0 before segment 2",
        "bank 1 before segment 2",
    ]
    before = [member.tobytes() for member in bank]
    probes.forget()
    assert [member.tobytes() for member in run.pool.fetch(list(probes.bank))] == before


def test_what_a_probe_becomes_knows_more_of_the_real_images(digits: RealRefs, tmp_path: Path) -> None:
    recipe = {"lr": 0.05, "batch": 32}
    run, experts = with_bank(digits, tmp_path, matcher={"bank_share": 0.5}, experts=recipe)
    probes = Probes(run, 1, experts, [segment_of(0)])
    at_first = probes.loss()
    last = [run.pool.put(member[-1]) for member in run.pool.fetch(list(probes.bank))]
    probes._trained = tuple(last)
    assert probes.loss() < 0.9 * at_first


def test_before_there_are_probes_the_experts_are_the_bank_unless_they_are_the_states_anyway(
    digits: RealRefs, tmp_path: Path
) -> None:
    run, experts = with_bank(digits, tmp_path, matcher={"bank_share": 0.5})
    assert Probes(run, 0, experts, []).bank == ()
    fresh = again(run, small(matcher={"name": "dm", "bank_share": 0.5}))
    assert Probes(fresh, 0, experts, []).bank == experts.snapshots


def test_without_its_share_there_is_no_bank(run: Run, experts: Experts) -> None:
    assert Probes(run, 1, experts, [segment_of(0)]).bank == ()
    assert not trained(run)


def test_a_bank_of_trajectories_reaches_as_far_as_students_are_held_against() -> None:
    walks = {"steps": 3, "batch": 10, "starts": [[0, 1, 2], [1, 3, 5]], "epochs": 2}
    config = small(
        synthetic={"group_size": None}, matcher={"name": "datm"}, trajectory=walks, experts={"count": 1, "epochs": 9}
    )
    assert walk_of(config, 0) == (0, 1, 2, 3)
    assert walk_of(config, 1) == walk_of(config, 2) == (0, 1, 2, 3, 4, 5, 6)
    assert walk_of(small(), 1) == (0, 0.125, 0.25, 0.5, 1)
