"""All that a run directory says of its run, gathered for a page: read, never changed, as far as the run has come.

What must stay true: what is not there is None or empty, and is not made up; what is damaged is said and passed over,
but for the synthetic set itself, which is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.afterwards import without_address
from dasm_ray.config.keys import Data, RunConfig
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.errors import ArtifactError, DasmError, RunDirError
from dasm_ray.plain import Plain, Tree
from dasm_ray.report.chronicle import Chronicle, chronicle
from dasm_ray.report.neighbours import Levels, Nearest, is_too_much, nearest
from dasm_ray.report.table import OWN, Row, from_json
from dasm_ray.store import tensors
from dasm_ray.store.artifact import Artifact, as_levels, digest, read_artifact
from dasm_ray.store.checked import read_checked_json
from dasm_ray.store.checkpoints import Scores, read_scores, segment_pixels
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.pixels import first_line
from dasm_ray.store.datasets.sorting import Seal
from dasm_ray.store.datasets.splits import SPLITS
from dasm_ray.store.description import DESCRIPTION, read_description
from dasm_ray.store.events import read_events
from dasm_ray.store.findings import COMPARISON, STUDY, STUDY_COLUMNS, SWEEP, TRAININGS, find, read_trainings
from dasm_ray.store.place import Place
from dasm_ray.store.room import room
from dasm_ray.store.rundir import RECORD, RunDir, obeyed

BINS = 40
"""Parts of the real images from easy to hard, in which the windows are counted."""

MOST_EXPERT_BYTES = 1 << 29
"""Of the files of experts, which are read for their curves; of more, the first ones are."""

PARTS = {
    "synthetic": "the synthetic set",
    "experts": "experts",
    "segments": "checkpoints of segments",
    "scores": "scores of real images",
    "report": "tables and this page",
}
"""What the folders of a run hold."""


@dataclass(frozen=True)
class Pictures:
    """Images as they are shown: (N, C, H, W) uint8, one label and one segment each; where they began, if it is kept."""

    images: Levels
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    starts: Levels | None = None
    nearest: Nearest | None = None


@dataclass
class Gathered:
    """What is known of one run."""

    place: Place
    config: RunConfig
    versions: dict[str, str]
    log: Chronicle
    class_names: tuple[str, ...] = ()
    artifact: Artifact | None = None
    rows: list[Row] = field(default_factory=list)
    title: str = ""
    tested: int | None = None
    pictures: Pictures | None = None
    scores: list[Scores] = field(default_factory=list)
    experts: list[tuple[list[float], list[float]]] = field(default_factory=list)  # accuracy and loss by epoch
    validation: tuple[tuple[float, ...], ...] = ()  # after each segment, one a seed, in [0, 1]
    arm: str = ""  # of the study that it is a set of; of several, their names
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by part
    audits: dict[str, Tree] = field(default_factory=dict)  # what "", the set, and selections tell of their real images
    remarks: list[str] = field(default_factory=list)  # what could not be shown, and why

    @property
    def name(self) -> str:
        """What the run is called."""
        return f"{self.arm} of {self.config.synthetic.ipc}" if self.arm else self.config.name

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: a set is there, and what it is worth."""
        return self.artifact is not None and bool(self.rows or self.validation or self.arm)

    @property
    def digest(self) -> str | None:
        return None if self.artifact is None else digest(self.artifact)

    @property
    def found(self) -> Tree:
        """What the real images turned out to be: as the set says or, while there is none, as the log does."""
        of_set = {} if self.artifact is None else self.artifact.provenance.get("found")
        return of_set if isinstance(of_set, dict) and of_set else self.log.found

    @property
    def own(self) -> dict[str, Row]:
        """The row of the set itself, with its own labels, by the run's name; in a study one for each of its arms."""
        of_arms = {row.name.removeprefix(f"{OWN}: "): row for row in self.rows if row.name.startswith(f"{OWN}: ")}
        one = next((row for row in self.rows if row.name == OWN), None)
        return of_arms if one is None else {self.arm or self.config.name: one}

    @property
    def row(self) -> Row | None:
        """The row of the set itself, or the first of them."""
        return next(iter(self.own.values()), None)

    def row_of(self, name: str) -> Row | None:
        """Another row, under the same labels where there is one."""
        own = self.row
        found = [row for row in self.rows if row.name == name or row.name.startswith(f"{name}:")]
        return next((row for row in found if own and row.labels == own.labels), found[0] if found else None)

    @property
    def real_count(self) -> int | None:
        """Training images that it was made of."""
        counts = self.found.get("counts")
        train = counts.get("train") if isinstance(counts, dict) else None
        if isinstance(train, Sequence) and all(isinstance(count, int) for count in train):
            return sum(train)
        return len(self.scores[0].label) if self.scores else None

    def window_paths(self) -> NDArray[np.float64]:
        """Which share of the real images each segment may see, (segments, BINS), by their rank of static difficulty."""
        return np.stack([_by_rank(scores) for scores in self.scores])

    def wrong(self) -> NDArray[np.float64]:
        """What share of each class the probe gets wrong before each segment, (segments, K)."""
        classes = range(len(self.class_names))
        return np.stack([[_share(of.wrong[of.label == label]) for label in classes] for of in self.scores])


