"""The finished set in PyTorch: what `load` gives, the transform of test images, other forms, the loop of the docs."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

import dasm_ray
from dasm_ray import synthetic as synthetic_module
from dasm_ray.config.keys import Data
from dasm_ray.core.decode import decode_all
from dasm_ray.errors import ArtifactError, ConfigError, DataError
from dasm_ray.pipeline import Result
from dasm_ray.store.artifact import Artifact, read_artifact, write_artifact
from dasm_ray.store.datasets.pixels import open_image, quietly, to_pixels
from dasm_ray.store.place import Place
from dasm_ray.synthetic import export

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with six stored images of 3x8x8 at factor 2 in three classes."""
    generator = np.random.Generator(np.random.PCG64(0))
    artifact = Artifact(
        pixels=generator.random((6, 3, 8, 8), np.float32),
        labels=np.array([0, 0, 1, 1, 2, 2]),
        segments=np.array([0, 1] * 3, np.int32),
        soft_labels=None,
        class_names=("ant", "bee", "cat"),
        mean=MEAN,
        std=STD,
        factor=2,
        step_size=None,
        recipe={"model": {}, "training": {"lr": 0.02}},
        provenance={},
    )
    write_artifact(Place(tmp_path / "run" / "synthetic"), artifact)
    return tmp_path / "run"


