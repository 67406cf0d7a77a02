"""The finished synthetic set at rest: Parquet that `datasets.load_dataset` opens, and a JSON file that explains it.

What must stay true: `dataset.json` is written last and holds a digest of all that evaluation needs, so a set that is
half written, damaged or of another version is refused and never trained on; a set that somebody made up is refused
before it costs memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ArtifactError, RunDirError
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.store import parquetfile, tensors
from dasm_ray.store.card import CARD, PICTURE, UNKNOWN, Facts, card_text, write_run_card, write_unfinished
from dasm_ray.store.checked import array_at_most
from dasm_ray.store.description import (
    DESCRIPTION,
    SCHEMA_VERSION,
    Description,
    damaged,
    fault_of_meaning,
    file_names,
    read_description,
)
from dasm_ray.store.place import Place
from dasm_ray.store.room import room
from dasm_ray.store.rundir import RECORD

WHITENING = "whitening.safetensors"
FILE_BYTES = 1 << 27
"""About how many bytes of pixels one Parquet file holds."""

PART_BYTES = 1 << 23
"""About how many bytes of pixels are checked, packed or unpacked at once."""

POOL = pa.system_memory_pool()
"""Gives memory back when it is done with, where arrow's own would keep as much again as a part takes."""

COLUMNS = ["pixels", "label", "soft_label", "segment"]
"""Of the Parquet files, those that are read; the preview is for others."""

PACKED_BY = ("SNAPPY", "UNCOMPRESSED")
SLACK, ROW_SLACK = 1 << 20, 1 << 12
"""Bytes that a file, or a row of it, may have beside its values: headers, statistics, the frame of a preview."""

UNPACKED_BYTES, UNPACKED_TIMES = 1 << 26, 200
"""Pixels may take so many bytes in memory, or so many times what they take in files: more is no set, but a trap."""


