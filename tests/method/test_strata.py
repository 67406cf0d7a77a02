"""Strata of classes: made once, beside the experts, and one of each in every real batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from local_pool import LocalPool, again, local_run, small

from dasm_ray.method.experts import train_experts
from dasm_ray.method.strata import strata_of
from dasm_ray.runtime.decoding import RealRefs

STRATIFIED = {"strata": True, "batch_real": 6}


def test_strata_are_made_once_and_read_by_runs_that_share_experts(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(matcher=STRATIFIED), tmp_path, digits)
    made = run.pool.fetch(list(strata_of(run, train_experts(run))))
    assert [len(of_class) for of_class in made] == digits.counts["train"].tolist()
    assert all(set(of_class.tolist()) == set(range(6)) for of_class in made)
    later = again(run, small(matcher=STRATIFIED | {"lr_img": 0.5}))
    found = later.pool.fetch(list(strata_of(later, train_experts(later))))
    assert all(np.array_equal(one, other) for one, other in zip(made, found, strict=True))
    assert isinstance(later.pool, LocalPool)
    assert not [name for name in later.pool.done if "strata" in name]


def test_another_size_of_batch_has_strata_of_its_own(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(matcher=STRATIFIED), tmp_path, digits)
    strata_of(run, train_experts(run))
    other = again(run, small(matcher={"strata": True, "batch_real": 3}))
    found = other.pool.fetch(list(strata_of(other, train_experts(other))))
    assert all(set(of_class.tolist()) == set(range(3)) for of_class in found)


def test_features_read_in_other_batches_make_strata_of_their_own(digits: RealRefs, tmp_path: Path) -> None:
    """Last bits of features depend on the batch, and so may a cluster."""
    run = local_run(small(matcher=STRATIFIED), tmp_path, digits)
    strata_of(run, train_experts(run))
    other = again(run, small(matcher=STRATIFIED, score={"batch": 50}))
    strata_of(other, train_experts(other))
    assert isinstance(other.pool, LocalPool)
    assert [name for name in other.pool.done if "strata" in name]
