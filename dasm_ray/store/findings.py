"""What a sweep, a comparison or a study has found, at rest.

    SWEEP/sweep.json  table.md  table.parquet     what is tried; what came out
    SWEEP/trials/NNN/                             a run directory for each trial
    SWEEP/found/NNN.json  NNN_stopped.json        what it has found, written by the trial; that it was stopped early
    SWEEP/experts/KEY/                            experts, whitening and static scores that trials share
    SWEEP/tune/                                   what Tune writes, and nobody reads
    COMPARISON/comparison.json  table.parquet     whose folder it is; a row for every training
    COMPARISON/sets/NAME_ipcN/                    a run directory for every set
    STUDY/study.json  outcomes/KEY.json           whose folder it is; what one arm came to at one size and seed
    STUDY/study.md  results.json  trainings.parquet   what it all says; a row for every training; those of other
                                                  settings have a digest of them in their names
    STUDY/sets/SIZE_SEED_KEY/                     a run directory for every set, with the seconds that it took

What must stay true: a folder serves one sweep, comparison or study, a trial's finding is on disk before anyone hears of
it, and figures keep all their digits: one that was changed since is never shown.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import pyarrow as pa

from dasm_ray.config.digests import digest_of
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.shown import escaped
from dasm_ray.errors import RunDirError, UserError
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.store import claims, parquetfile
from dasm_ray.store.checked import read_checked_json, read_json, write_checked_json
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import remove_temporaries, versions

SWEEP = "sweep.json"


@dataclass(frozen=True)
class Finding:
    """What is known of a trial. ``accuracies[k]`` are validation accuracies in [0, 1] after segment k, one a seed."""

    begun: int = 0  # times that it was begun; more than once only where it was killed or failed
    accuracies: tuple[tuple[float, ...], ...] = ()
    seconds: float = 0.0  # at work, as far as it was kept
    done: bool = False
    failed: str = ""  # why it can never be done
    stopped: bool = False  # early, by the scheduler

    @property
    def is_over(self) -> bool:
        return self.done or self.stopped or bool(self.failed)


@contextlib.contextmanager
def claimed_sweep(place: Place, definition: Values, *, resume: bool) -> Iterator[Place]:
    """The folder of one sweep, kept from other drivers meanwhile, and writable only while it is.

    What was made for a sweep that is contradictory is taken away again, so that the mended one can have its name.
    Raises RunDirError if it is in use, holds something else, another sweep, or one that was not to be gone on with.
    """
    check_sweep(place, definition, resume=resume)
    with _held(place, SWEEP) as held:
        check_sweep(held, definition, resume=resume)
        if not (held / SWEEP).exists():
            (held / SWEEP).write_json({**definition, "versions": versions()})
        yield held


def check_sweep(place: Place, definition: Values, *, resume: bool) -> None:
    """RunDirError unless the folder is free, or holds this sweep and ``resume`` asks to go on with it."""
    mark = place / SWEEP
    if not mark.exists():
        return _check_free(place, SWEEP, "sweep")
    if not resume:
        raise RunDirError(f"{place} holds a sweep already; go on with it by --resume, or choose another --run")
    try:
        kept = read_json(mark)
    except ValueError as error:
        raise RunDirError(f"{mark} cannot be read ({error}); it is damaged, choose another --run") from None
    differing = [name for name in definition if not isinstance(kept, dict) or kept.get(name) != definition[name]]
    if differing:
        raise RunDirError(f"{place} belongs to another sweep (its {', '.join(differing)} differ); choose another --run")
    return None


@contextlib.contextmanager
def _held(place: Place, mark: str) -> Iterator[Place]:
    """A folder that this driver alone may work in. If the user must mend something before anything else than ``mark``
    was written to it, that is taken away again."""
    claim = claims.take(place)
    is_new = not (place / mark).exists()
    try:
        remove_temporaries(claim.place)
        yield claim.place
    except UserError:
        if is_new and not [name for name in place.names() if name != mark and not claims.is_own(name)]:
            claim.discard([mark])
        raise
    finally:
        claim.release()


def _check_free(place: Place, mark: str, kind: str) -> None:
    foreign = [name for name in place.names() if not claims.is_own(name)]
    if foreign:
        raise RunDirError(f"{place} holds {foreign[0]} and no {mark}, so it is no {kind}; choose another --run")


# --- findings ----------------------------------------------------------------------------------------------------


def trial_place(place: Place, number: int) -> Place:
    """The run directory of a trial."""
    return place / "trials" / f"{number:03d}"


def find(place: Place, number: int) -> Finding:
    """What is known of a trial so far."""
    file, stopped = place / "found" / f"{number:03d}.json", (place / "found" / f"{number:03d}_stopped.json").exists()
    if not file.exists():
        return Finding(stopped=stopped)
    kept = read_checked_json(file)
    if kept is None or kept.keys() != {field.name for field in fields(Finding)} - {"stopped"}:
        raise RunDirError(f"{file} is not as it was written; remove it, and --resume runs its trial again")
    found = Finding(**{**kept, "accuracies": tuple(tuple(seeds) for seeds in kept["accuracies"])})
    return replace(found, stopped=stopped and not found.done)


def keep(place: Place, number: int, found: Finding) -> None:
    """Writes what a trial has found."""
    kept = asdict(found)
    kept.pop("stopped")
    write_checked_json(place / "found" / f"{number:03d}.json", kept)


def keep_stopped(place: Place, number: int) -> None:
    """Writes that a trial was stopped early: in a file of its own, since it is not the trial that says so."""
    (place / "found" / f"{number:03d}_stopped.json").write_json({"stopped": True})


# --- the table ---------------------------------------------------------------------------------------------------


TRIAL_COLUMNS = {
    "trial": pa.int64(),
    "validation": pa.list_(pa.float64()),  # after the last segment that is done, one a seed
    "mean": pa.float64(),
    "std": pa.float64(),  # null for a single seed
    "segments": pa.int64(),  # done
    "of": pa.int64(),
    "stopped": pa.bool_(),
    "failed": pa.string(),
    "seconds": pa.float64(),
    "begun": pa.int64(),
}


def write_trials(place: Place, rows: Sequence[Values], keys: Sequence[str]) -> None:
    """Writes ``rows``, each with TRIAL_COLUMNS and a column for each swept key, as one Parquet file, in place
    of an older one.

    A key whose values are neither all numbers nor all texts is written as JSON-like text.
    """
    columns = {key: _column([row[key] for row in rows]) for key in keys}
    columns |= {name: pa.array([row[name] for row in rows], kind) for name, kind in TRIAL_COLUMNS.items()}
    parquetfile.write(place, pa.table({"trial": columns.pop("trial"), **columns}))


def _column(values: list[Plain]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    plain = len(kinds) <= 1 and kinds <= {int, float, str, bool}
    return pa.array(values if plain else [None if value is None else str(value) for value in values])


def read_trials(place: Place) -> list[Tree]:
    """The rows of a file that ``write_trials`` wrote."""
    rows: list[Tree] = parquetfile.read(place.read_bytes()).to_pylist()
    return rows


TRAINING_COLUMNS = pa.schema(
    {
        "set": pa.string(),
        "ipc": pa.int64(),  # null: the full data
        "labels": pa.string(),
        "network": pa.string(),
        "seed": pa.int64(),
        "test": pa.float64(),
        "validation": pa.float64(),
        "step": pa.int64(),  # whose checkpoint validation chose
        "steps": pa.int64(),
        "bytes": pa.int64(),  # of images and labels
        "digest": pa.string(),  # of what was trained on
    }
)

STUDY_COLUMNS = pa.schema(
    {
        "arm": pa.string(),
        "source": pa.string(),  # distilled, initial, or how real images were chosen
        "labels": pa.string(),
        "ipc": pa.int64(),
        "seed": pa.int64(),  # of distillation
        "evaluation_seed": pa.int64(),
        "validation": pa.float64(),
        "test": pa.float64(),  # null: not read
        "easy": pa.float64(),  # of the validation images, by third; null: not asked for
        "middle": pa.float64(),
        "hard": pa.float64(),
        "step": pa.int64(),  # whose checkpoint validation chose
        "steps": pa.int64(),
        "seconds": pa.float64(),  # of distilling the set; null: real images
        "class_steps": pa.int64(),
        "images": pa.int64(),  # that distilling worked on
        "digest": pa.string(),  # of the set
        "folder": pa.string(),  # of the set, in the study's; null: real images
    }
)

COMPARISON = "comparison.json"
STUDY = "study.json"
RESULTS, TRAININGS, REPORT = "results.json", "trainings.parquet", "study.md"
"""The figures of a study, its row for every training, and its tables."""


@contextlib.contextmanager
def claimed_comparison(place: Place) -> Iterator[Place]:
    """The folder of one comparison, kept from other drivers meanwhile, and writable only while it is.

    Raises RunDirError if it is in use or holds something else.
    """
    check_comparison(place)
    with _held(place, COMPARISON) as held:
        if not (held / COMPARISON).exists():
            (held / COMPARISON).write_json({"versions": versions()})
        yield held


def check_comparison(place: Place) -> None:
    """RunDirError unless the folder is free or holds a comparison."""
    if not (place / COMPARISON).exists():
        _check_free(place, COMPARISON, "comparison")


def set_place(place: Place, config: RunConfig) -> Place:
    """The run directory of a recipe's set in a comparison."""
    return place / "sets" / f"{config.name}_ipc{config.synthetic.ipc}"


