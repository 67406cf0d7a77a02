"""Real images chosen on the driver: balanced and reproducible by every way; a new way is a row and a function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, blocks_of, local_run, shared_experts, small

from dasm_ray.config import selections
from dasm_ray.config.keys import ROWS
from dasm_ray.config.selections import SELECTIONS, Selection
from dasm_ray.core import selection
from dasm_ray.core.selection import PICKS
from dasm_ray.method.choices import choices, random_choice, stored_images
from dasm_ray.method.experts import Experts, train_experts
from dasm_ray.method.run import Run
from dasm_ray.method.sets import Patched, chosen_by, selected_set
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.pool import Done, Task


@pytest.fixture(scope="module")
def run(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return local_run(small(), tmp_path_factory.mktemp("choices"), digits)


@pytest.fixture(scope="module")
def experts(run: Run) -> Experts:
    return train_experts(run)


INDICES = [method for method in SELECTIONS if SELECTIONS[method].reads != "crops"]


def labels_of(run: Run, indices: np.ndarray) -> list[int]:
    return np.repeat(np.arange(10), run.real.counts["train"])[indices].tolist()


def test_the_tables_name_the_same_ways() -> None:
    assert list(PICKS) == list(SELECTIONS)
    assert set(SELECTIONS) < set(ROWS)


def test_every_way_gives_ipc_different_images_of_each_class_the_same_each_time(run: Run, experts: Experts) -> None:
    found = choices(run, experts, INDICES)
    assert list(found) == INDICES
    again = choices(run, experts, INDICES)
    for method, indices in found.items():
        assert labels_of(run, indices) == [label for label in range(10) for _ in range(2)], method
        assert len(set(indices.tolist())) == 20, method
        assert again[method].tolist() == indices.tolist(), method


def test_patches_are_stored_images_of_each_class_the_same_each_time(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(synthetic={"factor": 2}), tmp_path, digits)
    experts = train_experts(run)
    (patched,) = choices(run, experts, ["patches"]).values()
    assert isinstance(patched, Patched)
    assert (patched.factor, patched.images.pixels.shape) == (2, (20, 1, 8, 8))
    assert patched.images.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert len(np.unique(patched.images.pixels, axis=0)) == 20
    (again,) = choices(run, experts, ["patches"]).values()
    assert isinstance(again, Patched)
    assert again.images.pixels.tobytes() == patched.images.pixels.tobytes()
    made = selected_set(run, *stored_images(run, patched))
    assert (made.factor, made.pixels.tobytes()) == (2, patched.images.pixels.tobytes())
    soft = chosen_by(run, patched, np.zeros((20, 10), np.float32))
    assert soft.digest != chosen_by(run, patched).digest


def test_scores_that_several_ways_read_are_computed_once(run: Run, experts: Experts) -> None:
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    choices(run, experts, ["el2n", "ccs", "window"])
    done = run.pool.done[before:]
    assert len([name for name in done if name.startswith("el2n scores")]) == 2, "two shards of one scoring"
    assert done[-1] == "best window"


def test_what_was_chosen_by_number_is_stored_as_it_is(run: Run) -> None:
    indices = random_choice(run, 0)
    pixels, factor = stored_images(run, indices)
    assert factor == 1
    assert np.array_equal(pixels * 255, np.concatenate(blocks_of(run.real))[indices])


def test_random_images_are_others_for_every_seed(run: Run) -> None:
    assert random_choice(run, 0).tolist() == random_choice(run, 0).tolist()
    assert random_choice(run, 0).tolist() != random_choice(run, 1).tolist()


def test_a_way_is_one_row_and_one_function(run: Run, experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selections.SELECTIONS, "easiest", Selection("el2n"))
    monkeypatch.setitem(selection.PICKS, "easiest", lambda score, ipc, _: [np.argsort(score, kind="stable")[:ipc]])
    found = choices(run, experts, ["easiest", "el2n"])
    assert labels_of(run, found["easiest"]) == labels_of(run, found["el2n"])
    assert not set(found["easiest"].tolist()) & set(found["el2n"].tolist())


class Watched(LocalPool):
    """Remembers which windows were judged, and what came out."""

    judged: tuple[list[np.ndarray], list[float]]

    def _do(self, task: Task) -> Done:
        done = super()._do(task)
        if task.name == "best window":
            self.judged = task.args[-1], done.refs[0].value
        return done


def test_of_the_windows_the_one_that_knows_validation_best_is_taken(digits: RealRefs, tmp_path: Path) -> None:
    pool = Watched()
    run = local_run(small(experts=shared_experts()), tmp_path, digits, pool)
    (chosen,) = choices(run, train_experts(run), ["window"]).values()
    candidates, right = pool.judged
    assert min(right) < max(right)
    assert chosen.tolist() == candidates[right.index(max(right))].tolist()
