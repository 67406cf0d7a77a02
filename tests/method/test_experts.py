"""Experts on the driver: trained once, read after, renewed after a loss; their soft labels."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import WALKS, again, local_run, read, small

from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import GOOD, _say_if_weak, soft_labels, train_experts
from dasm_ray.method.match import match
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Origin
from dasm_ray.method.scores import scores_before, target_of
from dasm_ray.method.sets import chosen
from dasm_ray.method.starts import start_of
from dasm_ray.runtime import worker as worker_module
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.pool import InputLost
from dasm_ray.runtime.snapshots import Reader
from dasm_ray.store import tensors
from dasm_ray.store.trajectories import open_trajectory, trajectory_name, unfinished_name


def test_experts_are_trained_once_and_found_by_runs_that_share_them(digits: RealRefs, tmp_path: Path) -> None:
    config = small(experts={"cache": str(tmp_path / "cache")}, window={"policy": "all"})
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
        assert read(one).tobytes() == read(other).tobytes()


def test_what_killed_writes_left_in_a_shared_cache_is_removed_where_experts_are_sought(
    digits: RealRefs, tmp_path: Path
) -> None:
    """Not what may be another run's at this moment, nor what lies beside the folder of these experts."""
    run = local_run(small(experts={"cache": str(tmp_path / "cache")}), tmp_path / "a", digits)
    folder = tmp_path / "cache" / run.expert_key
    folder.mkdir(parents=True)
    young, old, foreign = (
        place / f".expert_00000.safetensors.{digit * 32}.tmp"
        for place, digit in ((folder, "0"), (folder, "1"), (tmp_path / "cache", "2"))
    )
    for file in (young, old, foreign):
        file.write_text("half")
    for file in (old, foreign):
        os.utime(file, (0, 0))
    train_experts(run)
    assert [young.exists(), old.exists(), foreign.exists()] == [True, False, True]


def test_references_are_small_and_what_is_lost_is_made_again_with_the_same_bytes(
    digits: RealRefs, tmp_path: Path
) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    assert all(len(pickle.dumps(ref)) < 500 for ref in (*experts.snapshots, *experts.early))
    before, refs = [read(ref).tobytes() for ref in experts.snapshots], experts.snapshots
    (run.shared_place / trajectory_name(1)).delete()
    with pytest.raises(InputLost, match=r"expert 1 in .*: its file is gone"):
        read(refs[1])
    experts.read_again()
    assert experts.snapshots == refs
    assert [read(ref).tobytes() for ref in experts.snapshots] == before
    for early, snapshots in zip(experts.early, experts.snapshots, strict=True):
        assert np.array_equal(read(early), read(snapshots)[1])


def test_a_round_whose_expert_is_gone_goes_on_with_one_that_is_made_again(digits: RealRefs, tmp_path: Path) -> None:
    expected = None
    for folder, loses in (("whole", False), ("lossy", True)):
        run = local_run(small(synthetic={"segments": 1}), tmp_path / folder, digits)
        experts = train_experts(run)
        scores = scores_before(run, 0, experts, Probes(run, 0, experts, []))
        target, nothing = target_of(run, 0, scores), [np.empty(0, np.int64)] * 10
        start, _ = start_of(run, 0, scores, target, nothing, experts, [])
        if loses:
            run.pool._worker._reader = Reader(0)  # type: ignore[attr-defined]
            for number in range(2):
                (run.shared_place / trajectory_name(number)).delete()
        made = match(run, 0, start, experts, Probes(run, 0, experts, []), [], [target])
        expected = made.pixels.tobytes() if expected is None else expected
        assert made.pixels.tobytes() == expected


def test_soft_labels_stand_in_the_order_of_the_trainings(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    one, both = soft_labels(run, experts, [chosen(np.array([3])), chosen(np.array([7, 3]))])
    assert (one.shape, both.shape) == ((1, 10), (2, 10))
    np.testing.assert_allclose(one[0], both[1], rtol=1e-4, atol=1e-5)


# --- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_experts_go_on_from_the_epochs_that_were_done_when_they_were_killed(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """The second one, as it was to write what it had after so many epochs of three."""
    whole, cut = (local_run(small(), tmp_path / name, digits) for name in ("whole", "cut"))
    expected, left = train_experts(whole), [3 + epochs]

    def mortal(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*args: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return write(*args)

        return written

    for name in ("add_epochs", "write_trajectory"):
        monkeypatch.setattr(worker_module, name, mortal(getattr(worker_module, name)))
    with pytest.raises(KeyboardInterrupt):
        train_experts(cut)
    monkeypatch.undo()
    there = [trajectory_name(0), unfinished_name(1)] if epochs > 1 else [trajectory_name(0)]
    assert cut.shared_place.names() == there
    later, trained = again(cut, cut.config), []
    later.progress.advance = lambda n=1, samples=0, **_: trained.append(samples)  # type: ignore[method-assign]
    found = train_experts(later)
    images = int(digits.counts["train"].sum())
    assert trained == [0, (3 - epochs + 1) * images]
    assert [ref.digest for ref in found.snapshots] == [ref.digest for ref in expected.snapshots]
    assert cut.shared_place.names() == [trajectory_name(0), trajectory_name(1)]


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ({"lr": 1e6}, r"experts\.lr \(now 1e\+06\)"),
        ({"weight_decay": 1e20}, r"experts\.weight_decay \(now 1e\+20\) or experts\.lr \(now 0\.01\)"),
        ({"momentum": 0.999, "lr": 1e6}, r"experts\.momentum \(now 0\.999\) or experts\.lr \(now 1e\+06\)"),
    ],
    ids=["rate", "weight decay", "momentum"],
)
def test_experts_that_diverge_are_named_and_not_kept_in_a_shared_cache(
    digits: RealRefs, tmp_path: Path, recipe: dict[str, float], keys: str
) -> None:
    config = small(experts={"cache": str(tmp_path / "cache"), **recipe})
    run = local_run(config, tmp_path / "run", digits)
    with pytest.raises(NonFinite, match=rf"^expert 0, epoch \d, .*diverged.*; lower {keys}$"):
        train_experts(run)
    assert not run.shared_place.names()


