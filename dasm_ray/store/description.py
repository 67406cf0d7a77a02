"""What `dataset.json` says of a synthetic set, checked before any of its other files is opened.

What must stay true: a description that is accepted can be believed in every word that costs memory or reaches a
terminal: types, ranges and lengths fit together, and its files are named as this package names them, in its own folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, TypeVar

import pydantic
from pydantic import Field, StrictBool, StrictStr

from dasm_ray.config.keys import Evaluate, Model, Section
from dasm_ray.config.parsing import sentences_of
from dasm_ray.config.shown import odd_character
from dasm_ray.errors import ArtifactError, RunDirError
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.store.checked import read_json
from dasm_ray.store.place import Place

SCHEMA_VERSION = 1
DESCRIPTION = "dataset.json"

LONGEST_NAME, MOST_CLASSES = 1000, 100_000
"""Characters of a class name, and classes: above them a description is refused, and so is a set of real images."""

LEAST_STD = 1e-8
"""What a channel varies by at least that is not constant, one level in some pixel of all: below it, float32 is lost."""


def _check_name(name: str) -> str:
    odd = odd_character(name)
    if odd is not None:
        raise ValueError(f"holds {odd}, a character that cannot be shown")
    return name


ClassName = Annotated[StrictStr, Field(max_length=LONGEST_NAME), pydantic.AfterValidator(_check_name)]
Side = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Moment = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class Recipe(Section):
    """How the set is meant to be trained on."""

    model: Model
    training: Evaluate
    image_size: tuple[Side, Side] | None = None


class Meaning(Section):
    """What evaluation needs to know, beside the arrays."""

    class_names: Annotated[tuple[ClassName, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    mean: tuple[Moment, ...]
    std: tuple[Annotated[Moment, Field(ge=LEAST_STD)], ...]
    factor: Side
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None
    is_normalised: StrictBool
    recipe: Recipe


class Description(Meaning):
    """All of `dataset.json`."""

    schema_version: int
    digest: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{16}$")]
    shape: tuple[Annotated[int, Field(ge=1, le=10**9, strict=True)], Side, Side, Side]
    soft_labels: StrictBool
    provenance: dict[StrictStr, Plain]
    files: dict[StrictStr, Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{64}$")]]

    @property
    def size(self) -> int:
        """Values of one image."""
        return math.prod(self.shape[1:])


def file_names(count: int) -> list[str]:
    """Of the Parquet files of a set, in the order of their rows."""
    return [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def fault_of_meaning(meaning: Values, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the plain values that go with images of a shape (N, C, H, W); None if nothing is."""
    try:
        return next(_unfit(_validated(Meaning, meaning), shape), None)
    except ValueError as error:
        return str(error)


def artifact_place(place: Place) -> Place:
    """The artifact's own folder: the place itself, or ``synthetic`` in a run directory.

    Raises ArtifactError where there is no folder.
    """
    if (place / DESCRIPTION).exists():
        return place
    if not place.is_dir():
        wrong = f"{place} is a file" if place.exists() else f"there is nothing at {place}"
        raise ArtifactError(f"{wrong}; name a run directory or the folder of a synthetic set")
    return place / "synthetic"


def read_description(place: Place) -> tuple[Description, Tree]:
    """What the set in folder ``place`` is said to be, checked, and the same as it was written."""
    file = place / DESCRIPTION
    if not file.exists():
        raise ArtifactError(f"{place} holds no {DESCRIPTION}, so it is no finished synthetic set; name one that is")
    try:
        plain = read_json(file)
    except (ValueError, RunDirError) as error:
        raise damaged(place, f"{DESCRIPTION} cannot be read: {error}") from None
    _check_version(place, plain)
    try:
        described = _validated(Description, plain)
    except ValueError as error:
        raise damaged(place, f"{DESCRIPTION}: {error}") from None
    problem = next(_contradictions(described), None)
    if problem:
        raise damaged(place, f"{DESCRIPTION}: {problem}")
    return described, plain


def damaged(place: Place, why: str) -> ArtifactError:
    """The error for a set that is not what was once written."""
    return ArtifactError(f"{place} is damaged ({why}); copy or distil it again")


Checked = TypeVar("Checked", bound=Section)


def _validated(model: type[Checked], plain: Values) -> Checked:
    """The plain values as a ``model``; ValueError with the first sentence of what is wrong."""
    try:
        return model.model_validate(plain)
    except pydantic.ValidationError as error:
        raise ValueError(sentences_of(error, model)[0]) from None


def _check_version(place: Place, plain: Plain) -> None:
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1 or "digest" not in plain:
        raise damaged(place, f"{DESCRIPTION} lacks its schema_version or its digest")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{place} was written by a later version of dasm_ray (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade dasm_ray"
        )


def _contradictions(described: Description) -> Iterator[str]:
    yield from _unfit(described, described.shape)
    if described.shape[1] not in (1, 3):
        yield f"shape: {list(described.shape)} is not that of images of 1 or 3 channels"
    count = len(described.files)
    if not 1 <= count <= described.shape[0] or list(described.files) != file_names(count):
        yield f"files: must be {file_names(1)[0]} and so on, and no more than there are images"


def _unfit(meaning: Meaning, shape: tuple[int, ...]) -> Iterator[str]:
    """What does not go together with images of that shape."""
    channels, height, width = shape[1:]
    if not len(meaning.mean) == len(meaning.std) == channels:
        yield f"mean and std need one value a channel, of which there are {channels}"
    if meaning.factor > min(height, width):
        yield f"factor: {meaning.factor} tiles do not fit into images of {height} x {width}"
    if meaning.recipe.image_size not in (None, (height, width)):
        yield f"recipe.image_size: is not {height} x {width}, which the images are"
