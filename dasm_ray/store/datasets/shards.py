"""A set as shards that workers decode, and what every kind of set shares: labels, content keys, counts, digests.

What must stay true: no image is dropped or altered in silence. Whatever cannot be decoded, labelled or fitted to the
shape of the set is a DataError that names its file and row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.config.shown import escaped, odd_character
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.plain import Plain
from dasm_ray.store.datasets.found import Found
from dasm_ray.store.datasets.pixels import Raw, open_image, quietly, to_pixels
from dasm_ray.store.datasets.splits import CALLED, Cut
from dasm_ray.store.description import LONGEST_NAME, MOST_CLASSES
from dasm_ray.store.place import Place

SHARD_ROWS, SHARD_BYTES = 2000, 1 << 26
"""Images of one shard at most, and their pixels once their shape is known: a task of seconds, and 445 of 224 x 224."""

ARRAY_ROWS = 16384
"""The same where the pixels need no decoding, and each shard opens the whole file."""

Rows = Iterator[tuple[str, Raw, Plain]]  # where it lies (for messages), the image, the label


@dataclass(frozen=True)
class Shard:
    """What one task decodes: rows [first, last) of a file, or a list of files. Plain values, so it travels anywhere."""

    kind: str  # a row of READERS
    split: str  # what it serves as: "train", "val" or "test"
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

    def shaped(self, shape: tuple[int, int, int]) -> tuple[Shard, ...]:
        """The same rows, which come out as (C, H, W), in parts of SHARD_BYTES where a part can be read alone."""
        can_part, most = self.kind in ("parquet", "images"), max(1, SHARD_BYTES // math.prod(shape))
        step = most if can_part else max(1, len(self))
        return tuple(
            dataclasses.replace(
                self,
                first=self.first + begin,
                last=min(self.first + begin + step, self.last),
                shape=shape,
                path=self.files[begin] if self.files else self.path,
                files=self.files[begin : begin + step],
                labels=self.labels[begin : begin + step],
            )
            for begin in range(0, max(1, len(self)), step)
        )


@dataclass(frozen=True)
class Source:
    """A set that was found and looked at, but not decoded."""

    name: str
    class_names: tuple[str, ...]  # in label order
    shards: Mapping[str, tuple[Shard, ...]]  # by what they serve as: "train", and "val" and "test" where there are
    found: Found

    @property
    def cut(self) -> Cut:
        """What is held out from the training images."""
        return self.found.cut

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.shards["train"][0].shape

    def with_shape(self, shape: tuple[int, int, int]) -> Source:
        """The same, all images of which come out as (C, H, W)."""
        shards = {
            role: tuple(part for shard in of_role for part in shard.shaped(shape))
            for role, of_role in self.shards.items()
        }
        return dataclasses.replace(self, shards=shards, found=dataclasses.replace(self.found, shape=shape))


@dataclass(frozen=True)
class Decoded:
    """The images of one shard, in its order."""

    images: np.ndarray  # (n, C, H, W) uint8
    labels: np.ndarray  # (n,) int64
    keys: np.ndarray  # (n,) float64 in [0, 1), a hash of the pixels: what `split_of` cuts
    done: Counter[str]  # what was done to how many images
    coloured: int  # images that are not grey in their files


def decode(shard: Shard, rows: Rows, data: Data) -> Decoded:
    """Decodes the rows of a shard to uint8 pixels, labels and content keys.

    Raises DataError, naming file and row, for an image that is corrupt, missing or of another size, and for a label
    that is missing or out of range.
    """
    images = np.empty((len(shard), *shard.shape), np.uint8)
    labels = np.empty(len(shard), np.int64)
    keys = np.empty(len(shard), np.float64)
    every: Counter[str] = Counter()
    row, coloured = -1, 0
    try:
        with quietly():
            for row, (where, raw, label) in enumerate(rows):
                opened = open_image(raw, where)
                images[row], done = to_pixels(opened, where, shard.shape, data)
                labels[row] = _label(label, where, shard.classes)
                keys[row] = _key(images[row])
                coloured += not opened.is_grey
                if done:
                    every.update(done)
    except RunDirError as error:
        raise DataError(str(error)) from None
    if row + 1 != len(shard):
        raise DataError(f"{Place(shard.path)} changed while it was read; run again")
    return Decoded(images, labels, keys, every, coloured)


def split_of(keys: np.ndarray, cut: Cut) -> np.ndarray:
    """The split ("train", "val" or "test") of each image that the set itself counts as training data.

    Equal images have equal keys (n,), so none stands on both sides.
    """
    val = cut.test + cut.val
    return np.where(keys < cut.test, "test", np.where(keys < val, "val", "train"))


def sides_of(shard: Shard, keys: np.ndarray, cut: Cut) -> np.ndarray:
    """The split that each image of a shard, by its content key (n,), is in: the shard's, or one that is cut from it."""
    return split_of(keys, cut) if shard.split == "train" else np.full(len(keys), shard.split)


