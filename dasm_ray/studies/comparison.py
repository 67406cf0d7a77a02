"""Many sets in one table: every recipe and every selection, at every size, with every kind of labels and network.

What must stay true: all sets of one size are trained alike, for as many steps; what was computed once is found again
by the digest of what it depends on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, what
from dasm_ray.config.keys import SELECTION_METHODS, Evaluate, RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.networks.training import steps_for
from dasm_ray.errors import ConfigError
from dasm_ray.method.choices import random_choice, selections
from dasm_ray.method.dasm import distil_segments
from dasm_ray.method.experts import Experts, taught, train_experts, whiten
from dasm_ray.method.run import Here, check_against_data, distil_key
from dasm_ray.method.sets import Images, Indices, artifact_of, training_on
from dasm_ray.report.table import Row
from dasm_ray.store.artifact import digest, read_artifact, write_artifact
from dasm_ray.store.findings import write_trainings
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir
from dasm_ray.studies.cells import Cell, Found, Training, evaluate_cells
from dasm_ray.studies.rows import row_of

SELECTIONS = ("random", *SELECTION_METHODS)
LABELS = ("hard", "soft")


@dataclass(frozen=True)
class Plan:
    """What is compared beside the recipes: sizes, selections, kinds of labels, networks (unset: the recipes' own)."""

    ipcs: tuple[int, ...]
    selections: tuple[str, ...]
    labels: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A set in the comparison. ``ipc`` None: the full data. ``digest`` says what is trained on, for all seeds."""

    name: str
    ipc: int | None
    labels: str
    training: Callable[[int], Training]
    digest: str
    bytes: int


# --- what is compared --------------------------------------------------------------------------------------------


def check(configs: Sequence[RunConfig], plan: Plan) -> None:
    """ConfigError where recipes cannot stand in one fair table, at a size, or under a network; before Ray starts."""
    names = [config.name for config in configs]
    for name in {name for name in names if names.count(name) > 1 or name in SELECTIONS or name == "full"}:
        raise ConfigError(f"name: {name!r} names more than one row of the table; give each recipe a name of its own")
    for config in configs[1:]:
        for section in ("data", "model", "evaluate", "runtime", "seed"):
            one, other = getattr(configs[0], section), getattr(config, section)
            if one != other:
                raise ConfigError(
                    f"{section}: differs between {configs[0].name} and {config.name}, so their rows would not be "
                    f"comparable; make them agree, by --set for both"
                )
    for kind, wanted, known in (
        ("--select", plan.selections, SELECTIONS),
        ("--labels", plan.labels, LABELS),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(f"{kind} {name}: there is no such choice; take any of {', '.join(known)}")
    if "random" not in plan.selections:
        raise ConfigError("--select: must hold random, which every gain is counted from")
    if any(ipc < 1 for ipc in plan.ipcs):
        raise ConfigError("--ipc: must be 1 or more")
    for config in configs:
        for ipc in plan.ipcs:
            at_size(config, ipc)
    for network in plan.networks:
        configs[0].under(network)


def at_size(config: RunConfig, ipc: int) -> RunConfig:
    """The recipe at another size, in as many of its segments as can be equal."""
    tree = config.model_dump(mode="json")
    tree["synthetic"] |= {"ipc": ipc, "segments": math.gcd(ipc, config.synthetic.segments)}
    return parse_config(tree)


def _with_cache(config: RunConfig, cache: str) -> RunConfig:
    experts = config.experts.model_copy(update={"cache": config.experts.cache or cache})
    return config.model_copy(update={"experts": experts})


class Comparison:
    """A comparison in folder ``here.place``: sets/ (a run each), experts/, cells/ and the table."""

    def __init__(self, here: Here, configs: Sequence[RunConfig], plan: Plan) -> None:
        self._plan, self.config = plan, configs[0]
        self._networks = plan.networks or (self.config.network_name,)
        sizes = plan.ipcs or (self.config.synthetic.ipc,)
        # Experts that recipes have in common are trained once.
        cache = (here.place / "experts").uri
        self._recipes = {ipc: [_with_cache(at_size(config, ipc), cache) for config in configs] for ipc in sizes}
        self._here = self._of(self._recipes[sizes[0]][0], here.place, here)
        self._under = {name: self.config.under(name) for name in self._networks}
        for recipes in self._recipes.values():
            for config in recipes:
                check_against_data(config, here.real)

    def rows(self) -> list[Row]:
        """All rows; sets and cells that are on disk are read. Writes table.parquet."""
        whiten(self._here)  # what recipes agree on decides it, so it holds for all of them
        entries = [entry for ipc in self._recipes for entry in self._entries(ipc)]
        if "full" in self.config.evaluate.rows:
            entries.append(Entry("full", None, "hard", lambda seed: ("full", None), "full", self._real_bytes))
        cells = {(entry, network): self._cells(entry, network) for network in self._networks for entry in entries}
        found = iter(evaluate_cells(self._here, [cell for row in cells.values() for cell in row]))
        outcomes = {key: [next(found) for _ in row] for key, row in cells.items()}
        self._write(cells, outcomes)
        return [
            row_of(
                entry.name,
                entry.labels,
                outcome,
                ipc=entry.ipc,
                network=network if len(self._networks) > 1 else "",
                ratio=self._real_bytes / entry.bytes,
                note=f"{cells[entry, network][0].steps} steps" if entry.ipc is None else "",
            )
            for (entry, network), outcome in outcomes.items()
        ]

    # --- sets ----------------------------------------------------------------------------------------------------

    def _entries(self, ipc: int) -> list[Entry]:
        """Every set of one size under every kind of labels."""
        made = {config.name: self._distilled(config) for config in self._recipes[ipc]}
        there = self._of(self._recipes[ipc][0], self._here.place, self._here)
        methods = [method for method in self._plan.selections if method != "random"]
        picked = selections(there, self._experts, methods) if methods else {}
        seeds = range(self.config.evaluate.seeds)
        chosen = {"random": [random_choice(there, seed) for seed in seeds]}
        chosen |= {method: [indices] for method, indices in picked.items()}
        entries = []
        for kind in self._plan.labels:
            for name, (images, factor) in made.items():
                entries.append(self._learned(name, ipc, kind, images, factor))
            entries += [self._real(name, ipc, kind, indices) for name, indices in chosen.items()]
        return entries

    def _distilled(self, config: RunConfig) -> tuple[Images, int]:
        """The set of a recipe, distilled in a run of its own, and its factor."""
        with RunDir.open(self._here.place / "sets" / f"{config.name}_ipc{config.synthetic.ipc}", config) as record:
            place = record.place / "synthetic"
            if not (place / "dataset.json").exists():
                there = self._of(config, record.place, self._here)
                segments, _ = distil_segments(there, train_experts(there))
                write_artifact(place, artifact_of(there, segments))
        kept = read_artifact(place)
        self._here.progress.note(f"{config.name} at {config.synthetic.ipc} images a class: digest {digest(kept)}")
        return Images(kept.pixels, kept.labels, kept.soft_labels, kept.is_normalised), kept.factor

    @staticmethod
    def _of(config: RunConfig, place: Place, here: Here) -> Here:
        """The session of ``here`` on another recipe and folder."""
        key = distil_key(config, here.real, here.job.device)
        return replace(here, config=config, place=place, job=replace(here.job, config=config), key=key)

    @cached_property
    def _experts(self) -> Experts:
        return train_experts(self._here)

    def _learned(self, name: str, ipc: int, kind: str, images: Images, factor: int) -> Entry:
        """A distilled set; its soft labels are its own where it learned some, else the experts'."""
        if kind == "soft" and images.logits is None:
            (logits,) = taught(self._here, self._experts, [training_on(images, factor)])
            images = images._replace(logits=logits)
        training = training_on(images, factor, kind == "soft")
        stamp = _stamp(images.pixels, images.labels, images.logits if kind == "soft" else None, factor)
        return Entry(name, ipc, kind, lambda seed: training, stamp, images.pixels.nbytes + self._label_bytes(ipc, kind))

    def _real(self, name: str, ipc: int, kind: str, chosen: Sequence[Indices]) -> Entry:
        """A selection, one for each seed or one for all."""
        pairs: list[tuple[Indices, NDArray[np.float32] | None]] = [(indices, None) for indices in chosen]
        if kind == "soft":
            pairs = list(
                zip(chosen, taught(self._here, self._experts, [("real", pair) for pair in pairs]), strict=True)
            )
        stamp = _stamp(*(part for pair in pairs for part in pair))
        size = len(chosen[0]) * math.prod(self._here.real.shape) + self._label_bytes(ipc, kind)
        return Entry(name, ipc, kind, lambda seed: ("real", pairs[seed % len(pairs)]), stamp, size)

    @cached_property
    def _real_bytes(self) -> int:
        """The training split: a byte for each value, and its labels."""
        count = int(self._here.real.counts["train"].sum())
        return count * (math.prod(self._here.real.shape) + self._one_label)

    def _label_bytes(self, ipc: int, kind: str) -> int:
        """Hard labels in whole bytes, soft ones as float32."""
        return ipc * self._here.classes * (self._one_label if kind == "hard" else 4 * self._here.classes)

    @property
    def _one_label(self) -> int:
        return 1 if self._here.classes <= 256 else 2

    # --- cells ---------------------------------------------------------------------------------------------------

    def _cells(self, entry: Entry, network: str) -> list[Cell]:
        """A cell for every seed of one set under one network."""
        config, here = self._under[network], self._here
        recipe, steps = config.evaluate, self._steps(config.evaluate, entry.ipc)
        runtime = (config.runtime.cpus_per_worker, config.runtime.compile, here.job.device)
        of_all_seeds = (entry.digest, what(config.model), what(recipe), what(config.data), config.seed, runtime)
        key = digest_of(*of_all_seeds, here.real.digest, entry.labels, steps)
        return [
            Cell(
                name=f"evaluate {network} on {entry.name} of {entry.ipc}, {entry.labels} labels, seed {seed}",
                file=here.place / "cells" / f"{key}_{seed}.json",
                job=replace(here.job, config=config),
                label=key,  # not by name: two names of one set are one training
                seed=seed,
                steps=steps,
                training=partial(entry.training, seed),
            )
            for seed in range(recipe.seeds)
        ]

    def _steps(self, recipe: Evaluate, ipc: int | None) -> int:
        """As many for every set of one size: those of the one that decodes to the most images."""
        if ipc is None:
            return steps_for(int(self._here.real.counts["train"].sum()), recipe, recipe.full_epochs)
        largest = max(config.synthetic.factor for config in self._recipes[ipc])
        return steps_for(self._here.classes * ipc * largest**2, recipe)

    def _write(
        self, cells: dict[tuple[Entry, str], list[Cell]], outcomes: dict[tuple[Entry, str], list[Found]]
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
        write_trainings(self._here.place / "table.parquet", lines)


def _stamp(*parts: NDArray[np.generic] | int | None) -> str:
    """16 hex digits over arrays and numbers."""
    total = hashlib.sha256()
    for part in parts:
        total.update(b"none" if part is None else np.ascontiguousarray(part).tobytes() + repr(np.shape(part)).encode())
    return total.hexdigest()[:16]
