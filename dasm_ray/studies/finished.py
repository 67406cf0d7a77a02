"""Finished sets, opened again for what is done with them afterwards: tables, soft labels, uses.

What must stay true: what is done with a set is done on the images that it was made of, and nothing is distilled for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dasm_ray.config.afterwards import AFTERWARDS
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.errors import ArtifactError
from dasm_ray.method.experts import Experts, are_trained, train_experts
from dasm_ray.method.run import Origin, Run, connected, kept_whitening
from dasm_ray.method.sets import Images, flattened, images_of
from dasm_ray.method.starts import kept_starts, labelled
from dasm_ray.plain import Values
from dasm_ray.runtime.opening import config_of
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.description import artifact_place
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RECORD, RunDir, obeyed
from dasm_ray.studies.cells import cells_place


@dataclass(frozen=True)
class Finished:
    """A finished set, the session that was opened for it, and where outcomes are kept (None: it stands alone).

    ``made``: the same run by what made the set, under whose keys its experts and segments lie (None: it stands alone).
    """

    run: Run
    artifact: Artifact
    cells: Place | None
    made: Run | None


@contextlib.contextmanager
def opened_again(path: str, changes: list[str], allowed: tuple[str, ...] = AFTERWARDS) -> Iterator[Finished]:
    """The artifact in ``path``, a run's or one alone, with a session on the images that it was made of."""
    place = Place(path)
    folder = artifact_place(place)
    artifact = read_artifact(folder)
    config = config_of(place, artifact.provenance, changes, allowed)
    record = RunDir.read(folder.parent) if (folder.parent / RECORD).exists() else None
    origin = None if record is None else _origin(obeyed(record.config, record.place), artifact)
    whitening = _whitening(artifact, record, origin)
    with connected(config, place if record is None else record.place, whitening=whitening) as run:
        if (run.real.class_names, run.real.shape) != (artifact.class_names, artifact.pixels.shape[1:]):
            raise ArtifactError(f"{place}: its classes or image shape are not those of {config.data.name}")
        made = None if origin is None else replace(run, config=origin.config, origin=origin)
        is_kept = made is not None or config.evaluate.cache is not None
        yield Finished(run, artifact, cells_place(run) if is_kept else None, made)


def sets_again(kept: Finished) -> tuple[dict[str, Images], Experts | None]:
    """What the table of a run directory is made of: its sets, and its experts where rows or labels ask for them.

    The experts are those that the set was made with, whatever is changed about where and how the work is done; only
    where they are gone are they trained, under the changes. Raises ArtifactError, before that, for other images and
    for a start that is asked for and not kept.
    """
    run, made, artifact = kept.run, kept.made, kept.artifact
    assert made is not None, "a set alone has neither a start nor experts"
    if run.real.digest != artifact.provenance.get("data_digest"):
        raise ArtifactError(
            f"{run.place}: the images of {run.config.data.name} are not those that its set was made of; name these by "
            f"--set data.path=FOLDER, or evaluate {run.place / 'synthetic'} alone"
        )
    wanted = run.config.evaluate.rows
    starts = kept_starts(made) if "initial" in wanted else []
    experts = None
    if artifact.soft_labels is not None or any(row in SELECTIONS for row in wanted):
        experts = train_experts(made if are_trained(made) else run)
    sets = {"distilled": images_of(artifact)}
    if starts:
        sets["initial"] = flattened(labelled(run, experts, starts))
    return sets, experts


def _origin(config: RunConfig, artifact: Artifact) -> Origin:
    """What a run's files come of: its own configuration, and the images and the device that its set names."""
    data, device = (str(artifact.provenance.get(name)) for name in ("data_digest", "device"))
    return Origin(config, data, device)


def _whitening(artifact: Artifact, record: RunDir | None, origin: Origin | None) -> Values | None:
    """The arrays of the set's whitening where they are known: to the set, or to the run that it lies in."""
    if artifact.whitening_matrix is not None:
        return {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}
    if record is None or origin is None or record.config.data.zca is None:
        return None
    return kept_whitening(origin.shared_place(record.place), origin.config, origin.data)
