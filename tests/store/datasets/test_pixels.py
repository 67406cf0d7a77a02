"""Images of every kind that people have: what becomes of their pixels, held against `datasets` where both read them."""

import io
import struct
import zlib

import numpy as np
import pytest
from made import encoded, pixels_of, planes
from PIL import Image, ImageOps

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.pixels import (
    BITS_IN_HEADER,
    MAIN_PICTURE,
    ODD_EXIF,
    TURNED,
    image_suffixes,
    is_image_name,
    open_image,
    quietly,
    to_pixels,
)

ROWS, COLUMNS = 6, 5


def read(raw, channels=3, shape=(ROWS, COLUMNS), **data):
    """Pixels (C, H, W), and what was done."""
    return to_pixels(open_image(raw, "x.png"), "x.png", (channels, *shape), Data(**data))


def saved(image, form="PNG", **how):
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


# --- upright -----------------------------------------------------------------------------------------------------


def with_orientation(pixels, orientation, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(pixels), form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_says(orientation, form):
    raw = with_orientation(pixels_of(0, 8, 16), orientation, form)
    opened = open_image(raw, "x.jpg")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(expected))
    assert opened.done == ((TURNED,) if orientation > 1 else ())  # also of a TIFF, which Pillow itself turns


def test_it_is_what_datasets_reads():
    datasets = pytest.importorskip("datasets")
    for orientation in range(1, 9):
        raw = with_orientation(pixels_of(0, 8, 16), orientation)
        theirs = datasets.Image().decode_example({"bytes": raw, "path": None})
        np.testing.assert_array_equal(np.asarray(open_image(raw, "x.jpg").image), np.asarray(theirs))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_there_is_not_leaves_the_image(orientation):
    assert open_image(with_orientation(pixels_of(0), orientation), "x.jpg").done == ()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"]
)
def test_exif_that_is_damaged_leaves_the_image(exif):
    raw = saved(Image.fromarray(pixels_of(0)), "JPEG", exif=exif)
    with quietly():
        opened = open_image(raw, "x.jpg")
    assert opened.image.size == (COLUMNS, ROWS)
    assert set(opened.done) <= {ODD_EXIF}


# --- transparent -------------------------------------------------------------------------------------------------


def half_clear(mode):
    """The left half is clear, the right one opaque."""
    image = Image.fromarray(pixels_of(0)).convert("RGB" if mode in ("RGBA", "P") else "L")
    alpha = Image.fromarray(np.repeat(np.uint8([[0, 0, 0, 255, 255]]), ROWS, axis=0))
    image.putalpha(alpha)
    return image


GROUNDS = {None: (255, 255, 255), "white": (255, 255, 255), "black": (0, 0, 0), "#1040ff": (16, 64, 255)}


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_laid_on_a_ground(mode, ground):
    image = half_clear(mode)
    pixels, done = read(saved(image), ground=ground)
    np.testing.assert_array_equal(pixels[:, :, 0].T, [GROUNDS[ground]] * ROWS)
    np.testing.assert_array_equal(pixels[:, :, 3:], planes(np.asarray(image.convert("RGB")))[:, :, 3:])
    assert done == (f"transparent, laid on {ground or 'white'}",)


def test_half_transparent_pixels_are_mixed():
    clear = np.full((ROWS, COLUMNS, 4), [0, 0, 0, 128], np.uint8)
    assert set(read(saved(Image.fromarray(clear)))[0].flat) == {127}
    assert set(read(saved(Image.fromarray(clear)), ground="black")[0].flat) == {0}


def test_grey_with_alpha_stays_exact_in_a_grey_set():
    image = half_clear("LA")
    pixels, _ = read(saved(image), channels=1)
    assert set(pixels[0, :, 0]) == {255}
    np.testing.assert_array_equal(pixels[0, :, 3:], np.asarray(image)[:, 3:, 0])


@pytest.mark.parametrize("kind", ["index", "bytes"])
def test_palettes_with_transparency(kind):
    image = Image.fromarray(np.tile(np.uint8([0, 1, 2, 1, 0]), (ROWS, 1)))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    raw = saved(image, transparency=1 if kind == "index" else bytes([255, 0, 255]))
    pixels, done = read(raw)
    np.testing.assert_array_equal(pixels[:, 0].T, [[10, 20, 30], [255] * 3, [70, 80, 90], [255] * 3, [10, 20, 30]])
    assert done == ("transparent, laid on white",)


