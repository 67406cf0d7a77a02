"""The synthetic images of a page: class by class, each beside where it started and the nearest real image.

What must stay true: what an image is can be read as well as seen, and what stands beside an image is its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dasm_ray.config.shown import escaped
from dasm_ray.plain import Tree
from dasm_ray.report.gathered import Gathered, Pictures
from dasm_ray.report.thumbnails import Shown, shown

SMALL = 64
"""Pixels of a side up to which an image is enlarged as squares."""


def gallery(run: Gathered, room: int) -> Tree | None:
    """What the template shows of a run's images, in at most ``room`` bytes; None where there are none."""
    pictures = run.pictures
    if pictures is None:
        return None
    kinds = [pictures.images]
    kinds += [] if pictures.starts is None else [pictures.starts]
    kinds += [] if pictures.nearest is None else [pictures.nearest.pictures]
    drawn = shown(kinds, pictures.labels, room)
    names = [escaped(name, 60) for name in run.class_names]
    cards = _cards(run, pictures, drawn)
    return {
        "classes": names,
        "segments": int(pictures.segments.max()) + 1,
        "beside": " and ".join(_beside(pictures)),
        "is_small": max(pictures.images.shape[2:]) <= SMALL,
        "says": _says(run, pictures, drawn),
        "rows": [{"label": label, "name": names[label], "cards": of} for label, of in sorted(cards.items())],
    }


def _beside(pictures: Pictures) -> list[str]:
    """What stands beside each image."""
    found = {"where it started": pictures.starts, "the nearest real image": pictures.nearest}
    return [words for words, there in found.items() if there is not None]


def _says(run: Gathered, pictures: Pictures, drawn: Shown) -> str:
    beside, factor = _beside(pictures), run.config.synthetic.factor
    said = ["Every stored image, class by class" + (f", beside {' and '.join(beside)}." if beside else ".")]
    if factor > 1:
        said.append(f"A stored image holds {factor**2} training images as tiles.")
    if pictures.nearest is not None:
        middle = 100 * float(np.median(pictures.nearest.distances))
        said.append(
            f"The nearest is the training image of the same class that differs least in its pixels, by {middle:.0f} % "
            "of full scale in the median."
        )
    if drawn.given_up:
        said.append(f"Images are {drawn.given_up}.")
    return " ".join(said)


def _cards(run: Gathered, pictures: Pictures, drawn: Shown) -> dict[int, list[Tree]]:
    """The images by class, in the order of the set."""
    cards: dict[int, list[Tree]] = {}
    for place, image in enumerate(drawn.which):
        of_class = cards.setdefault(int(pictures.labels[image]), [])
        of_class.append(_card(run, pictures, drawn, place, len(of_class) + 1))
    return cards


def _card(run: Gathered, pictures: Pictures, drawn: Shown, place: int, number: int) -> Tree:
    """One stored image: where it started, as it is, and the nearest real one."""
    image = int(drawn.which[place])
    segment = int(pictures.segments[image])
    title = f"{escaped(run.class_names[int(pictures.labels[image])], 60)}, image {number}, segment {segment + 1}"
    height, width = pictures.images.shape[2:]
    images = [
        {"kind": kind, "src": uris[place], "alt": f"{title}: {words}", "width": width, "height": height}
        for (kind, words), uris in zip(_kinds(run, pictures, image), drawn.kinds, strict=True)
    ]
    order = ("start", "synthetic", "nearest")
    return {"title": title, "segment": segment, "images": sorted(images, key=lambda each: order.index(each["kind"]))}


def _kinds(run: Gathered, pictures: Pictures, image: int) -> Sequence[tuple[str, str]]:
    """The kinds of pictures of an image in the order in which they were drawn, and what each is."""
    said = [("synthetic", "the synthetic image")]
    if pictures.starts is not None:
        is_noise, tiles = run.config.synthetic.init == "noise", run.config.synthetic.factor > 1
        said.append(
            ("start", f"the {'noise' if is_noise else 'real images' if tiles else 'real image'} it started from")
        )
    if pictures.nearest is not None:
        said.append(("nearest", f"the nearest real image, {100 * pictures.nearest.distances[image]:.0f} % away"))
    return said
