"""A set as shards that workers decode, and what every kind of set shares: one image, its label, its content key.

What must stay true: no image is dropped or altered in silence. Whatever cannot be decoded, labelled or fitted to the
shape of the set is a DataError that names its file and row.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.store.place import Place

SHARD_ROWS = 2000
"""Images of one shard: a task of seconds, and of 300 MB decoded for photographs of 224 x 224."""

ARRAY_ROWS = 16384
"""The same where the pixels need no decoding, and each shard opens the whole file."""

Raw = bytes | np.ndarray | None  # an encoded image, or pixels (H, W) or (H, W, 3) uint8
Rows = Iterator[tuple[str, Raw, Any]]  # where it lies (for messages), the image, the label


@dataclass(frozen=True)
class Shard:
    """What one task decodes: rows [first, last) of a file, or a list of files. Plain values, so it travels anywhere."""

    kind: str  # a row of READERS
    split: str  # "train" or "test", as the set has them
    path: str  # file, or root folder of a torchvision set
    first: int
    last: int
    classes: int
    shape: tuple[int, int, int] = (0, 0, 0)  # (C, H, W) that each image must come out with
    columns: tuple[str, str] = ("", "")  # of a Parquet file: image and label
    files: tuple[str, ...] = ()  # of a list: the file of each row, and its label
    labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Source:
    """A set that was found and looked at, but not decoded."""

    name: str
    class_names: tuple[str, ...]  # in label order
    shards: Mapping[str, tuple[Shard, ...]]  # "train", and "test" where the set comes with one

    @property
    def has_test(self) -> bool:
        """Whether the set comes with a test split of its own."""
        return "test" in self.shards

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.shards["train"][0].shape


@dataclass(frozen=True)
class Decoded:
    """The images of one shard, in its order."""

    images: np.ndarray  # (n, C, H, W) uint8
    labels: np.ndarray  # (n,) int64
    keys: np.ndarray  # (n,) float64 in [0, 1), a hash of the pixels: what `split_of` cuts


def decode(shard: Shard, rows: Rows, data: Data) -> Decoded:
    """Decodes the rows of a shard to uint8 pixels, labels and content keys.

    Raises DataError, naming file and row, for an image that is corrupt, missing or of another size, and for a label
    that is missing or out of range.
    """
    images = np.empty((len(shard), *shard.shape), np.uint8)
    labels = np.empty(len(shard), np.int64)
    keys = np.empty(len(shard), np.float64)
    row = -1
    try:
        for row, (where, raw, label) in enumerate(rows):
            images[row] = _pixels(raw, where, shard.shape, data.image_size)
            labels[row] = _label(label, where, shard.classes)
            keys[row] = _key(images[row])
    except RunDirError as error:
        raise DataError(str(error)) from None
    if row + 1 != len(shard):
        raise DataError(f"{shard.path} changed while it was read; run again")
    return Decoded(images, labels, keys)


def split_of(keys: np.ndarray, has_test: bool, data: Data) -> np.ndarray:
    """The split ("train", "val" or "test") of each image that the set itself counts as training data.

    A share `test_share` is the test split where the set has none; `val_share` of the rest is the validation split.
    Equal images have equal keys (n,), so none stands on both sides.
    """
    test = 0.0 if has_test else data.test_share
    val = test + data.val_share * (1 - test)
    return np.where(keys < test, "test", np.where(keys < val, "val", "train"))


def check_counts(counts: np.ndarray, class_names: Sequence[str]) -> None:
    """DataError naming each class that has no training image; counts is (K,)."""
    missing = [f"{label} ({name})" for label, name in enumerate(class_names) if counts[label] == 0]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"class {', '.join(missing[:5])}{more} has no training image; add images of it or take the class out"
        )


def digest_block(block: np.ndarray) -> str:
    """SHA-256 (hex) of the shape and pixels of one class block (n, C, H, W) uint8."""
    total = hashlib.sha256(str(block.shape).encode())
    total.update(np.ascontiguousarray(block).data)
    return total.hexdigest()


# --- one image ---------------------------------------------------------------------------------------------------


def open_image(raw: Raw, where: str) -> Image.Image:
    """The decoded image; DataError if it is none, or has more than 8 bits a channel."""
    if raw is None:
        raise DataError(f"{where} holds no image; remove the row or mend it")
    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw)
    try:
        image = Image.open(io.BytesIO(raw))
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever their format makes of odd bytes
        raise DataError(
            f"{where} is not an image that can be decoded ({first_line(error)}); mend or remove it"
        ) from None
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    return image


def _pixels(raw: Raw, where: str, shape: tuple[int, int, int], image_size: int | None) -> np.ndarray:
    """(C, H, W) uint8 in the shape of the set."""
    channels, height, width = shape
    image = open_image(raw, where).convert("L" if channels == 1 else "RGB")
    if image_size:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif image.size != (width, height):
        raise DataError(
            f"{where} is {image.height} x {image.width} where the set is {height} x {width} (rows x columns); "
            f"set data.image_size or make the sizes agree"
        )
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _label(label: Any, where: str, classes: int) -> int:
    if label is None:
        raise DataError(f"{where} has no label; remove the row or label it")
    if not 0 <= label < classes:
        raise DataError(f"{where} has label {label}, which is not in 0..{classes - 1}; mend or remove it")
    return int(label)


def _key(image: np.ndarray) -> float:
    """53 bits of a hash of the pixels, as a number in [0, 1)."""
    return (int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") >> 11) / 2**53


def first_line(error: Exception) -> str:
    """What a library says went wrong."""
    return str(error).partition("\n")[0] or type(error).__name__


def cut(
    kind: str, split: str, path: str, rows: int, classes: int, step: int, columns: tuple[str, str] = ("", "")
) -> tuple[Shard, ...]:
    """Shards of at most ``step`` rows that make up one file or set."""
    return tuple(
        Shard(kind, split, path, first, min(first + step, rows), classes, columns=columns)
        for first in range(0, rows, step)
    )


def needed_path(data: Data) -> str:
    """`data.path`, where there must be something; DataError else."""
    if data.path is None:
        raise DataError(f"data.path: {data.name} needs the folder or URI of its files; set it")
    if not Place(data.path).exists():
        raise DataError(f"data.path: there is nothing at {Place(data.path)}; name the folder or URI of the files")
    return data.path
