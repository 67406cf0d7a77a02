"""Real images: a table of sets, each opened on the driver as a list of shards that workers decode.

What must stay true: no image is dropped or altered in silence. Whatever cannot be decoded, labelled or fitted to the
shape of the set is a DataError that names its file and row, and class names keep the order of their labels.

The first training image sets the shape of a set: one channel if it is grey, else RGB, to which all others are
converted; its size too, which all others must have unless `data.image_size` is given (then each image is scaled and
centre-cropped to that square).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import re
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.store.place import Place

SHARD_ROWS = 2000
"""Images of one shard: a task of seconds, and of 300 MB decoded for photographs of 224 x 224."""

ARRAY_ROWS = 16384
"""The same where the pixels need no decoding, and each shard opens the whole file."""

CACHE = "~/.cache/dasm_ray/data"
"""Where torchvision sets are looked for when `data.path` is unset."""

DOWNLOAD_SECONDS = 30.0

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
DIGITS = tuple("0123456789")

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


def open_source(data: Data) -> Source:
    """Finds the files of a set, its class names, and the shape of its images; decodes one image.

    Raises DataError if the set is not known, not there, or not laid out as it should be.
    """
    row = DATASETS.get(data.name)
    if row is None:
        near = difflib.get_close_matches(data.name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sets are {', '.join(DATASETS)}"
        raise DataError(f"data.name: there is no set {data.name!r}; {hint}")
    try:
        return _with_shape(row(data), data)
    except RunDirError as error:
        raise DataError(str(error)) from None


def decode(shard: Shard, data: Data) -> Decoded:
    """Decodes a shard to uint8 pixels, labels and content keys.

    Raises DataError, naming file and row, for an image that is corrupt, missing or of another size, and for a label
    that is missing or out of range.
    """
    images = np.empty((len(shard), *shard.shape), np.uint8)
    labels = np.empty(len(shard), np.int64)
    keys = np.empty(len(shard), np.float64)
    row = -1
    try:
        for row, (where, raw, label) in enumerate(READERS[shard.kind](shard)):
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


def _with_shape(source: Source, data: Data) -> Source:
    """Sets the shape of every shard from the first training image."""
    train = source.shards["train"]
    if not train:
        raise DataError(f"data.path: {data.path} holds no training image")
    where, raw, _ = next(READERS[train[0].kind](train[0]))
    image = _open(raw, where)
    channels = 1 if image.mode in ("1", "L", "LA") else 3
    size = (data.image_size, data.image_size) if data.image_size else (image.height, image.width)
    shards = {
        split: tuple(dataclasses.replace(shard, shape=(channels, *size)) for shard in of_split)
        for split, of_split in source.shards.items()
    }
    return dataclasses.replace(source, shards=shards)


def _open(raw: Raw, where: str) -> Image.Image:
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
            f"{where} is not an image that can be decoded ({_first_line(error)}); mend or remove it"
        ) from None
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    return image


def _pixels(raw: Raw, where: str, shape: tuple[int, int, int], image_size: int | None) -> np.ndarray:
    """(C, H, W) uint8 in the shape of the set."""
    channels, height, width = shape
    image = _open(raw, where).convert("L" if channels == 1 else "RGB")
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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# --- arrays: digits and torchvision ------------------------------------------------------------------------------


def _digits(_: Data) -> Source:
    return Source("digits", DIGITS, {"train": _cut("digits", "train", "scikit-learn digits", 1797, 10, ARRAY_ROWS)})


def _read_digits(shard: Shard) -> Rows:
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 0..16 as they are scanned
    yield from _array_rows(shard, levels, found.target)


@dataclass(frozen=True)
class Torchvision:
    """How to reach a set of torchvision: its class there, the argument for each split, and its arrays."""

    title: str
    splits: Mapping[str, Mapping[str, Any]]
    pixels: Callable[[Any], Any]  # (n, H, W) or (n, H, W, 3) uint8
    labels: Callable[[Any], Any]
    class_names: Callable[[Any], Sequence[str]]


_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}

TORCHVISION = {
    "mnist": Torchvision("MNIST", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: DIGITS),
    "fashion_mnist": Torchvision("FashionMNIST", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "cifar10": Torchvision("CIFAR10", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "cifar100": Torchvision("CIFAR100", _TRAIN, lambda d: d.data, lambda d: d.targets, lambda d: d.classes),
    "svhn": Torchvision("SVHN", _SPLIT, lambda d: d.data.transpose(0, 2, 3, 1), lambda d: d.labels, lambda d: DIGITS),
}


def _torchvision(name: str, data: Data) -> Source:
    """The set in Parquet under `data.path` if there is some, else in the files of torchvision."""
    if data.path is not None and _parquet_files(Place(data.path)):
        return dataclasses.replace(_parquet(data), name=name)
    root = Place(data.path or CACHE)
    if root.local is None:
        raise DataError(f"data.path: {root} holds no Parquet, and the files of torchvision must be local")
    row, shards = TORCHVISION[name], {}
    for split in row.splits:
        found = _load_torchvision(name, split, str(root), data.download)
        class_names = tuple(row.class_names(found))
        shards[split] = _cut(name, split, str(root), len(row.pixels(found)), len(class_names), ARRAY_ROWS)
    return Source(name, class_names, shards)


def _load_torchvision(name: str, split: str, root: str, download: bool) -> Any:
    """The dataset object of torchvision, all its pixels in memory (200 MB at most).

    The CIFAR archives are pickles; torchvision opens them only if their MD5 is that of the published files.
    """
    import torchvision.datasets

    row = TORCHVISION[name]
    make = getattr(torchvision.datasets, row.title)
    try:
        with _patience(DOWNLOAD_SECONDS), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what old archives make new versions of numpy say is not for the user
            return make(root, download=download, **row.splits[split])
    except Exception as error:  # torchvision, urllib and the parsers of five formats
        if download:
            why = f"could not be fetched into {root} ({_first_line(error)})"
            raise DataError(f"data.download: {name} {why}; set data.path to a folder that holds it") from None
        raise DataError(
            f"data.name: {name} is not in {root} ({_first_line(error)}); "
            f"set data.path to the folder that holds it, or data.download to fetch it"
        ) from None


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """No connection made inside waits longer than this for its next byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_torchvision(shard: Shard) -> Rows:
    row = TORCHVISION[shard.kind]
    found = _load_torchvision(shard.kind, shard.split, shard.path, download=False)
    yield from _array_rows(shard, np.asarray(row.pixels(found)), np.asarray(row.labels(found)))


