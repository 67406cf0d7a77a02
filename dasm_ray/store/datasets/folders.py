"""Sets of image files in folders, and Tiny ImageNet as it is published.

What must stay true: an image that lies in no class folder is never dropped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.parquet import open_parquet, parquet_files
from dasm_ray.store.datasets.shards import SHARD_ROWS, Rows, Shard, Source, check_counts, needed_path
from dasm_ray.store.place import Place

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def open_folder(data: Data) -> Source:
    """ROOT/CLASS/... or ROOT/train/CLASS/... with ROOT/test (or ROOT/val) beside it; classes in the order of names."""
    place = Place(needed_path(data))
    if not (place / "train").is_dir():
        train, class_names = _tree(place)
        return _image_source("folder", class_names, {"train": train})
    train, class_names = _tree(place / "train")
    beside = next((place / name for name in ("test", "val") if (place / name).is_dir()), None)
    test = None if beside is None else _tree(beside, class_names)[0]
    return _image_source("folder", class_names, {"train": train} if test is None else {"train": train, "test": test})


def open_tiny_imagenet(data: Data) -> Source:
    """Parquet, or the folders as published; the validation images, whose labels are public, are the test split."""
    place = Place(needed_path(data))
    if parquet_files(place):
        return dataclasses.replace(open_parquet(data), name="tiny_imagenet")
    if not (place / "train").is_dir():
        raise DataError(
            f"data.path: {place} holds no folder train; name the folder that tiny-imagenet-200.zip unpacks to"
        )
    listed = (place / "wnids.txt").read_text().split() if (place / "wnids.txt").exists() else None
    train, wnids = _tree(place / "train", listed)
    splits = {"train": train}
    if (place / "val" / "val_annotations.txt").exists():
        splits["test"] = _annotated(place / "val", wnids)
    elif (place / "val").is_dir():
        splits["test"] = _tree(place / "val", wnids)[0]
    return _image_source("tiny_imagenet", _words(place / "words.txt", wnids), splits)


Labelled = list[tuple[str, int]]  # path of an image and its label


def _tree(place: Place, class_names: Sequence[str] | None = None) -> tuple[Labelled, Sequence[str]]:
    """Images of a folder per class, class by class, and the names: those given, else the folders in sorted order."""
    folders, files = place.walk()
    classes = [folder for folder in folders if "/" not in folder and not folder.startswith(".")]
    class_names = classes if class_names is None else class_names
    numbers = {name: label for label, name in enumerate(class_names)}
    images: Labelled = []
    for path in files:
        name, slash, rest = path.partition("/")
        if not path.lower().endswith(IMAGE_SUFFIXES) or "/." in f"/{path}":
            continue
        if not slash:
            raise DataError(f"{place / path} lies in no class folder; move it into one")
        if name not in numbers:
            raise DataError(f"{place / name} is no class of the training images; remove it (it holds {rest})")
        images.append((str(place / path), numbers[name]))
    if not class_names:
        raise DataError(f"data.path: {place} holds no class folders; lay the images out as {place}/CLASS/IMAGE")
    return sorted(images, key=lambda image: (image[1], image[0])), class_names


def _annotated(place: Place, wnids: Sequence[str]) -> Labelled:
    """The images that val_annotations.txt lists: file, tab, class."""
    numbers = {name: label for label, name in enumerate(wnids)}
    images: Labelled = []
    for number, line in enumerate((place / "val_annotations.txt").read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in numbers:
            raise DataError(f"{place / 'val_annotations.txt'}: line {number} names no class that is trained; mend it")
        images.append((str(place / "images" / fields[0]), numbers[fields[1]]))
    return images


def _words(file: Place, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each class in words.txt; two classes with one word get their number beside it."""
    if not file.exists():
        return tuple(wnids)
    meaning = dict(line.split("\t", 1) for line in file.read_text().splitlines() if "\t" in line)
    words = [meaning.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    often = Counter(words)
    return tuple(word if often[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(words, wnids, strict=True))


def _image_source(name: str, class_names: Sequence[str], splits: Mapping[str, Labelled]) -> Source:
    counts = np.bincount([label for _, label in splits["train"]], minlength=len(class_names))
    check_counts(counts, class_names)
    return Source(
        name,
        tuple(class_names),
        {split: tuple(_image_shards(split, images, len(class_names))) for split, images in splits.items()},
    )


def _image_shards(split: str, images: Labelled, classes: int) -> Iterable[Shard]:
    for first in range(0, len(images), SHARD_ROWS):
        files, labels = zip(*images[first : first + SHARD_ROWS], strict=True)
        last = first + len(files)
        yield Shard("images", split, files[0], first, last, classes, files=files, labels=labels)


def read_images(shard: Shard) -> Rows:
    for file, label in zip(shard.files, shard.labels, strict=True):
        yield file, Place(file).read_bytes(), label
