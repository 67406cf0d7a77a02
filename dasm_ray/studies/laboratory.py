"""A study at work: every arm at every size and seed, distilled in a run of its own and evaluated as all others are.

What must stay true: at one size and seed all arms share experts, the number of steps and, under labels of one kind,
draws of their trainings; all arms are done at one seed before the next is begun, so that what was stopped half-way is
paired; nothing that is on disk is computed again; and what diverged is said to have failed, and stops no other arm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.study import Arm, Study
from dasm_ray.core.difficulty import thirds
from dasm_ray.core.networks.training import steps_for
from dasm_ray.errors import NonFinite
from dasm_ray.method.choices import choices, random_choice
from dasm_ray.method.dasm import distil
from dasm_ray.method.estimate import Work, work_of
from dasm_ray.method.experts import Experts, soft_labels, train_experts
from dasm_ray.method.probes import Probes
from dasm_ray.method.run import Run, check_against_data
from dasm_ray.method.scores import scores_before, static_name, static_scores, target_of, validation_scores
from dasm_ray.method.sets import Choice, Segments, chosen_by, distilled_set, images_of, stored
from dasm_ray.method.starts import start_of
from dasm_ray.method.strata import strata_of
from dasm_ray.plain import Tree
from dasm_ray.report.differences import Tried
from dasm_ray.runtime.worker import Everything
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.description import DESCRIPTION
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir, as_begun, versions
from dasm_ray.studies.cells import PAIRED, Cell, Found, cells_for, evaluate_cells, right_in
from dasm_ray.studies.rows import TrainingOf, always, label_of

WORK = "work.json"
"""In the run of a set: the seconds that distilling it took, as far as they were kept, and on how many workers."""

THIRDS = ("easy", "middle", "hard")

OF_MAKING = {"distilled": "synthetic", "initial": "initial"}
"""The folder of a set in its run, by the source of the arm."""


@dataclass(frozen=True)
class Unit:
    """One arm at one size and one distillation seed."""

    arm: Arm
    ipc: int
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.arm.name} of {self.ipc} at seed {self.seed}"


@dataclass(frozen=True)
class Material:
    """What a unit is trained on, by evaluation seed; ``digest`` and ``folder`` (None: real images) of its set."""

    training_of: TrainingOf
    digest: str
    folder: str | None = None
    seconds: float | None = None


class Laboratory:
    """A study in the folder ``run.place``. ``on_news`` hears all that is known, whenever more is."""

    def __init__(self, run: Run, study: Study, on_news: Callable[[list[Tried]], None] = lambda known: None) -> None:
        self._run, self._study, self._on_news = run, study, on_news
        self._units = [self._unit(arm, ipc, seed) for seed, ipc, arm in _in_order(study)]
        self._keys = {unit.name: self._key(unit) for unit in self._units}
        self._experts: dict[str, Experts | NonFinite] = {}
        self._cut: dict[int, NDArray[np.int64] | None] = {}
        for unit in self._units:
            if unit.seed == study.seeds[0]:
                check_against_data(_asked_of_data(unit), run.real)
        read = {key: read_checked_json(self._file(key)) for key in set(self._keys.values())}
        self._known = {key: found for key, found in read.items() if found is not None}

    def work(self) -> list[Tried]:
        """Does all that is missing, and returns what is known then."""
        self._tell()
        for seed in self._study.seeds:
            self._experts.clear()  # those of the last seed need not be held any longer
            for ipc in self._study.ipcs:
                self._do([unit for unit in self._units if (unit.seed, unit.ipc) == (seed, ipc)])
        return self.known()

    @property
    def outcomes(self) -> dict[str, str]:
        """The digest of all that the outcome of a unit depends on, by the unit."""
        return dict(self._keys)

    def known(self) -> list[Tried]:
        """What is known of every unit, in the order of the work."""
        keys = [(unit, self._keys[unit.name]) for unit in self._units]
        return [self._tried(unit, self._known[key]) for unit, key in keys if key in self._known]

    def _unit(self, arm: Arm, ipc: int, seed: int) -> Unit:
        """With experts that arms have in common: they are trained once."""
        config = arm.at(ipc, seed).for_classes(self._run.classes)
        cache = config.experts.cache or (self._run.place / "experts").uri
        return Unit(arm, ipc, seed, config.model_copy(
            update={"experts": config.experts.model_copy(update={"cache": cache})}
        ))  # fmt: skip

    def _of(self, config: RunConfig) -> Run:
        """The open run under another configuration; whitening follows from what all agree on."""
        return replace(self._run, config=config)

    # --- what was found before -----------------------------------------------------------------------------------

    def _key(self, unit: Unit) -> str:
        """The digest of all that the outcome of a unit depends on."""
        study, real, device = self._study, self._run.real, self._run.session.device
        asked = (unit.arm.source, unit.arm.labels, self._steps(unit), study.reads_test, self._reference(unit))
        paired = [PAIRED] if unit.arm.labels == "soft" and unit.config.evaluate.cutmix > 0 else []
        return digest_of(result_keys(unit.config), asked, real.digest, device, *paired)

    def _reference(self, unit: Unit) -> str | None:
        """By whose scores the validation images are cut into thirds; None where they are not."""
        return static_name(self._of(self._judge(unit.seed))) if self._study.thirds else None

    def _file(self, key: str) -> Place:
        return self._run.place / "outcomes" / f"{key}.json"

    def _keep(self, unit: Unit, found: Tree) -> None:
        key, found = self._keys[unit.name], {**found, "versions": versions()}
        write_checked_json(self._file(key), found)
        self._known[key] = found
        self._run.progress.note(f"{unit.name}: {_in_words(found)} ({len(self.known())} of {len(self._units)})")
        self._tell()

    def _tell(self) -> None:
        self._on_news(self.known())

    def _tried(self, unit: Unit, found: Found) -> Tried:
        work = work_of(unit.config, self._run.classes) if unit.arm.source == "distilled" else Work(0, 0)
        return Tried(
            arm=unit.arm.name,
            source=unit.arm.source,
            labels=unit.arm.labels,
            ipc=unit.ipc,
            seed=unit.seed,
            trainings=tuple(found.get("trainings", ())),
            steps=self._steps(unit),
            seconds=found.get("seconds"),
            class_steps=work.class_steps,
            images=work.images,
            digest=found.get("digest", ""),
            folder=found.get("folder"),
            failed=found.get("failed", ""),
            versions=found.get("versions", {}),
        )

    # --- the work ------------------------------------------------------------------------------------------------

    def _do(self, units: Sequence[Unit]) -> None:
        """All arms at one size and seed: real images first, then each set as soon as it is made.

        Sets wait for one another only until their trainings are enough for all workers.
        """
        missing = {key: unit for unit in units if (key := self._keys[unit.name]) not in self._known}
        ready: list[tuple[Unit, Material]] = []
        for unit in sorted(missing.values(), key=lambda unit: not unit.arm.is_selected):
            try:
                ready.append((unit, self._material(unit)))
            except NonFinite as error:
                self._keep(unit, {"failed": str(error)})
            if len(ready) * unit.config.evaluate.seeds >= self._run.session.workers:
                self._evaluate(ready)
                ready = []
        if ready:
            self._evaluate(ready)

    def _evaluate(self, ready: Sequence[tuple[Unit, Material]]) -> None:
        """Trains on what is ready; where some training diverges, each unit by itself, so that it alone fails."""
        cells = [self._cells(unit, material) for unit, material in ready]
        try:
            found = iter(evaluate_cells(self._run, [cell for row in cells for cell in row]))
        except NonFinite as error:
            if len(ready) == 1:
                self._keep(ready[0][0], {"failed": str(error)})
                return
            for each in ready:
                self._evaluate([each])
            return
        for (unit, material), row in zip(ready, cells, strict=True):
            outcomes = [{"seed": cell.seed, **next(found)} for cell in row]
            trainings = [self._training(unit, outcome) for outcome in outcomes]
            self._keep(unit, {
                "trainings": trainings,
                "digest": material.digest,
                "folder": material.folder,
                "seconds": material.seconds,
            })  # fmt: skip

    def _cells(self, unit: Unit, material: Material) -> list[Cell]:
        """A training for every evaluation seed. Under one name, so all arms with labels of a kind draw the same."""
        cache = unit.config.evaluate.cache
        return cells_for(
            self._run,
            f"evaluate {unit.name}",
            material.training_of,
            self._steps(unit),
            Place(cache) if cache else self._run.place / "cells",
            label=label_of("distilled", unit.arm.labels),
            config=unit.config,
            reads_test=self._study.reads_test,
            reads_each=self._study.thirds,
        )

    def _steps(self, unit: Unit) -> int:
        """As many for every arm of one size: those of the one that decodes to the most images."""
        recipe, classes = unit.config.evaluate, self._run.classes
        if unit.arm.source == "full":
            return steps_for(int(self._run.real.counts["train"].sum()), recipe, recipe.full_epochs)
        making = [arm for arm in self._study.arms if not arm.is_selected] or self._study.arms
        largest = max(arm.configs[unit.ipc].synthetic.factor for arm in making)
        return steps_for(classes * unit.ipc * largest**2, recipe)

    def _training(self, unit: Unit, outcome: Found) -> Tree:
        """An outcome with its accuracies by third in the place of its images."""
        kept = {name: outcome[name] for name in ("seed", "validation", "test", "step")}
        if not self._study.thirds:
            return kept
        third = self._thirds(unit.seed)
        if third is None:
            return kept | dict.fromkeys(THIRDS)
        right = right_in(outcome, len(third))
        of_each = [right[third == number] for number in range(len(THIRDS))]
        return kept | {
            name: float(mine.mean()) if len(mine) else None for name, mine in zip(THIRDS, of_each, strict=True)
        }

    # --- what is trained on --------------------------------------------------------------------------------------

    def _material(self, unit: Unit) -> Material:
        if unit.arm.is_selected:
            return self._selected(unit)
        made, folder, seconds = self._made(unit)
        images = images_of(made)
        is_soft = unit.arm.labels == "soft"
        if is_soft and images.logits is None:
            run = self._of(unit.config)
            (logits,) = soft_labels(run, self._experts_of(run), [stored(run, images, made.factor)])
            images = images._replace(logits=logits)
        training = stored(self._run, images, made.factor, is_soft)
        return Material(always(training), digest(made), folder, seconds)

    def _selected(self, unit: Unit) -> Material:
        """Real images: all, a random choice for every evaluation seed, or one choice for all."""
        run, source = self._of(unit.config), unit.arm.source
        if source == "full":
            return Material(always(Everything()), "full")
        if source == "random":
            picked: list[Choice] = [random_choice(run, seed) for seed in range(unit.config.evaluate.seeds)]
        else:
            picked = [choices(run, self._experts_of(run), [source])[source]]
        trainings = [chosen_by(run, choice) for choice in picked]
        if unit.arm.labels == "soft":
            logits = soft_labels(run, self._experts_of(run), trainings)
            trainings = [chosen_by(run, *pair) for pair in zip(picked, logits, strict=True)]
        named = digest_of(*(training.digest for training in trainings))
        return Material(lambda seed: trainings[seed % len(trainings)], named)

    def _experts_of(self, run: Run) -> Experts:
        """Experts of a configuration, read or trained once a seed; NonFinite each time where they diverged."""
        key = f"{run.expert_key}_{run.config.experts.count}"
        if key not in self._experts:
            try:
                self._experts[key] = train_experts(run)
            except NonFinite as error:
                self._experts[key] = error
        found = self._experts[key]
        if isinstance(found, NonFinite):
            raise found
        return found

    # --- sets ----------------------------------------------------------------------------------------------------

    def _made(self, unit: Unit) -> tuple[Artifact, str, float | None]:
        """The set of a unit, made in a run of its own if it is not there; its folder and the seconds that it took."""
        name = f"sets/ipc{unit.ipc}_seed{unit.seed}_{self._key_of_set(unit.config)}"
        folder, kind = self._run.place / name, OF_MAKING[unit.arm.source]
        if not (folder / kind / DESCRIPTION).exists():
            self._make(unit, folder)
        work = read_checked_json(folder / WORK)
        seconds = None if work is None or kind == "initial" else work["seconds"]
        return read_artifact(folder / kind), name, seconds

    def _key_of_set(self, config: RunConfig) -> str:
        """The digest of all that a set depends on; how it is evaluated is no part of it."""
        kept = {name: value for name, value in result_keys(config).items() if name != "evaluate"}
        return digest_of(kept, self._run.real.digest, self._run.session.device)

    def _make(self, unit: Unit, folder: Place) -> None:
        config = as_begun(unit.config, folder)
        with RunDir.open(folder, config) as record:
            run = replace(self._run, config=config, place=record.place)
            self._run.progress.note(f"{unit.name}: {unit.arm.source} in {folder}")
            for caution in record.cautions():
                self._run.progress.note(caution)
            if unit.arm.source == "initial" and config.synthetic.segments == 1:
                write_artifact(record.place / "initial", distilled_set(run, self._first_start(run)))
                return
            made = self._timed(run)
            write_artifact(record.place / "initial", distilled_set(run, made[1]))
            write_artifact(record.place / "synthetic", distilled_set(run, made[0]))

    def _first_start(self, run: Run) -> Segments:
        """Where a set of one segment starts; of more, later starts hang on what was distilled before."""
        experts = self._experts_of(run)
        scores = scores_before(run, 0, experts, Probes(run, 0, experts, []))
        nothing = [np.empty(0, np.int64) for _ in range(run.classes)]
        start, _ = start_of(run, 0, scores, target_of(run, 0, scores), nothing, experts, [])
        return [start]

    def _timed(self, run: Run) -> tuple[Segments, Segments]:
        """Distils, and keeps the seconds after every segment: those of a start that was killed are counted too.

        What arms share, as experts, is made before the clock starts, or the first arm alone would be charged for it.
        """
        experts, file = self._experts_of(run), run.place / WORK
        static_scores(run, experts)
        if run.config.matcher.strata:
            strata_of(run, experts)
        began = time.monotonic()
        before = (read_checked_json(file) or {"seconds": 0.0})["seconds"]

        def after_each(_: Segments) -> None:
            seconds = before + time.monotonic() - began
            write_checked_json(file, {"seconds": seconds, "workers": run.session.workers})

        return distil(run, experts, after_each)

    # --- thirds --------------------------------------------------------------------------------------------------

    def _judge(self, seed: int) -> RunConfig:
        """Of the experts that say how difficult a validation image is."""
        return self._unit(self._study.reference, self._study.ipcs[0], seed).config

    def _thirds(self, seed: int) -> NDArray[np.int64] | None:
        """The third of every validation image in class-sorted order; None where the experts that judge diverged."""
        if seed not in self._cut:
            run = self._of(self._judge(seed))
            counts = run.real.counts["val"]
            try:
                score = validation_scores(run, self._experts_of(run))
                self._cut[seed] = thirds(score, np.repeat(np.arange(len(counts)), counts))
            except NonFinite as error:
                run.progress.note(f"no thirds of difficulty at seed {seed}: {error}")
                self._cut[seed] = None
        return self._cut[seed]


def _asked_of_data(unit: Unit) -> RunConfig:
    """What an arm asks of the real images. A selection has no tiles, but for patches, which are packed."""
    config = unit.config
    if not unit.arm.is_selected:
        return config
    if unit.arm.source == "patches":
        return config.model_copy(
            update={"evaluate": config.evaluate.model_copy(update={"rows": (*config.evaluate.rows, "patches")})}
        )
    return config.model_copy(update={"synthetic": config.synthetic.model_copy(update={"factor": 1})})


def _in_words(found: Found) -> str:
    """What a unit came to, for the terminal."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    return f"validation {np.mean([training['validation'] for training in found['trainings']]):.1%}"


def _in_order(study: Study) -> Iterator[tuple[int, int, Arm]]:
    """All of one seed before the next, all of one size before the next."""
    for seed in study.seeds:
        for ipc in study.ipcs:
            for arm in study.arms:
                yield seed, ipc, arm


def rows_of(known: Sequence[Tried]) -> list[Mapping[str, object]]:
    """A row for every training, with the columns of STUDY_COLUMNS."""
    shared = ("arm", "source", "labels", "ipc", "seed", "steps", "seconds", "class_steps", "images", "digest", "folder")
    return [
        {**{name: getattr(tried, name) for name in shared}, **training, "seed": tried.seed,
         "evaluation_seed": training["seed"]}
        for tried in known
        for training in tried.trainings
    ]  # fmt: skip
