"""The finished synthetic set at rest: Parquet that `datasets.load_dataset` opens, and a JSON file that explains it.

What must stay true: `dataset.json` is written last and holds a digest of all that evaluation needs, so a set that is
half written, damaged or of another version is refused and never trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from dasm_ray.errors import ArtifactError, RunDirError
from dasm_ray.store import tensors
from dasm_ray.store.place import Place

SCHEMA_VERSION = 1
WHITENING = "whitening.safetensors"
FILE_BYTES = 1 << 27
"""About how many bytes of pixels one Parquet file holds."""


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
    recipe: dict[str, Any]  # plain values: model, image size, training recipe
    provenance: dict[str, Any]  # plain values that say where it came from; not part of the digest
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


def _meaning(artifact: Artifact) -> dict[str, Any]:
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


def _check(artifact: Artifact) -> None:
    """ArtifactError unless types, shapes and ranges fit together."""
    problem = next((text for wrong, text in _faults(artifact) if wrong), None)
    if problem:
        raise ArtifactError(f"the synthetic set is not sound: {problem}; distil it again")


def _faults(artifact: Artifact) -> list[tuple[bool, str]]:
    pixels, labels, soft = artifact.pixels, artifact.labels, artifact.soft_labels
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return [(True, f"pixels of shape {pixels.shape} are not (N, 1 or 3, H, W)")]
    count, channels, classes = len(pixels), pixels.shape[1], len(artifact.class_names)
    per_image = (labels, artifact.segments) if soft is None else (labels, artifact.segments, soft)
    return [
        (count == 0, "it holds no image"),
        (pixels.dtype != np.float32 or labels.dtype != np.int64, "pixels must be float32 and labels int64"),
        (artifact.segments.dtype != np.int32, "segments must be int32"),
        (any(len(array) != count for array in per_image), "images, labels and segments differ in number"),
        (soft is not None and (soft.dtype != np.float32 or soft.shape[1:] != (classes,)), "soft labels must be (N, K)"),
        (not (len(artifact.mean) == len(artifact.std) == channels), "mean and std need one value a channel"),
        (not artifact.is_normalised and not np.all((pixels >= 0) & (pixels <= 1)), "a pixel lies outside [0, 1]"),
        (not np.isfinite(pixels).all(), "a pixel is no number"),
        (_has_odd_whitening(artifact, math.prod(pixels.shape[1:])), "the whitening does not fit the images"),
        (bool(np.any((labels < 0) | (labels >= classes))), f"a label lies outside 0..{classes - 1}"),
        (artifact.factor < 1, f"factor {artifact.factor} is not positive"),
    ]


def _has_odd_whitening(artifact: Artifact, size: int) -> bool:
    mean, matrix = artifact.whitening_mean, artifact.whitening_matrix
    if mean is None or matrix is None:
        return mean is not matrix
    return mean.shape != (size,) or matrix.shape != (size, size) or not artifact.is_normalised


# --- writing -----------------------------------------------------------------------------------------------------


def write_artifact(place: Place, artifact: Artifact) -> str:
    """Writes the set into folder ``place``, in the stead of an older one, and returns its digest.

    Raises ArtifactError if the set is not sound, RunDirError if the place cannot be written.
    """
    _check(artifact)
    (place / "dataset.json").delete()
    files = _write_parquet(place / "data", artifact)
    _write_whitening(place / WHITENING, artifact)
    (place / "README.md").write_text(_card(artifact))
    stamp = digest(artifact)
    (place / "dataset.json").write_json(_description(artifact, stamp, files))
    return stamp


def _write_whitening(file: Place, artifact: Artifact) -> None:
    """The whitening into a file of its own, or none where there is none."""
    file.delete()
    if artifact.whitening_mean is not None and artifact.whitening_matrix is not None:
        tensors.write(file, {"mean": artifact.whitening_mean, "matrix": artifact.whitening_matrix}, {})


def _write_parquet(folder: Place, artifact: Artifact) -> dict[str, str]:
    """Writes the rows as one or more files, removes those of an older set; returns names and SHA-256 of the files."""
    rows = len(artifact.labels)
    step = max(1, FILE_BYTES // (4 * math.prod(artifact.pixels.shape[1:])))
    starts = range(0, rows, step)
    names = [f"train-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    checksums = {}
    for name, start in zip(names, starts, strict=True):
        sink = pa.BufferOutputStream()
        pq.write_table(_table(artifact, start, min(start + step, rows)), sink)
        data = sink.getvalue().to_pybytes()
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.sha256(data).hexdigest()
    for stale in set(folder.names()) - set(names):
        (folder / stale).delete()
    return checksums


def _table(artifact: Artifact, first: int, last: int) -> pa.Table:
    """Rows [first, last) with a PNG preview, exact pixels, labels and segment."""
    part = replace(artifact, pixels=np.ascontiguousarray(artifact.pixels[first:last]))
    pixels, pictures = part.pixels, part.visible()
    size = math.prod(pixels.shape[1:])
    soft = [None] * (last - first) if artifact.soft_labels is None else list(artifact.soft_labels[first:last])
    previews = [
        {"bytes": _png(image), "path": f"{row:05d}.png"}
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


def _png(image: np.ndarray) -> bytes:
    """(C, H, W) in [0, 1] as an 8-bit PNG."""
    levels = np.rint(image * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()


def _description(artifact: Artifact, stamp: str, files: dict[str, str]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "digest": stamp,
        "shape": list(artifact.pixels.shape),
        "soft_labels": artifact.soft_labels is not None,
        **_meaning(artifact),
        "provenance": artifact.provenance,
        "files": files,
    }


def _card(artifact: Artifact) -> str:
    """The dataset card: YAML front matter that the hub reads, then what a person needs."""
    count, channels, height, width = artifact.pixels.shape
    front = {
        "pretty_name": f"Synthetic set of {count} images in {len(artifact.class_names)} classes",
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# {front["pretty_name"]}

A distilled stand-in for a larger labelled image set: {count} stored images of {channels} x {height} x {width} pixels.
Each holds {artifact.factor**2} training image(s), cut out as a grid of {artifact.factor} x {artifact.factor} tiles and
enlarged to full size.

| column | holds |
|---|---|
| `image` | 8-bit preview |
| `pixels` | exact values{_space(artifact)}, float32, in (channel, row, column) order |
| `label` | class |
| `soft_label` | logits of the learned label, where there are any |
| `segment` | the segment in which the image was made, from 0 |

`dataset.json` holds the class names in label order, the normalisation and the recipe to train with. Open the images
with `datasets.load_dataset(PATH)`, or all that training needs with `dasm_ray.load(PATH)`.
"""


