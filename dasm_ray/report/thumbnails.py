"""Images inside a page: each as data that the page itself holds, all of them within a number of bytes.

What must stay true: images are shown exactly while there is room for it; where there is not, the page says what was
given up, and every class keeps as many as the others, or where there is no room for that, the first ones keep one.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """Which images are shown, and each as a ``data:`` URI: one list for every kind of image, in the order of ``which``.

    ``given_up``: in words what was given up for room; empty where nothing was.
    """

    which: NDArray[np.int64]
    kinds: tuple[list[str], ...]
    given_up: str = ""


MARKUP = 250
"""Bytes of a page around an image: its words, and its place among the others. Small images take less themselves."""

Form = Callable[[Levels], str]


def shown(kinds: Sequence[Levels], labels: NDArray[np.int64], room: int) -> Shown:
    """Images of every kind (N, C, H, W) as data of at most ``room`` bytes in all, MARKUP counted; ``labels`` (N,)."""
    everything = np.arange(len(labels))
    for form, words in FORMS:
        made = tuple([form(image) for image in images] for images in kinds)
        size = _bytes(made)
        if size <= room:
            return Shown(everything, made, words)
    largest = int(np.bincount(labels).max())
    for many in range(max(1, largest * room // size), 0, -1):
        which = np.sort(np.concatenate([np.flatnonzero(labels == label)[:many] for label in np.unique(labels)]))
        kept = tuple([uris[i] for i in which] for uris in made)
        if _bytes(kept) <= room:
            return Shown(which, kept, f"{words}; the first {many} of each class are shown")
    return _of_few_classes(made, labels, room, words)


def _of_few_classes(made: tuple[list[str], ...], labels: NDArray[np.int64], room: int, words: str) -> Shown:
    """The first image of the first classes, as many as there is room for."""
    classes, first = np.unique(labels, return_index=True)
    sizes = np.cumsum([_bytes([[uris[i]] for uris in made]) for i in first])
    which = first[: np.searchsorted(sizes, room, side="right")]
    kept = tuple([uris[i] for i in which] for uris in made)
    return Shown(which, kept, f"{words}; of {len(classes)} classes the first {len(which)} are shown, by one image each")


def _bytes(kinds: Iterable[Sequence[str]]) -> int:
    """What images take on a page."""
    return sum(len(uri) + MARKUP for uris in kinds for uri in uris)


def _png(image: Levels) -> str:
    return _uri(image, "png", optimize=True)


def _webp(quality: int) -> Form:
    return lambda image: _uri(image, "webp", quality=quality, method=4)


def _uri(image: Levels, kind: str, **settings: int | bool) -> str:
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind.upper(), **settings)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


FORMS: tuple[tuple[Form, str], ...] = (
    (_png, ""),
    (_webp(90), "drawn with small losses, for room"),
    (_webp(70), "drawn with losses, for room"),
)
"""Forms of an image from the exact to the smallest, and what to say of each."""
