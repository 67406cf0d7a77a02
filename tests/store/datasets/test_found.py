"""What is said of a set before anything is done with it."""

import dataclasses
import json
from dataclasses import replace

import pytest

from dasm_ray.store.datasets.found import WIDTH, Found, LeftOut, SplitFound, leaving
from dasm_ray.store.datasets.splits import Cut

TRAIN = SplitFound("train", "train", "Training", (40, 41, 42))
VALID = SplitFound("val", "test", "valid", (40, 40, 40))
PLAIN = Found("folder", "image files in folders", ("a", "b", "c"), (TRAIN, VALID), shape=(3, 16, 24), cut=Cut(0.0, 0.1))


def test_all_of_it_in_plain_lines():
    found = dataclasses.replace(
        PLAIN, left_out=(LeftOut("files that are no images by their names", 2, "a/notes.txt"),), notes=("a word",)
    )
    assert found.lines() == [
        "data folder: image files in folders",
        "  images     243 of 16 x 24 pixels (rows x columns), RGB",
        "  train      123 images (Training)",
        "  validation held out from the training images by their content, 10 % of them",
        "  test       120 images (valid, the validation split, which serves as such)",
        "  classes    3, with training images: a=40, b=41, c=42",
        "  left out   2 files that are no images by their names (a/notes.txt)",
        "  note       a word",
    ]


def test_what_decoding_tells():
    found = dataclasses.replace(
        PLAIN,
        counts={"train": (30, 30, 30), "val": (10, 11, 12), "test": (40, 40, 40)},
        converted={"grey turned to RGB": 1},
        equal=2,
        leaked={"test": 5},
    )
    assert found.decoded_lines() == [
        "  decoded    training 90, validation 33, test 120; RGB",
        "  converted  1 grey turned to RGB",
        "  equal      2 training images are copies of another training image",
        "  warning    5 test images are equal to training images",
        "  warning    the validation split has only 33 images, so one of them is 3.0",
        "             points",
    ]


def test_what_is_one_is_told_as_one():
    test, notes = SplitFound("test", "test", "test", (1, 0, 0)), "file that is no image by its name"
    train = dataclasses.replace(TRAIN, per_class=(1, 1, 1))
    found = dataclasses.replace(PLAIN, splits=(train, test), equal=1, leaked={"test": 1})
    text = " ".join(" ".join([*found.lines(), *found.decoded_lines()]).split())
    for said in (
        "test 1 image",
        "3 of 1 training image each",
        "the test split has only 1 image, so",
        "1 training image is a copy of another",
        "1 test image is equal to a training image",
    ):
        assert said in text
    assert leaving(["a/x"], "files that are no images by their names", notes) == LeftOut(notes, 1, "a/x")


@pytest.mark.parametrize(("images", "is_small"), [(99, True), (100, False)])
def test_a_small_split_is_warned_of(images, is_small):
    test = SplitFound("test", "test", "test", (images - 2, 1, 1))
    lines = dataclasses.replace(PLAIN, splits=(TRAIN, test)).lines()
    assert any(f"the test split has only {images} images" in line for line in lines) == is_small


def test_a_class_that_is_not_tested_is_warned_of():
    test = SplitFound("test", "test", "test", (200, 0, 0))
    assert any(
        "test split has no image of b, c" in line for line in dataclasses.replace(PLAIN, splits=(TRAIN, test)).lines()
    )


def test_grey_is_said_with_care_until_all_is_decoded():
    grey = dataclasses.replace(PLAIN, shape=(1, 8, 8))
    assert "grey as far as looked at" in grey.lines()[1]
    assert "grey as far" not in dataclasses.replace(grey, counts={"train": (1, 1, 1)}).lines()[1]


def test_every_line_fits_whatever_the_names():
    names = tuple(f"n{i:08} a class of a long name with \x1b[31m in it" for i in range(1000))
    train = SplitFound("train", "train", "x" * 70, tuple(range(1, 1001)))
    left = (LeftOut("files", 3, "y" * 200),)
    lines = Found("parquet", "z" * 100, names, (train,), left, ("w " * 100,), (3, 8, 8), Cut(0.2, 0.08)).lines()
    assert all(len(line) <= WIDTH for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert len(lines) < 30
    text = " ".join(lines)
    assert "from 1 training image (" in text
    assert "to 1000" in text


def test_it_goes_into_json_and_holds_no_place():
    values = PLAIN.as_values()
    assert json.loads(json.dumps(values))["splits"][1]["role"] == "test"
    assert "path" not in values
    assert "class_folders" not in values


def test_the_folders_of_classes_with_other_names_go_with_it():
    assert replace(PLAIN, class_folders=("n2", "n1", "n3")).as_values()["class_folders"] == ("n2", "n1", "n3")


def test_no_class_is_lost_of_a_long_fact():
    names = tuple(f"a class with a longer name {n}" for n in range(12))
    train = SplitFound("train", "train", "", tuple(range(10, 22)))
    test = SplitFound("test", "test", "", (200,) + (0,) * 11)
    said = " ".join(" ".join(Found("folder", "x", names, (train, test), shape=(3, 8, 8)).lines()).split())
    for name, count in zip(names, train.per_class, strict=True):
        assert f"{name}={count}" in said
    assert f"the test split has no image of {', '.join(names[1:])}" in said
    assert "characters)" not in said
