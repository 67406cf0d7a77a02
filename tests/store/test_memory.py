"""Images in memory, written and read again: the same pixels, whatever they were given as; nothing is guessed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode
from dasm_ray.store.memory import keep
from dasm_ray.store.place import Place

DRAW = np.random.default_rng(0)
COLOUR = DRAW.integers(0, 256, (12, 5, 6, 3), np.uint8)
GREY = DRAW.integers(0, 256, (12, 5, 6), np.uint8)
LABELS = np.arange(12) % 3
PICTURE = io.BytesIO()
Image.fromarray(np.tile(COLOUR[0], (20, 20, 1))).save(PICTURE, "BMP")


CUT = PICTURE.getvalue()[:200]
"""A file that ends within its picture."""


def several(form: str) -> io.BytesIO:
    """A file of two pictures."""
    out = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(out, form, save_all=True, append_images=[Image.fromarray(COLOUR[1])])
    return out


def read(folder: Place, split: str = "train") -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels (n, C, H, W), labels and class names, as a run finds them."""
    data = Data(name="parquet", path=folder.uri)
    source = open_source(data)
    found = [decode(shard, rows_of(shard), data) for shard in source.shards[split]]
    return (
        np.concatenate([part.images for part in found]),
        np.concatenate([part.labels for part in found]),
        source.class_names,
    )


class Pictures:
    """A data set as torchvision's are: pictures, numbers, names."""

    classes = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(COLOUR[index]), int(LABELS[index])


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        ((COLOUR, LABELS), COLOUR),
        ((COLOUR.transpose(0, 3, 1, 2), LABELS), COLOUR),
        ((torch.tensor(COLOUR), torch.tensor(LABELS)), COLOUR),
        ((COLOUR / 255, LABELS.tolist()), COLOUR),
        ((GREY, LABELS), GREY[..., None]),
        ((GREY[:, None], LABELS), GREY[..., None]),
        (TensorDataset(torch.tensor(COLOUR).permute(0, 3, 1, 2) / 255, torch.tensor(LABELS)), COLOUR),
        (TensorDataset(torch.tensor(GREY)[:, None].float() / 255, torch.tensor(LABELS)), GREY[..., None]),
        (Pictures(), COLOUR),
        (([Image.fromarray(each) for each in COLOUR], LABELS), COLOUR),
        (([*COLOUR[:4], *COLOUR[4:8].transpose(0, 3, 1, 2), *map(Image.fromarray, COLOUR[8:])], LABELS), COLOUR),
        ((COLOUR.tolist(), LABELS.tolist()), COLOUR),
        (([torch.tensor(each) for each in GREY], LABELS), GREY[..., None]),
    ],
)
def test_a_run_finds_the_pixels_that_were_given(data: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    images, labels, names = read(keep(Place(tmp_path), data))
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), pixels)
    assert labels.tolist() == LABELS.tolist()
    assert names == (Pictures.classes if isinstance(data, Pictures) else ("0", "1", "2"))


@pytest.mark.parametrize("given", ["all images and all labels", "image by image"])
def test_pictures_are_read_as_if_they_lay_in_files(given: str, tmp_path: Path) -> None:
    """Palettes are colours, what is transparent lies on white, and what its camera held askew is upright."""
    plain = Image.fromarray(np.kron(COLOUR[0, :2, :2] // 64 * 64, np.ones((8, 8, 1), np.uint8)))
    clear = plain.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 8, 8))
    lying, camera = io.BytesIO(), Image.Exif()
    camera[0x0112] = 6
    plain.save(lying, "PNG", exif=camera)
    pictures = [plain.convert("P", palette=Image.Palette.ADAPTIVE), clear, plain.convert("1"), Image.open(lying)]
    data: Any = (pictures, [0, 0, 1, 1]) if given.startswith("all") else list(zip(pictures, [0, 0, 1, 1], strict=True))
    images, labels, _ = read(keep(Place(tmp_path), data))
    expected = np.asarray(plain)
    on_white = expected.copy()
    on_white[:8, :8] = 255
    pixels = [expected, on_white, np.asarray(plain.convert("1").convert("RGB")), np.rot90(expected, -1)]
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), pixels)
    assert labels.tolist() == [0, 0, 1, 1]


