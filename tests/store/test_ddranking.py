"""The export for ddranking: images by its statistics, class by class, and a call that its evaluator accepts."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dasm_ray.errors import ConfigError
from dasm_ray.store.artifact import Artifact, write_artifact
from dasm_ray.store.place import Place
from dasm_ray.synthetic import export, load


def a_set(**changes: Any) -> Artifact:
    """A set of CIFAR-10, two images of factor 2 a class, out of the order of classes."""
    made = Artifact(
        pixels=np.random.default_rng(0).random((20, 3, 32, 32), np.float32),
        labels=np.tile(np.arange(10), 2),
        segments=np.repeat(np.arange(2, dtype=np.int32), 10),
        soft_labels=None,
        class_names=tuple(f"class {number}" for number in range(10)),
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.2),
        factor=2,
        step_size=0.05,
        recipe={"model": {}, "training": {"lr": 0.01}},
        provenance={"config": {"data": {"name": "cifar10"}}},
    )
    return replace(made, **changes)


def exported(folder: Path, artifact: Artifact) -> tuple[dict[str, torch.Tensor], str]:
    write_artifact(Place(folder / "set"), artifact)
    export(str(folder / "set"), str(folder / "out"), "ddranking")
    tensors = {path.stem: torch.load(path, weights_only=True) for path in (folder / "out").glob("*.pt")}
    return tensors, (folder / "out" / "evaluate.py").read_text()


def arguments(program: str) -> tuple[str, set[str], dict[str, Any]]:
    """The class that is called, the names of its arguments, and those that are constants."""
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    (made,) = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id.startswith("LabelRobustScore")]
    assert isinstance(made.func, ast.Name)
    constants = {k.arg: k.value.value for k in made.keywords if isinstance(k.value, ast.Constant) and k.arg}
    return made.func.id, {k.arg for k in made.keywords if k.arg}, constants


def test_images_are_normalised_by_its_statistics_and_stand_class_by_class(tmp_path: Path) -> None:
    tensors, program = exported(tmp_path, a_set())
    assert tensors["labels"].tolist() == [label for label in range(10) for _ in range(8)]
    train = load(tmp_path / "set")
    order = np.argsort(train.labels.numpy(), kind="stable")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.2)))
    pixels = train.images[order] * std + mean
    theirs = torch.tensor((0.4914, 0.4822, 0.4465)).view(3, 1, 1), torch.tensor((0.2023, 0.1994, 0.2010)).view(3, 1, 1)
    torch.testing.assert_close(tensors["images"], (pixels - theirs[0]) / theirs[1], rtol=1e-4, atol=1e-5)
    assert tensors["lr"].item() == pytest.approx(0.05)
    name, names, constants = arguments(program)
    assert name == "LabelRobustScoreHard"
    assert (constants["dataset"], constants["ipc"], constants["model_name"]) == ("CIFAR10", 8, "ConvNet-3")
    assert constants["use_zca"] is False
    assert "custom_val_trans" not in names


def test_a_set_kept_normalised_brings_the_transform_of_its_test_images(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).normal(size=(20, 10)).astype(np.float32)
    artifact = a_set(soft_labels=logits, is_normalised=True, factor=1)
    tensors, program = exported(tmp_path, artifact)
    order = np.argsort(artifact.labels, kind="stable")
    np.testing.assert_array_equal(tensors["images"], artifact.pixels[order])
    np.testing.assert_array_equal(tensors["labels"], logits[order])
    name, names, constants = arguments(program)
    assert (name, constants["ipc"]) == ("LabelRobustScoreSoft", 2)
    assert "custom_val_trans" in names
    compile(program, "evaluate.py", "exec")


FOLDERS = [f"n{number:08d}" for number in range(200)]
LISTED = [FOLDERS[number] for number in np.random.default_rng(3).permutation(200)]


def a_tiny_set(found: Any, **changes: Any) -> Artifact:
    """A set of Tiny ImageNet, an image a class, whose first pixel says by its level which folder its class had."""
    pixels = np.full((200, 3, 64, 64), 0.5, np.float32)
    pixels[:, :, 0, 0] = np.float32([[FOLDERS.index(folder) / 255] for folder in LISTED])
    made = {
        "pixels": pixels,
        "labels": np.arange(200),
        "segments": np.zeros(200, np.int32),
        "class_names": tuple(f"word {number}" for number in range(200)),
        "factor": 1,
        "provenance": {"config": {"data": {"name": "tiny_imagenet"}}, "found": found},
    }
    return a_set(**{**made, **changes})


def levels_of(images: torch.Tensor) -> list[int]:
    """The level of the first pixel of each image, before it was normalised."""
    return (images[:, 0, 0, 0] * 0.229 + 0.485).mul(255).round().int().tolist()


def test_classes_of_tiny_imagenet_have_the_numbers_of_their_sorted_folders(tmp_path: Path) -> None:
    """Its loaders are ImageFolder's, and wnids.txt is not sorted."""
    found = {"form": "image files in folders", "class_folders": LISTED}
    logits = np.random.default_rng(1).normal(size=(200, 200)).astype(np.float32)
    logits[np.arange(200), np.arange(200)] = 9
    hard, soft = a_tiny_set(found), a_tiny_set(found, soft_labels=logits)
    tensors, _ = exported(tmp_path / "hard", hard)
    assert tensors["labels"].tolist() == levels_of(tensors["images"]) == list(range(200))
    tensors, _ = exported(tmp_path / "soft", soft)
    assert tensors["labels"].argmax(1).tolist() == levels_of(tensors["images"]) == list(range(200))
    here = LISTED.index(FOLDERS[7])
    np.testing.assert_array_equal(tensors["labels"][7], [logits[here, LISTED.index(folder)] for folder in FOLDERS])


