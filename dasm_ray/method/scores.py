"""What is known of every real image before a segment: static and dynamic difficulty, and the window.

What must stay true: scores do not depend on the number of shards, what is on disk is not computed again, and a score
that is no number is neither kept nor used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import CHOSEN_STARTS
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.core.window import window
from dasm_ray.errors import NonFinite
from dasm_ray.method.experts import Experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Indices, Target
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Worker
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import Scores, read_scores, scores_name, write_scores
from dasm_ray.store.place import Place


class Judgement(NamedTuple):
    """Of every training image (N,), in class-sorted order: a score, larger is harder, and who errs on it."""

    score: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    """The networks together."""
    missed: NDArray[np.bool_]
    """Each of the networks."""


WHO = ("wrong", "missed")
"""Who errs: the networks together, each of them."""


def scores_before(run: Run, segment: int, experts: Experts, probes: Probes) -> Scores:
    """What is known of every training image before a segment, and its window; read if it is on disk."""
    place = run.place / "scores"
    kept = read_scores(place, segment, run.key)
    if kept is not None and _are_finite(run, place / scores_name(segment), kept.dynamic, kept.static):
        return kept
    static, errs = static_scores(run, experts)
    name = f"scores before segment {segment + 1}"
    dynamic, wrong, missed = sharded(run, Worker.score, name, probes.networks, "probe.lr" if segment else "experts.lr")
    found = _with_window(run, segment, dynamic, static, wrong, ~errs)
    if _needs_frontier(run):
        found = replace(found, missed=missed)
    write_scores(place, segment, found, run.key)
    run.progress.probe(accuracy=1 - float(wrong.mean()))
    run.progress.note(
        f"segment {segment + 1}: the probe gets {1 - wrong.mean():.1%} of the training images right; "
        f"the window holds {found.window.mean():.0%}"
    )
    return found


def target_of(run: Run, segment: int, scores: Scores) -> Target:
    """What a segment may see, and its frontier. The first one has no probes yet, and so none."""
    missed = np.zeros(len(scores.label), bool)
    if segment > 0 and _needs_frontier(run):
        assert scores.missed is not None, "scores are kept under the digest of what asks for them"
        missed = scores.missed & scores.known
    frontier = [np.flatnonzero(missed[scores.label == label]) for label in range(run.classes)]
    return Target(window_of(run, scores), frontier)


def _needs_frontier(run: Run) -> bool:
    return run.config.synthetic.init in CHOSEN_STARTS or run.config.matcher.frontier_share > 0


def window_of(run: Run, scores: Scores) -> list[Indices]:
    """The within-class indices that a segment may see, class by class."""
    # Soft labels start as what experts say (DATM): only of images that they know is that worth learning.
    seen = scores.window & scores.known if run.config.learns_labels else scores.window
    return [np.flatnonzero(seen[scores.label == label]) for label in range(run.classes)]


def static_scores(run: Run, experts: Experts) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The difficulty of every training image under the experts, and whether they err on it.

    It lies beside the experts, under the digest of what else affects it, so runs that share experts share it too.
    """
    file = run.shared_place / static_name(run)
    if file.exists():
        arrays, note = tensors.read(file)
        tensors.check_key(file, note, file.name)
        if _are_finite(run, file, arrays["score"]):
            return arrays["score"], ~arrays["known"]
    score, errs, _ = sharded(run, Worker.score_statically, "static scores", experts.snapshots, "experts.lr")
    tensors.write(file, {"score": score, "known": ~errs}, {"key": file.name})
    return score, errs


def validation_scores(run: Run, experts: Experts) -> NDArray[np.float64]:
    """The static difficulty of every validation image under the experts, in class-sorted order, kept beside them."""
    file = run.shared_place / f"validation_{static_name(run)}"
    if file.exists():
        arrays, note = tensors.read(file)
        tensors.check_key(file, note, file.name)
        if _are_finite(run, file, arrays["score"]):
            return arrays["score"]
    count, name = int(run.real.counts["val"].sum()), "scores of the validation images"
    reading = task(name, Worker.score_statically, run.job, experts.snapshots, 0, count, "val")
    (done,) = run_all(run, [reading])
    score: NDArray[np.float64] = done.value.score
    if not np.isfinite(score).all():
        raise NonFinite(f"{name}: some are not finite; lower experts.lr (now {run.config.experts.lr:g})")
    tensors.write(file, {"score": score}, {"key": file.name})
    return score


def static_name(run: Run) -> str:
    """The file name of the static scores, by what affects them beside the experts."""
    score = {name: value for name, value in result_keys(run.config.score).items() if name != "dynamic"}
    return f"static_{digest_of(run.expert_key, run.config.experts.count, score)}.safetensors"


def _are_finite(run: Run, file: Place, *scores: NDArray[np.float64]) -> bool:
    """Whether scores that were read are numbers, as an older version did not see to; says so where they are not."""
    if all(np.isfinite(score).all() for score in scores):
        return True
    run.progress.note(f"{file}: holds scores that are not finite; they are computed again")
    return False


def sharded(
    run: Run, method: Callable[..., object], name: str, networks: tuple[ObjectRef, ...], rule: str = "experts.lr"
) -> Judgement:
    """All training images scored in shards by a worker's ``method``, whatever the number of shards.

    NonFinite, naming ``rule``, the key by which the networks were trained, where a score is no number.
    """
    count, recipe = int(run.real.counts["train"].sum()), run.config.score
    ranges = shard_ranges(count, recipe.batch, recipe.shards or 2 * run.session.workers)
    run.progress.stage(name, len(ranges))
    tasks = [
        task(f"{name}, images {first} to {last - 1}", method, run.job, networks, first, last) for first, last in ranges
    ]
    answers = run_all(run, tasks, lambda done: run.progress.advance(samples=len(done.value.score)))
    score = np.concatenate([done.value.score for done in answers])
    if not np.isfinite(score).all():
        section, key = rule.split(".")
        raise NonFinite(
            f"{name}: {(~np.isfinite(score)).sum()} of {len(score)} images have a score that is not finite, and none "
            f"is kept; lower {rule} (now {getattr(getattr(run.config, section), key):g})"
        )
    return Judgement(score, *(np.concatenate([getattr(done.value, who) for done in answers]) for who in WHO))


def _with_window(
    run: Run,
    segment: int,
    dynamic: NDArray[np.float64],
    static: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    known: NDArray[np.bool_],
) -> Scores:
    """The scores with the window that they make, class by class."""
    counts = run.real.counts["train"]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    index = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    allowed = np.zeros(len(labels), bool)
    for label in range(run.classes):
        mine = np.flatnonzero(labels == label)
        seen = window(
            run.config.window,
            segment=segment,
            segments=run.config.synthetic.segments,
            dynamic=dynamic[mine],
            static=static[mine],
            wrong=wrong[mine],
            known=known[mine],
            images=run.config.images_up_to(segment),
        )
        allowed[mine[seen]] = True
    return Scores(labels, index, dynamic, static, wrong, known, allowed)