def test_pictures_that_cameras_write_are_read_as_files_too(tmp_path: Path) -> None:
    """The main picture of a multi-picture JPEG; a TIFF, which Pillow itself turns when it decodes, is turned once."""
    lying, camera = io.BytesIO(), Image.Exif()
    camera[0x0112] = 6
    Image.fromarray(COLOUR[2]).save(lying, "TIFF", exif=camera)
    pictures = [Image.open(several("MPO")), Image.open(lying)]
    place = keep(Place(tmp_path), [(pictures[0], 0), (pictures[1], 1)])
    (shard,) = open_source(Data(name="parquet", path=place.uri, image_size=8)).shards["train"]
    held = [Image.open(io.BytesIO(raw)) for _, raw, _ in rows_of(shard) if isinstance(raw, bytes)]
    np.testing.assert_array_equal(np.asarray(held[0]), np.asarray(Image.open(several("MPO"))))
    np.testing.assert_array_equal(np.asarray(held[1]), np.rot90(COLOUR[2], -1))


def test_two_rows_are_no_images_and_labels_and_sizes_may_differ_where_a_size_is_asked_for(tmp_path: Path) -> None:
    pictures = [Image.fromarray(COLOUR[0]), Image.fromarray(COLOUR[1]).resize((9, 4))]
    for data in ([(pictures[0], 1), (pictures[1], 0)], (pictures, [1, 0])):
        place = keep(Place(tmp_path), data)
        asked = Data(name="parquet", path=place.uri, image_size=8)
        (shard,) = open_source(asked).shards["train"]
        assert decode(shard, rows_of(shard), asked).labels.tolist() == [1, 0]


