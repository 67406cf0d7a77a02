"""Probes: networks trained on the segments so far, which say what is still hard.

What must stay true: a probe follows from the run's seed, its segment and its number, and is trained once a segment.
"""

from __future__ import annotations

from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Segments, flattened
from dasm_ray.runtime.pool import ObjectRef, task
from dasm_ray.runtime.worker import Worker


class Probes:
    """The networks that know the segments before ``segment``; before the first, experts after one epoch.

    They are trained when they are first asked for.
    """

    def __init__(self, run: Run, segment: int, experts: Experts, frozen: Segments) -> None:
        self._run, self._segment, self._experts = run, segment, experts
        self._frozen = list(frozen)
        self._trained: tuple[ObjectRef, ...] | None = None

    @property
    def networks(self) -> tuple[ObjectRef, ...]:
        """References to their parameters (P,)."""
        if not self._frozen:
            return self._experts.early[: self._run.config.probe.members]
        if self._trained is None:
            self._trained = self._train()
        return self._trained

    def loss(self) -> float:
        """Their mean loss on the training images by which experts' losses are recorded."""
        reading = task("loss of the probe", Worker.loss_of, self._run.job, self.networks, self._segment)
        (loss,) = run_all(self._run, [reading])
        return float(loss.value)

    def forget(self) -> None:
        """They are trained again when next asked for, after some went with a node."""
        self._trained = None

    def _train(self) -> tuple[ObjectRef, ...]:
        run, segment, members = self._run, self._segment, self._run.config.probe.members
        images = flattened(self._frozen)
        labels = images.labels if images.logits is None else images.logits
        pixels = (run.pool.put(images.pixels),)  # in a tuple it travels as a reference; on its own Ray would send it
        run.progress.stage("probes", members, run.of(segment))
        tasks = [
            task(f"probe {m} before segment {segment + 1}", Worker.probe, run.job, segment, m, pixels, labels)
            for m in range(members)
        ]
        return tuple(done.refs[0] for done in run_all(run, tasks, lambda _: run.progress.advance()))
