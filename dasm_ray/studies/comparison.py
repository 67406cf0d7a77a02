"""Many sets in one table: every recipe and every selection, at every size, with every kind of labels and network.

What must stay true: all sets of one size are trained alike, for as many steps; what was computed once is found again
by the digest of what it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dasm_ray.config.compared import Plan, at_size
from dasm_ray.config.digests import digest_of
from dasm_ray.config.keys import Evaluate, RunConfig
from dasm_ray.config.shown import several
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.choices import choices, random_choice
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import Experts, soft_labels, train_experts
from dasm_ray.method.run import Run, check_against_data
from dasm_ray.method.sets import Choice, Images, chosen_by, distilled_set, images_of, stored
from dasm_ray.report.gathered import bytes_of_label
from dasm_ray.report.table import Row
from dasm_ray.runtime.worker import Everything
from dasm_ray.store.artifact import digest, read_artifact, write_artifact
from dasm_ray.store.findings import set_place, write_trainings
from dasm_ray.store.rundir import RunDir, as_begun
from dasm_ray.studies.cells import Cell, Found, cells_for, evaluate_cells
from dasm_ray.studies.rows import TrainingOf, always, row_of


@dataclass(frozen=True)
class Entry:
    """A set in the comparison. ``ipc`` None: the full data. ``digest`` says what is trained on, for all seeds."""

    name: str
    ipc: int | None
    labels: str
    training_of: TrainingOf
    digest: str
    bytes: int


# --- what is compared --------------------------------------------------------------------------------------------


def _with_cache(config: RunConfig, cache: str) -> RunConfig:
    experts = config.experts.model_copy(update={"cache": config.experts.cache or cache})
    return config.model_copy(update={"experts": experts})


class Comparison:
    """A comparison in folder ``run.place``: sets/ (a run each), experts/, cells/ and the table."""

    def __init__(self, run: Run, configs: Sequence[RunConfig], plan: Plan) -> None:
        self._plan, self.config = plan, configs[0]
        self._networks = plan.networks or (self.config.network_name,)
        sizes = plan.ipcs or (self.config.synthetic.ipc,)
        # Experts that recipes have in common are trained once.
        cache = (run.place / "experts").uri
        full = [config.for_classes(run.classes) for config in configs]
        self._recipes = {ipc: [_with_cache(at_size(config, ipc), cache) for config in full] for ipc in sizes}
        # Whitening follows from what recipes agree on, so the run's holds for all of them.
        self._run = replace(run, config=self._recipes[sizes[0]][0])
        self._under = {name: self.config.under(name) for name in self._networks}
        for recipes in self._recipes.values():
            for config in recipes:
                check_against_data(config, run.real)

    def rows(self, stem: str = "table") -> list[Row]:
        """All rows; sets and cells that are on disk are read. Writes every training to ``stem``.parquet."""
        entries = [entry for ipc in self._recipes for entry in self._entries(ipc)]
        if "full" in self.config.evaluate.rows:
            entries.append(Entry("full", None, "hard", always(Everything()), "full", self._real_bytes))
        cells = {(entry, network): self._cells(entry, network) for network in self._networks for entry in entries}
        found = iter(evaluate_cells(self._run, [cell for row in cells.values() for cell in row]))
        outcomes = {key: [next(found) for _ in row] for key, row in cells.items()}
        self._write(stem, cells, outcomes)
        return [
            row_of(
                entry.name,
                entry.labels,
                outcome,
                ipc=entry.ipc,
                network=network if len(self._networks) > 1 else "",
                ratio=self._real_bytes / entry.bytes,
                note=several(cells[entry, network][0].steps, "steps") if entry.ipc is None else "",
            )
            for (entry, network), outcome in outcomes.items()
        ]

    # --- sets ----------------------------------------------------------------------------------------------------

    def _entries(self, ipc: int) -> list[Entry]:
        """Every set of one size under every kind of labels."""
        made = {config.name: self._distilled(config) for config in self._recipes[ipc]}
        at_this_size = replace(self._run, config=self._recipes[ipc][0])
        methods = [method for method in self._plan.selections if method != "random"]
        found = choices(at_this_size, self._experts, methods) if methods else {}
        picked: dict[str, list[Choice]] = {
            "random": [random_choice(at_this_size, seed) for seed in range(self.config.evaluate.seeds)]
        }
        picked |= {method: [choice] for method, choice in found.items()}
        entries = []
        for kind in self._plan.labels:
            for name, (images, factor) in made.items():
                entries.append(self._synthetic(name, ipc, kind, images, factor))
            entries += [self._real(name, ipc, kind, each) for name, each in picked.items()]
        return entries

    def _distilled(self, config: RunConfig) -> tuple[Images, int]:
        """The set of a recipe, distilled in a run of its own, and its factor."""
        folder = set_place(self._run.place, config)
        config = as_begun(config, folder)
        with RunDir.open(folder, config) as record:
            place = record.place / "synthetic"
            if not (place / "dataset.json").exists():
                for caution in record.cautions():
                    self._run.progress.note(caution)
                of_its_own = replace(self._run, config=config, place=record.place)
                made = distil(of_its_own, train_experts(of_its_own))
                write_artifact(place, distilled_set(of_its_own, made.segments))
        kept = read_artifact(place)
        self._run.progress.note(
            f"{config.name} at {several(config.synthetic.ipc, 'images')} a class: digest {digest(kept)}"
        )
        return images_of(kept), kept.factor

    @cached_property
    def _experts(self) -> Experts:
        return train_experts(self._run)

    def _synthetic(self, name: str, ipc: int, kind: str, images: Images, factor: int) -> Entry:
        """A distilled set; its soft labels are its own where it learned some, else the experts'."""
        if kind == "soft" and images.logits is None:
            (logits,) = soft_labels(self._run, self._experts, [stored(self._run, images, factor)])
            images = images._replace(logits=logits)
        training = stored(self._run, images, factor, kind == "soft")
        size = images.pixels.nbytes + self._label_bytes(ipc, kind)
        return Entry(name, ipc, kind, always(training), training.digest, size)

    def _real(self, name: str, ipc: int, kind: str, picked: Sequence[Choice]) -> Entry:
        """A selection, one for each seed or one for all."""
        trainings = [chosen_by(self._run, choice) for choice in picked]
        if kind == "soft":
            logits = soft_labels(self._run, self._experts, trainings)
            trainings = [chosen_by(self._run, *pair) for pair in zip(picked, logits, strict=True)]
        size = ipc * self._run.classes * math.prod(self._run.real.shape) + self._label_bytes(ipc, kind)
        digests = digest_of(*(training.digest for training in trainings))
        return Entry(name, ipc, kind, lambda seed: trainings[seed % len(trainings)], digests, size)

    @cached_property
    def _real_bytes(self) -> int:
        """The training split: a byte for each value, and its labels."""
        count = int(self._run.real.counts["train"].sum())
        return count * (math.prod(self._run.real.shape) + bytes_of_label(self._run.classes))

    def _label_bytes(self, ipc: int, kind: str) -> int:
        """Hard labels in whole bytes, soft ones as float32."""
        classes = self._run.classes
        return ipc * classes * (bytes_of_label(classes) if kind == "hard" else 4 * classes)

    # --- cells ---------------------------------------------------------------------------------------------------

    def _cells(self, entry: Entry, network: str) -> list[Cell]:
        """A cell for every seed of one set under one network."""
        config, size = self._under[network], "" if entry.ipc is None else f" of {entry.ipc}"
        return cells_for(
            self._run,
            f"evaluate {network} on {entry.name}{size}, {entry.labels} labels",
            entry.training_of,
            self._steps(config.evaluate, entry.ipc),
            self._run.place / "cells",
            config=config,
        )

    def _steps(self, recipe: Evaluate, ipc: int | None) -> int:
        """As many for every set of one size: those of the one that decodes to the most images."""
        if ipc is None:
            return steps_for(int(self._run.real.counts["train"].sum()), recipe, recipe.full_epochs)
        largest = max(config.synthetic.factor for config in self._recipes[ipc])
        return steps_for(self._run.classes * ipc * largest**2, recipe)

    def _write(
        self,
        stem: str,
        cells: dict[tuple[Entry, str], list[Cell]],
        outcomes: dict[tuple[Entry, str], list[Found]],
    ) -> None:
        lines = [
            {
                "set": entry.name,
                "ipc": entry.ipc,
                "labels": entry.labels,
                "network": network,
                "seed": cell.seed,
                **found,
                "steps": cell.steps,
                "bytes": entry.bytes,
                "digest": entry.digest,
            }
            for (entry, network), row in cells.items()
            for cell, found in zip(row, outcomes[entry, network], strict=True)
        ]
        write_trainings(self._run.place / f"{stem}.parquet", lines)
