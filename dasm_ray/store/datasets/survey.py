"""A set of one's own looked at before there is a recipe for it: which kind it is, its classes, the sizes of its images.

What must stay true: it reads as every command does, so what is refused there is refused here with the same sentence.
"""

from __future__ import annotations

from dasm_ray.config.fitting import Facts, name_for
from dasm_ray.config.keys import Data
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import DataError, RunDirError
from dasm_ray.store.datasets.catalogue import open_source, sizes_looked_at
from dasm_ray.store.datasets.listing import list_all
from dasm_ray.store.datasets.parquet import SUFFIX
from dasm_ray.store.datasets.pixels import is_image_name
from dasm_ray.store.place import Place

ANY_SIZE = 32
"""Pixels a side while looking, so that images of different sizes are no fault yet."""


def survey(path: str) -> Facts:
    """What lies at a path: image files in folders, or Parquet files.

    Raises DataError for what cannot be used, and where both lie there.
    """
    try:
        data = _data_at(Place(path))
    except RunDirError as error:
        raise DataError(str(error)) from None
    source = open_source(data)
    found, sizes = source.found, frozenset(sizes_looked_at(source))
    return Facts(
        kind=data.name,
        path=str(data.path),
        name=name_for(Place(path).name.partition(".")[0]),
        colour=source.shape[0] == 3,
        sizes=sizes,
        per_class=found.of_train.per_class,
        has_validation=found.of("val") is not None,
        has_test=found.of("test") is not None,
        found=tuple(_images(line, sizes) for line in found.lines()),
    )


def _data_at(place: Place) -> Data:
    kind = _kind(place)
    where = str(place) if place.local is None else str(place.local)
    return parse_config({"data": {"name": kind, "path": where, "image_size": ANY_SIZE}}).data


def _kind(place: Place) -> str:
    """Which reader a place is for; what that finds wrong is for it to say."""
    if not place.exists():
        raise DataError(f"{place}: there is nothing there; name a folder in which each class of images has a folder")
    if not place.is_dir():
        return "parquet"
    files = list_all(place).files
    has_parquet = any(path.lower().endswith(SUFFIX) for path in files)
    has_images = any(is_image_name(path) for path in files)
    if has_parquet and has_images:
        raise DataError(
            f"{place}: holds Parquet files and image files, which could be two sets; name the folder of one of them"
        )
    return "parquet" if has_parquet else "folder"


def _images(line: str, sizes: frozenset[tuple[int, int]]) -> str:
    """What is said of the images, with the sizes they have instead of the one they were looked at in."""
    looked_at = f"{ANY_SIZE} x {ANY_SIZE} pixels (rows x columns)"
    return line.replace(looked_at, sizes_in_words(sizes)) if line.startswith("  images ") else line


def sizes_in_words(sizes: frozenset[tuple[int, int]]) -> str:
    """``16 x 24 pixels (rows x columns)``, or the smallest and the largest of several."""
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    shown = dict.fromkeys((by_area[0], by_area[-1]))
    return f"{' to '.join(f'{height} x {width}' for width, height in shown)} pixels (rows x columns)"
