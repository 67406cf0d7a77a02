"""A set for other programs: what is written is right, and what is not written is said."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from dasm_ray.store.artifact import Artifact
from dasm_ray.store.exports import export_npz, export_png, folder_names, softmax
from dasm_ray.store.place import Place


def a_set(soft: bool = True, **changes: Any) -> Artifact:
    generator = np.random.Generator(np.random.PCG64(0))
    whole = Artifact(
        pixels=generator.random((6, 1, 4, 5), np.float32),
        labels=np.arange(6) % 3,
        segments=(np.arange(6) // 3).astype(np.int32),
        soft_labels=generator.standard_normal((6, 3)).astype(np.float32) if soft else None,
        class_names=("zebra", "ant/eater", "0"),
        mean=(0.1,),
        std=(0.25,),
        factor=2,
        step_size=0.017 if soft else None,
        recipe={"model": {}, "training": {}},
        provenance={},
    )
    return dataclasses.replace(whole, **changes)


def test_png_folders_hold_the_images(tmp_path: Path) -> None:
    whole = a_set()
    lines = export_png(whole, Place(tmp_path), "hard")
    assert Place(tmp_path).walk()[1] == [
        f"{name}/{number:05d}.png" for name in ("0", "ant_eater", "zebra") for number in range(2)
    ]
    image = np.asarray(Image.open(tmp_path / "ant_eater" / "00001.png"))
    np.testing.assert_array_equal(image, np.rint(whole.pixels[4, 0] * 255))
    assert lines[0] == "6 images as CLASS/NUMBER.png, rounded to 8 bits"
    assert lines[-1].startswith("left out: exact pixel values, soft labels, segments")


def test_soft_labels_stand_in_a_file_beside_the_images(tmp_path: Path) -> None:
    whole = a_set()
    assert whole.soft_labels is not None
    for labels, expected in (("logits", whole.soft_labels), ("probabilities", softmax(whole.soft_labels))):
        lines = export_png(whole, Place(tmp_path / labels), labels)
        rows = list(csv.DictReader((tmp_path / labels / "labels.csv").open()))
        word = {"logits": "logit", "probabilities": "probability"}[labels]
        assert list(rows[0]) == ["file", "label", f"{word}_0", f"{word}_1", f"{word}_2"]
        for row, label, image, soft in zip(rows, whole.labels, whole.pixels, expected, strict=True):
            shown = np.asarray(Image.open(tmp_path / labels / row["file"]))
            np.testing.assert_array_equal(shown, np.rint(image[0] * 255))
            assert int(row["label"]) == label
            np.testing.assert_array_equal(np.float32([row[f"{word}_{number}"] for number in range(3)]), soft)
        assert any("labels.csv" in line and labels in line for line in lines)
        assert "soft labels" not in lines[-1]


def test_hard_labels_need_no_file(tmp_path: Path) -> None:
    lines = export_png(a_set(soft=False), Place(tmp_path), "logits")
    assert not (tmp_path / "labels.csv").exists()
    assert not any("soft" in line for line in lines)


def test_a_reader_that_numbers_classes_by_name_is_told_of(tmp_path: Path) -> None:
    """What torchvision makes of it, against what is said."""
    lines = export_png(a_set(), Place(tmp_path / "odd"), "hard")
    there = ImageFolder(str(tmp_path / "odd")).class_to_idx
    assert there == {"0": 0, "ant_eater": 1, "zebra": 2}
    assert "folders are numbered by name elsewhere: 0 is class 0 there, 2 here" in lines
    in_order = a_set(class_names=("ant", "bee", "cat"))
    lines = export_png(in_order, Place(tmp_path / "even"), "hard")
    assert ImageFolder(str(tmp_path / "even")).class_to_idx == {"ant": 0, "bee": 1, "cat": 2}
    assert not any("elsewhere" in line for line in lines)


def test_twelve_classes_named_by_numbers_are_told_of(tmp_path: Path) -> None:
    names = tuple(map(str, range(12)))
    whole = a_set(soft=False, class_names=names, labels=np.array([0, 1, 2, 9, 10, 11]))
    lines = export_png(whole, Place(tmp_path), "hard")
    assert ImageFolder(str(tmp_path), allow_empty=True).class_to_idx["10"] == 2
    assert "folders are numbered by name elsewhere: 10 is class 2 there, 10 here" in lines


@pytest.mark.parametrize(
    "names",
    [
        ("a/b", "a:b", "c"),
        ("A", "a", "c"),
        ("\u00e9", "e\u0301", "c"),
        ("..", "x", "y"),
        ("", "b", "c"),
        (".", "..", "..."),
        ("../../etc", "/root", "~"),
        ("labels.csv", "b", "c"),
        ("x" * 900, "x" * 901, "c"),
        ("日" * 300, "b", "c"),
    ],
)
def test_png_folders_never_collide_nor_leave_the_folder(tmp_path: Path, names: tuple[str, ...]) -> None:
    export_png(a_set(class_names=names), Place(tmp_path / "out"), "logits")
    folders, files = Place(tmp_path).walk()
    assert len(folders) == 4
    assert len(files) == 7
    assert all(file.startswith("out/") for file in files)


def test_names_that_are_folders_already_stay() -> None:
    assert folder_names(("ant", "bee 2", "läuft")) == ["ant", "bee 2", "läuft"]
    assert folder_names(("\u00e9", "e\u0301")) == ["0000_\u00e9", "0001_e\u0301"], "one folder to some file systems"


def test_pictures_of_a_normalised_set_are_said_to_be_clipped(tmp_path: Path) -> None:
    lines = export_png(a_set(is_normalised=True), Place(tmp_path), "hard")
    assert any("outside [0, 1] is clipped" in line for line in lines)


@pytest.mark.parametrize("soft", [True, False])
def test_npz_opens_without_pickle(tmp_path: Path, soft: bool) -> None:
    whole = a_set(soft=soft)
    lines = export_npz(whole, Place(tmp_path))
    with np.load(tmp_path / "synthetic.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["pixels"], whole.pixels)
        np.testing.assert_array_equal(arrays["labels"], whole.labels)
        assert tuple(arrays["class_names"]) == whole.class_names
        assert tuple(arrays["mean"]) == whole.mean
        assert arrays["factor"] == 2
        assert ("soft_labels" in arrays, "step_size" in arrays) == (soft, soft)
        assert lines[0] == f"synthetic.npz: {', '.join(arrays)}"
    assert "2 x 2 training images each" in lines[1]
    assert ("logits" in lines[1]) == soft
    assert lines[2].startswith("left out: the recipe")


def test_probabilities_are_those_of_a_softmax() -> None:
    shares = softmax(np.float32([[1000, 0, -1000], [0, 0, 0]]))
    np.testing.assert_allclose(shares, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-7)
    assert shares.dtype == np.float32