def test_where_no_folder_is_it_is_said_of_the_path_that_was_given(run: Path) -> None:
    (run / "config.yaml").write_text("name: x\n")
    with pytest.raises(
        ArtifactError, match=rf"^there is nothing at {re.escape(str(run))}/nosuch; name a run directory"
    ):
        dasm_ray.load(run / "nosuch")
    with pytest.raises(ArtifactError, match=r"run/config.yaml is a file; name a run directory"):
        dasm_ray.load(run / "config.yaml")
    (run / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty/synthetic holds no dataset.json"):
        dasm_ray.load(run / "empty")


def test_images_are_decoded_and_normalised(run: Path) -> None:
    loaded = dasm_ray.load(run)
    result = Result(Place(run), "", [], "")
    assert torch.equal(dasm_ray.load(result).images, loaded.images), "what `distill` gives back is a place too"
    stored = loaded.artifact.pixels
    assert len(loaded) == 24
    assert loaded.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    expected = (decode_all(stored, 2) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(loaded.images, expected)
    image, label = loaded[9]
    assert torch.equal(image, expected[9])
    assert int(label) == 1
    assert loaded.classes == ("ant", "bee", "cat")
    assert torch.equal(dasm_ray.load(run / "synthetic").images, loaded.images)


def test_a_large_set_is_decoded_as_its_images_are_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dasm_ray.load(run)
    monkeypatch.setattr(synthetic_module, "HELD_BYTES", 0)
    loaded = dasm_ray.load(run)
    assert all(torch.equal(loaded[index][0], whole.images[index]) for index in (*range(len(whole)), -1, -24))
    with pytest.raises(IndexError):
        loaded[24]
    assert "images" not in vars(loaded)
    batches = list(torch.utils.data.DataLoader(loaded, batch_size=5))
    assert torch.equal(torch.cat([images for images, _ in batches]), whole.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), whole.labels)
    assert torch.equal(loaded[2:4][0], whole.images[2:4])


def test_test_images_are_treated_alike_in_every_form(run: Path) -> None:
    loaded = dasm_ray.load(run)
    levels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (3, 8, 8), np.uint8)
    by_hand = (torch.tensor(levels) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    forms = [levels, torch.tensor(levels), Image.fromarray(levels.transpose(1, 2, 0)), torch.tensor(levels) / 255]
    for form in forms:
        assert torch.allclose(loaded.transform(form), by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="3x9x9, but the set was made for 3x8x8"):
        loaded.transform(np.zeros((3, 9, 9), np.uint8))


def test_tensors_for_other_evaluators(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"), "pt")
    images, labels, rate = (
        torch.load(io.BytesIO((tmp_path / "out" / f"{name}.pt").read_bytes()), weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert images.shape == (24, 3, 8, 8)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert float(rate) == pytest.approx(0.02)
    with pytest.raises(ArtifactError, match="is not empty"):
        export(str(run), str(tmp_path / "out"), "pt")


def test_soft_labels_for_other_evaluators(run: Path, tmp_path: Path) -> None:
    """What DD-Ranking documents: images (N x IPC, C, H, W), soft labels of the same first dimension, one rate."""
    place = Place(str(run / "synthetic"))
    kept = read_artifact(place)
    logits = np.random.Generator(np.random.PCG64(2)).standard_normal((len(kept.labels), 3)).astype(np.float32)
    write_artifact(Place(str(tmp_path / "soft")), dataclasses.replace(kept, soft_labels=logits, step_size=0.25))
    export(str(tmp_path / "soft"), str(tmp_path / "out"), "pt")
    images, labels, rate = (
        torch.load(io.BytesIO((tmp_path / "out" / f"{name}.pt").read_bytes()), weights_only=True)
        for name in ("images", "labels", "lr")
    )
    names = ["images.pt", "labels.pt", "lr.pt", "mean.pt", "std.pt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert labels.shape == (len(images), 3)
    assert labels.dtype == images.dtype == rate.dtype == torch.float32
    assert torch.equal(labels, torch.tensor(logits).repeat_interleave(4, 0)), "logits, which get a softmax there"
    assert rate.shape == ()
    assert float(rate) == 0.25


# --- test images -------------------------------------------------------------------------------------------------


def by_hand(levels: np.ndarray) -> torch.Tensor:
    """(3, 8, 8) levels 0..255 as the network expects them."""
    return (torch.tensor(levels).double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def a_picture(seed: int = 1, channels: int = 3) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (8, 8, channels), np.uint8)


def reread(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The image as it comes out of a file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return Image.open(io.BytesIO(data.getvalue()))


ORIENTATION = 274


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_lies_on_its_side_is_turned_upright(run: Path, orientation: int) -> None:
    turned = Image.fromarray(a_picture())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = reread(turned, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    assert (orientation == 1) == (np.asarray(image).transpose(2, 0, 1) == upright).all()
    assert torch.allclose(dasm_ray.load(run).transform(image).double(), by_hand(upright), atol=1e-5)


@pytest.mark.parametrize("kind", ["EXIF that is damaged", "several pictures in a JPEG", "a TIFF on its side"])
def test_a_picture_is_read_as_the_sets_own_files_were(run: Path, kind: str) -> None:
    if kind.startswith("several"):
        image = multi_picture()
    elif kind.startswith("EXIF"):
        image = reread(Image.fromarray(a_picture()), exif=b"Exif\0\0garbage!!xxxx")
    else:
        image = reread(Image.fromarray(a_picture()), "TIFF", exif={ORIENTATION: 6})
    assert isinstance(image, ImageFile.ImageFile)
    assert image.fp is not None
    image.fp.seek(0)
    expected, _ = to_pixels(open_image(image.fp.read(), "it"), "it", (3, 8, 8), Data())
    with quietly():
        found = [dasm_ray.load(run).transform(image).double() for _ in range(2)]
    assert torch.allclose(found[0], by_hand(expected), atol=1e-5)
    assert torch.equal(*found)


def laid_on(picture: np.ndarray, alpha: np.ndarray, ground: int) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(picture * share + ground * (1 - share)).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB"])
def test_what_is_transparent_is_laid_on_white(run: Path, mode: str) -> None:
    """By a channel of its own, by a palette, or by a colour that stands for nothing."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    if mode in ("P", "RGB"):
        image = reread(Image.new("RGB", (8, 8), "black").convert(mode), transparency=0 if mode == "P" else (0, 0, 0))
        expected = np.full((3, 8, 8), 255)
    else:
        grey = np.repeat(a_picture(channels=1), 3, axis=2)
        image = Image.merge("RGBA", [*Image.fromarray(grey).split(), Image.fromarray(alpha)]).convert(mode)
        expected = laid_on(grey, alpha, 255)
    assert torch.allclose(dasm_ray.load(run).transform(image).double(), by_hand(expected), atol=0.02)


@pytest.mark.parametrize(
    ("said", "ground"), [(None, 255), ("white", 255), ("black", 0), ("#808080", 128), ("url(x)", 255), (3, 255)]
)
def test_the_ground_is_the_one_that_the_set_was_made_with(run: Path, tmp_path: Path, said: object, ground: int) -> None:
    kept = dataclasses.replace(
        read_artifact(Place(str(run / "synthetic"))), provenance={"config": {"data": {"ground": said}}}
    )
    write_artifact(Place(str(tmp_path / "other")), kept)
    alpha = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = Image.merge("RGBA", [*Image.fromarray(a_picture()).split(), Image.fromarray(alpha)])
    found = dasm_ray.load(tmp_path / "other").transform(image).double()
    assert torch.allclose(found, by_hand(laid_on(a_picture(), alpha, ground)), atol=0.03)


@pytest.mark.parametrize("form", ["RGB", "L", "RGBA", "sideways"])
def test_a_photograph_is_scaled_as_the_sets_own_were(run: Path, tmp_path: Path, form: str) -> None:
    """By the reader of real images itself; where the set's own were taken as they are, no other size is."""
    small = dataclasses.replace(
        read_artifact(Place(str(run / "synthetic"))), provenance={"config": {"data": {"image_size": 8}}}
    )
    write_artifact(Place(str(tmp_path / "scaled")), small)
    levels = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (37, 52, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if form == "sideways" else 1
    picture = Image.fromarray(levels).convert("RGB" if form == "sideways" else form)
    data = io.BytesIO()
    picture.save(data, "png", exif=exif)
    expected, _ = to_pixels(open_image(data.getvalue(), "it"), "it", (3, 8, 8), Data(image_size=8))
    found = dasm_ray.load(tmp_path / "scaled").transform(Image.open(io.BytesIO(data.getvalue())))
    assert torch.allclose(found.double(), by_hand(expected), atol=1e-6)
    with pytest.raises(DataError, match=r"but the set was made for 3x8x8"):
        dasm_ray.load(run).transform(picture)
    with pytest.raises(DataError, match=r"3x37x52, but the set was made for 3x8x8"):
        dasm_ray.load(tmp_path / "scaled").transform(levels.transpose(2, 0, 1))


@pytest.mark.parametrize("said", [None, 9, "8", True, [8, 8], {"config": []}])
def test_a_size_that_is_none_scales_nothing(run: Path, tmp_path: Path, said: object) -> None:
    odd = dataclasses.replace(
        read_artifact(Place(str(run / "synthetic"))), provenance={"config": {"data": {"image_size": said}}}
    )
    write_artifact(Place(str(tmp_path / "odd")), odd)
    with pytest.raises(DataError, match="but the set was made for 3x8x8"):
        dasm_ray.load(tmp_path / "odd").transform(Image.new("RGB", (20, 20)))


def deep_png() -> Image.Image:
    """RGB of 16 bits, which Pillow cuts to 8 when it decodes."""
    rows = b"".join(b"\0" + bytes(range(48)) for _ in range(8))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(data))


def several_frames() -> Image.Image:
    frames = [Image.fromarray(a_picture(seed)) for seed in range(3)]
    return reread(frames[0], "GIF", save_all=True, append_images=frames[1:])


def fine_file(kind: str) -> Image.Image:
    """RGB of more than 8 bits in a format that says so elsewhere."""
    data = bytearray()
    if kind == "JPEG2000":
        held = io.BytesIO()
        Image.fromarray(a_picture()).save(held, kind)
        data += held.getvalue()
        data[data.find(b"\xff\x4f\xff\x51") + 42] = 15
    elif kind == "SGI":
        data += struct.pack(">hBBHHHH", 474, 0, 2, 3, 8, 8, 3).ljust(512, b"\0") + bytes(384)
    else:
        data += f"P6\n8 8\n{kind}\n".encode() + bytes(384)
    return Image.open(io.BytesIO(bytes(data)))


def cut_short() -> Image.Image:
    data = io.BytesIO()
    Image.fromarray(a_picture()).save(data, "BMP")
    return Image.open(io.BytesIO(data.getvalue()[:100]))


def second_picture() -> Image.Image:
    image = multi_picture()
    image.seek(1)
    return image


def multi_picture() -> Image.Image:
    """As cameras write it: the picture, and a smaller one behind it."""
    frames = [Image.fromarray(a_picture(seed)) for seed in range(2)]
    return reread(frames[0], "MPO", save_all=True, append_images=frames[1:])


UNIT = a_picture().transpose(2, 0, 1) / 255
REFUSED = {
    "16 bits of grey": (lambda: Image.fromarray(np.full((8, 8), 300, np.uint16)), "more than 8 bits"),
    "16 bits of grey from a file": (
        lambda: reread(Image.fromarray(np.full((8, 8), 300, np.uint16))),
        "more than 8 bits",
    ),
    "16 bits of RGB": (deep_png, "more than 8 bits"),
    "16 bits of PPM": (lambda: fine_file("65535"), "more than 8 bits"),
    "10 bits of PPM": (lambda: fine_file("1023"), "more than 8 bits"),
    "16 bits of JPEG 2000": (lambda: fine_file("JPEG2000"), "more than 8 bits"),
    "16 bits of SGI": (lambda: fine_file("SGI"), "more than 8 bits"),
    "32 bits": (lambda: Image.fromarray(np.full((8, 8), 300, np.int32)), "more than 8 bits"),
    "floats as a picture": (lambda: Image.fromarray(np.full((8, 8), 0.5, np.float32)), "more than 8 bits"),
    "several frames": (several_frames, "holds 3 frames"),
    "the second picture of several": (second_picture, "holds 2 frames"),
    "a file that is cut short": (cut_short, "is not an image that can be decoded"),
    "floats up to 255": (lambda: UNIT * 255, "reaches from .* floats must lie in"),
    "floats a little above 1": (lambda: UNIT + 0.01, "floats must lie in"),
    "floats from -1 to 1": (lambda: UNIT * 2 - 1, "floats must lie in"),
    "floats that are none": (lambda: np.full((3, 8, 8), np.nan), "floats must lie in"),
    "infinite floats": (lambda: torch.full((3, 8, 8), torch.inf), "floats must lie in"),
    "what is normalised already": (
        lambda: by_hand(a_picture().transpose(2, 0, 1)),
        "leave normalising to this transform",
    ),
    "int64 above 255": (lambda: np.full((3, 8, 8), 256), "int64 reaches from 256 to 256; whole numbers are levels"),
    "int64 below 0": (lambda: torch.full((3, 8, 8), -1), "whole numbers are levels"),
    "uint16 above 255": (lambda: np.full((3, 8, 8), 300, np.uint16), "whole numbers are levels"),
    "true and false": (lambda: np.ones((3, 8, 8), bool), "bool is neither levels"),
    "true and false of torch": (lambda: torch.ones(3, 8, 8, dtype=torch.bool), "bool is neither levels"),
    "complex numbers": (lambda: np.ones((3, 8, 8), complex), "is neither levels"),
    "objects": (lambda: np.full((3, 8, 8), None), "is neither levels"),
    "a list": (lambda: [[[0]]], "not a list"),
    "bytes": (lambda: b"x", "not a bytes"),
    "nothing": (lambda: None, "not a NoneType"),
    "rows, columns, channels": (lambda: a_picture(), "8x8x3, but the set was made for 3x8x8"),
    "a larger picture": (lambda: Image.new("RGB", (9, 8)), "3x8x9, but the set was made for 3x8x8"),
    "no channel": (lambda: np.zeros((8, 8), np.uint8), "8x8, but the set was made for 3x8x8"),
    "a batch": (lambda: np.zeros((1, 3, 8, 8), np.uint8), "1x3x8x8, but"),
    "nothing in it": (lambda: np.zeros((3, 0, 8), np.uint8), "3x0x8, but"),
}


@pytest.mark.parametrize(("image", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_could_be_meant_in_two_ways_is_refused(run: Path, image: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        dasm_ray.load(run).transform(image())
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, torch.uint8, torch.int16, torch.int64]
)
def test_whole_numbers_of_every_kind_are_levels(run: Path, dtype: Any) -> None:
    levels = a_picture().transpose(2, 0, 1)
    given = torch.tensor(levels).type(dtype) if isinstance(dtype, torch.dtype) else levels.astype(dtype)
    loaded = dasm_ray.load(run)
    assert torch.equal(loaded.transform(given), loaded.transform(levels))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32])
def test_floats_of_every_kind_lie_in_the_unit_interval(run: Path, dtype: Any) -> None:
    given = torch.tensor(UNIT).type(dtype) if isinstance(dtype, torch.dtype) else UNIT.astype(dtype)
    found = dasm_ray.load(run).transform(given)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), by_hand(a_picture().transpose(2, 0, 1)), atol=0.03)
    assert torch.equal(
        dasm_ray.load(run).transform(torch.tensor(UNIT, requires_grad=True)), dasm_ray.load(run).transform(UNIT)
    )


def test_an_array_that_is_read_only_or_backwards_is_read(run: Path) -> None:
    loaded, levels = dasm_ray.load(run), np.ascontiguousarray(a_picture().transpose(2, 0, 1))
    levels.flags.writeable = False
    assert torch.equal(loaded.transform(levels[:, ::-1]), loaded.transform(levels[:, ::-1].copy()))
    assert torch.equal(loaded.transform(levels.astype(">i4")), loaded.transform(levels))


# --- other forms -------------------------------------------------------------------------------------------------


def tensor(folder: Path, name: str) -> torch.Tensor:
    found: torch.Tensor = torch.load(io.BytesIO((folder / f"{name}.pt").read_bytes()), weights_only=True)
    return found


@pytest.fixture
def soft(run: Path, tmp_path: Path) -> Path:
    """The same set with soft labels: logits of which one is far above the others."""
    kept = read_artifact(Place(str(run / "synthetic")))
    logits = (np.eye(3, dtype=np.float32) * 5)[kept.labels]
    write_artifact(Place(str(tmp_path / "soft")), dataclasses.replace(kept, soft_labels=logits, step_size=0.25))
    return tmp_path / "soft"


def test_an_evaluator_that_puts_a_softmax_over_labels_gets_the_labels_of_the_set(soft: Path, tmp_path: Path) -> None:
    lines = export(str(soft), str(tmp_path / "a"), "pt")
    taught = tensor(tmp_path / "a", "labels").softmax(1)
    assert torch.allclose(taught, dasm_ray.load(soft).labels)
    assert float(taught.max()) > 0.98
    assert any(line.startswith("labels.pt: soft labels as logits") for line in lines)
    lines = export(str(soft), str(tmp_path / "b"), "pt", labels="probabilities")
    assert torch.allclose(tensor(tmp_path / "b", "labels"), taught)
    assert any("as probabilities" in line for line in lines)
    lines = export(str(soft), str(tmp_path / "c"), "pt", labels="hard")
    assert tensor(tmp_path / "c", "labels").tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert "soft labels" in lines[-1]


def test_statistics_lie_beside_the_images(run: Path, tmp_path: Path) -> None:
    lines = export(str(run), str(tmp_path / "out"), "pt")
    images, mean, std = (tensor(tmp_path / "out", name) for name in ("images", "mean", "std"))
    assert torch.equal((images - mean.view(3, 1, 1)) / std.view(3, 1, 1), dasm_ray.load(run).images)
    assert lines[0] == f"written to {tmp_path / 'out'}"
    assert "images.pt: 24 x 3 x 8 x 8 training images, in [0, 1]: to be normalised by mean.pt and std.pt" in lines
    assert lines[-1] == "left out: segments, class names, the recipe"


def test_images_by_own_and_by_given_statistics(run: Path, tmp_path: Path) -> None:
    loaded, unit = dasm_ray.load(run), decode_all(dasm_ray.load(run).artifact.pixels, 2)
    export(str(run), str(tmp_path / "own"), "pt", normalise="own")
    assert torch.equal(tensor(tmp_path / "own", "images"), loaded.images)
    export(str(run), str(tmp_path / "none"), "pt", normalise="none")
    assert torch.equal(tensor(tmp_path / "none", "images"), unit)
    lines = export(str(run), str(tmp_path / "given"), "pt", normalise="0.49,0.48,0.45:0.2023,0.1994,0.201")
    mean, std = tensor(tmp_path / "given", "mean"), tensor(tmp_path / "given", "std")
    assert torch.allclose(mean, torch.tensor([0.49, 0.48, 0.45]))
    assert torch.allclose(std, torch.tensor([0.2023, 0.1994, 0.201]))
    assert torch.equal(tensor(tmp_path / "given", "images"), (unit - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert any("normalised by what was given" in line for line in lines)


@pytest.fixture
def white(run: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A whitened set in normalised space, and the pictures that it was made of."""
    generator = np.random.Generator(np.random.PCG64(3))
    pictures = generator.random((6, 3, 8, 8), np.float32)
    root = np.eye(192) + 0.01 * generator.standard_normal((192, 192))
    centre, matrix = generator.standard_normal(192).astype(np.float32), (root @ root.T).astype(np.float32)
    normalised = (pictures - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    pixels = ((normalised.reshape(6, -1) - centre) @ matrix).reshape(pictures.shape).astype(np.float32)
    kept = read_artifact(Place(str(run / "synthetic")))
    parts = {"pixels": pixels, "factor": 1, "is_normalised": True, "whitening_mean": centre, "whitening_matrix": matrix}
    write_artifact(Place(str(tmp_path / "white")), dataclasses.replace(kept, **parts))
    return tmp_path / "white", torch.tensor(pictures)


def test_a_whitened_set_takes_its_whitening_along_or_says_that_it_does_not(
    white: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    path, pictures = white
    export(str(path), str(tmp_path / "stored"), "pt")
    mean, std, centre, matrix, images = (
        tensor(tmp_path / "stored", name) for name in ("mean", "std", "whitening_mean", "whitening_matrix", "images")
    )
    flat = ((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)).flatten(1)
    assert torch.allclose(((flat - centre) @ matrix).view_as(images), images, atol=1e-3)
    assert torch.equal(images, dasm_ray.load(path).images)
    lines = export(str(path), str(tmp_path / "none"), "pt", normalise="none")
    assert torch.allclose(tensor(tmp_path / "none", "images"), pictures, atol=1e-4)
    assert not (tmp_path / "none" / "whitening_matrix.pt").exists()
    assert lines[-1] == "left out: segments, class names, the recipe, the whitening"
    assert any("clipped" in line for line in lines)


def test_png_holds_training_images_unless_stored_ones_are_asked_for(run: Path, tmp_path: Path) -> None:
    stored = dasm_ray.load(run).artifact.pixels
    lines = export(str(run), str(tmp_path / "a"), "png")
    shown = [np.asarray(Image.open(tmp_path / "a" / "bee" / f"{number:05d}.png")) for number in range(8)]
    expected = decode_all(stored[2:4], 2).numpy()
    np.testing.assert_array_equal(np.stack(shown).transpose(0, 3, 1, 2), np.rint(expected * 255))
    assert any("training images, 2 x 2 of each stored image" in line for line in lines)
    lines = export(str(run), str(tmp_path / "b"), "png", stored=True)
    assert len(list((tmp_path / "b" / "bee").iterdir())) == 2
    assert any("each image is a grid of 2 x 2 training images" in line for line in lines)


def test_soft_labels_of_training_images_go_with_the_png(soft: Path, tmp_path: Path) -> None:
    export(str(soft), str(tmp_path / "out"), "png", labels="probabilities")
    rows = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert len(rows) == 1 + 24
    assert rows[1].startswith("ant/00000.png,0,0.98")


@pytest.mark.parametrize("kind", ["png", "npz", "pt"])
def test_every_form_says_what_it_wrote_and_what_it_left_out(soft: Path, tmp_path: Path, kind: str) -> None:
    lines = export(str(soft), str(tmp_path / "out"), kind)
    assert lines[0] == f"written to {tmp_path / 'out'}"
    assert len(lines) >= 3
    assert lines[-1].startswith("left out: ")
    assert all(line and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tiff"}, "--format tiff: there is no such form; take png, npz, pt"),
        ({"kind": "pt", "labels": "soft"}, "--labels soft: there are no such labels"),
        ({"kind": "pt", "labels": "logits"}, "--labels logits: the labels of .* are hard"),
        ({"kind": "npz", "labels": "hard"}, "--labels: npz holds"),
        ({"kind": "png", "normalise": "own"}, "--normalise: png is not normalised"),
        ({"kind": "pt", "stored": True}, "--stored: pt holds training images"),
        ({"kind": "npz", "stored": True}, "--stored: npz holds the stored images always"),
        *(
            ({"kind": "pt", "normalise": text}, "--normalise .*: say own, none, or means and stds")
            for text in (
                "cifar10",
                "0.5:0.5",
                "0,0,0:1,1,0",
                "0,0,0:1,1,nan",
                "0,0,inf:1,1,1",
                "",
                ":",
                "0,0,0",
                "0,0,0:1,1,-1",
            )
        ),
    ],
)
def test_an_option_that_cannot_be_meant(run: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(str(run), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_normalisation_that_is_no_text_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--normalise: 3 is no text"):
        export(str(run), str(tmp_path / "out"), "pt", normalise=3)  # type: ignore[arg-type]


def test_the_loop_of_the_docs_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "using.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "digits")
    monkeypatch.chdir(run.parent)
    before = torch.random.get_rng_state()
    names: dict[str, object] = {}
    exec(code.replace("range(100)", "range(2)"), names)
    torch.random.set_rng_state(before)
    loss = names["torch"].nn.functional.cross_entropy(names["network"](names["images"]), names["labels"])  # type: ignore[attr-defined,operator]
    assert torch.isfinite(loss)
