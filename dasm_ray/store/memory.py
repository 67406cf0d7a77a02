"""Images that a program holds in memory, written as Parquet so that runs, workers and later evaluations find them.

What must stay true: no pixel is changed without a word, and what could be read in two ways is refused; a picture is
read as if it lay in a file; the same images are written to the same folder, so a run on them goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from PIL import Image

from dasm_ray.config.shown import escaped, several
from dasm_ray.errors import DataError
from dasm_ray.plain import Plain
from dasm_ray.store import parquetfile
from dasm_ray.store.datasets.pixels import decoded
from dasm_ray.store.place import Place
from dasm_ray.store.retries import first_line

FILES = {"train": "train", "val": "validation", "test": "test"}
"""The splits that may be given, and what their files are called."""

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Of PIL images: those that a PNG keeps as they are."""

LABEL_EACH = "give one class number an image"

EXAMPLE = "give (images, labels), a PyTorch data set of (image, label), or {'train': ..., 'test': ...} of these"


@dataclass(frozen=True)
class Split:
    """Images as PNG, and the label of each: a class number."""

    pictures: list[bytes]
    labels: list[int]
    class_names: tuple[str, ...] | None
    """Where what was given names its classes itself."""


def keep(folder: Place, data: object, class_names: Sequence[str] | None = None) -> Place:
    """Writes ``data`` below ``folder``, and returns where: a folder of Parquet files with a digest for its name.

    ``data``: (images, labels), a PyTorch data set of (image, label), or a mapping of "train", "val" and "test" to such.
    Images are PIL images, uint8, or floats that are levels divided by 255; arrays (n, H, W), (n, H, W, C) or (n, C, H,
    W) with C of 1 or 3. Labels are class numbers. ``class_names`` unset: those of the data set's ``classes``, or the
    numbers. Raises DataError.
    """
    given = data if isinstance(data, Mapping) else {"train": data}
    unknown = next((name for name in given if name not in FILES), None)
    if unknown is not None or "train" not in given:
        what = f"there is no split {escaped(str(unknown), 60)}" if unknown is not None else "there is no split train"
        raise DataError(f"data: {what}; the splits are {', '.join(FILES)}")
    splits = {name: _split(name, of_split) for name, of_split in given.items()}
    names = _names(splits, class_names)
    made = {FILES[name]: _table(split, names) for name, split in splits.items()}
    place = folder / _digest(made)
    for name, table in made.items():
        file = place / f"{name}-00000-of-00001.parquet"
        if not file.exists():
            parquetfile.write(file, table)
    return place


def _digest(made: Mapping[str, pa.Table]) -> str:
    """16 hex digits over all pictures, labels and names."""
    total = hashlib.sha256()
    for name, table in made.items():
        total.update(f"{name}:{len(table)};".encode() + table.schema.metadata[b"huggingface"])
        for row in table.to_pylist():
            picture = row["image"]["bytes"]
            total.update(f"{row['label']}:{len(picture)};".encode() + picture)
    return total.hexdigest()[:16]


# --- one split ---------------------------------------------------------------------------------------------------


