"""Scores of all real images: kept and read again, shared beside the experts, and the window that they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_pool import WALKS, LocalPool, again, blocks_of, local_run, read, shared_experts, small, with_blocks

from dasm_ray.core.window import window
from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import train_experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run
from dasm_ray.method.scores import (
    scores_before,
    sharded,
    static_name,
    static_scores,
    target_of,
    validation_scores,
    window_of,
)
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Worker
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import Scores, read_scores, write_scores


def scored(run: Run) -> Scores:
    experts = train_experts(run)
    return scores_before(run, 0, experts, Probes(run, 0, experts, []))


def test_scores_are_kept_and_read_again(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    first = scored(run)
    later = again(run, run.config)
    second = scored(later)
    assert isinstance(later.pool, LocalPool)
    assert not [name for name in later.pool.done if "scores" in name]
    for name in ("dynamic", "static", "wrong", "known", "window", "label", "index"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert len(first.label) == digits.counts["train"].sum()


def test_the_number_of_shards_changes_no_score(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    cut = replace(run, config=small(score={"shards": 3}))
    whole, parts = (sharded(each, Worker.score, "scores", experts.early) for each in (run, cut))
    for one, other in zip(whole, parts, strict=True):
        assert one.tobytes() == other.tobytes()


def test_static_scores_lie_beside_the_experts_by_what_affects_them(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    score, errs = static_scores(run, experts)
    assert static_name(run) in run.shared_place.names()
    later = again(run, small(score={"dynamic": "margin"}))
    assert static_name(later) == static_name(run), "the score under probes is nothing to it"
    found, wrong = static_scores(later, experts)
    assert (found.tobytes(), wrong.tobytes()) == (score.tobytes(), errs.tobytes())
    assert isinstance(later.pool, LocalPool)
    assert not later.pool.done
    assert static_name(again(run, small(score={"static": "loss"}))) != static_name(run)
    assert static_name(again(run, small(experts={"count": 1}))) != static_name(run)


@pytest.mark.parametrize(
    ("policy", "segment", "images"), [("frontier", 0, 2), ("quantile", 0, 2), ("quantile", 1, 6), ("size", 1, 6)]
)
def test_the_window_is_that_of_each_class_by_itself_by_the_segments_number_and_the_images_so_far(
    digits: RealRefs, tmp_path: Path, policy: str, segment: int, images: int
) -> None:
    keys = {"synthetic": {"ipc": 6, "segments": 2, "sizes": [2, 4]}, "window": {"policy": policy}}
    run = local_run(small(**keys, experts=shared_experts()), tmp_path, digits)
    experts = train_experts(run)
    found = scores_before(run, segment, experts, Probes(run, segment, experts, []))
    for label, seen in enumerate(window_of(run, found)):
        mine = found.label == label
        arrays = {name: getattr(found, name)[mine] for name in ("dynamic", "static", "wrong", "known")}
        expected = window(run.config.window, segment=segment, segments=2, images=images, **arrays)
        assert np.array_equal(seen, expected)


@pytest.mark.parametrize("keys", [{"synthetic": {"init": "loop"}}, {"matcher": {"frontier_share": 0.2}}])
def test_the_frontier_is_what_every_probe_misses_and_experts_know_from_the_second_segment_on(
    digits: RealRefs, tmp_path: Path, keys: dict[str, dict[str, object]]
) -> None:
    run = local_run(small(**keys), tmp_path, digits)  # type: ignore[arg-type]
    found = scored(run)
    assert found.missed is not None
    assert found.missed.any()
    for segment in (0, 1):
        for label, frontier in enumerate(target_of(run, segment, found).frontier):
            mine = np.flatnonzero(found.label == label)
            expected = [place for place, n in enumerate(mine) if segment and found.missed[n] and found.known[n]]
            assert frontier.tolist() == expected
    plain = again(run, small())
    assert not any(map(len, target_of(plain, 1, replace(found, missed=None)).frontier)), "nothing asks for it"


def test_where_labels_are_learned_only_images_that_experts_know_are_seen(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(**WALKS), tmp_path, digits)
    found = scored(run)
    assert not found.known.all()
    for label, seen in enumerate(window_of(run, found)):
        assert found.known[found.label == label][seen].all()


def test_scores_that_are_no_numbers_are_refused_and_not_kept(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    good, count = experts.snapshots, digits.counts["train"].sum()
    experts.snapshots = (run.pool.put(np.full_like(read(good[0]), 1e30)),)
    with pytest.raises(NonFinite, match=rf"static scores: {count} of {count} .*; lower experts\.lr \(now 0\.01\)"):
        static_scores(run, experts)
    assert static_name(run) not in run.shared_place.names()
    experts.snapshots = good
    probes = Probes(run, 1, experts, [])
    probes._frozen, probes._trained = [None], (run.pool.put(np.full_like(read(good[0])[0], np.nan)),)  # type: ignore[list-item]
    with pytest.raises(NonFinite, match=r"scores before segment 2: .*; lower probe\.lr \(now 0\.01\)"):
        scores_before(run, 1, experts, probes)
    assert read_scores(run.place / "scores", 1, run.key) is None


def test_scores_of_nan_that_an_older_version_has_kept_are_computed_again(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    first = scored(run)
    nan, file = np.full_like(first.static, np.nan), run.shared_place / static_name(run)
    write_scores(run.place / "scores", 0, replace(first, dynamic=nan), run.key)
    tensors.write(file, {"score": nan, "known": first.known}, {"key": file.name})
    later, notes = again(run, run.config), []
    later.progress.note = notes.append  # type: ignore[method-assign]
    second = scored(later)
    assert sum("holds scores that are not finite; they are computed again" in note for note in notes) == 2
    assert (second.dynamic.tobytes(), second.static.tobytes()) == (first.dynamic.tobytes(), first.static.tobytes())


def test_scores_of_validation_images_lie_beside_the_experts(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    found = validation_scores(run, experts)
    assert found.shape == (digits.counts["val"].sum(),)
    assert (run.shared_place / f"validation_{static_name(run)}").exists()
    later = again(run, run.config)
    assert validation_scores(later, experts).tobytes() == found.tobytes()
    assert isinstance(later.pool, LocalPool)
    assert later.pool.done == []
    as_training = replace(run, real=with_blocks(digits, tmp_path / "kept", train=blocks_of(digits, "val")))
    same, *_ = sharded(as_training, Worker.score_statically, "static scores", experts.snapshots)
    assert same.tobytes() == found.tobytes(), "as training images would be scored"