def test_splits_and_names_are_kept_and_the_same_images_lie_in_the_same_folder(tmp_path: Path) -> None:
    data = {"train": (COLOUR, LABELS), "val": (COLOUR[:6], LABELS[:6]), "test": (COLOUR[6:], LABELS[6:])}
    place = keep(Place(tmp_path), data, ["a", "b", "c"])
    images, labels, names = read(place, "test")
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), COLOUR[6:])
    assert (labels.tolist(), names) == (LABELS[6:].tolist(), ("a", "b", "c"))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert keep(Place(tmp_path), data, ["a", "b", "c"]).uri == place.uri
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == files
    assert keep(Place(tmp_path), data, ["a", "b", "d"]).uri != place.uri
    assert keep(Place(tmp_path), {**data, "val": (COLOUR[1:7], LABELS[:6])}, ["a", "b", "c"]).uri != place.uri


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "a int holds no labelled images"),
        ({"train": (COLOUR, LABELS), "tset": (COLOUR, LABELS)}, "there is no split tset"),
        ({"test": (COLOUR, LABELS)}, "there is no split train"),
        ((COLOUR, LABELS[:-1]), "there are 12 images and 11 labels"),
        ((np.zeros((4, 3, 3, 3), np.uint8), [0] * 4), "could have their channels first or last"),
        ((np.zeros((4, 2, 5, 5), np.uint8), [0] * 4), "are not (n, H, W)"),
        ((GREY.astype(np.int64) * 2, LABELS), "are neither levels 0..255"),
        ((DRAW.normal(size=(12, 5, 6)), LABELS), "are neither levels 0..255"),
        ((DRAW.uniform(0.2, 0.8, size=(12, 5, 6)), LABELS), "are neither levels 0..255"),
        ((GREY, LABELS + 0.5), "image 0: label 0.5 is no class number"),
        ((GREY, -1 - LABELS), "is no class number"),
        ((GREY, LABELS > 0), "is no class number"),
        ([GREY[0], GREY[1], GREY[2]], "image 0: is a ndarray, not (image, label)"),
        ((GREY[:0], LABELS[:0]), "there is no image"),
        ((GREY, np.eye(3)[LABELS]), "image 0: a label of shape (3,) is no class number"),
        ((GREY, torch.eye(3)[LABELS]), "of one-hot labels labels.argmax(1)"),
        (TensorDataset(torch.tensor(GREY), torch.eye(3)[LABELS]), "image 0: a label of shape (3,)"),
        ((GREY, [[0], [1, 2]] * 6), "the labels make no array"),
        ((GREY, np.array(3)), "the labels are a single int64"),
        (([[[0, 1], [2]]], [0]), "image 0: its pixels make no array"),
        (([torch.zeros(4, 5), torch.zeros(5)], [0, 1]), "images of shape (1, 5) are not (n, H, W)"),
        ((torch.zeros(2, 5, 6, dtype=torch.bfloat16), [0, 1]), "BFloat16"),
        ([(Image.new("CMYK", (4, 5)), 0)] * 3, "image 0: its mode CMYK is none that PNG keeps"),
        ([(Image.new("F", (4, 5)), 0)] * 3, "image 0 has more than 8 bits a channel (mode F)"),
        ([(Image.open(io.BytesIO(b"P6\n4 4\n1023\n" + bytes(96))), 0)] * 3, "image 0 has more than 8 bits a channel"),
        ([(Image.open(several("GIF")), 0)] * 3, "image 0 holds 2 frames"),
        ([(Image.new("RGB", (0, 5)), 0)] * 3, "image 0: its size (0, 5) leaves no pixel"),
        ((np.zeros((3, 0, 5), np.uint8), [0, 1, 2]), "image 0: its shape (0, 5) leaves no pixel"),
        ((np.full((3, 4, 5), "a"), [0, 1, 2]), "image 0: <U1 are no levels 0..255"),
        ((np.full((3, 4, 5), None), [0, 1, 2]), "image 0: object are no levels 0..255"),
        ([(Image.open(io.BytesIO(CUT)), 0)] * 3, "image 0 is not an image that can be decoded (image file is trunc"),
        ((GREY, np.array([0] * 11 + [2**63], np.uint64)), "there is a label 9223372036854775808 and 12 images"),
        ((GREY, [0] * 11 + [10**7]), "there is a label 10000000 and 12 images"),
    ],
)
def test_what_can_be_read_in_two_ways_or_none_is_refused(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        keep(Place(tmp_path), data)
    assert said in str(caught.value)
    assert list(tmp_path.rglob("*")) == []


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path: Path) -> None:
    """As torchvision's ImageFolder does where the folder of the test images lacks a class."""

    class Fewer(Pictures):
        classes = ("bee", "cat")  # type: ignore[assignment]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return super().__getitem__(index)[0], index % 2

    for names in (None, ["a", "b", "c"]):
        with pytest.raises(DataError, match=r"data, test: its classes are bee, cat, and those of train ant, bee, cat"):
            keep(Place(tmp_path), {"train": Pictures(), "test": Fewer()}, names)
    assert list(tmp_path.rglob("*")) == []
    keep(Place(tmp_path / "alike"), {"train": Pictures(), "test": Pictures()}, ["a", "b", "c"])


def test_too_few_class_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data: has 2 class names, but a label 2"):
        keep(Place(tmp_path), (GREY, LABELS), ["a", "b"])


@pytest.mark.parametrize("names", [[b"a", b"b", b"c"], "abc", b"abc", [0, 1, 2], 3])
def test_class_names_that_are_no_texts_are_refused(names: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class_names: .* is no list of texts; give one text a class"):
        keep(Place(tmp_path), (GREY, LABELS), names)
    assert list(tmp_path.rglob("*")) == []


def test_other_labels_of_the_same_images_are_another_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    labels = ([0, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 1])
    first, again, other = (keep(Place(tmp_path), (images, each)) for each in labels)
    assert first == again != other
