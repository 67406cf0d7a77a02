"""Real images chosen instead of made: the baselines of the table.

What must stay true: a choice is balanced over classes and follows from the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.selections import SELECTIONS
from dasm_ray.core.seed import numpy_generator
from dasm_ray.core.selection import PICKS, random
from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.scores import sharded
from dasm_ray.method.sets import Choice, Held, Indices, Patched, Pixels, Segment, flattened
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Worker

FEATURES, OF_CROPS = "features", "crops"


def random_choice(run: Run, seed: int) -> Indices:
    """Global indices of a class-balanced random selection, another one for every seed."""
    counts = run.real.counts["train"]
    picked = random(counts, run.config.synthetic.ipc, numpy_generator(run.config.evaluation_seed, "random", seed))
    return _global(counts, picked)


def choices(run: Run, experts: Experts, methods: Sequence[str]) -> dict[str, Choice]:
    """What each of ``methods`` chooses: by features and of crops, the classes as tasks, or by scores in shards."""
    by_features = [method for method in methods if SELECTIONS[method].reads == FEATURES]
    found: dict[str, Choice] = {**_by_features(run, experts, by_features)}
    scores: dict[str, NDArray[np.float64]] = {}
    for method in methods:
        name = SELECTIONS[method].reads
        if name == FEATURES:
            continue
        if name == OF_CROPS:
            found[method] = _patched(run, experts)
            continue
        if name not in scores:
            scores[name], *_ = sharded(
                _scored_by(run, name), Worker.score_statically, f"{name} scores", experts.snapshots
            )
        found[method] = _by_score(run, experts, method, scores[name])
    return found


def stored_images(run: Run, choice: Choice) -> tuple[Pixels, int]:
    """What was chosen as stored images (N, C, H, W), class by class, and their factor."""
    if isinstance(choice, Patched):
        return choice.images.pixels, choice.factor
    (done,) = run_all(run, [task("selected images", Worker.images, run.job, choice)])
    return run.pool.fetch(done.refs[0]), 1


def _scored_by(run: Run, name: str) -> Run:
    """The same run under another static score."""
    score = run.config.score.model_copy(update={"static": name})
    return replace(run, config=run.config.model_copy(update={"score": score}))


def _by_features(run: Run, experts: Experts, methods: Sequence[str]) -> dict[str, Indices]:
    if not methods:
        return {}
    run.progress.stage("select", run.classes)
    one = experts.snapshots[:1]
    tasks = [task(f"select class {c}", Worker.select, run.job, methods, c, one) for c in range(run.classes)]
    answers = [done.value for done in run_all(run, tasks, lambda _: run.progress.advance())]
    counts = run.real.counts["train"]
    return {method: _global(counts, [answer[method] for answer in answers]) for method in methods}


def _patched(run: Run, experts: Experts) -> Patched:
    """Stored images of patches, a class a task; a large set of them is put together in a file."""

    def made() -> list[ObjectRef]:
        one = experts.snapshots[:1]
        tasks = [task(f"patches of class {c}", Worker.patches, run.job, c, one) for c in range(run.classes)]
        return [done.refs[0] for done in run_all(run, tasks, lambda _: run.progress.advance())]

    run.progress.stage("patches", run.classes)
    segment = Segment(Held(run.pool, made(), run.classes, made))
    return Patched(flattened([segment]), run.config.synthetic.factor)


def _by_score(run: Run, experts: Experts, method: str, score: NDArray[np.float64]) -> Indices:
    """The choice from a score of every training image in class-sorted order."""
    counts, ipc, seed = run.real.counts["train"], run.config.synthetic.ipc, run.config.seed
    of_class = np.split(score, np.cumsum(counts)[:-1])
    picked = [PICKS[method](own, ipc, numpy_generator(seed, method, label)) for label, own in enumerate(of_class)]
    candidates = [_global(counts, of_classes) for of_classes in zip(*picked, strict=True)]
    return _judged(run, experts, method, candidates) if SELECTIONS[method].is_judged else candidates[0]


def _judged(run: Run, experts: Experts, method: str, candidates: list[Indices]) -> Indices:
    """The candidate by which a ridge regression on expert features knows the validation images best."""
    (judged,) = run_all(run, [task(f"best {method}", Worker.judge, run.job, experts.snapshots[:1], candidates)])
    return candidates[int(np.argmax(run.pool.fetch(judged.refs[0])))]


def _global(counts: Indices, picked: Sequence[Indices]) -> Indices:
    """Within-class indices per class as global ones (N,)."""
    starts = np.cumsum(counts) - counts
    return np.concatenate([start + np.sort(indices) for start, indices in zip(starts, picked, strict=True)])
