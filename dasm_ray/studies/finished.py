"""Finished sets, opened again for what is done with them afterwards: tables, soft labels, uses.

What must stay true: what is done with a set is done on the images that it was made of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dasm_ray.config.afterwards import AFTERWARDS
from dasm_ray.errors import ArtifactError
from dasm_ray.method.run import Run, connected
from dasm_ray.runtime.opening import config_of
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.description import artifact_place
from dasm_ray.store.place import Place
from dasm_ray.studies.cells import cells_place


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
    config = config_of(place, artifact.provenance, changes, allowed)
    whitening = None
    if artifact.whitening_matrix is not None:
        whitening = {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}
    is_of_a_run = (folder.parent / "run.json").exists()
    with connected(config, folder.parent if is_of_a_run else place, whitening=whitening) as run:
        if (run.real.class_names, run.real.shape) != (artifact.class_names, artifact.pixels.shape[1:]):
            raise ArtifactError(f"{place}: its classes or image shape are not those of {config.data.name}")
        is_kept = is_of_a_run or config.evaluate.cache is not None
        yield Finished(run, artifact, cells_place(run) if is_kept else None)
