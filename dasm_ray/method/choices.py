"""Real images chosen instead of made: the baselines of the table.

What must stay true: a choice is balanced over classes and follows from the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import ccs, hardest, random, windows
from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.scores import sharded
from dasm_ray.method.sets import Indices
from dasm_ray.runtime.pool import Task, fetch


def random_choice(here: Here, seed: int) -> Indices:
    """Global indices of a class-balanced random selection, another one for every seed."""
    counts = here.real.counts["train"]
    chosen = random(counts, here.config.synthetic.ipc, numpy_generator(here.config.seed, "random", seed))
    return _global(counts, chosen)


def selections(here: Here, trained: Experts, methods: Sequence[str]) -> dict[str, Indices]:
    """Global indices chosen by each of ``methods``: by features, the classes as tasks, or by scores in shards."""
    chosen = _by_features(here, trained, [method for method in methods if method in BY_FEATURES])
    scores: dict[str, NDArray[np.float64]] = {}
    for method in methods:
        if method in BY_SCORE:
            name = BY_SCORE[method]
            if name not in scores:
                scores[name] = sharded(_scored_by(here, name), "score_statically", f"{name} scores", trained.snapshots)[
                    0
                ]
            if method == "window":
                chosen[method] = _best_window(here, trained, scores[name])
            else:
                chosen[method] = _by_score(here, method, scores[name])
    return chosen


BY_FEATURES = ("herding", "k_center", "k_means")
BY_SCORE = {"forgetting": "forgetting", "el2n": "el2n", "grand": "grand", "ccs": "el2n", "window": "el2n"}
"""Methods that take the hardest by a score; ccs spreads over all of its strata, window takes the best neighbours."""

WINDOW_STARTS = tuple(place / 20 for place in range(20))
"""Shares of a class, from the easiest on, after which a window may begin."""


def _scored_by(here: Here, name: str) -> Here:
    """The same run under another static score."""
    score = here.config.score.model_copy(update={"static": name})
    return replace(here, job=replace(here.job, config=here.config.model_copy(update={"score": score})))


def _by_features(here: Here, trained: Experts, methods: Sequence[str]) -> dict[str, Indices]:
    if not methods:
        return {}
    here.progress.stage("select", here.classes)
    tasks = [
        Task(f"select class {c}", "select", (here.job, methods, c, trained.snapshots[:1])) for c in range(here.classes)
    ]
    answers = [done.value for done in run_all(here, tasks, lambda _: here.progress.advance())]
    counts = here.real.counts["train"]
    return {method: _global(counts, [answer[method] for answer in answers]) for method in methods}


def _by_score(here: Here, method: str, score: NDArray[np.float64]) -> Indices:
    """The choice from a score of every training image in class-sorted order."""
    counts, ipc = here.real.counts["train"], here.config.synthetic.ipc
    of_class = np.split(score, np.cumsum(counts)[:-1])
    if method == "ccs":
        return _global(
            counts,
            [ccs(own, ipc, numpy_generator(here.config.seed, "ccs", label)) for label, own in enumerate(of_class)],
        )
    return _global(counts, [hardest(own, ipc) for own in of_class])


def _best_window(here: Here, trained: Experts, score: NDArray[np.float64]) -> Indices:
    """Of the windows of ipc neighbours in difficulty, the one by which a ridge regression knows validation best."""
    counts, ipc = here.real.counts["train"], here.config.synthetic.ipc
    candidates = [
        windows(own, ipc, WINDOW_STARTS, 0.0, numpy_generator(here.config.seed, "window", label))
        for label, own in enumerate(np.split(score, np.cumsum(counts)[:-1]))
    ]
    choices = [_global(counts, chosen) for chosen in zip(*candidates, strict=True)]
    (judged,) = run_all(here, [Task("best window", "judge", (here.job, trained.snapshots[:1], choices), outputs=2)])
    return choices[int(np.argmax(fetch(judged.refs[0])))]


def _global(counts: Indices, chosen: Sequence[Indices]) -> Indices:
    """Within-class indices per class as global ones (N,)."""
    starts = np.cumsum(counts) - counts
    return np.concatenate([start + np.sort(indices) for start, indices in zip(starts, chosen, strict=True)])
