"""JSON that decides something: read by strict rules and within bounds, and, where figures hang on it, under a checksum.

What must stay true: `read_checked_json` gives back what `write_checked_json` was given, or None; JSON that two readers
could take for different things (a name given twice, NaN) is refused, and none of it costs memory before it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasm_ray.config.shown import escaped
from dasm_ray.errors import RunDirError
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.store.place import Place
from dasm_ray.store.room import room

MOST_BYTES = 1 << 24
"""Of a JSON file: the description of a set of twenty thousand classes has about one million."""

PIECE_BYTES = 1 << 22
"""Of a large file, how many bytes are fetched at once."""

MOST_DEPTH = 64
MOST_DIGITS = 100
CHECKSUM = "checksum"


def read_at_most(place: Place, most: int) -> bytes:
    """The whole file; ValueError, before it is read, if it has more than ``most`` bytes."""
    with _opened(place, most) as file:
        return bytes(file.read())


def array_at_most(place: Place, most: int) -> NDArray[np.uint8]:
    """The same as an array, fetched in pieces: a large file takes no memory beside the room for it."""
    with _opened(place, most) as file:
        data = room((file.size(),), np.uint8)
        for first in range(0, len(data), PIECE_BYTES):
            piece = np.frombuffer(file.read(min(PIECE_BYTES, len(data) - first)), np.uint8)
            data[first : first + PIECE_BYTES] = piece
    return data


@contextlib.contextmanager
def _opened(place: Place, most: int) -> Iterator[pa.NativeFile]:
    with place.open() as file:
        try:
            size = file.size()
            if size > most:
                raise ValueError(f"it has {size} bytes, and at most {most} are right")
            yield file
        except (OSError, pa.ArrowException) as error:
            raise RunDirError(f"{place} cannot be read ({str(error).partition(chr(10))[0]})") from None


def read_json(place: Place, most: int = MOST_BYTES) -> Plain:
    """The value in a JSON file; ValueError, which says why, if it is not JSON that can be read in one way only."""
    return parse_json(read_at_most(place, most).decode())


def parse_json(text: str) -> Plain:
    """The value that a text spells as JSON; ValueError for a name given twice, NaN, infinity or bottomless nesting."""
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MOST_DEPTH}") from None
    _check_depth(value)
    return value


def _once(pairs: list[tuple[str, Plain]]) -> Tree:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it gives {escaped(name, 60)!r} twice")
    return found


def _no_number(text: str) -> Plain:
    raise ValueError(f"it holds {text}, which is no number")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("it holds a number that is too large")
    return number


def _check_depth(value: Plain) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MOST_DEPTH}")


def _inside(value: Plain) -> Iterable[Plain]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# --- under a checksum --------------------------------------------------------------------------------------------


def write_checked_json(place: Place, value: Values) -> None:
    """Writes plain values by name as JSON, with a checksum of them beside them under ``checksum``.

    Raises ValueError for a number that is none: nothing non-finite is kept.
    """
    assert CHECKSUM not in value
    plain = json.loads(json.dumps(value, allow_nan=False))
    place.write_json({**plain, CHECKSUM: _checksum(plain)})


def read_checked_json(place: Place) -> Tree | None:
    """What was written; None if there is no such file, or one that is damaged, was changed, or has no checksum.

    Raises RunDirError only where the place itself cannot be read.
    """
    if not place.exists():
        return None
    try:
        value = read_json(place)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.pop(CHECKSUM, None) != _checksum(value):
        return None
    return value


def _checksum(plain: Values) -> str:
    """SHA-256 (hex) of values as JSON has them, whatever the order of their names."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
