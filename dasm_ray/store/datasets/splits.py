"""Which names say train, validation or test, and what each split that a set has serves as.

What must stay true: the rules are those that `docs/data.md` states. Names are read as Hugging Face `datasets` reads
them (its keywords and separators, in any case), but what it would merge or take by order is refused: two names for one
split, or one name for two. No training image becomes a test image while another split can serve.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dasm_ray.config.keys import Data

SPLITS = ("train", "val", "test")

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The words of `datasets` (SPLIT_KEYWORDS in its data_files.py), and the split that each one names."""

CALLED = {"train": "training", "val": "validation", "test": "test"}
"""The splits in sentences."""

_SEPARATOR = r"[-._ 0-9]"
_WORD = re.compile(rf"(?:^|(?<={_SEPARATOR}))({'|'.join(sorted(WORDS, key=len, reverse=True))})(?=$|{_SEPARATOR})")

_SHARD = re.compile(r"(\d+)([-_. ]of[-_. ])(\d+)(?:-[0-9a-f]{8,})?(?!\d)", re.IGNORECASE)
_HASH = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,})(?![0-9a-z])",
    re.IGNORECASE,
)


def splits_named(name: str) -> tuple[str, ...]:
    """The splits that a name of a file (without its suffix) or folder holds a word for, in the order of SPLITS.

    A word counts where it stands alone between separators: ``mnist-train-00000-of-00001``, ``Testing``, ``val2017``.
    """
    found = {WORDS[word] for word in _WORD.findall(name.lower())}
    return tuple(split for split in SPLITS if split in found)


def roles_of(splits: Collection[str]) -> dict[str, str]:
    """What each split of a set serves as: itself, but a lone validation split serves as test.

    The test split is read once, at the end, so it should be images that nobody trained on; a validation split can
    always be cut from the training images without hurting that.
    """
    if "val" in splits and "test" not in splits:
        return {split: "test" if split == "val" else split for split in splits}
    return {split: split for split in splits}


@dataclass(frozen=True)
class Cut:
    """Shares of the images of the training split that are held out by content, as test and as validation."""

    test: float
    val: float


NOTHING_CUT = Cut(0.0, 0.0)


def cut_of(roles: Iterable[str], data: Data) -> Cut:
    """What has to be cut from the training split where a set comes with splits for ``roles`` only.

    A share `test_share` is the test split where there is none; `val_share` of the rest is the validation split.
    """
    test = 0.0 if "test" in roles else data.test_share
    return Cut(test, 0.0 if "val" in roles else data.val_share * (1 - test))


@dataclass(frozen=True)
class Series:
    """A name as one of a numbered series: the name with ``*`` for its number, and the number if it is a plain one."""

    template: str
    number: int | None


def series_of(stem: str) -> Series:
    """The series that a file is one of, by its name without suffix.

    The number is the last one behind the word of the split (so that ``cifar10_train`` and ``cifar100_train`` are two
    series), or one that the name begins with. A hash may stand beside it, as writers of Parquet put it there.
    """
    plain = _HASH.sub("*", _SHARD.sub("*-of-*", stem))
    words = list(_WORD.finditer(plain.lower()))
    start = words[-1].end() if words else 0
    behind = [number for number in re.finditer(r"\d+", plain) if number.start() >= start]
    number = behind[-1] if behind else re.match(r"\d+", plain)
    if number is None:
        return Series(plain, None)
    masked = f"{plain[: number.start()]}*{plain[number.end() :]}"
    return Series(masked, int(number.group()) if plain == stem else None)


def number_missing(stems: Collection[str]) -> str:
    """The first name that plainly numbered files leave a gap for; empty where there is none."""
    present = {found.number: stem for stem in stems if (found := series_of(stem)).number is not None}
    numbers = sorted(number for number in present if number is not None)
    gap = next((a + 1 for a, b in itertools.pairwise(numbers) if b != a + 1), None)
    if gap is None:
        return ""
    before = present[gap - 1]
    head, _, tail = series_of(before).template.partition("*")
    return f"{head}{gap:0{len(before) - len(head) - len(tail)}}{tail}"


def shards_missing(stems: Collection[str]) -> tuple[str, ...]:
    """Names of the shards that a set of ``NNNNN-of-NNNNN`` names lacks, by what those that are there say."""
    claims = [(stem, found) for stem in sorted(stems) if (found := _SHARD.search(stem)) is not None]
    if not claims:
        return ()
    stem, found = claims[0]
    present, total = {int(claim.group(1)) for _, claim in claims}, int(found.group(3))
    first = 1 if total in present else 0
    width = len(found.group(1))
    ends = stem[: found.start()], f"{found.group(2)}{found.group(3)}{stem[found.end() :]}"
    lacking = sorted(set(range(first, first + min(total, 10**6))) - present)
    return tuple(f"{ends[0]}{number:0{width}}{ends[1]}" for number in lacking)


def shard_of(stem: str) -> tuple[int, int] | None:
    """The number of a shard and how many there are, by its name."""
    found = _SHARD.search(stem)
    return None if found is None else (int(found.group(1)), int(found.group(3)))


def spelled(names: Mapping[str, str]) -> str:
    """Splits and what names them, in a sentence: ``train (Training), test (Testing)``."""
    return ", ".join(f"{CALLED[split]} ({name})" for split, name in names.items())
