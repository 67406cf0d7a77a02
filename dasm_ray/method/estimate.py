"""What a run will take, from a few measured steps and from arithmetic on its shapes.

What must stay true: what is counted (bytes, tasks) is exact; what is timed says that it was measured run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dasm_ray.config.gains import (
    TRAININGS,
    Size,
    bank_steps,
    earlier_parts,
    images_of,
    inner_steps,
    probe_steps,
    verdict,
)
from dasm_ray.config.keys import RunConfig
from dasm_ray.core.matching.round import slots_a_step
from dasm_ray.core.networks.network import compiles
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.run import Run, run_all
from dasm_ray.runtime.groups import groups_in
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.worker import Pace, Worker


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its independent tasks, and seconds of work of all of them together."""

    name: str
    tasks: int
    seconds: float

    def wall(self, workers: int) -> float:
        """Seconds on so many workers."""
        waves = math.ceil(self.tasks / min(workers, self.tasks))
        return self.seconds / self.tasks * waves


@dataclass(frozen=True)
class Estimate:
    """What a run takes: stages in order, bytes, and the most workers that shorten its longest stage.

    ``memory_keys``: what to do about the steps that need most of a worker's memory. ``compiling``: seconds, the first
    time on a machine and from its disk; 0 where steps run eagerly.
    """

    stages: tuple[Stage, ...]
    worker_memory: int
    memory_keys: str
    device_memory: int
    object_store: int
    sorted_images: int
    disk: int
    moved_each_round: int
    useful_workers: int
    compiling: tuple[float, float]


class Count(NamedTuple):
    """Steps of a whole run but for its table, by kind.

    ``bank``: of probes that go on by the experts' recipe; ``inner``: of networks in the loop. ``matching``: of a class,
    a group or a student, as the base matcher takes them; ``earlier``: a batch of what earlier segments add to these.
    """

    experts: int
    probe: int
    bank: int
    inner: int
    matching: int
    earlier: int


def estimate(run: Run) -> Estimate:
    """Measures a few steps of each kind on a worker, as compiled as they will be, and counts the rest."""
    config, classes = run.config, run.classes
    count = int(run.real.counts["train"].sum())
    steps = count_of(config, _size(run))
    paces = _measured(run, steps)
    seconds = {name: pace.seconds for name, pace in paces.items()}
    distilling = (("inner", steps.inner), ("matching", steps.matching), ("earlier", steps.earlier))
    of_table = seconds["small"], seconds.get("full", seconds["small"])
    every = (
        Stage("experts", config.experts.count, steps.experts * seconds["experts"]),
        Stage("probes", config.probe.members, steps.probe * seconds.get("probe", 0.0)),
        Stage("bank", config.probe.members, steps.bank * seconds["experts"]),
        Stage("distil", _parallel(config, classes), sum(many * seconds.get(kind, 0.0) for kind, many in distilling)),
        Stage("evaluate", *_evaluation(config, classes, count, *of_table)),
    )
    stages = tuple(stage for stage in every if stage.seconds)
    found = list(paces.values())
    decoded = sum(int(counts.sum()) for counts in run.real.counts.values()) * math.prod(run.real.shape)
    trajectories = config.experts.count * (config.experts.epochs + 1) * paces["experts"].parameters * 4
    stored = classes * config.synthetic.ipc * math.prod(run.real.shape) * 4
    return Estimate(
        stages=stages,
        worker_memory=max(pace.memory for pace in found),
        memory_keys=_memory_keys(config, found),
        device_memory=max(pace.device_memory for pace in found),
        object_store=2 * stored,
        sorted_images=decoded,
        disk=trajectories + 4 * stored,
        moved_each_round=_moved(config, classes, math.prod(run.real.shape)),
        useful_workers=max(stage.tasks for stage in stages),
        compiling=_compiling(run),
    )


def _measured(run: Run, steps: Count) -> dict[str, Pace]:
    """The pace of each kind of step that the run has, by name: trainings, those of the table ``small`` and ``full``,
    and then matching."""
    config, job = run.config, run.job
    decoded = run.classes * config.images_up_to(config.synthetic.segments - 1)
    seen = config.matcher.inner_samples if config.states == "real" else decoded
    tasks = {
        "experts": task("pace of an expert", Worker.pace, job, "experts"),
        "small": task("pace of evaluation", Worker.pace, job, "evaluate", decoded),
    }
    if "full" in config.evaluate.rows and decoded < config.evaluate.batch:
        tasks["full"] = task("pace of evaluation on the full data", Worker.pace, job, "evaluate")
    if steps.probe:
        tasks["probe"] = task("pace of a probe", Worker.pace, job, "probe", decoded)
    if steps.inner:
        tasks["inner"] = task("pace of the network in the loop", Worker.pace, job, "inner", seen)
    if steps.earlier:
        tasks["earlier"] = task("pace of earlier segments", Worker.pace_earlier, job)
    tasks["matching"] = task("pace of matching", Worker.pace_matching, job)
    run.progress.stage("measure", len(tasks))
    answers = run_all(run, list(tasks.values()), lambda _: run.progress.advance())
    return {name: done.value for name, done in zip(tasks, answers, strict=True)}


def count_of(config: RunConfig, size: Size) -> Count:
    """How many steps of each kind a run has."""
    stages = range(config.synthetic.segments + 1)
    return Count(
        experts=config.experts.count * steps_for(size.train, config.experts),
        probe=sum(probe_steps(config, size.classes, segment) for segment in stages[:-1]),
        bank=sum(bank_steps(config, size.train, segment) for segment in stages[:-1]),
        inner=sum(inner_steps(config, size, stage) for stage in stages),
        matching=_matching_steps(config, size.classes),
        earlier=sum(earlier_parts(config, size.classes, stage) for stage in stages),
    )


