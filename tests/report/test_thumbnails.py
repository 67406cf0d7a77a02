"""Images as data within a number of bytes."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dasm_ray.report.thumbnails import MARKUP, shown


def images(count: int, channels: int = 3, side: int = 16) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(1))
    return draw.integers(0, 256, (count, channels, side, side), np.uint8)


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_exact_while_there_is_room(channels: int) -> None:
    given, labels = images(4, channels), np.array([0, 0, 1, 1])
    found = shown([given, given[::-1]], labels, 10**6)
    assert found.which.tolist() == [0, 1, 2, 3]
    assert found.given_up == ""
    for kind, wanted in zip(found.kinds, (given, given[::-1]), strict=True):
        for uri, image in zip(kind, wanted, strict=True):
            assert np.array_equal(decoded(uri).reshape(16, 16, channels), image.transpose(1, 2, 0))


def test_losses_come_before_leaving_images_out_and_are_said() -> None:
    given, labels = images(6), np.array([0, 1, 0, 1, 0, 1])
    whole = sum(len(uri) + MARKUP for uri in shown([given], labels, 10**6).kinds[0])
    found = shown([given], labels, whole - 1)
    assert len(found.which) == 6
    assert "with small losses" in found.given_up
    few = shown([given], labels, whole // 3)
    assert few.which.tolist() in ([0, 1], [0, 1, 2, 3])
    assert "of each class" in few.given_up
    assert sum(map(len, few.kinds[0])) <= whole // 3


def test_what_is_written_around_small_images_is_counted() -> None:
    """Of images of a few pixels the page would else be twice as large as its images."""
    given, labels = images(400, side=2), np.arange(400)
    found = shown([given], labels, 40_000)
    assert len(found.which) < 400
    assert sum(len(uri) + MARKUP for uri in found.kinds[0]) <= 40_000


@pytest.mark.parametrize("each", [1, 3])
def test_where_there_is_no_room_for_each_class_the_first_ones_are_shown(each: int) -> None:
    """However many classes there are, images stay within their room."""
    given, labels = images(30 * each, side=8), np.repeat(np.arange(30), each)
    for room in (10_000, 3000, 10):
        found = shown([given, given[::-1], given], labels, room)
        count = len(found.which)
        assert found.which.tolist() == [each * label for label in range(count)]
        assert count < 30
        assert sum(len(uri) + MARKUP for uris in found.kinds for uri in uris) <= room
        assert found.given_up.endswith(f"of 30 classes the first {count} are shown, by one image each")
    assert count == 0
