"""What the evaluator of `ddranking` (0.2) takes of a set: its names, its statistics, and the call that evaluates.

It normalises test images by statistics of its own, and gives networks that were trained on a set the test images that
``custom_val_trans`` makes, where there is one. It reads Tiny ImageNet from folders, and numbers its classes by their
sorted names. What must stay true: training and test images are normalised alike; a label means the same class in both;
and nothing that a set says of itself gets into the call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain
from dasm_ray.store.artifact import Artifact

CALL = "evaluate.py"


class Known(NamedTuple):
    """A data set as ddranking knows it: its name there, classes, side, by what it normalises, and how it numbers."""

    name: str
    classes: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_by_folder: bool = False  # classes have the numbers of their folders, in the order of the folders' names

    @property
    def statistics(self) -> str:
        """As --normalise takes them."""
        return ":".join(",".join(map(str, values)) for values in (self.mean, self.std))


CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SETS = {
    "cifar10": Known("CIFAR10", 10, 32, *CIFAR),
    "cifar100": Known("CIFAR100", 100, 32, *CIFAR),
    "tiny_imagenet": Known("TinyImageNet", 200, 64, *IMAGENET, is_by_folder=True),
}


def known(artifact: Artifact) -> Known:
    """The data set that a set was made of; ConfigError if ddranking does not have it, or has it in another shape."""
    config = artifact.provenance.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    found = SETS.get(str(data.get("name"))) if isinstance(data, dict) else None
    if found is None:
        names = ", ".join(SETS)
        raise ConfigError(f"--format ddranking: it evaluates sets made of {names}; take --format pt for others")
    shape = (3, found.side, found.side)
    if artifact.pixels.shape[1:] != shape or len(artifact.class_names) != found.classes:
        raise ConfigError(
            f"--format ddranking: {found.name} has {found.classes} classes of {'x'.join(map(str, shape))} there, and "
            f"this set is of another shape; take --format pt"
        )
    return found


def numbered(artifact: Artifact, data: Known) -> Artifact:
    """The same set, its classes numbered as ddranking numbers them; ConfigError where their order cannot be told."""
    folders = _folders_of(artifact) if data.is_by_folder else None
    if folders is None and (not data.is_by_folder or _is_of_parquet(artifact)):
        return artifact
    if folders is None:
        raise ConfigError(
            f"--format ddranking: it numbers the classes of {data.name} by their folders, and this set does not say "
            f"which folder each of its classes had; distil it anew into another directory, or take --format pt"
        )
    order = np.argsort(np.array(folders), kind="stable")  # of each number there, the class here
    soft = None if artifact.soft_labels is None else np.ascontiguousarray(artifact.soft_labels[:, order])
    names = tuple(artifact.class_names[label] for label in order)
    labels = np.argsort(order)[artifact.labels].astype(artifact.labels.dtype)
    return replace(artifact, labels=labels, soft_labels=soft, class_names=names)


def _is_of_parquet(artifact: Artifact) -> bool:
    """Whether the real images came in Parquet, where the published files number classes by their folders too."""
    form = _found(artifact, "form")
    return isinstance(form, str) and "in Parquet, column" in form


def _folders_of(artifact: Artifact) -> Sequence[str] | None:
    """The folder of each class, (K,), as the set says or its class names show; None where nobody knows."""
    told, names = _found(artifact, "class_folders"), artifact.class_names
    if isinstance(told, list | tuple):
        folders = [each for each in told if isinstance(each, str)]
        return folders if len(set(folders)) == len(told) == len(names) else None
    return names if all(re.fullmatch(r"n\d{8}", name) for name in names) else None


def _found(artifact: Artifact, fact: str) -> Plain:
    """What was found of the real images, as far as the set says."""
    found = artifact.provenance.get("found")
    return found.get(fact) if isinstance(found, dict) else None


def call(data: Known, per_class: int, depth: int, is_soft: bool, has_own_normalisation: bool) -> str:
    """A program that evaluates the tensors beside it; where they are normalised as only the set says, by its own."""
    what = "Soft" if is_soft else "Hard"
    labels = "soft_labels" if is_soft else "hard_labels"
    own = "custom_val_trans=dasm_ray.load(sys.argv[2]).transform,  # as the set was made: normalised, whitened"
    lines = [
        '"""Evaluates the set in this folder by ddranking 0.2: python evaluate.py REAL_IMAGES'
        + ' SET"""' * has_own_normalisation
        + '"""' * (not has_own_normalisation),
        "",
        "import sys",
        "from pathlib import Path",
        "",
        *["import dasm_ray"] * has_own_normalisation,
        "import torch",
        f"from ddranking.metrics import LabelRobustScore{what}",
        "",
        "here = Path(__file__).parent",
        'images, labels, rate = (torch.load(here / f"{name}.pt") for name in ("images", "labels", "lr"))',
        f"score = LabelRobustScore{what}(",
        f'    dataset="{data.name}",',
        "    real_data_path=sys.argv[1],",
        f"    ipc={per_class},",
        f'    model_name="ConvNet-{depth}",',
        f"    im_size=({data.side}, {data.side}),",
        "    use_zca=False,",
        *["    soft_label_mode='S',", "    soft_label_criterion='sce',"] * is_soft,
        *["    loss_fn_kwargs={'temperature': 1.0, 'scale_loss': False},"] * is_soft,
        *["    teacher_model_names=['ConvNet-" + str(depth) + "'],"] * is_soft,
        *[f"    {own}"] * has_own_normalisation,
        "    step_size=150,",
        '    device="cuda" if torch.cuda.is_available() else "cpu",',
        ")",
        f"print(score.compute_metrics(image_tensor=images, {labels}=labels, syn_lr=rate))",
        "",
    ]
    return "\n".join(lines)