def check_counts(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    """DataError naming each class that has no training image, and where its images went; counts are (K,) by split."""
    missing = [label for label in range(len(class_names)) if counts["train"][label] == 0]
    if not missing:
        return
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    names = ", ".join(f"{label} ({class_names[label]})" for label in missing[:5]) + more
    held = {split: int(of_split[missing[0]]) for split, of_split in counts.items() if split != "train"}
    if not sum(held.values()):
        raise DataError(f"class {names} has no training image; add images of it or take the class out")
    went = " and ".join(f"{count} to the {CALLED[split]} split" for split, count in held.items() if count)
    raise DataError(
        f"class {names} has no training image: of the {sum(held.values())} of class {missing[0]} all were held out, "
        f"{went}; add images of it, lower data.val_share or data.test_share, or take the class out"
    )


def check_classes(class_names: Sequence[str], where: str) -> None:
    """DataError for a single class, of which every network is right about everything, and for names no set can hold.

    A synthetic set keeps the names of its classes: they are to be shown, no longer than `LONGEST_NAME` characters, and,
    since `datasets` reads it too, no two may be equal.
    """
    if len(class_names) > MOST_CLASSES:
        raise DataError(f"{where} has {len(class_names)} classes, and a set can hold {MOST_CLASSES}; take some out")
    numbers: dict[str, int] = {}
    for number, name in enumerate(class_names):
        odd = odd_character(name)
        if odd is not None:
            raise DataError(f"{where}: class {escaped(name)} has {odd} in its name, which cannot be shown; rename it")
        if len(name) > LONGEST_NAME:
            raise DataError(
                f"{where}: class {escaped(name, 60)} has too long a name; shorten it to {LONGEST_NAME} characters"
            )
        if name in numbers:
            raise DataError(
                f"{where}: classes {numbers[name]} and {number} are both called {escaped(name, 60)}; give each a name "
                f"of its own"
            )
        numbers[name] = number
    if len(class_names) < 2:
        raise DataError(
            f"{where} holds one class only, {class_names[0]}, so there is nothing to tell apart; name the folder that "
            f"holds a folder or a label for each class"
        )


def _label(label: Plain, where: str, classes: int) -> int:
    if label is None:
        raise DataError(f"{where} has no label; remove the row or label it")
    if not 0 <= label < classes:
        raise DataError(f"{where} has label {label}, which is not in 0..{classes - 1}; mend or remove it")
    return int(label)


def _key(image: np.ndarray) -> float:
    """53 bits of a hash of the pixels, as a number in [0, 1)."""
    return (int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") >> 11) / 2**53


def cut_rows(
    kind: str, split: str, path: str, rows: int, classes: int, step: int, columns: tuple[str, str] = ("", "")
) -> tuple[Shard, ...]:
    """Shards of at most ``step`` rows that make up one file or set."""
    return tuple(
        Shard(kind, split, path, first, min(first + step, rows), classes, columns=columns)
        for first in range(0, rows, step)
    )


def address(place: Place) -> str:
    """What opens a place again, on a worker; a message shows the place itself."""
    return place.uri


def needed_path(data: Data) -> str:
    """`data.path`, where there must be something; DataError else."""
    if data.path is None:
        raise DataError(f"data.path: {data.name} needs the folder or URI of its files; set it")
    if not Place(data.path).exists():
        raise DataError(f"data.path: there is nothing at {Place(data.path)}; name the folder or URI of the files")
    return data.path