def test_a_transparent_colour_of_rgb():
    pixels = np.full((ROWS, COLUMNS, 3), 9, np.uint8)
    pixels[0] = 200
    laid, _ = read(saved(Image.fromarray(pixels), transparency=(200, 200, 200)))
    assert set(laid[:, 0].flat) == {255}
    assert set(laid[:, 1:].flat) == {9}


def test_opaque_alpha_changes_nothing():
    image = Image.fromarray(pixels_of(0))
    opaque = image.copy()
    opaque.putalpha(255)
    for ground in GROUNDS:
        np.testing.assert_array_equal(read(saved(opaque), ground=ground)[0], planes(pixels_of(0)))


# --- modes and depths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "form", "said"),
    [
        ("L", "PNG", ("grey turned to RGB",)),
        ("1", "PNG", ("black and white turned to RGB",)),
        ("P", "PNG", ("palette turned to RGB",)),
        ("CMYK", "JPEG", ("CMYK turned to RGB",)),
        ("RGB", "PNG", ()),
    ],
)
def test_each_turn_of_mode_is_said(mode, form, said):
    raw = saved(Image.fromarray(pixels_of(0)).convert(mode), form)
    pixels, done = read(raw)
    np.testing.assert_array_equal(pixels, planes(np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))))
    assert done == said


def test_colour_in_a_grey_set_is_said():
    assert read(encoded(pixels_of(0)), channels=1)[1] == ("RGB turned to grey",)


def png_of_16_bits(colour_type, channels, rows=ROWS, columns=COLUMNS):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(number % 255 + 1 for number in range(2 * channels * columns))
    head = struct.pack(">IIBBBBB", columns, rows, 16, colour_type, 0, 0, 0)
    body = zlib.compress(row * rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


FINE = {
    "grey PNG": png_of_16_bits(0, 1),
    "RGB PNG": png_of_16_bits(2, 3),
    "grey PNG with alpha": png_of_16_bits(4, 2),
    "RGBA PNG": png_of_16_bits(6, 4),
    "TIFF": saved(Image.fromarray(np.zeros((ROWS, COLUMNS), np.uint16)), "TIFF"),
    "TIFF of floats": saved(Image.fromarray(np.zeros((ROWS, COLUMNS), np.float32)), "TIFF"),
    "TIFF of 32 bits": saved(Image.fromarray(np.zeros((ROWS, COLUMNS), np.int32)), "TIFF"),
    "PPM": b"P6\n5 6\n65535\n" + bytes(180),
    "PGM": b"P5\n5 6\n65535\n" + bytes(60),
}


def patched(form, marker, offset, value):
    """An image of 8 bits whose header is made to say more; it is refused before its pixels are decoded."""
    raw = bytearray(saved(Image.fromarray(pixels_of(0, 32, 32)), form))
    raw[raw.find(marker) + offset] = value
    return bytes(raw)


def tiff_of_16_bits(planar):
    """Uncompressed RGB, each sample of 16 bits: together (1) or a plane each (2)."""
    count, size = ROWS * COLUMNS, 2 * ROWS * COLUMNS
    after = 8 + 2 + 10 * 12 + 4
    tags = [(256, 3, 1, COLUMNS), (257, 3, 1, ROWS), (258, 3, 3, after), (259, 3, 1, 1), (262, 3, 1, 2)]
    offsets = (273, 4, 3, after + 6) if planar == 2 else (273, 4, 1, after + 30)
    sizes = (279, 4, 3, after + 18) if planar == 2 else (279, 4, 1, 3 * size)
    tags += [offsets, (277, 3, 1, 3), (278, 3, 1, ROWS), sizes, (284, 3, 1, planar)]
    body = struct.pack("<3H", 16, 16, 16)
    body += struct.pack("<3I", *(after + 30 + plane * size for plane in range(3))) + struct.pack("<3I", *(size,) * 3)
    body += np.arange(3 * count, dtype="<u2").tobytes()
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0) + body


