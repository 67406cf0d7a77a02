"""What a synthetic set holds on its way: segments, their images as one set, what is trained on, and the artifact.

What must stay true: images stand by class, then segment, wherever a set is flat; and a training has the digest of all
that it sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import config_digest, result_keys
from dasm_ray.method.run import Run
from dasm_ray.runtime.pool import Pool
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Chosen, Stored
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.checkpoints import KeptPixels
from dasm_ray.store.room import room
from dasm_ray.store.rundir import versions

Indices = NDArray[np.int64]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """Pixels of groups of classes that are in the object store: ``refs`` (k, m, C, H, W) of each, in class order.

    ``again`` makes them again, after some went with a node.
    """

    pool: Pool
    refs: Sequence[ObjectRef]
    classes: int
    again: Callable[[], Sequence[ObjectRef]]

    def __iter__(self) -> Iterator[Pixels]:
        return map(self.pool.fetch, self.refs)


@dataclass(frozen=True)
class Segment:
    """A segment: pixels (K, m, C, H, W), and where they are learned label logits (K, m, K) and the student's rate.

    Pixels are an array, or lie with workers or on disk, group by group, and are brought here when they are asked for.
    """

    stored: Pixels | Held | KeptPixels
    logits: Pixels | None = None
    step_size: float | None = None

    def parts(self) -> Iterator[Pixels]:
        """The pixels of some classes after those of others, (k, m, C, H, W) each."""
        return iter([self.stored] if isinstance(self.stored, np.ndarray) else self.stored)

    @property
    def pixels(self) -> Pixels:
        """The pixels of all classes."""
        return self.stored if isinstance(self.stored, np.ndarray) else np.concatenate(list(self.parts()))

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, m, C, H, W)."""
        if isinstance(self.stored, np.ndarray):
            return self.stored.shape
        return self.stored.classes, *next(self.parts()).shape[1:]


Segments = list[Segment]


def as_kept(start: Segment, distilled: Segment) -> Segment:
    """Where a distilled segment began, out of its checkpoints, where these hold it."""
    kept = distilled.stored
    return replace(start, stored=replace(kept, name="initial")) if isinstance(kept, KeptPixels) else start


class Target(NamedTuple):
    """What a segment is made from, within-class indices class by class."""

    window: list[Indices]
    """What it may see."""
    frontier: list[Indices]
    """What every probe before it gets wrong and the experts get right; nothing where it was not asked for."""


class Images(NamedTuple):
    """Stored pixels (N, C, H, W), labels (N,) and, where there are any, logits of soft labels (N, K)."""

    pixels: Pixels
    labels: Indices
    logits: Pixels | None
    is_normalised: bool


def flattened(segments: Segments) -> Images:
    """The images of segments, by class, then segment; one group of classes at a time is read beside them."""
    shapes = [each.shape for each in segments]
    together = room((shapes[0][0], sum(shape[1] for shape in shapes), *shapes[0][2:]), np.float32)
    first = 0
    for each, shape in zip(segments, shapes, strict=True):
        label = 0
        for part in each.parts():
            together[label : label + len(part), first : first + shape[1]] = part
            label += len(part)
        first += shape[1]
    learned = [each.logits for each in segments if each.logits is not None]
    logits = np.concatenate(learned, axis=1).reshape(-1, len(together)) if learned else None
    is_normalised = segments[0].step_size is not None  # a student's rate: trajectories, which keep the set so
    return Images(together.reshape(-1, *together.shape[2:]), labels_of(together), logits, is_normalised)


def labels_of(pixels: Pixels) -> Indices:
    """The class of every image of (K, m, C, H, W), in order: (K*m,)."""
    return np.repeat(np.arange(len(pixels), dtype=np.int64), pixels.shape[1])


# --- what is trained on ------------------------------------------------------------------------------------------


def stored(run: Run, images: Images, factor: int = 1, is_soft: bool = False) -> Stored:
    """To train on images of a synthetic set, with their hard or their soft labels."""
    labels = images.logits if is_soft else images.labels
    assert labels is not None
    digest = _digest(images.pixels, labels, factor, images.is_normalised)
    return Stored(run.pool.put(images.pixels), labels, factor, images.is_normalised, digest)


def chosen(indices: Indices, logits: Pixels | None = None) -> Chosen:
    """To train on real images by global index (N,), with their own labels or logits (N, K) of soft ones."""
    return Chosen(indices, logits, _digest(indices, logits))


class Patched(NamedTuple):
    """Patches of real images: stored images of so many tiles a side."""

    images: Images
    factor: int


Choice = Indices | Patched
"""What a way to choose gives: real images by global index (N,), or stored images that hold patches of them."""


def chosen_by(run: Run, choice: Choice, logits: Pixels | None = None) -> Chosen | Stored:
    """To train on what was chosen, with its own labels or logits (N, K) of soft ones."""
    if isinstance(choice, Patched):
        return stored(run, choice.images._replace(logits=logits), choice.factor, logits is not None)
    return chosen(choice, logits)


def _digest(*parts: NDArray[np.generic] | int | None) -> str:
    """16 hex digits over arrays and numbers."""
    total = hashlib.sha256()
    for part in parts:
        total.update(b"none" if part is None else np.ascontiguousarray(part).data)
        total.update(b"" if part is None else repr(np.shape(part)).encode())
    return total.hexdigest()[:16]


# --- the artifact ------------------------------------------------------------------------------------------------


def distilled_set(run: Run, segments: Segments) -> Artifact:
    """The finished set of distilled segments."""
    images, sizes = flattened(segments), [each.shape[1] for each in segments]
    numbers = np.tile(np.repeat(np.arange(len(segments), dtype=np.int32), sizes), run.classes)
    return _artifact(run, images, numbers, run.config.synthetic.factor, segments[-1].step_size)


def selected_set(run: Run, pixels: Pixels, factor: int = 1) -> Artifact:
    """The finished set of what was chosen: ipc stored images of each class, pixels (N, C, H, W) class by class."""
    labels = np.repeat(np.arange(run.classes), run.config.synthetic.ipc)
    images = Images(pixels, labels, None, is_normalised=False)
    return _artifact(run, images, np.zeros(len(pixels), np.int32), factor, None)


def images_of(artifact: Artifact, which: Sequence[bool] | NDArray[np.bool_] | slice = slice(None)) -> Images:
    """The images of a finished set, all or some."""
    logits = None if artifact.soft_labels is None else artifact.soft_labels[which]
    return Images(artifact.pixels[which], artifact.labels[which], logits, artifact.is_normalised)


def _artifact(run: Run, images: Images, segments: NDArray[np.int32], factor: int, step_size: float | None) -> Artifact:
    config, real = run.config, run.real
    whitening = run.pool.fetch(run.whitening) if run.whitening is not None else {}  # networks see images under it
    return Artifact(
        pixels=np.ascontiguousarray(images.pixels),
        labels=images.labels,
        segments=segments,
        soft_labels=images.logits,
        class_names=real.class_names,
        mean=real.mean,
        std=real.std,
        factor=factor,
        step_size=step_size,
        recipe={
            "model": result_keys(config.model),
            "image_size": list(real.shape[1:]),
            "training": result_keys(config.evaluate),
        },
        provenance={
            "config": result_keys(config),
            "config_digest": config_digest(config),
            "data_digest": real.digest,
            "found": dict(real.found),
            "device": run.session.device,
            "versions": versions(),
        },
        is_normalised=images.is_normalised,
        whitening_mean=whitening.get("mean"),
        whitening_matrix=whitening.get("matrix"),
    )