def _size(run: Run) -> Size:
    """How large the decoded set is."""
    images = {split: int(counts.sum()) for split, counts in run.real.counts.items()}
    return Size(**images, classes=run.classes, shape=run.real.shape)


def _memory_keys(config: RunConfig, paces: Sequence[Pace]) -> str:
    """Training does, unless matching came to more: a process never needs less than it once did."""
    *trainings, matching = (found.memory for found in paces)
    if matching <= max(trainings):
        return "lower experts.batch and evaluate.batch"
    return "lower trajectory.batch" if config.is_trajectory else "set matcher.micro, or lower it"


def shortage(found: Estimate, workers: int, memory: int) -> str | None:
    """What to set where so many workers need more than the ``memory`` (bytes) that there is for them; else None."""
    fit = memory // found.worker_memory
    if workers <= fit:
        return None
    return f"{found.memory_keys}; or set runtime.workers to {fit}" if fit else found.memory_keys


def _compiling(run: Run) -> tuple[float, float]:
    """Seconds that compiling all steps takes."""
    config, real = run.config, run.real
    if not compiles(config.runtime.compiles, config.model, real.shape, run.session.device):
        return 0.0, 0.0
    size = _size(run)
    found = verdict(config, size, TRAININGS) if config.runtime.compiles == "trainings" else verdict(config, size)
    return found.cold, found.warm


def work_ahead(run: Run) -> dict[str, float]:
    """What the large stages of a run take, by their titles and in their order: images, of matching steps and trainings.

    Images of experts and of the table are trained on alike; what an image takes while matching is known by measuring.
    """
    config, classes = run.config, run.classes
    count = int(run.real.counts["train"].sum())
    _, steps = _evaluation(config, classes, count, 1.0, 1.0)
    distilling = {f"distil {run.of(stage)}": 1.0 * images_of(config, classes, stage) for stage in _stages(config)}
    return {
        "experts": float(config.experts.count * steps_for(count, config.experts) * config.experts.batch),
        **distilling,
        "evaluate": steps * config.evaluate.batch,
    }


def _stages(config: RunConfig) -> range:
    """The segments, and the polish where there is one."""
    segments = config.synthetic.segments
    return range(segments + (config.rounds_of(segments) > 0))


class Work(NamedTuple):
    """What distilling a set takes, whatever the machine.

    ``class_steps``: matching steps, of one class each; of trajectories the steps of students. ``images``: real and
    decoded synthetic ones that all of these steps work on.
    """

    class_steps: int
    images: int


def work_of(config: RunConfig, classes: int) -> Work:
    """The work of all segments of a configuration, and of the polish."""
    matcher = config.matcher
    stages = range(config.synthetic.segments + 1)
    rounds = sum(config.rounds_of(stage) for stage in stages)
    images = sum(images_of(config, classes, stage) for stage in stages)
    if config.is_trajectory:
        return Work(rounds * config.trajectory.lanes * config.trajectory.steps, images)
    return Work(rounds * matcher.networks * matcher.steps * matcher.lanes * classes, images)


def _parallel(config: RunConfig, classes: int) -> int:
    """Tasks of distillation that run side by side: lanes, of trajectories on the whole set, else of each group."""
    if config.is_trajectory:
        return config.trajectory.lanes
    return len(groups_in(config, classes)) * config.matcher.lanes


def _matching_steps(config: RunConfig, classes: int) -> int:
    """Matching steps (student steps for trajectories) of all segments together."""
    matcher = config.matcher
    rounds = sum(config.rounds_of(stage) for stage in range(config.synthetic.segments + 1))
    if config.is_trajectory:
        return rounds * config.trajectory.lanes * config.trajectory.steps
    a_state = classes if config.base.couples == "class" else len(groups_in(config, classes))
    return rounds * matcher.networks * matcher.steps * matcher.lanes * a_state


def _evaluation(config: RunConfig, classes: int, count: int, small_pace: float, full_pace: float) -> tuple[int, float]:
    """Trainings of the table, and their seconds: by the paces of a step on a small set and on the full data."""
    evaluate = config.evaluate
    small = steps_for(classes * config.synthetic.ipc * config.synthetic.factor**2, evaluate)
    whole = steps_for(count, evaluate, evaluate.full_epochs)
    full = "full" in evaluate.rows
    rows = len(evaluate.rows) - full
    if config.learns_labels:
        rows += len({"distilled", "initial", "random"} & set(evaluate.rows))
    seconds = evaluate.seeds * (rows * small * small_pace + full * whole * full_pace)
    return evaluate.seeds * (rows + full), seconds


def _moved(config: RunConfig, classes: int, values: int) -> int:
    """Bytes between workers and store that one task of a round reads and writes: pixels and their velocities.

    A lane's reads both and writes the gradient of the pixels that move. One of trajectories reads no velocities, and
    writes the gradient of the images that it draws, all of them at most.
    """
    if config.is_trajectory:
        images, trajectory = classes * max(config.sizes), config.trajectory
        drawn = min(images, trajectory.steps * trajectory.batch)
        return (4 * images + 4 * drawn) * (values + classes * config.learns_labels)
    a_slot, most = len(groups_in(config, classes)[0]) * values, max(config.sizes)
    if config.matcher.lanes > 1:
        return a_slot * (8 * most + 4 * min(most, slots_a_step(config)))
    return 2 * 8 * a_slot * most
