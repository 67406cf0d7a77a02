"""The finished set as PyTorch sees it: a dataset of training images, and the transform that test images need.

What must stay true: ten plain lines around `load` train as the evaluation of this package does, up to augmentation.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dasm_ray.core.decode import decode_all
from dasm_ray.errors import ArtifactError
from dasm_ray.store import artifact as store
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.place import Place


class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """Decoded, normalised training images (C, H, W) float32 with their labels.

    ``images`` (n, C, H, W) and ``labels`` (n,) hold all of them; a label is a class number, or a row of probabilities
    (n, K) where the set has soft labels. ``classes`` are the class names in label order, ``recipe`` what the
    set was evaluated with.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.classes = artifact.class_names
        self.recipe: dict[str, Any] = artifact.recipe
        self.labels = _labels_of(artifact)
        images = decode_all(artifact.pixels, artifact.factor)
        self.images = images if artifact.is_normalised else self._normalised(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def transform(self, image: Image.Image | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """A test image as the network expects it: a PIL image, or uint8 or [0, 1] pixels (C, H, W), to (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(*image.size[::-1], channels)
            image = image.transpose(2, 0, 1)
        pixels = torch.tensor(np.asarray(image))
        if pixels.shape != (channels, height, width):
            wanted = f"{channels}x{height}x{width}"
            raise ValueError(f"a test image is {'x'.join(map(str, pixels.shape))}, but the set was made for {wanted}")
        return self._normalised(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float())

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.artifact.mean, self.artifact.std))
        pixels = (pixels - mean) / std
        centre, matrix = self.artifact.whitening_mean, self.artifact.whitening_matrix
        if centre is None or matrix is None:
            return pixels
        flat = pixels.reshape(-1, len(centre)) - torch.tensor(centre)
        return (flat @ torch.tensor(matrix)).view(pixels.shape)


def _labels_of(artifact: Artifact) -> Tensor:
    """Class numbers (n,), or probabilities (n, K) out of the logits that are stored, for each training image."""
    labels = torch.tensor(artifact.labels)
    if artifact.soft_labels is not None:
        labels = torch.tensor(artifact.soft_labels).softmax(1)
    return labels.repeat_interleave(artifact.factor**2, dim=0)


def load(path: str | os.PathLike[str]) -> SyntheticSet:
    """The set in a run directory or an artifact folder, local or by URI. Raises ArtifactError if it cannot be used."""
    return SyntheticSet(read_artifact(find(path)))


def find(path: str | os.PathLike[str]) -> Place:
    """The artifact's folder: the path itself, or ``synthetic`` in a run directory."""
    place = Place(path)
    return place if (place / "dataset.json").exists() else place / "synthetic"


def export(path: str, to: str, kind: str) -> Place:
    """Writes the set in another form into a new folder: ``png`` folders per class, ``npz`` arrays, or ``pt`` tensors.

    ``pt``: images.pt (n, C, H, W) decoded, in [0, 1] unless the set is kept normalised; labels.pt (n,), or (n, K)
    probabilities; lr.pt the step size to train with.
    """
    target = Place(to)
    if target.exists() and target.names():
        raise ArtifactError(f"{target}: is not empty; name a new folder")
    artifact = read_artifact(find(path))
    if kind == "pt":
        _export_tensors(artifact, target)
    else:
        store.export(artifact, target, kind)
    return target


def _export_tensors(artifact: Artifact, target: Place) -> None:
    step_size = artifact.step_size or artifact.recipe["training"]["lr"]
    for name, tensor in {
        "images": decode_all(artifact.pixels, artifact.factor),
        "labels": _labels_of(artifact),
        "lr": torch.tensor(float(step_size)),
    }.items():
        data = io.BytesIO()
        torch.save(tensor, data)
        (target / f"{name}.pt").write_bytes(data.getvalue())
