"""Probes: networks trained on the segments so far, which say what is still hard; and the bank that they become.

What must stay true: a probe follows from the run's seed, its segment and its number, and is trained once a segment; so
does what becomes of it.
"""

from __future__ import annotations

from dasm_ray.config.keys import RunConfig
from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Segments, flattened
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Worker

WALK = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Epochs at which gradients and distributions take states from a probe that goes on."""


def walk_of(config: RunConfig, segment: int) -> tuple[float, ...]:
    """Epochs at which the bank has states: those of WALK; for trajectories each one that a student starts at or is held
    against, which begins before the last start epoch of the segment and is M epochs on."""
    if not config.is_trajectory:
        return WALK
    _, _, last = config.starts_of(segment)
    return tuple(float(epoch) for epoch in range(last + config.trajectory.epochs))


class Probes:
    """The networks that know the segments before ``segment``; before the first, experts after one epoch.

    They are trained when they are first asked for.
    """

    def __init__(self, run: Run, segment: int, experts: Experts, frozen: Segments) -> None:
        self._run, self._segment, self._experts = run, segment, experts
        self._frozen = list(frozen)
        self._trained: tuple[ObjectRef, ...] | None = None
        self._gone_on: tuple[ObjectRef, ...] | None = None

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
        """They are trained again when next asked for, and go on again, after some went with a node."""
        self._trained = self._gone_on = None

    @property
    def bank(self) -> tuple[ObjectRef, ...]:
        """References to states of the bank: snapshots (S, P) of each probe as it goes on along all real images.

        Before the first segment the experts are the bank, and where the base matcher's states are theirs already, there
        is none.
        """
        config = self._run.config
        if not config.bank_share_of(self._segment):
            return ()
        if not self._frozen:
            return () if config.states == "experts" else self._experts.snapshots
        if self._gone_on is None:
            self._gone_on = self._go_on()
        return self._gone_on

    def _go_on(self) -> tuple[ObjectRef, ...]:
        """Each probe goes on by the experts' recipe: so that its states know the segments so far, and the real images
        more and more, as networks do that are trained on the finished set."""
        run, networks = self._run, self.networks
        epochs = walk_of(run.config, self._segment)
        run.progress.stage("bank", len(networks), run.of(self._segment))
        name = f"before segment {self._segment + 1}"
        tasks = [
            task(f"bank {m} {name}", Worker.go_on, run.job, self._segment, m, (probe,), epochs)
            for m, probe in enumerate(networks)
        ]
        return tuple(done.refs[0] for done in run_all(run, tasks, lambda _: run.progress.advance()))

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