def _space(artifact: Artifact) -> str:
    if not artifact.is_normalised:
        return " in [0, 1]"
    return " after normalisation" + (" and whitening" if artifact.whitening_matrix is not None else "")


# --- reading -----------------------------------------------------------------------------------------------------


def read_artifact(place: Place) -> Artifact:
    """The set in folder ``place``; ArtifactError if it is missing, damaged, unsound or of a later version."""
    described = _read_description(place)
    try:
        whitening = tensors.read(place / WHITENING)[0] if (place / WHITENING).exists() else {}
        artifact = _assemble(described, _read_table(place / "data", described["files"]), whitening)
        _check(artifact)
        stamp = digest(artifact)
    except RunDirError as error:
        raise ArtifactError(f"{place} is not whole: {error}") from None
    except KeyError as error:
        raise _damaged(place, f"it lacks {error}") from None
    except (OSError, pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise _damaged(place, str(error).partition("\n")[0]) from None
    if stamp != described["digest"]:
        raise _damaged(place, f"its content does not have the digest {described['digest']}")
    return artifact


def _read_description(place: Place) -> dict[str, Any]:
    file = place / "dataset.json"
    if not file.exists():
        raise ArtifactError(f"{place} holds no dataset.json, so it is no finished synthetic set; name one that is")
    try:
        described = file.read_json()
    except RunDirError as error:
        raise ArtifactError(str(error)) from None
    version = described.get("schema_version") if isinstance(described, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1 or "digest" not in described:
        raise _damaged(place, "dataset.json lacks its schema_version or its digest")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{place} was written by a later version of dasm_ray (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade dasm_ray"
        )
    return dict(described)


def _read_table(folder: Place, files: Mapping[str, str]) -> pa.Table:
    columns = ["pixels", "label", "soft_label", "segment"]
    tables = []
    for name, checksum in files.items():
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise ValueError(f"data/{name} is not as it was written")
        tables.append(pq.read_table(pa.BufferReader(data), columns=columns))
    return pa.concat_tables(tables).combine_chunks()


def _assemble(described: Mapping[str, Any], table: pa.Table, whitening: Mapping[str, np.ndarray]) -> Artifact:
    shape = tuple(described["shape"])
    labels = table.column("label").to_numpy().copy()
    soft = None
    if described["soft_labels"]:
        soft = _flat(table.column("soft_label")).reshape(len(labels), -1)
    return Artifact(
        pixels=_flat(table.column("pixels")).reshape(shape),
        labels=labels,
        segments=table.column("segment").to_numpy().copy(),
        soft_labels=soft,
        class_names=tuple(described["class_names"]),
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        factor=described["factor"],
        step_size=described["step_size"],
        recipe=described["recipe"],
        provenance=described["provenance"],
        is_normalised=described["is_normalised"],
        whitening_mean=whitening.get("mean"),
        whitening_matrix=whitening.get("matrix"),
    )


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    """The values of a column of lists, as an array of its own that can be written to."""
    values: np.ndarray = pa.concat_arrays([chunk.flatten() for chunk in lists.chunks]).to_numpy(zero_copy_only=False)
    return values.copy()


def _damaged(place: Place, why: str) -> ArtifactError:
    return ArtifactError(f"{place} is damaged ({why}); copy or distil it again")


# --- exporting ---------------------------------------------------------------------------------------------------


def export(artifact: Artifact, place: Place, kind: str) -> None:
    """Writes the set for other readers into folder ``place``; ``kind`` is a row of EXPORTS.

    png: CLASS/00000.png, 8 bits, as stored; npz: synthetic.npz with exact arrays, opened by numpy without pickle.
    """
    EXPORTS[kind](artifact, place)


def _export_png(artifact: Artifact, place: Place) -> None:
    folders = _folder_names(artifact.class_names)
    for folder in folders:
        (place / folder).make_dir()
    written = [0] * len(folders)
    for image, label in zip(artifact.visible(), artifact.labels, strict=True):
        (place / folders[label] / f"{written[label]:05d}.png").write_bytes(_png(image))
        written[label] += 1


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Class names as folder names: nothing that a path could trip over, and no two alike."""
    names = ["".join("_" if c in '/\\:*?"<>|\0' else c for c in name).strip(". ") for name in class_names]
    if "" in names or len({name.lower() for name in names}) < len(names):
        return [f"{label:04d}_{name}" for label, name in enumerate(names)]
    return names


def _export_npz(artifact: Artifact, place: Place) -> None:
    arrays: dict[str, Any] = {
        "pixels": artifact.pixels,
        "labels": artifact.labels,
        "segments": artifact.segments,
        "soft_labels": artifact.soft_labels,
        "class_names": np.array(artifact.class_names, dtype=np.str_),
        "mean": np.array(artifact.mean, dtype=np.float64),
        "std": np.array(artifact.std, dtype=np.float64),
        "factor": np.int64(artifact.factor),
        "step_size": artifact.step_size,
        "is_normalised": np.bool_(artifact.is_normalised),
        "whitening_mean": artifact.whitening_mean,
        "whitening_matrix": artifact.whitening_matrix,
    }
    out = io.BytesIO()
    np.savez_compressed(out, **{name: array for name, array in arrays.items() if array is not None})
    (place / "synthetic.npz").write_bytes(out.getvalue())


EXPORTS: dict[str, Callable[[Artifact, Place], None]] = {"png": _export_png, "npz": _export_npz}
