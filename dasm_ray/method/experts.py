"""Experts and the whitening they see through: found under the digest of all that affects them, or made.

What must stay true: what is on disk is not made again, and which worker made it cannot be seen in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dasm_ray.config.digests import digest_of, what
from dasm_ray.core.networks.training import steps_for
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.method.run import Here, run_all
from dasm_ray.method.sets import Pixels
from dasm_ray.runtime.pool import Done, Ref, Task, put
from dasm_ray.runtime.progress import clock_text
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import trajectory_name
from dasm_ray.store.place import Place

WHITENING_PARTS = 8
"""Tasks that a fit is cut into: fixed, so that sums do not depend on the number of workers."""


def whiten(here: Here, known: Mapping[str, Any] | None = None) -> None:
    """Lets all workers see images whitened, where the configuration says so. ``known``: the arrays, if they are."""
    if here.config.data.zca is not None:
        here.job = replace(here.job, whitening=put(dict(known)) if known else _whitening(here))


def _whitening(here: Here) -> Ref:
    """Reference to the arrays of the whitening, fitted on all training images, or read."""
    file, key = shared_place(here) / "whitening.safetensors", digest_of(here.config.data.zca, here.real.digest)
    if file.exists():
        arrays, note = tensors.read(file)
        tensors.check_key(file, note, key)
        return put(arrays)
    count, batch = int(here.real.counts["train"].sum()), here.config.score.batch
    here.progress.stage("whitening", WHITENING_PARTS + 1)
    tasks = [
        Task(f"whitening, images {first} to {last - 1}", "whitening_sums", (here.job, first, last), outputs=2)
        for first, last in shard_ranges(count, batch, WHITENING_PARTS)
    ]
    parts = tuple(done.refs[0] for done in run_all(here, tasks, lambda _: here.progress.advance()))
    (fitted,) = run_all(here, [Task("whitening", "whitening", (here.job, file, key, parts), outputs=2)])
    here.progress.advance(WHITENING_PARTS + 1 - len(tasks))
    return fitted.refs[0]


def shared_place(here: Here) -> Place:
    """Where experts and what they need lie: under the digest of all that affects them, in the run or a shared cache."""
    place = Place(here.config.experts.cache) if here.config.experts.cache else here.place / "experts"
    return place / expert_key(here)


@dataclass(frozen=True)
class Experts:
    """References to the experts' snapshots (E+1, P) and first epochs (P,); their accuracies and losses (E+1,)."""

    snapshots: tuple[Ref, ...]
    early: tuple[Ref, ...]
    accuracies: list[list[float]]
    losses: list[list[float]]


def expert_key(here: Here) -> str:
    """The digest of everything that affects an expert; how many there are does not, so some of them are usable."""
    config = here.config
    runtime = (config.runtime.cpus_per_worker, config.runtime.compile, here.job.device)
    recipe = {name: value for name, value in what(config.experts).items() if name != "count"}
    return digest_of(recipe, what(config.model), what(config.data), config.seed, runtime, here.real.digest)


def train_experts(here: Here) -> Experts:
    """Experts as tasks, a file each under their key; those on disk are read."""
    recipe, place = here.config.experts, shared_place(here)
    place.make_dir()
    _announce_experts(here, place)
    here.progress.stage("experts", recipe.count)

    def told(done: Done) -> None:
        here.progress.advance(samples=done.value["epochs"] * int(here.real.counts["train"].sum()))

    answers = run_all(here, expert_tasks(here), told)
    accuracies = [done.value["accuracy"] for done in answers]
    last = [accuracy[-1] for accuracy in accuracies]
    here.progress.note(f"experts: {len(last)} trained, validation accuracy {min(last):.1%} to {max(last):.1%}")
    losses = [done.value["loss"] for done in answers]
    return Experts(tuple(d.refs[0] for d in answers), tuple(d.refs[1] for d in answers), accuracies, losses)


def expert_tasks(here: Here) -> list[Task]:
    """A task an expert: trains it, or reads its file."""
    place, key = shared_place(here), expert_key(here)
    count = here.config.experts.count
    return [Task(f"expert {n}", "expert", (here.job, place, key, n), outputs=3) for n in range(count)]


def taught(here: Here, trained: Experts, trainings: Sequence[tuple[str, Any]]) -> list[Pixels]:
    """The experts' soft labels for sets of images, each as ``Worker.evaluate`` takes it: logits (N, K)."""
    tasks = [
        Task(f"soft labels {number}", "teach", (here.job, trained.snapshots, training))
        for number, training in enumerate(trainings)
    ]
    return [done.value for done in run_all(here, tasks)]


def _announce_experts(here: Here, place: Place) -> None:
    """Says what training the experts that are missing will take, before it begins."""
    recipe, there = here.config.experts, set(place.names())
    missing = [n for n in range(recipe.count) if trajectory_name(n) not in there]
    if not missing:
        return
    (pace,) = run_all(here, [Task("pace of an expert", "pace", (here.job,))])
    steps = steps_for(int(here.real.counts["train"].sum()), recipe)
    waves = -(-len(missing) // here.session.workers)
    seconds = waves * steps * pace.value["seconds"]
    gigabytes = len(missing) * (recipe.epochs + 1) * pace.value["parameters"] * 4 / 1e9
    spread = f" on {here.session.workers} workers" if here.session.workers > 1 else ""
    here.progress.note(
        f"experts: {len(missing)} of {recipe.count} to train for {recipe.epochs} epochs, about "
        f"{clock_text(seconds)}{spread}, {gigabytes:.2g} GB in {place}"
    )