@dataclass(frozen=True)
class Artifact:
    """A synthetic set, with what a training on it needs: N stored images of K classes, in any order."""

    pixels: np.ndarray  # (N, C, H, W) float32, as stored: multi-formation not decoded; in [0, 1] unless `is_normalised`
    labels: np.ndarray  # (N,) int64
    segments: np.ndarray  # (N,) int32: the segment that each image was distilled in, from 0
    soft_labels: np.ndarray | None  # (N, K) float32 logits
    class_names: tuple[str, ...]  # K of them, in label order
    mean: tuple[float, ...]  # C channel means of the real training pixels in [0, 1]
    std: tuple[float, ...]
    factor: int  # multi-formation: an image holds factor * factor training images
    step_size: float | None  # learned learning rate, where the method learns one
    recipe: Tree  # plain values: model, image size, training recipe
    provenance: Tree  # plain values that say where it came from; not part of the digest
    is_normalised: bool = False  # whether pixels are as a network sees them: by mean and std, then whitened if so
    whitening_mean: np.ndarray | None = None  # (D,) float32, D = C*H*W; ZCA: (x - mean) matrix on normalised images
    whitening_matrix: np.ndarray | None = None  # (D, D) float32

    def visible(self) -> np.ndarray:
        """The images as pictures: (N, C, H, W) float32 in [0, 1]."""
        if not self.is_normalised:
            return self.pixels
        flat = self.pixels.reshape(len(self.pixels), -1).astype(np.float64)
        if self.whitening_matrix is not None and self.whitening_mean is not None:
            flat = np.linalg.solve(self.whitening_matrix.T.astype(np.float64), flat.T).T + self.whitening_mean
        mean, std = (np.reshape(values, (-1, 1, 1)) for values in (self.mean, self.std))
        pictures: np.ndarray = np.clip(flat.reshape(self.pixels.shape) * std + mean, 0, 1).astype(np.float32)
        return pictures

    def levels(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Some of the images, by their places, or all, as pictures of 8 bits: (n, C, H, W) uint8."""
        part = self if rows is None else replace(self, pixels=self.pixels[rows])
        return as_levels(part.visible())


def as_levels(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, ...) in [0, 1], where they are not cut off, as levels of 8 bits: a part of them after another."""
    levels, first = np.empty(pictures.shape, np.uint8), 0
    for part in _parts(pictures):
        levels[first : first + len(part)] = np.rint(np.clip(part, 0, 1) * 255)
        first += len(part)
    return levels


ARRAYS = ("pixels", "labels", "segments", "soft_labels", "whitening_mean", "whitening_matrix")
"""The parts of an artifact that its digest covers byte by byte."""


def digest(artifact: Artifact) -> str:
    """16 hex digits over pixels, labels, soft labels, segments and what evaluation needs; not over the provenance."""
    total = hashlib.sha256(json.dumps(_meaning(artifact), sort_keys=True).encode())
    for array in (getattr(artifact, name) for name in ARRAYS):
        if array is None:
            total.update(b"none;")
        else:
            total.update(f"{array.dtype.str}:{array.shape};".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]


def _meaning(artifact: Artifact) -> Tree:
    """The plain values that evaluation needs."""
    return {
        "class_names": list(artifact.class_names),
        "mean": [float(value) for value in artifact.mean],
        "std": [float(value) for value in artifact.std],
        "factor": artifact.factor,
        "step_size": artifact.step_size,
        "is_normalised": artifact.is_normalised,
        "recipe": artifact.recipe,
    }


def _parts(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The images, some at a time, so that what is worked out of them takes little beside them."""
    step = max(1, PART_BYTES // max(1, pixels[:1].nbytes))
    return (pixels[first : first + step] for first in range(0, len(pixels), step))


def _check(artifact: Artifact) -> None:
    """ArtifactError unless types, shapes and ranges fit together."""
    problem = next((text for wrong, text in _faults(artifact) if wrong), None)
    if problem:
        raise ArtifactError(f"the synthetic set is not sound: {problem}; distil it again")


def _faults(artifact: Artifact) -> Iterator[tuple[bool, str]]:
    """Each thing that can be wrong, and whether it is; what comes later may take what comes before it for granted."""
    pixels, labels, soft = artifact.pixels, artifact.labels, artifact.soft_labels
    odd_shape = pixels.ndim != 4 or pixels.shape[1] not in (1, 3)
    yield odd_shape, f"pixels of shape {pixels.shape} are not (N, 1 or 3, H, W)"
    problem = fault_of_meaning(_meaning(artifact), pixels.shape)
    yield problem is not None, str(problem)
    count, classes = len(pixels), len(artifact.class_names)
    per_image = (labels, artifact.segments) if soft is None else (labels, artifact.segments, soft)
    yield count == 0, "it holds no image"
    yield pixels.dtype != np.float32 or labels.dtype != np.int64, "pixels must be float32 and labels int64"
    yield artifact.segments.dtype != np.int32, "segments must be int32"
    yield any(len(array) != count for array in per_image), "images, labels and segments differ in number"
    odd_soft = soft is not None and (soft.dtype != np.float32 or soft.shape[1:] != (classes,))
    yield odd_soft, "soft labels must be (N, K)"
    yield soft is not None and not np.isfinite(soft).all(), "a soft label is no number"
    outside = not artifact.is_normalised and not all(((part >= 0) & (part <= 1)).all() for part in _parts(pixels))
    yield outside, "a pixel lies outside [0, 1]"
    yield not all(np.isfinite(part).all() for part in _parts(pixels)), "a pixel is no number"
    yield _has_odd_whitening(artifact, math.prod(pixels.shape[1:])), "the whitening does not fit the images"
    yield bool(np.any((labels < 0) | (labels >= classes))), f"a label lies outside 0..{classes - 1}"
    yield bool(np.any(artifact.segments < 0)), "a segment is negative"


def _has_odd_whitening(artifact: Artifact, size: int) -> bool:
    mean, matrix = artifact.whitening_mean, artifact.whitening_matrix
    if mean is None or matrix is None:
        return mean is not matrix
    if mean.shape != (size,) or matrix.shape != (size, size) or not (artifact.is_normalised or _was_whitened(artifact)):
        return True
    return not all(array.dtype == np.float32 and np.isfinite(array).all() for array in (mean, matrix))


def _was_whitened(artifact: Artifact) -> bool:
    """Whether the run that made a set in [0, 1] showed its networks whitened images."""
    config = artifact.provenance.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    return isinstance(data, dict) and data.get("zca") is not None


# --- writing -----------------------------------------------------------------------------------------------------


def write_artifact(place: Place, artifact: Artifact) -> str:
    """Writes the set into folder ``place``, in the stead of an older one, and returns its digest.

    In a run directory, the card of the run names it beside the run's other sets. Raises ArtifactError if the set is not
    sound, RunDirError if the place cannot be written.
    """
    _check(artifact)
    _begin(place)
    files = _write_parquet(place / "data", artifact)
    _write_whitening(place / WHITENING, artifact)
    stamp = digest(artifact)
    (place / PICTURE).delete()  # that of an older set
    (place / CARD).write_text(card_text(_facts(artifact, stamp)))
    if _is_in_run(place):
        write_run_card(place.parent, {place.name: stamp})
    (place / DESCRIPTION).write_json(_description(artifact, stamp, files))
    return stamp


def _begin(place: Place) -> None:
    """From here on until all is written, nobody takes what is there for a set."""
    (place / DESCRIPTION).delete()
    write_unfinished(place)
    if _is_in_run(place):
        write_run_card(place.parent)


def _is_in_run(place: Place) -> bool:
    return (place.parent / RECORD).exists()


def _write_whitening(file: Place, artifact: Artifact) -> None:
    """The whitening into a file of its own, or none where there is none."""
    file.delete()
    if artifact.whitening_mean is not None and artifact.whitening_matrix is not None:
        tensors.write(file, {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}, {})


@parquetfile.returned()
def _write_parquet(folder: Place, artifact: Artifact) -> dict[str, str]:
    """Writes the rows as one or more files, removes those of an older set; returns names and SHA-256 of the files."""
    rows = len(artifact.labels)
    step = max(1, FILE_BYTES // (4 * math.prod(artifact.pixels.shape[1:])))
    starts = range(0, rows, step)
    names = file_names(len(starts))
    checksums = {}
    for name, start in zip(names, starts, strict=True):
        with _encoded(artifact, range(start, min(start + step, rows))) as data:
            (folder / name).write_bytes(data)
            checksums[name] = hashlib.sha256(data).hexdigest()
    for stale in set(folder.names()) - set(names):
        (folder / stale).delete()
    return checksums


@contextlib.contextmanager
def _encoded(artifact: Artifact, rows: range) -> Iterator[pa.Buffer]:
    """Rows as Parquet: many in a temporary file that is mapped, since memory would take several copies."""
    with contextlib.ExitStack() as own:
        data = _in_a_file(artifact, rows, own) if len(rows) * artifact.pixels[:1].nbytes > PART_BYTES else None
        if data is None:
            sink = pa.BufferOutputStream()
            _encode(artifact, rows, sink)
            data = sink.getvalue()
        yield data


def _in_a_file(artifact: Artifact, rows: range, own: contextlib.ExitStack) -> pa.Buffer | None:
    """Rows in a temporary file, for as long as ``own``; None where there is no room for one."""
    try:
        file = f"{own.enter_context(tempfile.TemporaryDirectory(prefix='dasm_ray'))}/part"
        _encode(artifact, rows, file)
        return own.enter_context(pa.memory_map(file)).read_buffer()
    except OSError:
        return None


def _encode(artifact: Artifact, rows: range, sink: pa.NativeFile | str) -> None:
    """Writes the rows, a part of them after another, each a row group."""
    step = max(1, PART_BYTES // artifact.pixels[:1].nbytes)
    with contextlib.ExitStack() as own:
        writer = None
        for first in rows[::step]:
            table = _table(artifact, first, min(first + step, rows.stop))
            writer = writer or own.enter_context(pq.ParquetWriter(sink, table.schema, memory_pool=POOL))
            writer.write_table(table)
            del table  # before the next is made


def _table(artifact: Artifact, first: int, last: int) -> pa.Table:
    """Rows [first, last) with a PNG preview, exact pixels, labels and segment."""
    part = replace(artifact, pixels=np.ascontiguousarray(artifact.pixels[first:last]))
    pixels, pictures = part.pixels, part.visible()
    size = math.prod(pixels.shape[1:])
    soft = [None] * (last - first) if artifact.soft_labels is None else list(artifact.soft_labels[first:last])
    previews = [
        {"bytes": as_png(image), "path": f"{row:05d}.png"}
        for row, image in zip(range(first, last), pictures, strict=True)
    ]
    columns = {
        "image": pa.array(previews, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), size),
        "label": pa.array(artifact.labels[first:last]),
        "soft_label": pa.array(soft, pa.list_(pa.float32())),
        "segment": pa.array(artifact.segments[first:last]),
    }
    return pa.table(columns).replace_schema_metadata({"huggingface": _features(artifact, size)})


def _features(artifact: Artifact, size: int) -> str:
    """The column types as `datasets` names them."""
    single = {"dtype": "float32", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "pixels": {"feature": single, "length": size, "_type": "Sequence"},
        "label": {"names": list(artifact.class_names), "_type": "ClassLabel"},
        "soft_label": {"feature": single, "_type": "Sequence"},
        "segment": {"dtype": "int32", "_type": "Value"},
    }
    return json.dumps({"info": {"features": features}})


def as_png(image: np.ndarray) -> bytes:
    """(C, H, W) in [0, 1] as an 8-bit PNG."""
    levels = np.rint(image * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()


def _description(artifact: Artifact, stamp: str, files: dict[str, str]) -> Tree:
    return {
        "schema_version": SCHEMA_VERSION,
        "digest": stamp,
        "shape": list(artifact.pixels.shape),
        "soft_labels": artifact.soft_labels is not None,
        **_meaning(artifact),
        "provenance": artifact.provenance,
        "files": files,
    }


def write_card(
    place: Place,
    artifact: Artifact,
    accuracies: Sequence[tuple[str, str]] = (),
    picture: bytes | None = None,
    licence: str = UNKNOWN,
) -> None:
    """Writes the card of a set that lies in folder ``place``: what it is, and what is known of its worth.

    ``accuracies``: rows of its table, as texts. ``picture``: some of its images as PNG.
    """
    if picture is not None:
        (place / PICTURE).write_bytes(picture)
    facts = replace(_facts(artifact, digest(artifact)), accuracies=accuracies, licence=licence)
    (place / CARD).write_text(card_text(replace(facts, has_picture=(place / PICTURE).exists())))


def plain_card(artifact: Artifact) -> str:
    """The card of a set of whose worth nothing is known."""
    return card_text(_facts(artifact, digest(artifact)))


def _facts(artifact: Artifact, stamp: str) -> Facts:
    """What the set itself says for its card."""
    kept, found = (artifact.provenance.get(name) for name in ("config", "found"))
    data = kept.get("data") if isinstance(kept, dict) else None
    counts = found.get("counts") if isinstance(found, dict) else None
    train = counts.get("train") if isinstance(counts, dict) else None
    told = train if isinstance(train, list | tuple) and all(isinstance(count, int) for count in train) else ()
    model, training = (artifact.recipe.get(name) or {} for name in ("model", "training"))
    said = [("arch", "{}"), ("width", "width {}")], [("epochs", "{} epochs"), ("lr", "rate {}")]
    words = [
        text.format(_word(part[key], 40))
        for part, keys in zip((model, training), said, strict=True)
        for key, text in keys
        if isinstance(part, dict) and key in part
    ]
    return Facts(
        digest=stamp,
        shape=artifact.pixels.shape,
        class_names=artifact.class_names,
        factor=artifact.factor,
        space=space(artifact),
        is_soft=artifact.soft_labels is not None,
        source=_word(data.get("name"), 60) if isinstance(data, dict) and data.get("name") else UNKNOWN,
        of=sum(told) or None,
        recipe=", ".join(words) or UNKNOWN,
    )


def _word(value: Plain, most: int) -> str:
    """A value of provenance in a card, where it may come from a stranger: nothing that Markdown or HTML would heed."""
    return re.sub(r"[^\w .,:+%-]", "_", escaped(str(value), most))


def space(artifact: Artifact) -> str:
    """In words what the values of the pixels are."""
    if not artifact.is_normalised:
        return "in [0, 1]" + (", to be normalised and whitened" if artifact.whitening_matrix is not None else "")
    return "after normalisation" + (" and whitening" if artifact.whitening_matrix is not None else "")


# --- reading -----------------------------------------------------------------------------------------------------


def read_artifact(place: Place) -> Artifact:
    """The set in folder ``place``; ArtifactError if it is missing, damaged, unsound or of a later version.

    What its description says is checked first, then what its files say of themselves, and only then are they read.
    """
    described, plain = read_description(place)
    try:
        artifact = _read(place, described, plain)
        _check(artifact)
        stamp = digest(artifact)
    except RunDirError as error:
        raise ArtifactError(f"{place} is not whole: {error}") from None
    except (OSError, pa.ArrowException, TypeError, ValueError, KeyError, AttributeError, MemoryError) as error:
        raise damaged(place, escaped(str(error).partition("\n")[0] or type(error).__name__)) from None
    if stamp != described.digest:
        raise damaged(place, f"its content does not have the digest {described.digest}")
    return artifact


@parquetfile.returned()
def _read(place: Place, described: Description, plain: Values) -> Artifact:
    """The set as its files have it; their bytes are let go before anybody looks at it."""
    whitening = _read_whitening(place / WHITENING, described)
    return _assemble(described, plain, _opened(place / "data", described), whitening)


def _read_whitening(file: Place, described: Description) -> dict[str, np.ndarray]:
    if not file.exists():
        return {}
    return tensors.read(file, 4 * described.size * (described.size + 1) + SLACK)[0]


def _opened(folder: Place, described: Description) -> list[pq.ParquetFile]:
    """All files, once each has said how much it holds, and that fits the description."""
    count, classes = described.shape[0], len(described.class_names)
    most = count * (ROW_SLACK + 8 * described.size + 8 * classes) + sum(map(len, described.class_names)) * 16 + SLACK
    packed = [_packed(folder / name, checksum, most) for name, checksum in described.files.items()]
    size, unpacked = sum(map(len, packed)), 4 * count * described.size
    if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * size):
        raise ValueError(f"{size} bytes would unpack to {unpacked}")
    files = [parquetfile.opened(data) for data in packed]
    for file in files:
        _check_footer(file, described)
    rows = sum(file.metadata.num_rows for file in files)
    if rows != count:
        raise ValueError(f"its files hold {rows} images, not {count}")
    return files


def _packed(file: Place, checksum: str, most: int) -> np.ndarray:
    data = array_at_most(file, most)
    if hashlib.sha256(data.data).hexdigest() != checksum:
        raise ValueError(f"data/{file.name} is not as it was written")
    return data


def _check_footer(file: pq.ParquetFile, described: Description) -> None:
    """ValueError unless the columns are of the right types, packed as this package packs them, and as long as said."""
    kinds = {
        "pixels": pa.list_(pa.float32(), described.size),
        "label": pa.int64(),
        "soft_label": pa.list_(pa.float32()),
        "segment": pa.int32(),
    }
    schema = file.schema_arrow
    odd = next((name for name in COLUMNS if schema.names.count(name) != 1), None)
    if odd is not None:
        raise ValueError(f"it has no column {odd}")
    for name, kind in kinds.items():
        if not schema.field(name).type.equals(kind):
            raise ValueError(f"its column {name} is not of type {kind}")
    classes = len(described.class_names) if described.soft_labels else 1
    values = {"pixels": described.size, "soft_label": classes}
    for name, rows, column in _chunks(file):
        if column.compression not in PACKED_BY or column.num_values != rows * values.get(name, 1):
            raise ValueError(f"its column {name} is not packed as it was written")
        if column.total_uncompressed_size > rows * (ROW_SLACK + 8 * values.get(name, 1)) + SLACK:
            raise ValueError(f"its column {name} unpacks to {column.total_uncompressed_size} bytes")


def _chunks(file: pq.ParquetFile) -> Iterator[tuple[str, int, Plain]]:
    """Of every row group and column that is read: the column's name, the rows, and what the footer says of it."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for position in range(group.num_columns):
            column = group.column(position)
            name = column.path_in_schema.partition(".")[0]
            if name in COLUMNS:
                yield name, group.num_rows, column


def _assemble(
    described: Description, plain: Values, files: list[pq.ParquetFile], whitening: Mapping[str, np.ndarray]
) -> Artifact:
    """The set, whose rows are unpacked one row group at a time into arrays of their own, which can be written to."""
    count, classes = described.shape[0], len(described.class_names)
    pixels = room((count, described.size), np.float32)
    labels, segments = np.empty(count, np.int64), np.empty(count, np.int32)
    soft = np.empty((count, classes), np.float32) if described.soft_labels else None
    first = 0
    groups = ((file, number) for file in files for number in range(file.num_row_groups))
    for table in (file.read_row_group(number, columns=COLUMNS, use_threads=False) for file, number in groups):
        rows = slice(first, first + len(table))
        pixels[rows] = _lists(table, "pixels")
        labels[rows], segments[rows] = _numbers(table, "label"), _numbers(table, "segment")
        if soft is not None:
            soft[rows] = _lists(table, "soft_label")
        first += len(table)
    return Artifact(
        pixels=pixels.reshape(described.shape),
        labels=labels,
        segments=segments,
        soft_labels=soft,
        class_names=described.class_names,
        mean=described.mean,
        std=described.std,
        factor=described.factor,
        step_size=plain["step_size"],
        recipe=plain["recipe"],
        provenance=described.provenance,
        is_normalised=described.is_normalised,
        whitening_mean=whitening.get("mean"),
        whitening_matrix=whitening.get("matrix"),
    )


def _lists(table: pa.Table, name: str) -> np.ndarray:
    """The lists of a column as rows; ValueError if they differ in length."""
    values: np.ndarray = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(table), -1)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """The numbers of a column."""
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"its column {name} lacks a number")
    values: np.ndarray = column.to_numpy()
    return values
