"""What the evaluator of `ddranking` (0.2) takes of a set: its names, its statistics, and the call that evaluates.

It normalises test images by statistics of its own, and gives networks that were trained on a set the test images that
``custom_val_trans`` makes, where there is one. What must stay true: training and test images are normalised alike; and
nothing that a set says of itself gets into the call.
"""

from __future__ import annotations

from typing import NamedTuple

from dasm_ray.errors import ConfigError
from dasm_ray.store.artifact import Artifact

CALL = "evaluate.py"


class Known(NamedTuple):
    """A data set as ddranking knows it: its name there, classes, side, and by what it normalises."""

    name: str
    classes: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def statistics(self) -> str:
        """As --normalise takes them."""
        return ":".join(",".join(map(str, values)) for values in (self.mean, self.std))


CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

SETS = {
    "cifar10": Known("CIFAR10", 10, 32, *CIFAR),
    "cifar100": Known("CIFAR100", 100, 32, *CIFAR),
    "tiny_imagenet": Known("TinyImageNet", 200, 64, *IMAGENET),
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