def _share(which: NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else 0.0


def _by_rank(scores: Scores) -> NDArray[np.float64]:
    """The share of images in the window, by their rank of static difficulty within their class."""
    seen, there = np.zeros(BINS), np.zeros(BINS)
    for label in np.unique(scores.label):
        mine = np.flatnonzero(scores.label == label)
        order = mine[np.argsort(scores.static[mine], kind="stable")]
        bins = np.arange(len(order)) * BINS // len(order)
        seen += np.bincount(bins, scores.window[order], BINS)
        there += np.bincount(bins, minlength=BINS)
    return seen / np.maximum(there, 1)


# --- which runs --------------------------------------------------------------------------------------------------


def runs_in(place: Place) -> list[Place]:
    """The run directories that a place stands for: itself, the sets of a comparison, the trials of a sweep, and of a
    study the sets of its first distillation seed.

    Raises RunDirError if there is none.
    """
    for mark, folder in ((COMPARISON, "sets"), (SWEEP, "trials"), (STUDY, "sets")):
        if (place / mark).exists():
            names = (place / folder).names()
            found = [place / folder / name for name in (_of_first_seed(names) if mark == STUDY else names)]
            runs = [run for run in found if (run / RECORD).exists()]
            if not runs:
                raise RunDirError(f"{place} holds no run yet, so there is nothing to show; wait for its first one")
            return runs
    return [place]


def _of_first_seed(names: Sequence[str]) -> list[str]:
    """Of the folders of a study's sets, ipcN_seedS_KEY, those of the smallest S."""
    seeds = {name: int(found[1]) for name in names if (found := re.search(r"_seed(\d+)_", name))}
    return [name for name, seed in seeds.items() if seed == min(seeds.values())]


def table_of(place: Place) -> tuple[list[Row], str, int | None]:
    """Rows, title and number of test images of the table in a folder; no rows where there is none.

    Raises ArtifactError for one that is none of ours: its checksum anybody can write.
    """
    found = read_checked_json(place / "table.json")
    if found is None:
        return [], "", None
    try:
        rows = from_json(found)
        if not all(row.accuracies and all(map(math.isfinite, (*row.accuracies, *row.validation))) for row in rows):
            raise ValueError("a row without accuracies")
        return rows, str(found["title"]), found.get("tested")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise tensors.damaged(place / "table.json", f"it is no table of ours: {first_line(error)}") from None


def gather_all(place: Place, *, looks_at_data: bool = True, is_own: bool = False) -> list[Gathered]:
    """What is known of every run that a place stands for; those of a comparison have their rows from its table."""
    runs = [gather(run, looks_at_data=looks_at_data, is_own=is_own) for run in runs_in(place)]
    if (place / COMPARISON).exists():
        rows, title, tested = table_of(place)
        for run in runs:
            run.rows, run.title, run.tested = _rows_of(run, rows), title, tested
    if (place / STUDY).exists():
        kept = place / TRAININGS
        trainings = read_trainings(kept, STUDY_COLUMNS) if kept.exists() else []
        distilled = [training for training in trainings if training["source"] == "distilled"]
        for run in runs:
            mine = [training for training in distilled if str(training["folder"]).endswith(run.place.name)]
            run.arm, run.rows = ", ".join(dict.fromkeys(training["arm"] for training in mine)), _rows_by_arm(mine)
    return runs


def _rows_by_arm(trainings: Sequence[Tree]) -> list[Row]:
    """The row of a study's set, where the study reads the test set: one for each arm, if several are trained on it."""
    by_arm: dict[str, list[Tree]] = {}
    for training in trainings:
        if training["test"] is not None:
            by_arm.setdefault(training["arm"], []).append(training)
    rows = []
    for arm, mine in by_arm.items():
        tests, validation = ([training[of] for training in mine] for of in ("test", "validation"))
        rows.append(Row(OWN if len(by_arm) == 1 else f"{OWN}: {arm}", tests, validation, mine[0]["labels"]))
    return rows


def _rows_of(run: Gathered, rows: Sequence[Row]) -> list[Row]:
    """A run's own row in the table of its comparison, and those of its size to compare it with."""
    ipc, network = run.config.synthetic.ipc, rows[0].network if rows else ""
    near = [row for row in rows if row.network == network and (row.ipc == ipc or row.name == "full")]
    own = [replace(row, name=OWN) for row in near if row.name == run.name]
    return [*own, *(row for row in near if row.name != run.name)] if own else []


# --- one run -----------------------------------------------------------------------------------------------------


def gather(place: Place, *, looks_at_data: bool = True, is_own: bool = False) -> Gathered:
    """What a run directory says; ``looks_at_data``: also which real images are nearest, where they can be opened.

    ``is_own``: this command has made it, so that its images may lie anywhere; of a stranger's none is asked.

    Raises RunDirError for what is no run directory, ArtifactError for a synthetic set that is damaged.
    """
    record = RunDir.read(place)
    folder = record.place
    kept = (folder / RECORD).read_json()
    versions = kept.get("versions") if isinstance(kept, dict) else None
    run = Gathered(
        folder,
        without_address(record.config),
        versions if isinstance(versions, dict) else {},
        chronicle(read_events(folder)),
    )
    if (folder / "synthetic" / DESCRIPTION).exists():
        run.artifact = read_artifact(folder / "synthetic")
    try:
        run.rows, run.title, run.tested = table_of(folder / "report")
    except ArtifactError as error:
        run.remarks.append(str(error))
    run.audits = _audits(run)
    run.scores = _scores(run)
    run.class_names = _class_names(run)
    run.experts = _experts(run)
    run.validation = _validation(folder)
    run.sizes = _sizes(folder)
    run.pictures = _pictures(run)
    if run.pictures is not None and looks_at_data:
        data = run.config.data if is_own else obeyed(run.config, folder).data
        run.pictures = replace(run.pictures, nearest=_nearest(run, run.pictures, data))
    return run


def _audits(run: Gathered) -> dict[str, Tree]:
    """The first audit of the run's own set, "", and of each selection that lies in the run, by its folder's name."""
    folder = run.place / "report"
    names = [name for name in sorted(folder.names()) if re.fullmatch(r"audit(_[0-9a-f]{16})?\.json", name)]
    kept: dict[str, Tree] = {}
    for found in filter(None, (read_checked_json(folder / name) for name in names)):
        if isinstance(found.get("sets"), dict):
            kept.setdefault(str(found.get("set")), found)
    sets = {"": run.digest, **_selections(run)} if kept else {}
    return {name: kept[stamp] for name, stamp in sets.items() if stamp in kept}


def _selections(run: Gathered) -> dict[str, str]:
    """Digests of the selections that lie in a run."""
    places = {name: run.place / name for name in ("random", *SELECTIONS)}
    there = {name: place for name, place in places.items() if (place / DESCRIPTION).exists()}
    return {name: read_description(place)[0].digest for name, place in there.items()}


def _class_names(run: Gathered) -> tuple[str, ...]:
    if run.artifact is not None:
        return run.artifact.class_names
    names = run.log.found.get("class_names")
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    classes = 1 + int(run.scores[0].label.max()) if run.scores else 0
    return tuple(map(str, range(classes)))


def _scores(run: Gathered) -> list[Scores]:
    found: list[Scores] = []
    for segment in range(run.config.synthetic.segments):
        try:
            scores = read_scores(run.place / "scores", segment, None)
        except ArtifactError as error:
            run.remarks.append(str(error))
            break
        if scores is None or (found and len(scores.label) != len(found[0].label)):
            break
        found.append(scores)
    return found


def _experts(run: Gathered) -> list[tuple[list[float], list[float]]]:
    """Accuracy on validation images and loss on training images by epoch, of experts that lie in the run itself."""
    curves, left = [], MOST_EXPERT_BYTES
    sizes = (run.place / "experts").sizes()
    for path, size in sorted(sizes.items()):
        if not path.rpartition("/")[2].startswith("expert_") or size > left:
            continue
        left -= size
        try:
            arrays, _ = tensors.read(run.place / "experts" / path)
        except ArtifactError as error:
            run.remarks.append(str(error))
            continue
        if {"accuracy", "loss"} <= arrays.keys() and arrays["accuracy"].ndim == arrays["loss"].ndim == 1:
            curves.append((arrays["accuracy"].tolist(), arrays["loss"].tolist()))
    return curves


def _validation(place: Place) -> tuple[tuple[float, ...], ...]:
    """Of a trial: validation accuracy after each segment."""
    if place.parent.name != "trials" or not place.name.isdecimal() or not (place.parent.parent / SWEEP).exists():
        return ()
    return find(place.parent.parent, int(place.name)).accuracies


def _sizes(place: Place) -> dict[str, int]:
    total: dict[str, int] = {}
    for path, size in place.sizes().items():
        folder, slash, _ = path.partition("/")
        part = PARTS.get(folder, "other") if slash else "log and configuration"
        total[part] = total.get(part, 0) + size
    return dict(sorted(total.items(), key=lambda item: -item[1]))


# --- pictures ----------------------------------------------------------------------------------------------------


def _pictures(run: Gathered) -> Pictures | None:
    """The finished set, or the segments as they were last written."""
    return pictures_so_far(run) if run.artifact is None else _of_set(run, run.artifact)


def _of_set(run: Gathered, artifact: Artifact) -> Pictures:
    images = artifact.levels()
    kept = [_kept(run, segment, "initial") for segment in range(run.config.synthetic.segments)]
    whole = [part for part in kept if part is not None]
    starts = None
    if len(whole) == len(kept) and kept:
        together = _side_by_side(whole)
        if together.shape == artifact.pixels.shape:  # by class, then segment, as the set is
            starts = replace(artifact, pixels=together).levels()
    if starts is None:
        run.remarks.append("Where the images started is not kept in this run directory.")
    return Pictures(images, artifact.labels, artifact.segments.astype(np.int64), starts)


def pictures_so_far(run: Gathered) -> Pictures | None:
    """Pictures of a run on its way, class by class; those of trajectories cannot be seen without what whitens them."""
    if run.config.is_trajectory:
        run.remarks.append("The images of this run are kept as networks see them, and can be shown once it is done.")
        return None
    now, starts, numbers = [], [], []
    for segment in range(run.config.synthetic.segments):
        pixels, initial = _kept(run, segment, "pixels"), _kept(run, segment, "initial")
        if pixels is None or initial is None or initial.shape != pixels.shape:
            break
        now.append(pixels)
        starts.append(initial)
        numbers += [segment] * pixels.shape[1]
    if not now:
        return None
    classes, many = len(now[0]), len(numbers)
    labels, segments = np.repeat(np.arange(classes), many), np.tile(np.array(numbers, np.int64), classes)
    return Pictures(as_levels(_side_by_side(now)), labels, segments, as_levels(_side_by_side(starts)))


def _side_by_side(segments: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Segments (K, m, C, H, W) as images (N, C, H, W), by class, then segment."""
    together = room((len(segments[0]), sum(each.shape[1] for each in segments), *segments[0].shape[2:]), np.float32)
    np.concatenate(segments, axis=1, out=together)
    return together.reshape(-1, *together.shape[2:])


def _kept(run: Gathered, segment: int, name: str) -> NDArray[np.float32] | None:
    try:
        return segment_pixels(run.place / "segments", segment, len(run.class_names), name)
    except ArtifactError as error:
        run.remarks.append(str(error))
        return None


def _nearest(run: Gathered, pictures: Pictures, data: Data) -> Nearest | None:
    """The real images that the pictures are nearest to, or a remark on why they are not shown."""
    shape = pictures.images.shape[1:]
    if data.path is None and run.config.data.path is not None:
        run.remarks.append(
            "The real images lie with another service than the run, which is not asked for them, so none is shown "
            "beside the synthetic ones."
        )
        return None
    try:
        source = open_source(data)
        if source.class_names != run.class_names or source.shape[1:] != shape[1:]:
            run.remarks.append(OTHERS)
            return None
        if is_too_much(source):
            run.remarks.append(
                "The real images are too many to be looked at for a page, so none is shown beside the set."
            )
            return None
        seal, factor = _seal(run, shape), run.config.synthetic.factor
        found = nearest(source.with_shape(shape), data, pictures.images, pictures.labels, factor, seal)
    except DasmError:
        run.remarks.append("The real images cannot be opened here, so none is shown beside the synthetic ones.")
        return None
    if seal is None:
        run.remarks.append("Nothing kept tells whether the real images shown are those that the set was made of.")
    elif not seal.is_whole or _data_digest(run) not in (None, seal.digest):
        run.remarks.append(OTHERS)
        return None
    return found


OTHERS = "The real images are not those that the set was made of, so none is shown beside it."


def _data_digest(run: Gathered) -> str | None:
    """The digest of the real images that the set was made of; None while there is no set."""
    digest_of_set = None if run.artifact is None else run.artifact.provenance.get("data_digest")
    return digest_of_set if isinstance(digest_of_set, str) else None


def _seal(run: Gathered, shape: tuple[int, ...]) -> Seal | None:
    """What tells whether real images are those of the run; None where their numbers are not known."""
    told, classes = run.found.get("counts"), len(run.class_names)
    of_splits = {split: _counts(told.get(split), classes) for split in SPLITS} if isinstance(told, Mapping) else {}
    counts = {split: each for split, each in of_splits.items() if each is not None}
    channels, height, width = shape
    return Seal(counts, (channels, height, width)) if len(counts) == len(SPLITS) else None


def _counts(values: Plain, classes: int) -> list[int] | None:
    """Numbers of images a class; None for anything else."""
    listed = list(values) if isinstance(values, list | tuple) else []
    known = [count for count in listed if type(count) is int and 0 <= count < 1 << 62]
    return known if len(known) == len(listed) == classes else None


# --- for several runs --------------------------------------------------------------------------------------------


def bytes_of_label(classes: int) -> int:
    """Bytes of a hard label, in whole ones."""
    return 1 if classes <= 256 else 2


def stored_bytes(run: Gathered) -> int | None:
    """Bytes of the stored pixels as float32 and of hard labels, or of soft ones as float32."""
    if run.artifact is None:
        return None
    artifact = run.artifact
    hard = len(artifact.labels) * bytes_of_label(len(artifact.class_names))
    return artifact.pixels.nbytes + (hard if artifact.soft_labels is None else artifact.soft_labels.nbytes)


def real_bytes(run: Gathered) -> int | None:
    """Bytes of the training images, one a value, and of their labels."""
    count = run.real_count
    if count is None or run.artifact is None:
        return None
    return count * (math.prod(run.artifact.pixels.shape[1:]) + bytes_of_label(len(run.class_names)))