def icon_of(png):
    """A Windows icon that holds one picture."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, COLUMNS, ROWS, 0, 0, 1, 48, len(png), 22) + png


def icns_of(png):
    """A macOS icon that holds one picture, said to be of 128 pixels a side."""
    return struct.pack(">4sI4sI", b"icns", 16 + len(png), b"ic07", 8 + len(png)) + png


FINE["planar TIFF"], FINE["RGB TIFF"] = tiff_of_16_bits(2), tiff_of_16_bits(1)
FINE["PPM in words"] = b"P3\n5 6\n65535\n" + b"65535 256 128 " * 30
FINE["ICO"], FINE["ICNS"] = icon_of(png_of_16_bits(6, 4)), icns_of(png_of_16_bits(6, 4, 128, 128))
FINE["JPEG 2000"] = patched("JPEG2000", b"\xff\x4f\xff\x51", 42, 15)
FINE["SGI"] = struct.pack(">hBBHHHH", 474, 0, 2, 3, COLUMNS, ROWS, 3).ljust(512, b"\0") + bytes(180)


def test_the_header_of_avif_says_how_deep_it_is():
    assert BITS_IN_HEADER["AVIF"](patched("AVIF", b"av1C", 6, 0x4C)) == 10
    assert BITS_IN_HEADER["AVIF"](saved(Image.fromarray(pixels_of(0)), "AVIF")) == 8


@pytest.mark.parametrize("form", ["JPEG2000", "AVIF", "SGI", "PPM", "BMP", "TGA", "TIFF", "WEBP", "PNG"])
def test_8_bits_are_read_in_every_format(form):
    raw = saved(Image.fromarray(pixels_of(0, 32, 32)), form)
    expected = np.asarray(Image.open(io.BytesIO(raw)))
    np.testing.assert_array_equal(read(raw, shape=(32, 32))[0], planes(expected))


def test_8_bits_are_read_out_of_icons():
    picture = Image.fromarray(pixels_of(0, ROWS, COLUMNS))
    raw = icon_of(saved(picture))
    np.testing.assert_array_equal(read(raw)[0], planes(np.asarray(picture)))


def test_a_file_that_another_program_would_have_to_draw_is_none(tmp_path, monkeypatch):
    """EPS, whatever its name: Pillow gives it to Ghostscript, which runs what is in it."""
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # what it found before this test
    drawn = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(drawn)) as image, pytest.raises(Exception):  # noqa: B017, PT011
        image.load()
    assert called.exists(), "as Pillow opens it"
    called.unlink()
    with pytest.raises(DataError, match=r"x\.png is not an image that can be decoded"):
        open_image(drawn, "x.png")
    assert not called.exists()


@pytest.mark.parametrize("kind", FINE)
def test_more_than_8_bits_are_refused_in_every_format(kind):
    with pytest.raises(DataError, match=r"x\.png has more than 8 bits a channel .*save it with 8"):
        open_image(FINE[kind], "x.png")


# --- several frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(form):
    frames = [Image.fromarray(pixels_of(seed)) for seed in range(3)]
    moving = saved(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"x\.gif holds 3 frames, and could be read as the first or as all of them"):
        open_image(moving, "x.gif")
    assert open_image(saved(frames[0], form), "x.gif").done == ()


def test_the_main_picture_of_a_multi_picture_jpeg_is_taken():
    frames = [Image.fromarray(pixels_of(seed)) for seed in range(2)]
    raw = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    opened = open_image(raw, "x.jpg")
    assert opened.done == (MAIN_PICTURE,)
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(Image.open(io.BytesIO(raw))))


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPEG", "a.jfif", "a.JPE", "a.mpo", "a.tiff", "a.webp", "x.y.PNG", "a.jp2", "d/a.ppm"]
)
def test_every_suffix_that_pillow_reads_is_an_image(name):
    assert is_image_name(name)


@pytest.mark.parametrize(
    "name", ["a", "png", "a.txt", "a.png.part", "a.eps", "a.mpg", "a.h5", "a.csv", "a.npy", "d.png/a"]
)
def test_other_names_are_none(name):
    assert not is_image_name(name)


def test_the_suffixes_are_those_of_datasets_but_for_what_has_no_pixels():
    theirs = pytest.importorskip("datasets.packaged_modules.imagefolder.imagefolder").ImageFolder.EXTENSIONS
    assert set(theirs) - image_suffixes() <= {".bufr", ".grib", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".emf", ".iim"}