def test_what_names_its_classes_by_folders_is_numbered_so_and_parquet_stays_as_it_is(tmp_path: Path) -> None:
    tensors, _ = exported(tmp_path / "named", a_tiny_set({}, class_names=tuple(LISTED)))
    assert tensors["labels"].tolist() == levels_of(tensors["images"])
    form = "2 files in Parquet, column image and label"
    tensors, _ = exported(tmp_path / "parquet", a_tiny_set({"form": form}))
    assert levels_of(tensors["images"]) == [FOLDERS.index(folder) for folder in LISTED]


@pytest.mark.parametrize(
    "found",
    [
        None,
        {"form": "image files in folders"},
        {"form": "image files in folders", "class_folders": LISTED[:-1]},
        {"form": "image files in folders", "class_folders": [*LISTED[:-1], LISTED[0]]},
        {"form": "image files in folders", "class_folders": [*LISTED[:-1], 3]},
    ],
)
def test_a_set_of_tiny_imagenet_that_does_not_say_its_order_is_refused(found: Any, tmp_path: Path) -> None:
    write_artifact(Place(tmp_path / "set"), a_tiny_set(found))
    with pytest.raises(ConfigError, match="does not say which folder each of its classes had; distil it anew"):
        export(str(tmp_path / "set"), str(tmp_path / "out"), "ddranking")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"provenance": {"config": {"data": {"name": "digits"}}}}, "it evaluates sets made of cifar10"),
        ({"provenance": {}}, "it evaluates sets made of cifar10"),
        ({"pixels": np.zeros((20, 3, 16, 16), np.float32)}, "is of another shape"),
    ],
)
def test_what_it_cannot_evaluate_is_refused_and_nothing_is_written(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_artifact(Place(tmp_path / "set"), a_set(**changes))
    with pytest.raises(ConfigError, match=said):
        export(str(tmp_path / "set"), str(tmp_path / "out"), "ddranking")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--labels: ddranking takes logits"):
        export(str(tmp_path / "set"), str(tmp_path / "out"), "ddranking", labels="hard")


@pytest.mark.parametrize("soft", [False, True])
def test_its_evaluator_takes_the_arguments_of_the_call(soft: bool, tmp_path: Path) -> None:
    metrics = pytest.importorskip("ddranking.metrics", reason="ddranking is not installed")
    more = {"soft_labels": np.zeros((20, 10), np.float32)} if soft else {}
    name, names, _ = arguments(exported(tmp_path, a_set(**more))[1])
    assert names <= set(inspect.signature(getattr(metrics, name).__init__).parameters)
