"""What was found in a set, said before anything is done with it: splits, classes, counts, shape, what was left out.

What must stay true: every command says it in the same words; it holds plain values and no place, since it is written
into artifacts; and a line fits 80 columns.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dasm_ray.config.shown import escaped, several
from dasm_ray.plain import Tree
from dasm_ray.store.datasets.splits import CALLED, NOTHING_CUT, Cut

WIDTH = 80
SMALL_SPLIT = 100
"""Images of a split below which a single one moves its accuracy by more than a percent."""
CALLED_SHORT = {"train": "train", "val": "validation", "test": "test"}
LISTED = 12
"""Classes that are listed by name with their counts."""

LONGEST = 10_000
"""Characters of a fact: more than any has, since the names in it are cut each by itself, and no class may be lost."""


@dataclass(frozen=True)
class SplitFound:
    """A split as the set has it. ``role``: what it serves as; ``name``: what the set calls it; images a class (K,)."""

    split: str
    role: str
    name: str
    per_class: tuple[int, ...]

    @property
    def images(self) -> int:
        """All its images."""
        return sum(self.per_class)


@dataclass(frozen=True)
class LeftOut:
    """Something that lies in the set and is not used: what, in the singular of one, how many, and one of them."""

    what: str
    count: int
    example: str = ""


def leaving(names: Sequence[str], things: str, one: str) -> LeftOut:
    """The ``things`` of these names, ``one`` where there is but one of them."""
    return LeftOut(one if len(names) == 1 else things, len(names), names[0])


@dataclass(frozen=True)
class Found:
    """What a set is. ``counts``, ``converted``, ``equal`` and ``leaked`` are known once its images are decoded."""

    name: str
    form: str
    class_names: tuple[str, ...]
    splits: tuple[SplitFound, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)  # (C, H, W)
    cut: Cut = NOTHING_CUT
    counts: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # images a class, by role
    converted: Mapping[str, int] = dataclasses.field(default_factory=dict)  # what was done to how many images
    equal: int = 0  # training images that are a copy of another one
    leaked: Mapping[str, int] = dataclasses.field(default_factory=dict)  # images that a training image equals, by role
    class_folders: tuple[str, ...] = ()  # in label order, where classes are not called as their folders are

    def of(self, role: str) -> SplitFound | None:
        """The split that serves as ``role``, unless it is cut from the training split."""
        return next((split for split in self.splits if split.role == role), None)

    @property
    def of_train(self) -> SplitFound:
        """The training split, which every set has."""
        return next(split for split in self.splits if split.role == "train")

    def with_notes(self, notes: Iterable[str]) -> Found:
        """The same with more to say."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def as_values(self) -> Tree:
        """All of it as plain values, without ``class_folders`` where there are none."""
        values = dataclasses.asdict(self)
        if not self.class_folders:
            del values["class_folders"]
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def lines(self) -> list[str]:
        """What was found, before anything is decoded."""
        rows = [
            ("", f"data {self.name}: {self.form}"),
            ("images", f"{sum(split.images for split in self.splits)} of {self._shape()}"),
            *((CALLED_SHORT[role], self._serving(role)) for role in CALLED_SHORT),
            *self._class_rows(),
            *(("left out", _left_out(left)) for left in self.left_out),
            *(("note", note) for note in self.notes),
            *(("warning", warning) for warning in self.warnings()),
        ]
        return [line for label, text in rows for line in _wrapped(label, text)]

    def decoded_lines(self) -> list[str]:
        """What decoding has added to that."""
        sizes = ", ".join(f"{CALLED[role]} {sum(per_class)}" for role, per_class in self.counts.items())
        rows = [("decoded", f"{sizes}; {'RGB' if self.shape[0] == 3 else 'grey'}")]
        rows += [("converted", f"{count} {what}") for what, count in self.converted.items()]
        if self.equal:
            rows.append(("equal", several(self.equal, *COPIES)))
        rows += [("warning", several(count, *leaks(f"{CALLED[role]} images"))) for role, count in self.leaked.items()]
        rows += [("warning", warning) for warning in self._warnings_of_cut()]
        return [line for label, text in rows for line in _wrapped(label, text)]

    def warnings(self) -> Iterator[str]:
        """What a user should look at before trusting a figure."""
        for split in self.splits:
            if split.role == "train":
                continue
            if split.images < SMALL_SPLIT:
                yield _small(split.role, split.images)
            lacking = [name for name, count in zip(self.class_names, split.per_class, strict=True) if not count]
            if lacking:
                yield f"the {CALLED[split.role]} split has no image of {_some(lacking)}"

    def _serving(self, role: str) -> str:
        """What serves as a split, and how many images it has."""
        split = self.of(role)
        if split is None:
            share = self.cut.test if role == "test" else self.cut.val
            return f"held out from the training images by their content, {100 * share:.3g} % of them"
        name = f" ({split.name})" if split.name else ""
        if role != split.split:
            name = f" ({split.name}, the {CALLED[split.split]} split, which serves as such)"
        return f"{several(split.images, 'images')}{name}"

    def _warnings_of_cut(self) -> Iterator[str]:
        """The same of the splits that were cut from the training split."""
        for role, per_class in self.counts.items():
            if self.of(role) is None and sum(per_class) < SMALL_SPLIT:
                yield _small(role, sum(per_class))

    def _shape(self) -> str:
        channels, height, width = self.shape
        colours = "RGB" if channels == 3 else "grey" if self.counts else "grey as far as looked at"
        return f"{height} x {width} pixels (rows x columns), {colours}"

    def _class_rows(self) -> Iterator[tuple[str, str]]:
        counts, names = self.of_train.per_class, [escaped(name) for name in self.class_names]
        if len(set(counts)) == 1:
            yield "classes", f"{len(names)} of {several(counts[0], 'training images')} each: {_some(names)}"
        elif len(names) <= LISTED:
            counted = ", ".join(f"{name}={count}" for name, count in zip(names, counts, strict=True))
            yield "classes", f"{len(names)}, with training images: {counted}"
        else:
            few, many = (at(range(len(counts)), key=counts.__getitem__) for at in (min, max))
            extremes = (
                f"from {several(counts[few], 'training images')} ({names[few]}) to {counts[many]} ({names[many]})"
            )
            yield "classes", f"{len(names)}, {extremes}: {_some(names)}"


COPIES = "training images are copies of another training image", "training image is a copy of another training image"
"""What equal images are, for `several`."""


def leaks(images: str) -> tuple[str, str]:
    """What is said of ``images`` of another split that training images equal, for `several`."""
    return f"{images} are equal to training images", f"{images.removesuffix('s')} is equal to a training image"


def _small(role: str, images: int) -> str:
    each = f", so one of them is {100 / images:.1f} points" if images else ""
    return f"the {CALLED[role]} split has only {several(images, 'images')}{each}"


def _left_out(left: LeftOut) -> str:
    return f"{left.count} {left.what}" + (f" ({escaped(left.example)})" if left.example else "")


def _some(names: list[str], most: int = LISTED) -> str:
    """Names, the middle of a long list left out."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, … {names[-1]}"


def _wrapped(label: str, text: str) -> list[str]:
    """A fact as lines: its label, then the text beside it; the heading has no label."""
    whole = escaped(text, LONGEST)
    if text.startswith("data "):
        return textwrap.wrap(whole, WIDTH, subsequent_indent="  ")
    first = f"  {label:10} "
    return textwrap.wrap(whole, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
