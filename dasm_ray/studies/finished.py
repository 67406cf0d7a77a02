"""Finished sets, opened again for what is done with them afterwards: tables, soft labels, uses.

What must stay true: what is changed afterwards leaves the set what it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import apply_override, parse_config
from dasm_ray.errors import ArtifactError, ConfigError
from dasm_ray.method.run import Run, connected
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.place import Place

AFTERWARDS = ("evaluate.", "runtime.", "data.path", "data.download")
"""What can be changed once a set is there."""


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
    for change in changes:
        apply_override(tree, change)
    return parse_config(tree)


def check_allowed(changes: list[str], allowed: tuple[str, ...]) -> None:
    """ConfigError for a change of anything else."""
    for change in changes:
        if not change.startswith(allowed):
            known = ", ".join(name.removesuffix(".") for name in allowed)
            raise ConfigError(f"--set {change}: after distillation only {known} can be changed")


def _config_of(artifact: Artifact, place: Place) -> RunConfig:
    kept = artifact.provenance.get("config")
    if kept is None:
        raise ArtifactError(
            f"{place}: does not say which configuration made it, so there is nothing to compare it with"
        )
    return parse_config(kept)
