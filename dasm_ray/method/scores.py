"""What is known of every real image before a segment: static and dynamic difficulty, and the window.

What must stay true: scores do not depend on the number of shards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, what
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.core.window import window
from dasm_ray.method.experts import Experts, expert_key, shared_place
from dasm_ray.method.probes import probes_before
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.sets import Indices, Segments
from dasm_ray.runtime.pool import Ref, Task
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import Scores, read_scores, write_scores
from dasm_ray.store.place import Place


class StaticScores:
    """The difficulty of every training image under the experts, found when first needed: (score, known), (N,) each.

    It lies beside the experts, under the digest of what else affects it, so runs that share experts share it too.
    """

    def __init__(self, here: Here, trained: Experts) -> None:
        self._here, self._trained = here, trained
        self._found: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None

    def get(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        if self._found is None:
            self._found = self._read() or self._computed()
        return self._found

    @property
    def _file(self) -> Place:
        return shared_place(self._here) / static_name(self._here)

    def _read(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        if not self._file.exists():
            return None
        arrays, note = tensors.read(self._file)
        tensors.check_key(self._file, note, self._file.name)
        return arrays["score"], arrays["known"]

    def _computed(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        score, wrong = sharded(self._here, "score_statically", "static scores", self._trained.snapshots)
        tensors.write(self._file, {"score": score, "known": ~wrong}, {"key": self._file.name})
        return score, ~wrong


def static_name(here: Here) -> str:
    """The file name of the static scores, by what affects them beside the experts."""
    score = {name: value for name, value in what(here.config.score).items() if name != "dynamic"}
    return f"static_{digest_of(expert_key(here), here.config.experts.count, score)}.safetensors"


def sharded(
    here: Here, method: str, name: str, networks: tuple[Ref, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """All training images scored in shards: score and wrong, (N,) each, whatever the number of shards."""
    count, recipe = int(here.real.counts["train"].sum()), here.config.score
    ranges = shard_ranges(count, recipe.batch, recipe.shards or 2 * here.session.workers)
    here.progress.stage(name, len(ranges))
    tasks = [
        Task(f"{name}, images {first} to {last - 1}", method, (here.job, networks, first, last))
        for first, last in ranges
    ]
    answers = run_all(here, tasks, lambda done: here.progress.advance(samples=len(done.value.score)))
    return np.concatenate([d.value.score for d in answers]), np.concatenate([d.value.wrong for d in answers])


def scores_before(here: Here, segment: int, trained: Experts, frozen: Segments, static_scores: StaticScores) -> Scores:
    """What is known of every training image before a segment, and its window; read if it is on disk."""
    place = here.place / "scores"
    kept = read_scores(place, segment, here.key)
    if kept is not None:
        return kept
    static, known = static_scores.get()
    probes = probes_before(here, segment, trained, frozen)
    dynamic, wrong = sharded(here, "score", f"scores before segment {segment + 1}", probes)
    labels, index = _class_sorted(here.real.counts["train"])
    allowed = np.zeros(len(labels), bool)
    for label in range(here.classes):
        mine = np.flatnonzero(labels == label)
        seen = window(
            here.config.window,
            segment=segment,
            segments=here.config.synthetic.segments,
            dynamic=dynamic[mine],
            static=static[mine],
            wrong=wrong[mine],
            known=known[mine],
        )
        allowed[mine[seen]] = True
    found = Scores(labels, index, dynamic, static, wrong, known, allowed)
    write_scores(place, segment, found, here.key)
    here.progress.probe(accuracy=1 - float(wrong.mean()))
    here.progress.note(
        f"segment {segment + 1}: the probe gets {1 - wrong.mean():.1%} of the training images right; "
        f"the window holds {allowed.mean():.0%}"
    )
    return found


def _class_sorted(counts: NDArray[np.int64]) -> tuple[Indices, Indices]:
    """Label and within-class index of every image in class-sorted order."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return labels, np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
