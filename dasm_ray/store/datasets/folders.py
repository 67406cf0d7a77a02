"""Sets of image files in folders, and Tiny ImageNet as it is published.

What must stay true: an image is used, or refused, or counted among what was left out; never dropped. A tree that can be
read in two ways is refused with both readings named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dasm_ray.config.keys import Data
from dasm_ray.config.shown import escaped, several
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.found import Found, LeftOut, SplitFound, leaving
from dasm_ray.store.datasets.listing import list_all
from dasm_ray.store.datasets.parquet import parquet_files, source_of
from dasm_ray.store.datasets.pixels import is_image_name
from dasm_ray.store.datasets.shards import (
    SHARD_ROWS,
    Rows,
    Shard,
    Source,
    address,
    check_classes,
    check_counts,
    needed_path,
)
from dasm_ray.store.datasets.splits import CALLED, SPLITS, WORDS, cut_of, roles_of, splits_named
from dasm_ray.store.place import Place


def open_folder(data: Data) -> Source:
    """A folder per class, or per split and in it per class; classes in the order of their names."""
    tree, left_out = _tree_at(Place(needed_path(data)))
    tree, notes = _unwrapped(tree)
    parts, without, more_notes = _parts(tree)
    train, in_train = _unwrapped(parts["train"])
    class_names = _classes_of(train)
    labelled = {"train": train.labelled(class_names)}
    for split, part in parts.items():
        if split != "train":
            labelled[split] = _fitting(part, class_names).labelled(class_names)
    names = {split: part.name if part is not tree else "" for split, part in parts.items()}
    nested = _nested_notes(train)
    return _source(data, class_names, labelled, names, (*without, *left_out), (*notes, *more_notes, *in_train, *nested))


def read_images(shard: Shard) -> Rows:
    """The files of a shard."""
    for file, label in zip(shard.files, shard.labels, strict=True):
        place = Place(file)
        yield str(place), place.read_bytes(), label


Labelled = list[tuple[str, int]]  # path of an image and its label


@dataclass
class _Top:
    """A folder with images: how many lie in it directly, and the folders in it that hold some."""

    direct: int = 0
    folders: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Tree:
    """A folder: paths, relative to it, of the images below it and of its folders."""

    place: Place
    images: tuple[str, ...]
    folders: tuple[str, ...]
    others: tuple[str, ...]  # files that are no images

    @property
    def name(self) -> str:
        return self.place.name

    @cached_property
    def tops(self) -> dict[str, _Top]:
        """The folders in it that hold images, in the order of their names. One pass: there may be millions."""
        tops: dict[str, _Top] = {}
        for path in self.images:
            name, *inner = path.split("/")
            if not inner:
                continue
            top = tops.get(name)
            if top is None:
                top = tops[name] = _Top()
            if len(inner) == 1:
                top.direct += 1
            else:
                top.folders.add(inner[0])
        return dict(sorted(tops.items()))

    @property
    def top_folders(self) -> list[str]:
        return [folder for folder in self.folders if "/" not in folder]

    def below(self, top: str) -> _Tree:
        """One of its folders."""
        start = f"{top}/"

        def cut(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(path[len(start) :] for path in paths if path.startswith(start))

        return _Tree(self.place / top, cut(self.images), cut(self.folders), cut(self.others))

    def check_no_loose(self, why: str = "") -> None:
        """DataError for an image that lies in the folder itself."""
        loose = next((path for path in self.images if "/" not in path), None)
        if loose is not None:
            raise DataError(
                f"{escaped(str(self.place / loose))} lies in no class folder{why}; move it into one, or move it away"
            )

    def labelled(self, class_names: Sequence[str]) -> Labelled:
        """Its images, class by class."""
        numbers = {name: label for label, name in enumerate(class_names)}
        images: Labelled = []
        before, after = address(self.place / "*").rsplit("*", 1)  # a URI may end in a query
        for path in self.images:
            name, _, rest = path.partition("/")
            if name not in numbers:
                raise DataError(
                    f"{escaped(str(self.place / name))} is no class of the training images; remove it (it holds "
                    f"{escaped(rest)}), or give it the name of a class there ({_some(class_names)})"
                )
            images.append((f"{before}{path}{after}", numbers[name]))
        return sorted(images, key=lambda image: (image[1], image[0]))


def _tree_at(place: Place) -> tuple[_Tree, tuple[LeftOut, ...]]:
    """All that lies below a place, and what is left out of it."""
    listing = list_all(place)
    images = tuple(path for path in listing.files if is_image_name(path))
    others = tuple(path for path in listing.files if not is_image_name(path))
    tree = _Tree(place, images, listing.folders, others)
    if not images:
        raise DataError(_nothing(tree))
    left_out = [leaving(others, *NO_IMAGES)] if others else []
    if listing.hidden:
        left_out.append(
            leaving(listing.hidden, "hidden or system files and folders", "hidden or system file or folder")
        )
    return tree, tuple(left_out)


NO_IMAGES = "files that are no images by their names", "file that is no image by its name"
"""For `several`."""


def _nothing(tree: _Tree) -> str:
    """Why there is nothing to read."""
    start = f"data.path: {tree.place} holds no class folders with images; "
    if any(path.endswith(".parquet") for path in tree.others):
        return f"{start}it holds Parquet files, so set data.name to parquet"
    holds = (
        f" (it holds {several(len(tree.others), 'other files')} such as {escaped(tree.others[0])})"
        if tree.others
        else ""
    )
    return f"{start}lay the images out as {tree.place}/CLASS/IMAGE{holds}"


# --- which folders are splits, and which are classes -------------------------------------------------------------


def _unwrapped(tree: _Tree) -> tuple[_Tree, tuple[str, ...]]:
    """The folder in which classes or splits lie: as long as all is in one folder that holds folders, that one."""
    inside = tree
    while len(inside.tops) == 1 and not any("/" not in path for path in inside.images):
        (top,) = inside.tops
        holds_nothing = [f for f in inside.top_folders if f != top and not _holds_something(inside, f)]
        if inside.tops[top].direct or splits_named(top) or holds_nothing:
            break
        inside = inside.below(top)
    if inside is tree:
        return tree, ()
    where = str(inside.place)[len(str(tree.place)) + 1 :]
    return inside, (f"all images are in {where}, so the folders in it are taken",)


def _holds_something(tree: _Tree, top: str) -> bool:
    return any(path.startswith(f"{top}/") for path in (*tree.images, *tree.others))


def _parts(tree: _Tree) -> tuple[dict[str, _Tree], tuple[LeftOut, ...], tuple[str, ...]]:
    """The folder of each split, train first; what lies beside them; and what there is to say. One part: all is one.

    A folder whose name says a split is one if its images lie in folders. One whose images lie in it directly, beside
    folders that are no splits, is a class like them.
    """
    words = {top: splits_named(top) for top in tree.tops if splits_named(top)}
    others = [top for top in tree.tops if top not in words]
    flat = [top for top in words if tree.tops[top].direct]
    if not words or (len(flat) == len(words) and _are_classes(tree, flat, others)):
        tree.check_no_loose()
        called = f"{', '.join(flat)}: images lie in it as in the other folders, so it is taken for a class"
        return {"train": tree}, (), (called,) if flat else ()
    tree.check_no_loose()
    _check_two_readings(tree, words, others)
    parts: dict[str, _Tree] = {}
    for top, (split,) in sorted(words.items(), key=lambda item: SPLITS.index(item[1][0])):
        parts[split] = tree.below(top)
        if not parts[split].tops:
            raise DataError(_unsorted(parts[split], split))
        parts[split].check_no_loose(f", as the folder {escaped(top)} was taken for the {CALLED[split]} split")
    _check_empty_splits(tree)
    left_out = tuple(
        leaving(
            _all_in(tree, top), *(f"{images} in folder {top}, which names no split" for images in ("images", "image"))
        )
        for top in others
    )
    return parts, left_out, ()


def _are_classes(tree: _Tree, flat: Sequence[str], others: Sequence[str]) -> bool:
    """Whether folders that hold images directly, but whose names say splits, can only be classes.

    They can if the others, which name none, are like them; or if there are no others, and none is called a split
    outright (``test_tube``) nor as training images.
    """
    if others:
        return all(tree.tops[top].direct for top in others)
    return not any(top.lower() in WORDS or "train" in splits_named(top) for top in flat)


def _all_in(tree: _Tree, top: str) -> tuple[str, ...]:
    return tuple(path for path in tree.images if path.startswith(f"{top}/"))


def _unsorted(part: _Tree, split: str) -> str:
    """What to do about the images of a split that lie in no class folder."""
    name = escaped(part.name)
    other = "rename the folder if it is a class" if split == "train" else f"move {name} away to leave it out"
    return (
        f"{escaped(str(part.place / part.images[0]))} lies in no class folder, as the folder {name} was taken for the "
        f"{CALLED[split]} split; sort its images into class folders, or {other}"
    )


def _check_two_readings(tree: _Tree, words: Mapping[str, tuple[str, ...]], others: Sequence[str]) -> None:
    """DataError for folders that could be splits or classes, name two splits, or name one twice."""
    for top, splits in words.items():
        if len(splits) > 1:
            both = " and as ".join(f"the {CALLED[split]} split" for split in splits)
            raise DataError(f"{escaped(str(tree.place / top))} can be read as {both} by its name; rename it")
    by_split: dict[str, str] = {}
    for top, (split, *_) in words.items():
        if split in by_split:
            raise DataError(
                f"data.path: {tree.place} holds {by_split[split]} and {top}, and either could be the "
                f"{CALLED[split]} split; rename or move one away"
            )
        by_split[split] = top
    if others and (len(words) == 1 or "train" not in by_split):
        raise DataError(
            f"data.path: {tree.place} holds {', '.join(words)} beside {_some(others)}, and could be read as a set with "
            f"splits (then the rest is no part of it) or as the classes {_some(list(tree.tops))}; rename the folders "
            f"that are no splits, or move them away"
        )
    if "train" not in by_split:
        raise DataError(
            f"data.path: {tree.place} holds no training split, only {', '.join(words)}; add {tree.place}/train/CLASS, "
            f"or name {tree.place / next(iter(words))} itself as data.path"
        )


def _check_empty_splits(tree: _Tree) -> None:
    empty = [top for top in tree.top_folders if top not in tree.tops and splits_named(top)]
    if empty:
        raise DataError(
            f"{escaped(str(tree.place / empty[0]))} is named as a split but holds no image; fill it or remove it"
        )


def _classes_of(tree: _Tree) -> tuple[str, ...]:
    """The classes of the training images: its folders, in the order of their names."""
    tree.check_no_loose()
    below = {name: top.folders for name, top in tree.tops.items()}
    _check_no_splits_inside(tree, below)
    names = {name for folders in below.values() for name in folders}
    is_deep = not any(top.direct for top in tree.tops.values())
    if is_deep and len(tree.tops) > 1 and len(names) > 1 and any(len(folders) > 1 for folders in below.values()):
        raise DataError(
            f"data.path: {tree.place} can be read as the classes {_some(list(tree.tops))}, or as those one folder "
            f"down, {_some(sorted(names))}; move the images up into their class folders, or the class folders into one"
        )
    class_names = tuple(tree.top_folders)
    check_classes(class_names, str(tree.place))
    _check_filled(tree, class_names)
    return class_names


def _check_filled(tree: _Tree, class_names: Sequence[str]) -> None:
    """DataError for a class folder with files of which none is an image by its name."""
    for name in class_names:
        files = [path for path in tree.others if path.startswith(f"{name}/")] if name not in tree.tops else []
        if files:
            raise DataError(
                f"class {escaped(name)} has no training image, but {several(len(files), *NO_IMAGES)} "
                f"({escaped(str(tree.place / files[0]))}); save what is there as images, or take the folder out"
            )


def _check_no_splits_inside(tree: _Tree, below: Mapping[str, set[str]]) -> None:
    """DataError for CLASS/train beside CLASS/test, or CLASS/test alone: all of the class would be trained on."""
    for top, folders in below.items():
        said = {split: name for name in sorted(folders) for split in splits_named(name)}
        outright = any(name.lower() in WORDS and WORDS[name.lower()] != "train" for name in folders)
        if outright or ("train" in said and len(said) > 1):
            raise DataError(
                f"{escaped(str(tree.place / top))} holds the folders {' and '.join(said.values())}, which could be "
                f"splits of it or parts of one class; lay the images out as {tree.place}/train/CLASS and "
                f"{tree.place}/test/CLASS"
            )


def _fitting(part: _Tree, class_names: Sequence[str]) -> _Tree:
    """A split other than train, at the level where its folders are the classes of the training images."""
    if set(part.tops) <= set(class_names):
        return part
    inside, _ = _unwrapped(part)
    return inside if set(inside.tops) <= set(class_names) else part


def _nested_notes(tree: _Tree) -> tuple[str, ...]:
    deep = [path for path in tree.images if path.count("/") > 1]
    below = "images lie in folders below their class folder", "image lies in a folder below its class folder"
    return (f"{several(len(deep), *below)} ({deep[0]})",) if deep else ()


def _some(names: Sequence[str], most: int = 4) -> str:
    listed = ", ".join(escaped(name) for name in names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")


# --- Tiny ImageNet -----------------------------------------------------------------------------------------------


def open_tiny_imagenet(data: Data) -> Source:
    """Parquet, or the folders as published; the validation images, whose labels are public, are the test split."""
    place = Place(needed_path(data))
    files = parquet_files(place)
    if files is not None:
        return source_of(files, data)
    if not (place / "train").is_dir():
        raise DataError(
            f"data.path: {place} holds no folder train; name the folder that tiny-imagenet-200.zip unpacks to"
        )
    tree, left_out = _tree_at(place)
    listed = (place / "wnids.txt").read_text().split() if (place / "wnids.txt").exists() else None
    train, val = tree.below("train"), tree.below("val")
    train.check_no_loose()
    wnids = tuple(train.top_folders if listed is None else listed)
    check_classes(wnids, str(train.place))
    labelled = {"train": train.labelled(wnids)}
    if "val_annotations.txt" in val.others:
        labelled["val"] = _annotated(val, wnids)
    elif val.images:
        labelled["val"] = val.labelled(wnids)
    used = {path for of_split in labelled.values() for path, _ in of_split}
    unused = tuple(path for path in tree.images if address(place / path) not in used)
    without = (
        (leaving(unused, "images that no list gives a label", "image that no list gives a label"),) if unused else ()
    )
    names = {split: split for split in labelled}
    return _source(data, _words(place / "words.txt", wnids), labelled, names, (*without, *left_out), (), wnids)


def _annotated(val: _Tree, wnids: Sequence[str]) -> Labelled:
    """The images that val_annotations.txt lists: file, tab, class."""
    list_file, numbers = val.place / "val_annotations.txt", {name: label for label, name in enumerate(wnids)}
    present, images = set(val.images), []
    for number, line in enumerate(list_file.read_text().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in numbers:
            raise DataError(f"{list_file}: line {number} names no class that is trained; mend it")
        if f"images/{fields[0]}" not in present:
            raise DataError(f"{list_file}: line {number} names images/{escaped(fields[0])}, which is not there")
        images.append((address(val.place / "images" / fields[0]), numbers[fields[1]]))
    return images


def _words(file: Place, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first word for each class in words.txt; two classes with one word get their number beside it."""
    if not file.exists():
        return tuple(wnids)
    meaning = dict(line.split("\t", 1) for line in file.read_text().splitlines() if "\t" in line)
    words = [meaning.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    often = Counter(words)
    return tuple(word if often[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(words, wnids, strict=True))


# --- what both make ----------------------------------------------------------------------------------------------


def _source(
    data: Data,
    class_names: Sequence[str],
    labelled: Mapping[str, Labelled],
    names: Mapping[str, str],
    left_out: tuple[LeftOut, ...],
    notes: tuple[str, ...],
    class_folders: tuple[str, ...] = (),
) -> Source:
    roles, classes = roles_of(labelled), len(class_names)
    counts = {split: np.bincount([label for _, label in of], minlength=classes) for split, of in labelled.items()}
    check_counts({"train": counts["train"]}, class_names)
    found = Found(
        name=data.name,
        form="image files in folders",
        class_names=tuple(class_names),
        splits=tuple(
            SplitFound(split, roles[split], names[split], tuple(map(int, counts[split]))) for split in labelled
        ),
        left_out=left_out,
        notes=notes,
        cut=cut_of(roles.values(), data),
        class_folders=class_folders,
    )
    shards = {roles[split]: tuple(_image_shards(roles[split], of, classes)) for split, of in labelled.items()}
    return Source(data.name, tuple(class_names), shards, found)


def _image_shards(role: str, images: Labelled, classes: int) -> Iterable[Shard]:
    for first in range(0, len(images), SHARD_ROWS):
        files, labels = zip(*images[first : first + SHARD_ROWS], strict=True)
        last = first + len(files)
        yield Shard("images", role, files[0], first, last, classes, files=files, labels=labels)