def _array_rows(shard: Shard, images: np.ndarray, labels: np.ndarray) -> Rows:
    if len(images) != len(labels):
        raise DataError(f"{shard.path}: {len(images)} images have {len(labels)} labels; fetch the files again")
    for row in range(shard.first, shard.last):
        yield f"{shard.path}: {shard.split} row {row}", images[row], labels[row]


def _cut(
    kind: str, split: str, path: str, rows: int, classes: int, step: int, columns: tuple[str, str] = ("", "")
) -> tuple[Shard, ...]:
    """Shards of at most ``step`` rows that make up one file or set."""
    return tuple(
        Shard(kind, split, path, first, min(first + step, rows), classes, columns=columns)
        for first in range(0, rows, step)
    )


# --- Parquet -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Footer:
    """What a Parquet file says of itself."""

    path: str
    rows: int
    columns: tuple[str, str]  # of image and label
    class_names: tuple[str, ...] | None


def _parquet(data: Data) -> Source:
    """A folder (or its `data` folder) of Parquet files in the image layout of Hugging Face, or one such file."""
    place = Place(_needed_path(data))
    files = _parquet_files(place)
    if not files.get("train"):
        raise DataError(f"data.path: {place} holds no Parquet file with training images")
    footers = {split: [_footer(file) for file in of_split] for split, of_split in files.items()}
    class_names = _class_names([footer for of_split in footers.values() for footer in of_split], footers["train"])
    shards = {
        split: tuple(shard for footer in of_split for shard in _parquet_shards(footer, split, len(class_names)))
        for split, of_split in footers.items()
    }
    return Source("parquet", class_names, shards)


def _parquet_shards(footer: _Footer, split: str, classes: int) -> tuple[Shard, ...]:
    return _cut("parquet", split, footer.path, footer.rows, classes, SHARD_ROWS, footer.columns)


def _parquet_files(place: Place) -> dict[str, list[Place]]:
    """Files by split. Validation files are the test split where there is none; files without a split word train."""
    if place.name.endswith(".parquet"):
        return {"train": [place]}
    found = [folder / name for folder in (place, place / "data") for name in folder.names()]
    words: dict[str, list[Place]] = {}
    for file in found:
        if file.name.endswith(".parquet"):
            words.setdefault(re.split(r"[-_.]", file.name)[0].lower(), []).append(file)
    test = next((words[word] for word in ("test", "validation", "valid", "val") if word in words), None)
    if "train" not in words and test is None:
        return {"train": [file for files in words.values() for file in files]} if words else {}
    return {"train": words.get("train", []), **({"test": test} if test else {})}


def _footer(file: Place) -> _Footer:
    with _readable(str(file)), file.open() as source:
        parquet = pq.ParquetFile(source)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    return _Footer(file.uri, rows, _columns(schema, file), _names_in(schema))


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """DataError instead of what pyarrow raises for damaged bytes."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be read as Parquet ({_first_line(error)}); copy it again") from None


def _columns(schema: pa.Schema, file: Place) -> tuple[str, str]:
    """The names of the image and the label column, whose types must fit."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        lacking = IMAGE_COLUMNS if image is None else LABEL_COLUMNS
        raise DataError(f"{file} has no column {' or '.join(lacking)}; rename one (it has {', '.join(schema.names)})")
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column {image} is {kind}, not encoded images (binary, or struct with bytes)")
    if not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{file}: column {label} is {schema.field(label).type}, not whole numbers; number the classes")
    return image, label