@contextlib.contextmanager
def claimed_study(place: Place, name: str) -> Iterator[Place]:
    """The folder of one study, kept from other drivers meanwhile, and writable only while it is.

    Raises RunDirError if it is in use, or holds something else or a study of another name.
    """
    check_study(place, name)
    with _held(place, STUDY) as held:
        if not check_study(held, name):
            (held / STUDY).write_json({"name": name, "versions": versions()})
        yield held


def check_study(place: Place, name: str) -> bool:
    """RunDirError unless the folder is free or holds the study of this name; whether it says whole that it does."""
    mark = place / STUDY
    if not mark.exists():
        _check_free(place, STUDY, "study")
        return False
    try:
        kept = read_json(mark)
    except ValueError:
        return False  # what is damaged is written anew: outcomes have keys of their own
    other = kept.get("name") if isinstance(kept, dict) else None
    if other != name:
        raise RunDirError(f"{place} holds the study {escaped(str(other), 100)}, not {name}; choose another --run")
    return True


def set_aside(place: Place, outcomes: Mapping[str, str]) -> tuple[str, ...]:
    """Puts results of other settings than ``outcomes`` beside, under a digest of theirs; their names now.

    ``outcomes`` are keys by the name of their unit: results are of other settings where one unit has another key, not
    where there are more units or fewer.
    """
    found = read_checked_json(place / RESULTS)
    shown = {} if found is None else found.get("outcomes", {})
    if found is not None and all(outcomes.get(name, key) == key for name, key in shown.items()):
        return ()
    moved = []
    for name in (TRAININGS, REPORT, RESULTS):  # last what says whose they are: whoever is killed goes on here
        if (place / name).exists():
            held, (stem, _, kind) = (place / name).read_bytes(), name.rpartition(".")
            stamp = digest_of(shown) if shown else hashlib.sha256(held).hexdigest()[:16]  # of nobody knows which
            moved.append(f"{stem}_{stamp}.{kind}")
            (place / moved[-1]).write_bytes(held)
            (place / name).delete()
    return tuple(moved)


def write_trainings(place: Place, rows: Sequence[Values], columns: pa.Schema = TRAINING_COLUMNS) -> None:
    """Writes ``rows``, each with the ``columns``, as one Parquet file, in the stead of an older one."""
    parquetfile.write(place, pa.Table.from_pylist([dict(row) for row in rows], columns))


def read_trainings(place: Place, columns: pa.Schema = TRAINING_COLUMNS) -> list[Tree]:
    """The rows of a file that ``write_trainings`` wrote; a column that it lacks is null."""
    rows: list[Tree] = parquetfile.read(place.read_bytes()).to_pylist()
    return [{name: row.get(name) for name in columns.names} for row in rows]
