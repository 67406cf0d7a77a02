"""How much a set tells of its real images: how near it is to them, and who was in it by the networks trained on it.

What must stay true: images that took part are held against held-out ones, which nothing here was made from; and the
set stands beside as many random real images, and beside all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of
from dasm_ray.core.membership import Scores, area, calibrated, caught
from dasm_ray.core.nearness import Near, merged
from dasm_ray.core.networks.training import steps_for
from dasm_ray.core.scoring import shard_ranges
from dasm_ray.core.seed import numpy_generator
from dasm_ray.errors import ArtifactError
from dasm_ray.method.choices import random_choice
from dasm_ray.method.run import Run, run_all
from dasm_ray.method.sets import Images, Indices, chosen, images_of, labels_of, stored
from dasm_ray.plain import Tree
from dasm_ray.runtime.pool import Task, task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Beside, Everything, Worker
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.checkpoints import segment_pixels
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import Cell, cells_for
from dasm_ray.studies.rows import TrainingOf, always

MOST_HELD_OUT = 1000
"""Held-out images of which it is asked how near they are to training images, which says what is usual."""

WITH_RIGHT = "and which images it is right of"
"""Part of the key of what a network says of the images: files without that said only how sure it is."""

SPLITS = ("train", "val", "test")
KINDS = ("pixels", "features")
SETS = ("distilled", "random", "full")


@dataclass(frozen=True)
class _Known:
    """What the networks say: by set, of every network the log odds (R, n) of training and (R, m) of held-out images."""

    train: Mapping[str, Scores]
    held_out: Mapping[str, Scores]
    right: Mapping[str, Tree]
    """By set the share of training and of held-out images whose label is the likeliest, the mean over networks."""
    picked: NDArray[np.bool_]  # (R, n): which training images each network on random ones was trained on
    of_set: ObjectRef
    """What the first network on the set said, with its parameters: by its features, which know of the real images only
    what the set tells, images are held against one another."""


def audit(run: Run, artifact: Artifact, networks: int, folder: Place | None, segments: Place | None = None) -> Tree:
    """What the set, as many random images and all of them tell, as plain values; `docs/audit.md` says what each means.

    ``networks``: how many are trained on random images, each on others; the set and the full data are trained on from
    ``evaluate.seeds`` seeds. Networks that lie in ``folder`` are not trained again. ``segments``: where the run that
    made the set keeps what its segments started from.
    """
    known = _networks(run, artifact, networks, folder)
    near = _nearness(run, artifact, known, None if segments is None else _starts(run, artifact, segments))
    sets = {name: _of_set(name, known, near) for name in SETS}
    held_out = int(sum(run.real.counts[split].sum() for split in ("val", "test")))
    usual = {kind: _spread(near[kind, "held out"].squares) for kind in KINDS}
    return {
        "networks": networks,
        "seeds": run.config.evaluate.seeds,
        "training": int(run.real.counts["train"].sum()),
        "held_out": held_out,
        "usual": usual,
        "sets": sets,
    }


# --- networks ----------------------------------------------------------------------------------------------------


def _networks(run: Run, artifact: Artifact, networks: int, folder: Place | None) -> _Known:
    """Trains on every set, and asks each network of all real images."""
    choices = [random_choice(run, seed) for seed in range(networks)]
    cells = _cells(run, artifact, choices, folder)
    every = [cell for of_set in cells.values() for cell in of_set]
    run.progress.stage("audit networks", len(every))
    answers = run_all(run, [_asked(run, cell) for cell in every], lambda _: run.progress.advance())
    said = iter([run.pool.fetch(done.refs[0]) for done in answers])
    found = {name: [next(said) for _ in of_set] for name, of_set in cells.items()}
    picked = np.zeros((networks, int(run.real.counts["train"].sum())), bool)
    for network, choice in enumerate(choices):
        picked[network, choice] = True
    train, held_out = (
        {name: np.stack([arrays[part] for arrays in of_set]).astype(np.float64) for name, of_set in found.items()}
        for part in ("train", "held_out")
    )
    sides = {"training": "train right", "held_out": "held_out right"}
    right: dict[str, Tree] = {
        name: {side: float(np.mean([arrays[part] for arrays in of_set])) for side, part in sides.items()}
        for name, of_set in found.items()
    }
    return _Known(train, held_out, right, picked, answers[0].refs[0])


def _cells(run: Run, artifact: Artifact, choices: Sequence[Indices], folder: Place | None) -> dict[str, list[Cell]]:
    """What is trained, by set: as a table trains it, the small sets for as many steps. The set's own come first."""
    recipe, count = run.config.evaluate, int(run.real.counts["train"].sum())
    small = steps_for(len(artifact.labels) * artifact.factor**2, recipe)
    images = images_of(artifact)
    several = run.config.model_copy(update={"evaluate": recipe.model_copy(update={"seeds": len(choices)})})
    plans: dict[str, tuple[Run, TrainingOf, int]] = {
        "distilled": (run, always(stored(run, images, artifact.factor, images.logits is not None)), small),
        "random": (replace(run, config=several), lambda seed: chosen(choices[seed]), small),
        "full": (run, always(Everything()), steps_for(count, recipe, recipe.full_epochs)),
    }
    return {
        name: cells_for(under, f"audit {name}", training_of, steps, folder)
        for name, (under, training_of, steps) in plans.items()
    }


