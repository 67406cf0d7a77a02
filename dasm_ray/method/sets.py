"""What a synthetic set holds on its way: segments, their images as one set, and the artifact made of them.

What must stay true: images stand by class, then segment, wherever a set is flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.digests import digest_of, what
from dasm_ray.method.run import Here
from dasm_ray.runtime.pool import fetch, put
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.rundir import versions

Indices = NDArray[np.int64]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """A segment: pixels (K, m, C, H, W), and where they are learned label logits (K, m, K) and the student's rate."""

    pixels: Pixels
    logits: Pixels | None = None
    step_size: float | None = None


Segments = list[Segment]


class Images(NamedTuple):
    """Stored pixels (N, C, H, W), labels (N,) and, where there are any, logits of soft labels (N, K)."""

    pixels: Pixels
    labels: Indices
    logits: Pixels | None
    is_normalised: bool


def training_on(images: Images, factor: int = 1, is_soft: bool = False) -> tuple[str, Any]:
    """The images as ``Worker.evaluate`` takes them, with their hard or their soft labels."""
    labels = images.logits if is_soft else images.labels
    return "synthetic", ((put(images.pixels),), labels, factor, images.is_normalised)


def flattened(segments: Segments) -> Images:
    """The images of segments, by class, then segment."""
    together = np.concatenate([each.pixels for each in segments], axis=1)
    learned = [each.logits for each in segments if each.logits is not None]
    logits = np.concatenate(learned, axis=1).reshape(-1, len(together)) if learned else None
    is_normalised = segments[0].step_size is not None  # a student's rate: trajectories, which keep the set so
    return Images(together.reshape(-1, *together.shape[2:]), labels_of(together), logits, is_normalised)


def labels_of(pixels: Pixels) -> Indices:
    """The class of every image of (K, m, C, H, W), in order: (K*m,)."""
    return np.repeat(np.arange(len(pixels), dtype=np.int64), pixels.shape[1])


def artifact_of(here: Here, segments: Segments | None, images: Pixels | None = None) -> Artifact:
    """The finished set: distilled segments, or ipc real ``images`` (N, C, H, W) of each class."""
    config, real = here.config, here.real
    if segments is not None:
        pixels, labels, logits, is_normalised = flattened(segments)
        numbers = np.tile(np.repeat(np.arange(len(segments), dtype=np.int32), config.segment_ipc), here.classes)
        step_size = segments[-1].step_size
    else:
        assert images is not None
        pixels, labels = images, np.repeat(np.arange(here.classes), config.synthetic.ipc)
        logits, is_normalised, numbers, step_size = None, False, np.zeros(len(images), np.int32), None
    whitening = fetch(here.job.whitening) if is_normalised and here.job.whitening is not None else {}
    return Artifact(
        pixels=np.ascontiguousarray(pixels),
        labels=labels,
        segments=numbers,
        soft_labels=logits,
        class_names=real.class_names,
        mean=real.mean,
        std=real.std,
        factor=config.synthetic.factor if segments is not None else 1,
        step_size=step_size,
        recipe={"model": what(config.model), "image_size": list(real.shape[1:]), "training": what(config.evaluate)},
        provenance={
            "config": what(config),
            "config_digest": digest_of(what(config)),
            "data_digest": real.digest,
            "device": here.job.device,
            "versions": versions(),
        },
        is_normalised=is_normalised,
        whitening_mean=whitening.get("mean"),
        whitening_matrix=whitening.get("matrix"),
    )
