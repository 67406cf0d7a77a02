"""Experts on the driver: trained once, read after, renewed after a loss; their soft labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from local_pool import local_run, small

from dasm_ray.method.experts import soft_labels, train_experts
from dasm_ray.method.sets import chosen
from dasm_ray.runtime.decoding import RealRefs


def test_experts_are_trained_once_and_found_by_runs_that_share_them(digits: RealRefs, tmp_path: Path) -> None:
    config = small(experts={"cache": str(tmp_path / "cache")})
    first, notes = local_run(config, tmp_path / "a", digits), []
    first.progress.note = notes.append  # type: ignore[method-assign]
    experts = train_experts(first)
    assert [len(accuracy) for accuracy in experts.accuracies] == [4, 4]
    assert notes[0].startswith("experts: 2 of 2 to train for 3 epochs, about ")
    assert notes[-1].startswith("experts: 2 trained, validation accuracy ")
    second, later = local_run(config, tmp_path / "b", digits), []
    second.progress.note = later.append  # type: ignore[method-assign]
    found = train_experts(second)
    assert len(later) == 1, "nothing is announced where nothing is trained"
    for one, other in zip(experts.snapshots, found.snapshots, strict=True):
        assert first.pool.fetch(one).tobytes() == second.pool.fetch(other).tobytes()


def test_references_are_renewed_from_the_files(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    before = experts.snapshots
    experts.read_again()
    assert not set(experts.snapshots) & set(before)
    assert [run.pool.fetch(ref).tobytes() for ref in experts.snapshots] == [
        run.pool.fetch(ref).tobytes() for ref in before
    ]
    for early, snapshots in zip(experts.early, experts.snapshots, strict=True):
        assert np.array_equal(run.pool.fetch(early), run.pool.fetch(snapshots)[1])


def test_soft_labels_stand_in_the_order_of_the_trainings(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    one, both = soft_labels(run, experts, [chosen(np.array([3])), chosen(np.array([7, 3]))])
    assert (one.shape, both.shape) == ((1, 10), (2, 10))
    np.testing.assert_allclose(one[0], both[1], rtol=1e-4, atol=1e-5)