def test_epochs_that_were_numbers_stay_on_disk(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = local_run(small(experts={"epochs": 2}), tmp_path, digits)
    train_experts(run)
    place, key = run.shared_place, run.expert_key
    before = open_trajectory(place, 0, key)
    assert before is not None
    longer = again(run, small(experts={"epochs": 3, "lr": 1e30}))
    monkeypatch.setattr(Origin, "expert_key", key)  # as if it were the same training, gone on with
    with pytest.raises(NonFinite, match="expert 0, epoch 3"):
        train_experts(longer)
    assert open_trajectory(place, 0, key) == before


def test_an_expert_of_nan_that_an_older_version_has_kept_is_trained_again_with_a_word(
    digits: RealRefs, tmp_path: Path
) -> None:
    run = local_run(small(), tmp_path, digits)
    first, place = train_experts(run), run.shared_place
    kept = open_trajectory(place, 1, run.expert_key)
    assert kept is not None
    spoiled = {name: np.full_like(array, np.nan) for name, array in kept.arrays().items()}
    tensors.write(place / trajectory_name(1), spoiled, {"key": run.expert_key, "expert": 1})
    later, notes = again(run, run.config), []
    later.progress.note = notes.append  # type: ignore[method-assign]
    second = train_experts(later)
    assert f"expert 1: its file in {place} is not finite, so it is trained again" in notes
    for one, other in zip(first.snapshots, second.snapshots, strict=True):
        assert read(one).tobytes() == read(other).tobytes()
    assert open_trajectory(place, 1, run.expert_key) == kept


def test_soft_labels_that_are_no_numbers_are_refused(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    experts = train_experts(run)
    snapshots = np.full_like(read(experts.snapshots[0]), 1e30)
    experts.snapshots = (run.pool.put(snapshots),)
    with pytest.raises(NonFinite, match=r"soft labels: .*; lower experts\.lr \(now 0\.01\)"):
        soft_labels(run, experts, [chosen(np.array([3]))])


# --- good enough to teach --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "classes", "accuracy", "said"),
    [
        ({}, 10, 0.69, "windows"),
        ({}, 10, 0.7, ""),
        ({}, 100, 0.55, "windows"),
        ({}, 2, 0.74, "windows"),
        ({}, 2, 0.76, ""),
        ({"window": {"policy": "all"}}, 10, 0.2, ""),
        ({"window": {"policy": "quantile"}}, 10, 0.2, ""),
        ({"window": {"policy": "size"}, "synthetic": {"init": "loop"}}, 10, 0.6, "starts"),
        ({"matcher": {"frontier_share": 0.2}}, 10, 0.6, "windows and real batches"),
        ({**WALKS}, 10, 0.2, "windows and soft labels"),
        ({**WALKS, "window": {"policy": "all"}}, 10, 0.2, "soft labels"),
    ],
)
def test_experts_that_know_too_little_are_said_where_something_hangs_on_what_they_know(
    digits: RealRefs, tmp_path: Path, sections: dict[str, dict[str, object]], classes: int, accuracy: float, said: str
) -> None:
    run, notes = local_run(small(**sections), tmp_path, digits), []
    run.progress.note = notes.append  # type: ignore[method-assign]
    run.real = replace(digits, class_names=tuple(map(str, range(classes))))
    _say_if_weak(run, accuracy)
    assert len(notes) == bool(said)
    if said:
        assert f": {said} by what they know mean little; train them longer (experts.epochs, now 3)" in notes[0]
        assert f"they get {accuracy:.1%} of the validation images right" in notes[0]


def test_weak_experts_are_said_after_their_training(digits: RealRefs, tmp_path: Path) -> None:
    run, notes = local_run(small(), tmp_path, digits), []
    run.progress.note = notes.append  # type: ignore[method-assign]
    experts = train_experts(run)
    assert np.mean([accuracy[-1] for accuracy in experts.accuracies]) < GOOD
    assert notes[-1].startswith("experts: on average they get ")
