"""Experts: networks trained on the real images, found under the digest of all that affects them, or made.

What must stay true: what is on disk is not made again, and which worker made it cannot be seen in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dasm_ray.config.keys import CHOSEN_STARTS
from dasm_ray.config.shown import several
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Pixels
from dasm_ray.runtime.pool import Done, Task, task
from dasm_ray.runtime.progress import clock_text
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.snapshots import SnapshotRef
from dasm_ray.runtime.worker import Chosen, Stored, Worker
from dasm_ray.store.rundir import remove_temporaries
from dasm_ray.store.trajectories import trajectory_name

GOOD = 0.7
"""Share of the validation images that experts must get right to say which images can be learned: at 60 % they called
40 % of each class of CIFAR-10 unlearnable, where published teachers are right on 95 %."""

ABOVE_CHANCE = 1.5
"""Times the share that guessing gets right, where that asks for more: of two classes."""


class Experts:
    """References to what is on disk of a run's experts: ``snapshots`` (E+1, P), and ``early`` (P,), after one epoch.

    ``accuracies`` and ``losses`` (E+1,) are per expert, on validation and on training images.
    """

    def __init__(self, run: Run, answers: Sequence[Done]) -> None:
        self._run = run
        self._take(answers)
        self.accuracies: list[list[float]] = [done.value.accuracy for done in answers]
        self.losses: list[list[float]] = [done.value.loss for done in answers]

    def _take(self, answers: Sequence[Done]) -> None:
        self.snapshots: tuple[ObjectRef, ...] = tuple(done.value.kept for done in answers)
        self.early: tuple[ObjectRef, ...] = tuple(SnapshotRef(done.value.kept, 1) for done in answers)

    def read_again(self) -> None:
        """References anew, after files went with a node: to those that are there, and those that are made again."""
        self._take(run_all(self._run, _tasks(self._run)))


def train_experts(run: Run) -> Experts:
    """Experts as tasks, a file each under their key; those on disk are read."""
    recipe = run.config.experts
    run.shared_place.make_dir()
    remove_temporaries(run.shared_place, is_shared=True)
    _announce(run)
    run.progress.stage("experts", recipe.count)
    images = int(run.real.counts["train"].sum())
    answers = run_all(run, _tasks(run), lambda done: run.progress.advance(samples=done.value.epochs * images))
    experts = Experts(run, answers)
    last = [accuracy[-1] for accuracy in experts.accuracies]
    run.progress.note(f"experts: {len(last)} trained, validation accuracy {min(last):.1%} to {max(last):.1%}")
    _say_if_weak(run, sum(last) / len(last))
    return experts


def are_trained(run: Run) -> bool:
    """Whether all experts are on disk."""
    return {trajectory_name(number) for number in range(run.config.experts.count)} <= set(run.shared_place.names())


def _say_if_weak(run: Run, accuracy: float) -> None:
    """Says where experts know too little for what hangs on which images they know."""
    config, least = run.config, max(GOOD, ABOVE_CHANCE / run.classes)
    uses = {
        "windows": config.window.policy == "frontier",
        "starts": config.synthetic.init in CHOSEN_STARTS,
        "real batches": config.matcher.frontier_share > 0,
        "soft labels": config.learns_labels,
    }
    named = " and ".join(name for name, is_used in uses.items() if is_used)
    if named and accuracy < least:
        run.progress.note(
            f"experts: on average they get {accuracy:.1%} of the validation images right, less than {least:.0%}, and "
            f"what they get wrong counts as not learnable: {named} by what they know mean little; train them longer "
            f"(experts.epochs, now {config.experts.epochs})"
        )


def soft_labels(run: Run, experts: Experts, trainings: Sequence[Stored | Chosen]) -> list[Pixels]:
    """The experts' soft labels for the images of each training: logits (N, K)."""
    tasks = [
        task(f"soft labels {number}", Worker.label_softly, run.job, experts.snapshots, training)
        for number, training in enumerate(trainings)
    ]
    return [done.value for done in run_all(run, tasks)]


def _tasks(run: Run) -> list[Task]:
    """A task an expert: trains it, or finds its file."""
    place, key = run.shared_place, run.expert_key
    return [
        task(f"expert {number}", Worker.expert, run.job, place, key, number)
        for number in range(run.config.experts.count)
    ]


def _announce(run: Run) -> None:
    """Says what training the experts that are missing will take, before it begins."""
    recipe, place, workers = run.config.experts, run.shared_place, run.session.workers
    there = set(place.names())
    missing = [number for number in range(recipe.count) if trajectory_name(number) not in there]
    if not missing:
        return
    (pace,) = run_all(run, [task("pace of an expert", Worker.pace, run.job)])
    steps = steps_for(int(run.real.counts["train"].sum()), recipe)
    seconds = -(-len(missing) // workers) * steps * pace.value.seconds
    gigabytes = len(missing) * (recipe.epochs + 1) * pace.value.parameters * 4 / 1e9
    spread = f" on {workers} workers" if workers > 1 else ""
    run.progress.note(
        f"experts: {len(missing)} of {recipe.count} to train for {several(recipe.epochs, 'epochs')}, about "
        f"{clock_text(seconds)}{spread}, {gigabytes:.2g} GB in {place}"
    )
