"""Where segments start in a whole run, held against what the scores on disk say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from local_pool import LocalPool, local_run, put, read, shared_experts, small

from dasm_ray.core.scoring import features_of
from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import k_means
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.run import Run
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.checkpoints import Scores, read_scores

EXPERTS = {"epochs": 12, "lr": 0.05}
LOOP = {"ipc": 6, "segments": 2, "sizes": [2, 4], "init": "loop", "factor": 2}


class WatchedPool(LocalPool):
    """A pool that keeps what each choice of a start was answered with."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: dict[str, list[int]] = {}

    def _do(self, task):  # type: ignore[no-untyped-def]
        done = super()._do(task)
        if task.name.startswith("choice"):
            self.chosen[task.name] = done.value.tolist()
        return done


def run_of(digits: RealRefs, folder: Path, **sections: object) -> tuple[Run, WatchedPool]:
    pool = WatchedPool()
    sections = {"synthetic": LOOP, "window": {"policy": "size"}, "experts": EXPERTS | shared_experts(), **sections}
    run = local_run(small(**sections), folder, digits, pool)  # type: ignore[arg-type]
    distil(run, train_experts(run))
    return run, pool


@pytest.fixture(scope="module")
def looped(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, WatchedPool, Path]:
    """A run whose segments start from choices; another may go on in its folder."""
    folder = tmp_path_factory.mktemp("looped")
    return *run_of(digits, folder), folder


def scores_of(run: Run, segment: int) -> Scores:
    scores = read_scores(run.place / "scores", segment, run.key)
    assert scores is not None
    assert scores.missed is not None
    return scores


def test_the_first_segment_starts_nearest_to_the_centres_of_the_target(looped: tuple[Run, WatchedPool, Path]) -> None:
    run, pool, _ = looped
    scores = scores_of(run, 0)
    worker = pool._worker
    network, blocks = worker._network(run.job), worker._blocks(run.job, "train")
    snapshots = read(train_experts(run).snapshots[0])
    for label in (0, 7):
        target = np.flatnonzero(scores.window[scores.label == label])
        flat = worker._on_device(run.job, (put(snapshots[-1]),))[0]
        features = features_of(network, blocks, flat, label, run.config.score.batch)
        nearest = k_means(features[target], 2 * 4, numpy_generator(run.config.seed, "loop", 0, label))
        assert pool.chosen[f"choice for segment 1, class {label}"] == target[nearest].tolist()


def test_later_segments_start_from_what_every_probe_misses_and_experts_know(
    looped: tuple[Run, WatchedPool, Path],
) -> None:
    run, pool, _ = looped
    scores, seen = scores_of(run, 1), 0
    assert scores.missed is not None
    assert not (scores.missed & ~scores.wrong).all()
    for label in range(10):
        mine = scores.label == label
        used = pool.chosen[f"choice for segment 1, class {label}"]
        chosen = pool.chosen[f"choice for segment 2, class {label}"]
        assert (len(used), len(set(chosen)), len(set(used) & set(chosen))) == (8, 16, 0)
        frontier = [index for index in np.flatnonzero(scores.missed[mine] & scores.known[mine]) if index not in used]
        expected = sorted(frontier, key=lambda index: (scores.static[mine][index], index))[:16]
        assert chosen[: len(expected)] == expected
        seen += len(expected)
    assert seen > 50, "probes that know little of digits miss many"


def test_a_start_that_covers_is_nearest_to_the_centres_of_what_every_probe_misses(
    digits: RealRefs, looped: tuple[Run, WatchedPool, Path], tmp_path: Path
) -> None:
    _, easiest, _ = looped
    run, pool = run_of(digits, tmp_path, synthetic=LOOP | {"init": "cover"})
    scores, others = scores_of(run, 1), 0
    assert scores.missed is not None
    for label in range(10):
        mine = scores.label == label
        first, chosen = (pool.chosen[f"choice for segment {number}, class {label}"] for number in (1, 2))
        assert first == easiest.chosen[f"choice for segment 1, class {label}"]
        frontier = set(np.flatnonzero(scores.missed[mine] & scores.known[mine]).tolist()) - set(first)
        assert len(set(chosen) & frontier) == min(16, len(frontier))
        others += len(frontier) > 16 and sorted(chosen) != sorted(
            easiest.chosen[f"choice for segment 2, class {label}"]
        )
    assert others > 0, "some class has more in its frontier than the segment takes"


def test_no_image_starts_twice_and_a_start_is_found_again(
    digits: RealRefs, looped: tuple[Run, WatchedPool, Path]
) -> None:
    _, first, folder = looped
    _, second = run_of(digits, folder)
    assert first.chosen == second.chosen
    assert not [name for name in second.done if "scores" in name]


@pytest.mark.parametrize("init", ["mix", "real"])
def test_a_start_that_is_drawn_asks_for_no_choice(digits: RealRefs, tmp_path: Path, init: str) -> None:
    run, pool = run_of(digits, tmp_path, synthetic=LOOP | {"init": init})
    assert not pool.chosen
    scores = read_scores(run.place / "scores", 1, run.key)
    assert scores is not None
    assert scores.missed is None
