"""Real images chosen on the driver: balanced and reproducible by every way; a new way is a row and a function."""

from __future__ import annotations

import numpy as np
import pytest
from local_pool import LocalPool, local_run, small

from dasm_ray.config import selections
from dasm_ray.config.keys import ROWS
from dasm_ray.config.selections import SELECTIONS, Selection
from dasm_ray.core import selection
from dasm_ray.core.selection import PICKS
from dasm_ray.method.choices import choices, random_choice
from dasm_ray.method.experts import Experts, train_experts
from dasm_ray.method.run import Run
from dasm_ray.runtime.decoding import RealRefs


@pytest.fixture(scope="module")
def run(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return local_run(small(), tmp_path_factory.mktemp("choices"), digits)


@pytest.fixture(scope="module")
def experts(run: Run) -> Experts:
    return train_experts(run)


def labels_of(run: Run, indices: np.ndarray) -> list[int]:
    return np.repeat(np.arange(10), run.real.counts["train"])[indices].tolist()


def test_the_tables_name_the_same_ways() -> None:
    assert list(PICKS) == list(SELECTIONS)
    assert set(SELECTIONS) < set(ROWS)


def test_every_way_gives_ipc_different_images_of_each_class_the_same_each_time(run: Run, experts: Experts) -> None:
    found = choices(run, experts, list(SELECTIONS))
    assert set(found) == set(SELECTIONS)
    again = choices(run, experts, list(SELECTIONS))
    for method, indices in found.items():
        assert labels_of(run, indices) == [label for label in range(10) for _ in range(2)], method
        assert len(set(indices.tolist())) == 20, method
        assert again[method].tolist() == indices.tolist(), method


def test_scores_that_several_ways_read_are_computed_once(run: Run, experts: Experts) -> None:
    assert isinstance(run.pool, LocalPool)
    before = len(run.pool.done)
    choices(run, experts, ["el2n", "ccs", "window"])
    done = run.pool.done[before:]
    assert len([name for name in done if name.startswith("el2n scores")]) == 2, "two shards of one scoring"
    assert done[-1] == "best window"


def test_random_images_are_others_for_every_seed(run: Run) -> None:
    assert random_choice(run, 0).tolist() == random_choice(run, 0).tolist()
    assert random_choice(run, 0).tolist() != random_choice(run, 1).tolist()


def test_a_way_is_one_row_and_one_function(run: Run, experts: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selections.SELECTIONS, "easiest", Selection("el2n"))
    monkeypatch.setitem(selection.PICKS, "easiest", lambda score, ipc, _: [np.argsort(score, kind="stable")[:ipc]])
    found = choices(run, experts, ["easiest", "el2n"])
    assert labels_of(run, found["easiest"]) == labels_of(run, found["el2n"])
    assert not set(found["easiest"].tolist()) & set(found["el2n"].tolist())
