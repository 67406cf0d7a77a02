"""Finished sets, opened again for what is done with them afterwards: tables, soft labels, uses.

What must stay true: what is changed afterwards leaves the set what it is, and a set that came from elsewhere chooses
neither the files that are read here nor the machines that are talked to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dasm_ray.config.digests import what
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import apply_overrides, parse_config, parse_result_keys
from dasm_ray.config.shown import escaped, masked
from dasm_ray.errors import ArtifactError, ConfigError
from dasm_ray.method.run import Run, connected
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir

AFTERWARDS = ("evaluate.", "runtime.", "data.path", "data.download")
"""What can be changed once a set is there."""

WITH_PATH = ("folder", "parquet", "tiny_imagenet")
"""Sets that are nowhere unless `data.path` says where."""


@dataclass(frozen=True)
class Finished:
    """A finished set, the session that was opened for it, and where outcomes are kept (None: it stands alone)."""

    run: Run
    artifact: Artifact
    cells: Place | None


@contextlib.contextmanager
def opened_again(path: str, changes: list[str], allowed: tuple[str, ...] = AFTERWARDS) -> Iterator[Finished]:
    """The artifact in ``path``, a run's or one alone, with a session on the images that it was made of."""
    place = Place(path)
    folder = artifact_place(place)
    artifact = read_artifact(folder)
    config = changed(_config_of(artifact, folder), changes, allowed)
    if config.data.path is None and config.data.name in WITH_PATH:
        raise ConfigError(f"data.path: {place} does not say where its images lie; name them by --set data.path=FOLDER")
    whitening = None
    if artifact.whitening_matrix is not None:
        whitening = {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}
    is_of_a_run = (folder.parent / "run.json").exists()
    with connected(config, folder.parent if is_of_a_run else place, whitening=whitening) as run:
        if (run.real.class_names, run.real.shape) != (artifact.class_names, artifact.pixels.shape[1:]):
            raise ArtifactError(f"{place}: its classes or image shape are not those of {config.data.name}")
        yield Finished(run, artifact, cells_place(run.place) if is_of_a_run else None)


def artifact_place(place: Place) -> Place:
    """The artifact's own folder: the place itself, or ``synthetic`` in a run directory."""
    return place if (place / "dataset.json").exists() else place / "synthetic"


def cells_place(run: Place) -> Place:
    """Where a run keeps the outcomes of its trainings."""
    return run / "report" / "cells"


def changed(config: RunConfig, changes: list[str], allowed: tuple[str, ...] = AFTERWARDS) -> RunConfig:
    """A kept configuration under changes that leave its artifact what it is."""
    check_allowed(changes, allowed)
    tree = config.model_dump(mode="json")
    apply_overrides(tree, changes)
    return parse_config(tree)


def check_allowed(changes: list[str], allowed: tuple[str, ...]) -> None:
    """ConfigError for a change of anything else."""
    for change in changes:
        if not change.strip().startswith(allowed):
            known = ", ".join(name.removesuffix(".") for name in allowed)
            raise ConfigError(f"--set {escaped(masked(change), 120)}: after distillation only {known} can be changed")


def _config_of(artifact: Artifact, place: Place) -> RunConfig:
    """What made the artifact: of its own words only what can change a result.

    Where images and experts lie is known to the run that it lies in, if it does; else it has to be said. Where Ray is
    has to be said always: a file that came from elsewhere must not choose whom this machine talks to.
    """
    kept = artifact.provenance.get("config")
    if not isinstance(kept, dict):
        raise ArtifactError(
            f"{place}: does not say which configuration made it, so there is nothing to compare it with"
        )
    try:
        config = parse_result_keys(kept)
    except ConfigError as error:
        raise ArtifactError(f"{place} was made by another version of dasm_ray: {error.problems[0]}") from None
    if (place.parent / "run.json").exists():
        config = parse_config(_overlaid(RunDir.read(place.parent).config.model_dump(), what(config)))
    return without_address(config)


def _overlaid(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The tree with the values that are given set in it, section by section."""
    return tree | {
        name: _overlaid(tree.get(name) or {}, value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def without_address(config: RunConfig) -> RunConfig:
    """A kept configuration without the cluster that it was once run on; --address or RAY_ADDRESS names one."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"address": None})})
