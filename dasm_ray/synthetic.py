"""The finished set as PyTorch sees it: a dataset of training images, and the transform that test images need.

What must stay true: ten plain lines around `load` train as the evaluation of this package does, up to augmentation; no
test image and no export is altered without a word.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from dasm_ray.config.shown import escaped, several
from dasm_ray.core.decode import Decoded, decode_all
from dasm_ray.core.networks.samples import HELD_BYTES
from dasm_ray.core.whiten import Whitening, normalise
from dasm_ray.errors import ArtifactError, ConfigError, DataError
from dasm_ray.plain import Plain, Tree
from dasm_ray.store import ddranking
from dasm_ray.store.artifact import Artifact, read_artifact
from dasm_ray.store.datasets.pixels import converted, decoded
from dasm_ray.store.description import LEAST_STD, artifact_place
from dasm_ray.store.exports import export_npz, export_png
from dasm_ray.store.place import Place


class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """Decoded, normalised training images (C, H, W) float32 with their labels.

    A large set is decoded image by image, as they are asked for. ``images`` (n, C, H, W), made when it is first asked
    for, and ``labels`` (n,) hold all of them; a label is a class number, or a row of probabilities (n, K) where the set
    has soft labels. ``classes`` are the class names in label order, ``recipe`` what the set was evaluated with.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.classes = artifact.class_names
        self.recipe: Tree = artifact.recipe
        self.labels = _labels_of(artifact)
        self._ground, self._is_scaled = _ground_of(artifact), _was_scaled(artifact)
        self._decoded = Decoded(artifact.pixels, artifact.factor)
        whitened = artifact.whitening_matrix is not None and not artifact.is_normalised
        self._is_held = whitened or len(self) * artifact.pixels[:1].nbytes <= HELD_BYTES

    @cached_property
    def images(self) -> Tensor:
        """All training images (n, C, H, W), held from now on."""
        self._is_held = True
        return self._seen(np.arange(len(self)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._is_held or not isinstance(index, int | np.integer):
            return self.images[index], self.labels[index]
        return self._seen(np.array([range(len(self))[index]]))[0], self.labels[index]

    def _seen(self, indices: NDArray[np.int64]) -> Tensor:
        """Training images (n, C, H, W) as a network sees them."""
        images = self._decoded.take(indices)
        return images if self.artifact.is_normalised else self._normalised(images)

    def transform(self, image: Image.Image | NDArray[np.generic] | Tensor) -> Tensor:
        """A test image as the network expects it: (C, H, W) float32, normalised, and whitened where the set is.

        A PIL image is read by the rules for files (docs/data.md): upright, laid on the set's ground where transparent,
        and made grey where the set is, refused where it has several frames or more than 8 bits a channel; it is scaled
        and cut to the set's square where the set's own images were (``data.image_size``). An array or tensor is
        (C, H, W): integers are levels 0..255, floats lie in [0, 1]. Anything else is refused with a DataError (a
        ValueError too), never cut to fit.
        """
        channels, height, width = self.artifact.pixels.shape[1:]
        pixels = pixels_of(image, channels, self._ground, (width, height) if self._is_scaled else None)
        if pixels.shape != (channels, height, width):
            wanted = f"{channels}x{height}x{width}"
            raise ImageRefused(f"a test image is {'x'.join(map(str, pixels.shape))}, but the set was made for {wanted}")
        return self._normalised(torch.tensor(pixels))

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalised(self.artifact, pixels)


def normalised(artifact: Artifact, pixels: Tensor) -> Tensor:
    """Pixels (..., C, H, W) in [0, 1] by the set's own mean and std, then whitened where the set is."""
    centre, matrix = artifact.whitening_mean, artifact.whitening_matrix
    is_whitened = centre is not None and matrix is not None
    whitening = Whitening(torch.tensor(centre), torch.tensor(matrix)) if is_whitened else None
    return normalise(pixels, artifact.mean, artifact.std, whitening)


def _labels_of(artifact: Artifact) -> Tensor:
    """Class numbers (n,), or probabilities (n, K) out of the logits that are stored, for each training image."""
    labels = torch.tensor(artifact.labels)
    if artifact.soft_labels is not None:
        labels = torch.tensor(artifact.soft_labels).softmax(1)
    return labels.repeat_interleave(artifact.factor**2, dim=0)


# --- test images -------------------------------------------------------------------------------------------------


class ImageRefused(DataError, ValueError):
    """A test image that could be meant in two ways, or in none."""


def _ground_of(artifact: Artifact) -> str:
    """The colour that the set's own images were laid on where they were transparent: white, unless it says another."""
    ground = _read_with(artifact, "ground")
    return ground if isinstance(ground, str) and re.fullmatch(r"black|#[0-9a-fA-F]{6}", ground) else "white"


def _was_scaled(artifact: Artifact) -> bool:
    """Whether the set's own images were scaled to a square of the size that it has, and cut."""
    *_, height, width = artifact.pixels.shape
    return bool(height == width == _read_with(artifact, "image_size"))


def _read_with(artifact: Artifact, key: str) -> Plain:
    """What a key of ``data`` was when the set's real images were read; None where it was unset, or nobody knows."""
    kept = artifact.provenance.get("config")
    data = kept.get("data") if isinstance(kept, dict) else None
    return data.get(key) if isinstance(data, dict) else None


def pixels_of(
    image: Image.Image | NDArray[np.generic] | Tensor,
    channels: int,
    ground: str = "white",
    size: tuple[int, int] | None = None,
) -> NDArray[np.generic]:
    """The values of an image as float32 in [0, 1]: (C, H, W) of a picture, the shape that it has of an array.

    ``size`` (W, H): what a picture is scaled and cut to, as the reader of real images does; unset: it stays as it is.
    """
    if isinstance(image, Image.Image):
        picture = _as_picture(image, "L" if channels == 1 else "RGB", ground)
        levels = np.asarray(picture if size is None else ImageOps.fit(picture, size, Image.Resampling.BILINEAR))
        return _scaled(levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1))
    if isinstance(image, Tensor):
        held = image.detach().cpu()
        return _scaled((held.double() if held.is_floating_point() else held).numpy())
    if not isinstance(image, np.ndarray):
        raise ImageRefused(f"a test image is a PIL image, an array or a tensor, not a {type(image).__name__}")
    return _scaled(image)


def _as_picture(image: Image.Image, mode: str, ground: str) -> Image.Image:
    """A PIL image in ``mode``, "L" or "RGB", as the reader of real images makes it."""
    try:
        return converted(decoded(image, "a test image"), "a test image", mode, ground)[0]
    except DataError as error:
        raise ImageRefused(str(error)) from None


def _scaled(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Levels 0..255 of whole numbers, or floats that lie in [0, 1] already, as float32 in [0, 1]."""
    if values.dtype.kind in "iu":
        if values.size and (values.min() < 0 or values.max() > 255):
            raise ImageRefused(
                f"a test image of {values.dtype} reaches from {values.min()} to {values.max()}; whole numbers are "
                f"levels 0..255, so scale it"
            )
        return values.astype(np.float32) / np.float32(255)
    if values.dtype.kind != "f":
        raise ImageRefused(f"a test image of {values.dtype} is neither levels 0..255 nor floats in [0, 1]; convert it")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ImageRefused(
            f"a test image of {values.dtype} reaches from {values.min():.4g} to {values.max():.4g}; floats must lie in "
            f"[0, 1], so divide levels by 255, and leave normalising to this transform"
        )
    return values.astype(np.float32)


# --- the set on disk ---------------------------------------------------------------------------------------------


@runtime_checkable
class Placed(Protocol):
    """What knows where it lies, such as the result of a run."""

    @property
    def place(self) -> Place: ...


def load(path: str | os.PathLike[str] | Place | Placed) -> SyntheticSet:
    """The set in a run directory or an artifact folder, local or by URI, or in what `distill` gave back.

    Raises ArtifactError if it cannot be used, RunDirError for what names no place.
    """
    return SyntheticSet(read_artifact(artifact_place(path.place if isinstance(path, Placed) else Place(path))))


KINDS = ("png", "npz", "pt", "ddranking")
LABELS = ("logits", "probabilities", "hard")


def export(
    path: str, to: str, kind: str, *, labels: str | None = None, normalise: str | None = None, stored: bool = False
) -> list[str]:
    """Writes the set in another form into the new folder ``to``; returns in lines what was written and what left out.

    png: CLASS/00000.png, 8 bits, the training images, or with ``stored`` the stored ones; labels.csv where labels are
    soft. npz: synthetic.npz, exact arrays as stored. pt: images.pt (n, C, H, W), the training images; labels.pt (n,)
    class numbers, or (n, K) where labels are soft; lr.pt, mean.pt, std.pt, whitening_mean.pt and whitening_matrix.pt.
    ddranking: the same as its evaluator takes them, and evaluate.py, which calls it.

    ``labels``, of png and pt, where they are soft: ``logits`` (unset), since the field's evaluators put a softmax over
    them, ``probabilities``, or ``hard``. ``normalise``, of pt: unset, in [0, 1] unless the set is kept normalised;
    ``none``, in [0, 1]; ``own``, by the set's own statistics, and whitened; or an evaluator's, M,M,M:S,S,S.
    """
    _check_options(kind, labels, normalise, stored)
    target = Place(to)
    if target.exists() and target.names():
        raise ArtifactError(f"{target}: is not empty; name a new folder")
    artifact = read_artifact(artifact_place(Place(path)))
    if artifact.soft_labels is None and labels in ("logits", "probabilities"):
        raise ConfigError(f"--labels {labels}: the labels of {path} are hard; leave the option out")
    chosen = labels or "logits"
    if kind == "npz":
        lines = export_npz(artifact, target)
    elif kind == "png":
        said = export_png(artifact if stored else trained_on(artifact), target, chosen)
        lines = [*_of_slots(artifact, stored), *said]
    elif kind == "ddranking":
        lines = _export_for_ddranking(trained_on(artifact), target)
    else:
        lines = _export_tensors(trained_on(artifact), target, chosen, normalise)
    return [f"written to {target}", *lines]


def _check_options(kind: str, labels: str | None, normalise: str | None, stored: bool) -> None:
    """ConfigError for what there is not, and for an option that the form has no use for."""
    if kind not in KINDS:
        raise ConfigError(f"--format {escaped(kind)}: there is no such form; take {', '.join(KINDS)}")
    if labels not in (None, *LABELS):
        raise ConfigError(f"--labels {escaped(labels)}: there are no such labels; take {', '.join(LABELS)}")
    if labels is not None and kind == "ddranking":
        raise ConfigError("--labels: ddranking takes logits, or class numbers where labels are hard; leave it out")
    if labels is not None and kind == "npz":
        raise ConfigError("--labels: npz holds hard labels, and logits where there are any; leave the option out")
    if not isinstance(normalise, str | None):
        raise ConfigError(f"--normalise: {escaped(repr(normalise), 60)} is no text; say own, none, or means and stds")
    if normalise is not None and kind != "pt":
        raise ConfigError(f"--normalise: {kind} is not normalised; leave the option out, or take --format pt")
    if stored and kind != "png":
        does = "holds the stored images always" if kind == "npz" else "holds training images, which evaluators take"
        raise ConfigError(f"--stored: {kind} {does}; leave the option out")


def trained_on(artifact: Artifact) -> Artifact:
    """The same set with its training images stored one by one, as multi-formation decodes them."""
    times = artifact.factor**2
    labels, segments = (np.repeat(values, times) for values in (artifact.labels, artifact.segments))
    soft = None if artifact.soft_labels is None else np.repeat(artifact.soft_labels, times, axis=0)
    pixels = decode_all(artifact.pixels, artifact.factor).numpy()
    return replace(artifact, pixels=pixels, labels=labels, segments=segments, soft_labels=soft, factor=1)


def _of_slots(artifact: Artifact, stored: bool) -> list[str]:
    if artifact.factor == 1:
        return []
    many = f"{artifact.factor} x {artifact.factor}"
    if stored:
        return [f"each image is a grid of {many} training images; leave --stored out for these themselves"]
    return [f"training images, {many} of each stored image; --stored writes the grids"]


# --- tensors for other evaluators --------------------------------------------------------------------------------


def _export_for_ddranking(artifact: Artifact, target: Place) -> list[str]:
    """The tensors of training images, class by class, numbered as ddranking does, and the program that calls it."""
    data = ddranking.known(artifact)
    named = ddranking.numbered(artifact, data)
    order = np.argsort(named.labels, kind="stable")
    soft = None if named.soft_labels is None else named.soft_labels[order]
    ordered = replace(named, pixels=named.pixels[order], labels=named.labels[order], soft_labels=soft)
    is_own = artifact.is_normalised
    lines = _export_tensors(ordered, target, "logits", "own" if is_own else data.statistics)
    model = artifact.recipe.get("model")
    told = model.get("depth") if isinstance(model, dict) else None
    depth = told if isinstance(told, int) and not isinstance(told, bool) else 3 + (data.side > 32)
    program = ddranking.call(data, len(artifact.labels) // data.classes, depth, soft is not None, is_own)
    (target / ddranking.CALL).write_text(program)
    needs = "the folder of the real images, and this set" if is_own else "the folder of the real images"
    if named.class_names != artifact.class_names:
        lines.append("classes are numbered as ddranking does, by the sorted names of their folders, not as in the set")
    return [*lines, f"{ddranking.CALL}: calls ddranking 0.2 on them; give it {needs}"]


def _export_tensors(artifact: Artifact, target: Place, labels: str, how: str | None) -> list[str]:
    """images.pt and what goes with it, of a set whose images are training images."""
    images, mean, std, is_whitened, said = _images_for(artifact, how)
    rate = artifact.step_size or artifact.recipe["training"].get("lr")
    whitening = (artifact.whitening_mean, artifact.whitening_matrix) if is_whitened else (None, None)
    targets, of_labels = _targets(artifact, labels)
    tensors = {
        "images": (images, f"{_shape(images)} training images, {said}"),
        "labels": (targets, of_labels),
        "lr": (rate, "the rate that the set was made for" if artifact.step_size else "the rate of the set's recipe"),
        "mean": (mean, "a value a channel, of pixels in [0, 1]"),
        "std": (std, "the same; normalise test images by both"),
        "whitening_mean": (whitening[0], "of normalised images, flat"),
        "whitening_matrix": (whitening[1], "test images: (flat - whitening_mean) @ whitening_matrix"),
    }
    lines = []
    for name, (values, meaning) in tensors.items():
        if values is not None:
            tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)
            (target / f"{name}.pt").write_bytes(_saved(tensor))
            lines.append(f"{name}.pt: {meaning}")
    left = ["segments", "class names", "the recipe"] + ["the rate, which the recipe lacks"] * (rate is None)
    left += ["soft labels"] * (artifact.soft_labels is not None and labels == "hard")
    left += ["the whitening"] * (artifact.whitening_matrix is not None and not is_whitened)
    return [*lines, f"left out: {', '.join(left)}"]


class _Images(NamedTuple):
    """Images as asked for, what test images are normalised by, whether they are then whitened, and this in words."""

    images: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    is_whitened: bool
    said: str


def _images_for(artifact: Artifact, how: str | None) -> _Images:
    own, is_whitened = (artifact.mean, artifact.std), artifact.whitening_matrix is not None
    stored, clipped = torch.tensor(artifact.pixels), " (clipped to it)" * artifact.is_normalised
    if how is None and not artifact.is_normalised:
        also = "; made under a whitening, which --normalise own applies" * is_whitened
        return _Images(stored, *own, False, f"in [0, 1]: to be normalised by mean.pt and std.pt{also}")
    if how in (None, "own"):
        images = stored if artifact.is_normalised else normalised(artifact, stored)
        return _Images(images, *own, is_whitened, "normalised by mean.pt and std.pt" + ", whitened" * is_whitened)
    pictures = torch.tensor(artifact.visible())
    if how == "none":
        return _Images(pictures, *own, False, f"in [0, 1]{clipped}: to be normalised by mean.pt and std.pt")
    mean, std = _moments(how, pictures.shape[1])
    said = f"as pictures in [0, 1]{clipped} normalised by what was given, in mean.pt and std.pt"
    return _Images(normalise(pictures, mean, std, None), mean, std, False, said)


def _moments(text: str, channels: int) -> tuple[list[float], list[float]]:
    """``MEAN,MEAN,MEAN:STD,STD,STD`` as numbers, one of each a channel."""
    mean, _, std = text.partition(":")
    try:
        means, stds = ([float(part) for part in part.split(",")] for part in (mean, std))
    except ValueError:
        means, stds = [], []
    fits = len(means) == len(stds) == channels and all(map(math.isfinite, means + stds)) and min(stds) >= LEAST_STD
    if not fits:
        example = ",".join(["0.5"] * channels) + ":" + ",".join(["0.25"] * channels)
        raise ConfigError(
            f"--normalise {escaped(text, 60)}: say own, none, or means and stds above 0 of "
            f"{several(channels, 'channels')}, as in {example}"
        )
    return means, stds


def _targets(artifact: Artifact, labels: str) -> tuple[Tensor, str]:
    if artifact.soft_labels is None or labels == "hard":
        return torch.tensor(artifact.labels), "class numbers"
    logits = torch.tensor(artifact.soft_labels)
    if labels == "logits":
        return logits, "soft labels as logits, for evaluators that put a softmax over them"
    return logits.softmax(1), "soft labels as probabilities; an evaluator that puts a softmax over them flattens them"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _saved(tensor: Tensor) -> bytes:
    data = io.BytesIO()
    torch.save(tensor.contiguous(), data)
    return data.getvalue()