@runtime_checkable
class Indexed(Protocol):
    """What a PyTorch data set is, for whoever reads it from its first row to its last."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> object: ...


def _split(name: str, data: object) -> Split:
    if not isinstance(data, Indexed):
        raise DataError(f"data, {name}: a {type(data).__name__} holds no labelled images; {EXAMPLE}")
    is_pair = isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_column, data))
    if is_pair:
        images, labels = _images(name, data[0]), _as_array(f"data, {name}: the labels", data[1], LABEL_EACH)
        if labels.ndim == 0:
            raise DataError(f"data, {name}: the labels are a single {labels.dtype}; {LABEL_EACH}")
        if len(images) != len(labels):
            raise DataError(
                f"data, {name}: there are {several(len(images), 'images')} and "
                f"{several(len(labels), 'labels')}; give as many"
            )
        pairs = list(zip(images, labels, strict=True))
    else:
        pairs = [_pair(name, number, data[number]) for number in range(len(data))]
    if not pairs:
        raise DataError(f"data, {name}: there is no image; {EXAMPLE}")
    pictures = [_png(f"data, {name}, image {row}", image) for row, (image, _) in enumerate(pairs)]
    named = None if is_pair else getattr(data, "classes", None)
    is_named = isinstance(named, Sequence) and named and all(isinstance(each, str) for each in named)
    labels_of = [_label(f"data, {name}, image {row}", label) for row, (_, label) in enumerate(pairs)]
    return Split(pictures, labels_of, tuple(named) if is_named and named is not None else None)


def _is_column(part: object) -> bool:
    """Whether it may be all images or all labels: one image and its label are not."""
    is_row = isinstance(part, tuple | list) and len(part) == 2 and _is_number(part[1]) and not _is_number(part[0])
    return hasattr(part, "__len__") and not is_row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0


def _images(name: str, images: object) -> Sequence[object]:
    """Each image of all: those of a list one by one, since they may be pictures, and of several kinds and sizes."""
    if not isinstance(images, tuple | list):
        return list(_in_rows(name, _as_array(f"data, {name}: the images", images, "give uint8")))
    found: list[object] = []
    for row, image in enumerate(images):
        if isinstance(image, Image.Image):
            found.append(image)
        else:
            values = _as_array(f"data, {name}, image {row}: its pixels", image, "give uint8, or a PIL image")
            found.extend(_in_rows(f"{name}, image {row}", values[None]))
    return found


def _pair(name: str, number: int, row: object) -> tuple[object, object]:
    if not isinstance(row, tuple | list) or len(row) < 2:
        raise DataError(f"data, {name}, image {number}: is a {type(row).__name__}, not (image, label); {EXAMPLE}")
    return row[0], row[1]


def _as_array(what: str, values: object, mend: str) -> np.ndarray:
    """An array of an array, a tensor or a list of numbers; DataError with how to ``mend`` it for what makes none."""
    try:
        held = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        return np.asarray(held)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{what} make no array ({escaped(first_line(error), 100)}); {mend}") from None


def _in_rows(name: str, images: np.ndarray) -> np.ndarray:
    """The images of one array, each (H, W) or (H, W, C)."""
    if images.ndim == 3:
        return images
    is_last, is_first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (3, 1))
    if is_last and is_first:
        raise DataError(
            f"data, {name}: images of shape {images.shape} could have their channels first or last; give a PyTorch "
            f"data set or (n, H, W) instead"
        )
    if not is_last and not is_first:
        raise DataError(f"data, {name}: images of shape {images.shape} are not (n, H, W), (n, H, W, C) or (n, C, H, W)")
    return images if is_last else images.transpose(0, 2, 3, 1)


def _picture(where: str, image: object) -> Image.Image:
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise DataError(f"{where}: its size {image.size} leaves no pixel; leave it out")
        upright = decoded(image, where).image  # since the file that is written keeps no EXIF
        if upright.mode not in MODES:
            raise DataError(f"{where}: its mode {upright.mode} is none that PNG keeps; give image.convert('RGB')")
        return upright
    values = _as_array(f"{where}: its pixels", image, "give uint8, before any normalising or augmenting")
    if not values.size:
        raise DataError(f"{where}: its shape {values.shape} leaves no pixel; leave it out")
    if values.ndim == 3 and hasattr(image, "detach") and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)  # as torchvision's tensors are
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise DataError(f"{where}: its shape {values.shape} is not that of a picture, (H, W) or (H, W, 3)")
    return Image.fromarray(np.ascontiguousarray(_levels(where, values)))


def _levels(where: str, values: np.ndarray) -> np.ndarray:
    """Levels 0..255 as uint8 of whole numbers, or of floats that are such levels divided by 255."""
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where}: {values.dtype} are no levels 0..255; give uint8")
    scaled = values.astype(np.float64) * (255 if values.dtype.kind == "f" else 1)
    levels = np.rint(scaled)
    is_level = levels.min() >= 0 and levels.max() <= 255
    if not is_level or np.abs(scaled - levels).max() > 1e-3:
        raise DataError(
            f"{where}: {values.dtype} from {values.min()} to {values.max()} are neither levels 0..255 nor such levels "
            f"divided by 255; give uint8, before any normalising or augmenting"
        )
    return levels.astype(np.uint8)


def _png(where: str, image: object) -> bytes:
    out = io.BytesIO()
    _picture(where, image).save(out, "PNG")
    return out.getvalue()


def _label(where: str, label: object) -> int:
    shape = tuple(getattr(label, "shape", ()))
    if math.prod(shape) != 1:
        raise DataError(
            f"{where}: a label of shape {shape} is no class number; give the number of the class, of one-hot labels "
            f"labels.argmax(1)"
        )
    value = label.item() if hasattr(label, "item") else label
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{where}: label {escaped(str(value), 60)} is no class number; number the classes from 0")
    return value


# --- the files ---------------------------------------------------------------------------------------------------


def _names(splits: Mapping[str, Split], given: Sequence[str] | None) -> tuple[str, ...]:
    count = 1 + max(label for split in splits.values() for label in split.labels)
    _check_alike(splits)
    named = _given_names(given) if given is not None else splits["train"].class_names
    images = sum(len(split.labels) for split in splits.values())
    if named is None and count > images:
        raise DataError(f"data: there is a label {count - 1} and {images} images; number the classes without gaps")
    names = named if named is not None else tuple(map(str, range(count)))
    if len(names) < count:
        raise DataError(
            f"data: has {several(len(names), 'class names')}, but a label {count - 1}; "
            f"name {several(count, 'classes', 'class')}"
        )
    return names


def _check_alike(splits: Mapping[str, Split]) -> None:
    """DataError where splits name their classes otherwise: label 0 of one would be another class than of the other."""
    train = splits["train"].class_names
    for name, split in splits.items():
        if train is not None and split.class_names is not None and split.class_names != train:
            own, theirs = (escaped(", ".join(names), 60) for names in (split.class_names, train))
            raise DataError(
                f"data, {name}: its classes are {own}, and those of train {theirs}, so that a label of one is another "
                f"class in the other; number the classes alike in all splits"
            )


def _given_names(given: Sequence[str]) -> tuple[str, ...]:
    names = [given] if isinstance(given, str | bytes) or not isinstance(given, Iterable) else list(given)
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None or isinstance(given, str):
        raise DataError(f"class_names: {escaped(repr(odd or given), 60)} is no list of texts; give one text a class")
    return tuple(names)


def _table(split: Split, class_names: tuple[str, ...]) -> pa.Table:
    """Rows in the image layout of Hugging Face."""
    pictures: list[Plain] = [{"bytes": data, "path": f"{row:06d}.png"} for row, data in enumerate(split.pictures)]
    columns = {
        "image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array(split.labels, pa.int64()),
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