def _names_in(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names in label order from the metadata of `datasets`, if there are any."""
    text = (schema.metadata or {}).get(b"huggingface")
    label = next(name for name in LABEL_COLUMNS if name in schema.names)
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(str(name) for name in names) if names else None


def _class_names(footers: list[_Footer], train: list[_Footer]) -> tuple[str, ...]:
    """Names that all files agree on, else the labels themselves, which must then be 0 .. K-1."""
    for footer in footers[1:]:
        if footer.class_names != footers[0].class_names:
            raise DataError(f"{footer.path} names other classes than {footers[0].path}; they are not of one set")
    return footers[0].class_names or tuple(str(label) for label in range(_highest_label(train) + 1))


def _highest_label(footers: list[_Footer]) -> int:
    """K - 1, for files that do not name their classes; rows with a null are left to `decode`."""
    found: set[int] = set()
    for footer in footers:
        with _readable(footer.path), Place(footer.path).open() as source:
            column = pq.read_table(source, columns=[footer.columns[1]]).column(0)
            found.update(pc.unique(column.drop_null()).to_pylist())
    if not found:
        raise DataError(f"{footers[0].path} holds no labelled row")
    gap = next((label for label in range(len(found)) if label not in found), None)
    if gap is not None:
        raise DataError(
            f"{footers[0].path}: its {len(found)} labels reach from {min(found)} to {max(found)} and class {gap} has "
            f"no training image; number the classes from 0 without a gap"
        )
    return max(found)


def _read_parquet(shard: Shard) -> Rows:
    """The rows of a shard, read from the row groups that hold them, a few at a time."""
    with _readable(f"{shard.path}: rows {shard.first} to {shard.last - 1}"), Place(shard.path).open() as source:
        file = pq.ParquetFile(source)
        groups, row = _groups_of(file.metadata, shard)
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=list(shard.columns)):
            images, labels = (batch.column(batch.schema.get_field_index(name)).to_pylist() for name in shard.columns)
            for image, label in zip(images, labels, strict=True):
                if shard.first <= row < shard.last:
                    yield f"{shard.path}: row {row}", image["bytes"] if isinstance(image, dict) else image, label
                row += 1


def _groups_of(metadata: pq.FileMetaData, shard: Shard) -> tuple[list[int], int]:
    """The row groups that overlap a shard, and the first row of the first one."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    first, last = np.searchsorted(ends, [shard.first, shard.last - 1], side="right")
    return list(range(first, min(int(last) + 1, len(ends)))), int(ends[first - 1]) if first else 0


# --- folders of image files --------------------------------------------------------------------------------------


def _folder(data: Data) -> Source:
    """ROOT/CLASS/... or ROOT/train/CLASS/... with ROOT/test (or ROOT/val) beside it; classes in the order of names."""
    place = Place(_needed_path(data))
    if not (place / "train").is_dir():
        train, class_names = _tree(place)
        return _image_source("folder", class_names, {"train": train})
    train, class_names = _tree(place / "train")
    beside = next((place / name for name in ("test", "val") if (place / name).is_dir()), None)
    test = None if beside is None else _tree(beside, class_names)[0]
    return _image_source("folder", class_names, {"train": train} if test is None else {"train": train, "test": test})


def _tiny_imagenet(data: Data) -> Source:
    """Parquet, or the folders as published; the validation images, whose labels are public, are the test split."""
    place = Place(_needed_path(data))
    if _parquet_files(place):
        return dataclasses.replace(_parquet(data), name="tiny_imagenet")
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


def _needed_path(data: Data) -> str:
    if data.path is None:
        raise DataError(f"data.path: {data.name} needs the folder or URI of its files; set it")
    if not Place(data.path).exists():
        raise DataError(f"data.path: there is nothing at {Place(data.path)}; name the folder or URI of the files")
    return data.path


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
        images.append(((place / path).uri, numbers[name]))
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
        images.append(((place / "images" / fields[0]).uri, numbers[fields[1]]))
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


def _read_images(shard: Shard) -> Rows:
    for file, label in zip(shard.files, shard.labels, strict=True):
        yield file, Place(file).read_bytes(), label


# --- the tables --------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Shard], Rows]] = {
    "digits": _read_digits,
    **dict.fromkeys(TORCHVISION, _read_torchvision),
    "parquet": _read_parquet,
    "images": _read_images,
}

DATASETS: dict[str, Callable[[Data], Source]] = {
    "digits": _digits,
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    "tiny_imagenet": _tiny_imagenet,
    "folder": _folder,
    "parquet": _parquet,
}
