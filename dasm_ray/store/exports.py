"""A synthetic set written for other programs: PNG folders, and numpy arrays.

What must stay true: each export says in lines what was written and what was left out or rounded on the way.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence

import numpy as np

from dasm_ray.config.shown import escaped
from dasm_ray.plain import Tree
from dasm_ray.store.artifact import Artifact, as_png, space
from dasm_ray.store.place import Place

LABELS = "labels.csv"


def export_png(artifact: Artifact, place: Place, labels: str) -> list[str]:
    """Writes CLASS/00000.png, 8 bits, an image a row of ``artifact``; returns what is to be said.

    Where labels are soft, labels.csv holds them by file, as ``labels`` says: logits, probabilities, or hard (no file).
    """
    folders = folder_names(artifact.class_names)
    for folder in folders:
        (place / folder).make_dir()
    files = _file_names(folders, artifact.labels)
    for file, image in zip(files, artifact.visible(), strict=True):
        (place / file).write_bytes(as_png(image))
    lines = [
        f"{len(files)} images as CLASS/NUMBER.png, rounded to 8 bits",
        *_of_clipping(artifact),
        *_of_order(folders),
    ]
    if artifact.soft_labels is not None and labels != "hard":
        (place / LABELS).write_text(_csv(artifact, files, labels))
        lines.append(f"{LABELS}: of every file its class number and its soft label, {labels}, a column a class")
        return [*lines, "left out: exact pixel values, segments, mean and std, the rate, the recipe"]
    soft = "" if artifact.soft_labels is None else "soft labels, "
    return [*lines, f"left out: exact pixel values, {soft}segments, mean and std, the rate, the recipe"]


def _file_names(folders: Sequence[str], labels: np.ndarray) -> list[str]:
    """A file for each image, numbered within its class."""
    written = [0] * len(folders)
    names = []
    for label in labels:
        names.append(f"{folders[label]}/{written[label]:05d}.png")
        written[label] += 1
    return names


def folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Class names as folder names: nothing that a path could trip over, no longer than one may be, no two alike."""
    names = ["".join("_" if c in '/\\:*?"<>|\0' else c for c in name).strip(". ") for name in class_names]
    alike = {unicodedata.normalize("NFC", name).casefold() for name in names}  # as some file systems take them
    if "" in names or LABELS in names or len(alike) < len(names):
        names = [f"{label:04d}_{name}" for label, name in enumerate(names)]
    if any(len(name.encode()) > 200 for name in names):
        return [f"{label:04d}" for label in range(len(names))]
    return names


def _of_order(folders: Sequence[str]) -> list[str]:
    """Readers of folders, such as torchvision's ImageFolder, number classes by the sorted names of their folders."""
    odd = [(number, label) for number, label in enumerate(np.argsort(folders, kind="stable")) if number != label]
    if not odd:
        return []
    number, label = odd[0]
    return [f"folders are numbered by name elsewhere: {escaped(folders[label])} is class {number} there, {label} here"]


def _of_clipping(artifact: Artifact) -> list[str]:
    return ["pixels of a normalised set are shown as pictures: what lies outside [0, 1] is clipped"] * (
        artifact.is_normalised
    )


def _csv(artifact: Artifact, files: Sequence[str], labels: str) -> str:
    """A row a file: file, label, and the soft label in label order."""
    assert artifact.soft_labels is not None
    values = artifact.soft_labels if labels == "logits" else softmax(artifact.soft_labels)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    word = labels.removesuffix("s").replace("probabilitie", "probability")
    rows.writerow(["file", "label", *(f"{word}_{number}" for number in range(values.shape[1]))])
    for file, label, row in zip(files, artifact.labels, values, strict=True):
        rows.writerow([file, int(label), *(repr(float(value)) for value in row)])
    return text.getvalue()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) float32 of logits (N, K)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def export_npz(artifact: Artifact, place: Place) -> list[str]:
    """Writes synthetic.npz, exact arrays that numpy opens without pickle; returns what is to be said."""
    arrays: Tree = {
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
    held = {name: array for name, array in arrays.items() if array is not None}
    out = io.BytesIO()
    np.savez_compressed(out, **held)
    (place / "synthetic.npz").write_bytes(out.getvalue())
    tiles = f", {artifact.factor} x {artifact.factor} training images each" * (artifact.factor > 1)
    soft = "; soft_labels are logits" * (artifact.soft_labels is not None)
    return [
        f"synthetic.npz: {', '.join(held)}",
        f"pixels are {len(artifact.labels)} stored images{tiles}, {space(artifact)}{soft}",
        "left out: the recipe, where the set came from, previews",
    ]
