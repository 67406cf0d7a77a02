"""The words and the picture of a synthetic set."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.report import page
from dasm_ray.report.page import MARGIN, SIDE, describe, draw_first, draw_rows, draw_sheet
from dasm_ray.store.artifact import Artifact, digest
from dasm_ray.store.datasets.found import Found, SplitFound
from dasm_ray.store.datasets.shards import Shard, Source


def a_set(channels: int) -> Artifact:
    pixels = np.zeros((6, channels, 4, 5), np.float32)
    pixels[3] = 1.0  # the second image of class 1
    return Artifact(
        pixels=pixels,
        labels=np.array([0, 0, 1, 1, 2, 2]),
        segments=np.array([0, 1, 0, 1, 0, 1], np.int32),
        soft_labels=None,
        class_names=("ant", "bee", "cat"),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        factor=2,
        step_size=None,
        recipe={"model": {"arch": "convnet", "width": 8}, "training": {"epochs": 3, "lr": 0.01}},
        provenance={"versions": {"torch": "2"}},
    )


def test_facts() -> None:
    text = describe(a_set(1))
    assert "6 stored of 1x4x5, 24 for training (factor 2)" in text
    assert "ant, bee, cat" in text
    assert "3 images in 1, 3 images in 2" in text
    assert digest(a_set(1)) in text


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"model": {}, "training": {}}, None),
        ({"model": {}, "training": {"lr": 0.02}}, "rate 0.02"),
        ({"model": {"arch": "mlp"}, "training": {"epochs": 3}}, "mlp, 3 epochs"),
        ({"model": {"width": 8}, "training": {}, "image_size": None}, "width 8"),
        ({}, None),
        ({"model": None, "training": 3}, None),
        ({"model": [1], "training": {"lr": [1]}}, "rate [1]"),
        ({"model": {"arch": "\x1b[2J"}, "training": {}}, r"\x1b[2J"),
    ],
)
def test_a_recipe_that_leaves_something_out_is_told_as_far_as_it_goes(recipe: dict[str, Any], said: str | None) -> None:
    text = describe(replace(a_set(1), recipe=recipe))
    lines = [line for line in text.splitlines() if line.startswith("evaluated by")]
    assert lines == ([] if said is None else [f"evaluated by  {said}"])
    assert "\x1b" not in text


@pytest.mark.parametrize("provenance", [{}, {"versions": None}, {"versions": [1]}, {"versions": {"a\x1b": {"b": 1}}}])
def test_an_odd_provenance_is_no_error(provenance: dict[str, Any]) -> None:
    assert "\x1b" not in describe(replace(a_set(1), provenance=provenance))


def test_names_are_shown_written_out() -> None:
    text = describe(replace(a_set(1), class_names=("\x1b[2J", "b\nc", "d")))
    assert r"\x1b[2J, b\nc, d" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_has_a_row_per_class(channels: int) -> None:
    drawn, says = draw_sheet(a_set(channels))
    sheet = Image.open(io.BytesIO(drawn))
    assert says == ""
    times = -(-SIDE // 5)
    assert sheet.size == (2 * (5 * times + MARGIN), 3 * (4 * times + MARGIN))
    grey = np.asarray(sheet.convert("L"))
    top, left = 4 * times + MARGIN, 5 * times + MARGIN
    assert (grey[top : top + 4 * times, left : left + 5 * times] == 255).all()
    assert (grey[: 4 * times, : 5 * times] == 0).all()


def test_rows_of_any_length_are_drawn_side_by_side() -> None:
    rows = [np.full((n, 3, 40, 50), value, np.uint8) for n, value in ((1, 10), (3, 20))]
    sheet = np.asarray(Image.open(io.BytesIO(draw_rows(rows))))
    assert sheet.shape == (2 * (80 + MARGIN), 3 * (100 + MARGIN), 3)
    assert (sheet[:80, :100] == 10).all()
    assert (sheet[:80, 100 + MARGIN :] == 255).all()
    assert (sheet[80 + MARGIN : -MARGIN, 100 + MARGIN : 200 + MARGIN] == 20).all()


@pytest.mark.parametrize(
    ("places", "classes", "many", "said"),
    [
        (6, 3, 2, ""),
        (5, 3, 1, "the first 1 image of each class"),
        (2, 2, 1, "the first 2 of 3 classes, 1 image of each"),
        (0, 1, 1, "the first 1 of 3 classes, 1 image of each"),
    ],
)
def test_a_sheet_is_bounded_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, places: int, classes: int, many: int, said: str
) -> None:
    times = -(-SIDE // 5)
    height, width = 4 * times + MARGIN, 5 * times + MARGIN
    monkeypatch.setattr(page, "SHEET_PIXELS", places * height * width)
    drawn, says = draw_sheet(a_set(3))
    assert Image.open(io.BytesIO(drawn)).size == (many * width, classes * height)
    assert says == said


def test_a_sheet_of_a_thousand_classes_of_photographs_is_one_that_a_viewer_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def first(source: Source, data: Data, most: int, classes: int) -> list[np.ndarray]:
        asked.append((classes, most))
        return [np.zeros((most, 3, 224, 224), np.uint8) for _ in range(classes)]

    monkeypatch.setattr(page, "first_pictures", first)
    train = SplitFound("train", "train", "", (1300,) * 1000)
    names = tuple(map(str, range(1000)))
    found = Found("folder", "", names, (train,), shape=(3, 224, 224))
    shard = Shard("images", "", "train", 0, 0, 1000, (3, 224, 224))
    drawn, says = draw_first(Source("folder", names, {"train": (shard,)}, found=found), Data(name="folder"))
    width, height = Image.open(io.BytesIO(drawn)).size
    assert width * height <= page.SHEET_PIXELS
    assert asked == [(195, 1)]
    assert says == "the first 195 of 1000 classes, 1 image of each"