def _asked(run: Run, cell: Cell) -> Task:
    """Trains the network of a cell, and asks how sure it is of every real image."""
    return task(
        cell.name,
        Worker.certainty,
        run.job,
        _file_of(cell),
        _key_of(cell),
        cell.label,
        cell.seed,
        cell.steps,
        cell.training,
        cell.name,
    )


def _key_of(cell: Cell) -> str:
    return "" if cell.file is None else digest_of(cell.file.name.removesuffix(".json"), WITH_RIGHT)


def _file_of(cell: Cell) -> Place | None:
    return None if cell.file is None else cell.file.parent / f"{_key_of(cell)}.safetensors"


# --- nearness ----------------------------------------------------------------------------------------------------

Nearness = Mapping[tuple[str, str], Near]
"""By kind and set: how near it is to training images; ("pixels held out", set): to held-out ones."""


def _nearness(run: Run, artifact: Artifact, known: _Known, starts: NDArray[np.float32] | None) -> Nearness:
    """How far each set is from all real images; and held-out images from training images, which says what is usual."""
    in_pixels, in_features = _beside(run, artifact, starts)
    trained_on = stored(run, images_of(artifact), artifact.factor, artifact.soft_labels is not None)
    pools, shards = _equal_pools(run), [(split, *bounds) for split in SPLITS for bounds in _shards(run, split)]
    pixels, features = list(in_pixels.values()), list(in_features.values())
    run.progress.stage("audit distances", 2 * len(shards))
    tasks = []
    for split, first, last in shards:
        name, where = f"distances to {split} images {first} to {last - 1}", (split, first, last, pools[split])
        tasks.append(task(name, Worker.distances, run.job, pixels, *where))
        by = (run.job, (known.of_set,), trained_on, features)
        tasks.append(task(f"feature {name}", Worker.feature_distances, *by, *where))
    answers = [run.pool.fetch(done.refs[0]) for done in run_all(run, tasks, lambda _: run.progress.advance())]
    is_training = [split == "train" for split, *_ in shards]
    found = _by_side("pixels", list(in_pixels), answers[::2], is_training)
    return found | _by_side("features", list(in_features), answers[1::2], is_training)


def _beside(
    run: Run, artifact: Artifact, starts: NDArray[np.float32] | None
) -> tuple[dict[str, Beside], dict[str, Beside]]:
    """What is held against the real images, in pixels and in features."""

    def shown(pictures: NDArray[np.float32]) -> Beside:
        return Beside(stored(run, Images(pictures, artifact.labels, None, False), artifact.factor))

    others = {"random": Beside(chosen(random_choice(run, 0))), "held out": Beside(None, _usual(run), artifact.factor)}
    in_pixels = {"distilled": shown(artifact.visible()), **others}
    if starts is not None:
        in_pixels["starts"] = shown(starts)
    return in_pixels, {"distilled": Beside(stored(run, images_of(artifact), artifact.factor)), **others}


def _by_side(
    kind: str, names: Sequence[str], answers: Sequence[list[Near]], is_training: Sequence[bool]
) -> dict[tuple[str, str], Near]:
    """What the shards of training and of held-out images say together, of every set."""
    found = {}
    for number, name in enumerate(names):
        for side, wanted in ((kind, True), (f"{kind} held out", False)):
            nears = [of_shard[number] for of_shard, is_of in zip(answers, is_training, strict=True) if is_of == wanted]
            found[side, name] = merged(nears)
    return found


def _shards(run: Run, split: str) -> list[tuple[int, int]]:
    count, recipe = int(run.real.counts[split].sum()), run.config.score
    return shard_ranges(count, recipe.batch, recipe.shards or 2 * run.session.workers)


def _equal_pools(run: Run) -> dict[str, Indices]:
    """As many training as held-out images of every class, by split: a larger pool would hold nearer ones."""
    generator, counts = numpy_generator(run.config.evaluation_seed, "audit pools"), run.real.counts
    labels = {split: np.repeat(np.arange(run.classes), counts[split]) for split in SPLITS}
    held_out = np.concatenate([labels["val"], labels["test"]])
    drawn: dict[str, list[Indices]] = {"train": [], "held out": []}
    for label in range(run.classes):
        mine, others = np.flatnonzero(labels["train"] == label), np.flatnonzero(held_out == label)
        size = min(len(mine), len(others))
        drawn["train"].append(generator.choice(mine, size, replace=False))
        drawn["held out"].append(generator.choice(others, size, replace=False))
    train, others = (np.concatenate(parts) for parts in drawn.values())
    vals = len(labels["val"])
    return {"train": train, "val": others[others < vals], "test": others[others >= vals] - vals}


def _usual(run: Run) -> Indices:
    """Some held-out images, by index through validation and test images."""
    count = int(run.real.counts["val"].sum() + run.real.counts["test"].sum())
    generator = numpy_generator(run.config.evaluation_seed, "audit held out")
    return np.sort(generator.permutation(count)[:MOST_HELD_OUT]).astype(np.int64)


def _starts(run: Run, artifact: Artifact, place: Place) -> NDArray[np.float32] | None:
    """The pictures that the set started from, (N, C, H, W) in its order; None where they are not kept."""
    try:
        kept = [
            segment_pixels(place, segment, run.classes, "initial") for segment in range(run.config.synthetic.segments)
        ]
    except ArtifactError:
        return None
    whole = [part for part in kept if part is not None]
    if len(whole) < len(kept):
        return None
    together = np.concatenate(whole, axis=1)
    flat = together.reshape(-1, *together.shape[2:])
    if flat.shape != artifact.pixels.shape or not np.array_equal(labels_of(together), artifact.labels):
        return None
    return replace(artifact, pixels=flat).visible()


# --- what it says ------------------------------------------------------------------------------------------------


def _of_set(name: str, known: _Known, near: Nearness) -> Tree:
    """One set: how sure its networks are, how near it is, and which attacks tell who was in it."""
    train = known.train[name]
    took_part = list(known.picked) if name == "random" else [np.ones(train.shape[1], bool)] * len(train)
    found: Tree = {
        "right": known.right[name],
        "attacks": _attacks(name, known, took_part),
    }
    if name == "full":
        return found
    found["distances"] = {
        kind: {
            "training": _spread(near[kind, name].squares),
            "held_out": _spread(near[f"{kind} held out", name].squares),
            "nearer_to_training": _preference(near[kind, name].among, near[f"{kind} held out", name].among),
        }
        for kind in KINDS
    }
    found["images"] = len(near["pixels", name].squares)
    found["copies"] = int((near["pixels", name].squares == 0).sum())
    found["attacks"] |= _by_distance(name, near, took_part[0])
    return found | (_groups(known, near) if name == "distilled" else {})


def _groups(known: _Known, near: Nearness) -> Tree:
    """The same attacks on training images that the set has more to do with: copied into it, or what it started from."""
    found: Tree = {}
    for group, of_group in (("copied", "distilled"), ("started from", "starts")):
        if ("pixels", of_group) not in near:
            continue
        images, mine = near["pixels", of_group], np.zeros(known.picked.shape[1], bool)
        mine[images.which[images.squares == 0]] = True
        if mine.any():
            by_networks = _attacks("distilled", known, [mine] * len(known.train["distilled"]))
            attacks = by_networks | _by_distance("distilled", near, mine)
            found[group] = {"images": int(mine.sum()), "attacks": attacks}
    return found


def _by_distance(name: str, near: Nearness, members: NDArray[np.bool_]) -> Tree:
    """The attack on the set itself: the nearer an image of the set, the rather a member (Chen et al. 2020)."""
    return {
        f"distance in {kind}": _attack(
            [-near[kind, name].of_passed[members]], -near[f"{kind} held out", name].of_passed[None], is_shared=True
        )
        for kind in KINDS
    }


def _attacks(name: str, known: _Known, members: Sequence[NDArray[np.bool_]]) -> Tree:
    """The attacks by networks: on the loss, and on how much surer they are than networks that never saw the image."""
    train, held_out, is_shared = known.train[name], known.held_out[name], name != "random"
    by_loss = _attack([row[mine] for row, mine in zip(train, members, strict=True)], held_out, is_shared=is_shared)
    surer, others = [], []
    for network, (row, mine) in enumerate(zip(train, members, strict=True)):
        shadows = np.ones(len(known.picked), bool)
        if name == "random":
            shadows[network] = False
        than_usual = calibrated(row, known.train["random"][shadows], ~known.picked[shadows])
        surer.append(than_usual[mine & ~np.isnan(than_usual)])
        everyone = np.ones((int(shadows.sum()), held_out.shape[1]), bool)
        others.append(calibrated(held_out[network], known.held_out["random"][shadows], everyone))
    return {"loss": by_loss, "calibrated": _attack(surer, np.stack(others), is_shared=is_shared)}


def _attack(members: Sequence[Scores], others: Scores, *, is_shared: bool) -> Tree | None:
    found = area(members, others, is_shared=is_shared)
    if found is None:
        return None
    return {**found._asdict(), "caught": caught(members, others)}


def _spread(squares: Scores) -> Tree:
    """Root mean square distances: the least one, and the quarters."""
    least, low, middle, high = np.sqrt(np.quantile(squares, [0, 0.25, 0.5, 0.75])).tolist()
    return {"least": least, "lower_quarter": low, "median": middle, "upper_quarter": high}


def _preference(training: Scores, held_out: Scores) -> Tree:
    """The share of images that are nearer to a training image than to any of as many held-out ones; 1/2 by chance."""
    nearer = np.where(training == held_out, 0.5, training < held_out)
    error = float(nearer.std(ddof=1) / np.sqrt(len(nearer))) if len(nearer) > 1 else None
    return {"value": float(nearer.mean()), "error": error}
