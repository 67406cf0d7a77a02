"""One image: out of the bytes of a file, upright, 8 bits a channel, on a ground; and what was done to it on the way.

What must stay true: pixels change only in the ways that `docs/data.md` lists, and each change is named, so that it can
be counted and said. What could be read in two ways (several frames) or only with a loss (16 bits) is refused.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError

Raw = bytes | np.ndarray | None  # an encoded image, or pixels (H, W) or (H, W, 3) uint8

GREY_MODES = ("1", "L", "LA", "La")
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")

NO_PIXELS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "IPTC"})
"""Formats that Pillow knows but hands to other programs (EPS to Ghostscript), or that hold no pixels: by no name and no
content is a file taken for one."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the EXIF orientation that its camera wrote; as `PIL.ImageOps.exif_transpose` does."""

ORIENTATION = 0x0112

TURNED = "turned upright as their EXIF says"
ODD_EXIF = "taken as stored, since their EXIF cannot be read"
MAIN_PICTURE = "the main picture taken of a multi-picture JPEG"

FINE = re.compile(r"(1|L|LA|La|RGB|RGBA|RGBa|RGBX|CMYK);1[0-6][BLNS]*")
"""Raw modes whose samples are finer than 8 bits, and which Pillow cuts to 8 without a word."""

BITS_PER_SAMPLE, BC6H = 258, "6"
"""A tag of TIFF; the compression of DDS whose samples are halves of a float."""

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Opened:
    """A decoded image, upright, and what was done to it so far."""

    image: Image.Image
    done: tuple[str, ...] = ()

    @property
    def is_grey(self) -> bool:
        """Whether the file itself holds a grey image."""
        return self.image.mode in GREY_MODES


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Every format that Pillow can decode here, by itself, in the order in which it tries them."""
    Image.init()
    return tuple(form for form in Image.ID if form in Image.OPEN and form not in NO_PIXELS)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of these formats."""
    formats = (*image_formats(), "MPO")  # which is opened as the JPEG that it begins with
    return frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in formats)


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its name."""
    name = path.rpartition("/")[2]
    return "." in name and f".{name.rpartition('.')[2].lower()}" in image_suffixes()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what Pillow warns of in files that it can read; around many images, since it costs as much as one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(raw: Raw, where: str) -> Opened:
    """The decoded image; DataError if it is none, has several frames, or has more than 8 bits a channel."""
    if raw is None:
        raise DataError(f"{where} holds no image; remove the row or mend it")
    if isinstance(raw, np.ndarray):
        return Opened(Image.fromarray(raw))
    try:
        image = Image.open(io.BytesIO(raw), formats=image_formats())
    except Exception as error:
        raise _undecodable(where, error) from None
    return decoded(image, where)


def decoded(image: Image.Image, where: str) -> Opened:
    """A PIL image, decoded and upright, by the rules for files; DataError as `open_image`.

    Of an image that was decoded before it came here nobody knows any more what Pillow cut, so it is taken as it is.
    """
    try:
        frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
        is_main = image.format == "MPO" and not image.tell()
        finer = _finer_than_8_bits(image)
        opened = _turned(image, (MAIN_PICTURE,) if frames > 1 else ())
    except Exception as error:  # Pillow's decoders raise whatever their format makes of odd bytes
        raise _undecodable(where, error) from None
    if image.mode.startswith(("I", "F")) or finer:
        raise DataError(f"{where} has more than 8 bits a channel (mode {finer or image.mode}); save it with 8")
    if frames > 1 and not is_main:
        raise DataError(
            f"{where} holds {frames} frames, and could be read as the first or as all of them; "
            f"save those that are meant as images of their own"
        )
    return opened


def to_pixels(
    opened: Opened, where: str, shape: tuple[int, int, int], data: Data
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(C, H, W) uint8 in the shape of the set, and all that was done to the image."""
    channels, height, width = shape
    image, done = converted(opened, where, "L" if channels == 1 else "RGB", ground_of(data))
    if data.image_size:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif image.size != (width, height):
        raise DataError(
            f"{where} is {image.height} x {image.width} where the set is {height} x {width} (rows x columns); "
            f"set data.image_size or make the sizes agree"
        )
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1), done


def converted(opened: Opened, where: str, mode: str, ground: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in ``mode`` ("L" or "RGB"), laid on the ground where it is transparent, and all that was done to it.

    Raises DataError for a colour space that cannot be turned to it.
    """
    image, done = opened.image, opened.done
    try:
        if image.mode in WITH_ALPHA or "transparency" in image.info:
            clear = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
            if clear.getchannel("A").getextrema() != (255, 255):
                laid = Image.alpha_composite(Image.new("RGBA", clear.size, ground), clear)
                return laid.convert("RGB").convert(mode), (*done, f"transparent, laid on {ground}")
            flat = clear.convert("RGB")
        else:
            flat = image
        if image.mode == mode:
            return image, done
        if (image.mode, mode) == ("1", "L"):
            return image.convert(mode), done
        return flat.convert(mode), (*done, f"{MODES.get(image.mode, image.mode)} turned to {MODES[mode]}")
    except ValueError as error:  # a colour space that Pillow can open but not convert
        raise DataError(f"{where} cannot be turned to {MODES[mode]} ({first_line(error)}); save it as RGB") from None


def ground_of(data: Data) -> str:
    """The colour that transparent images are laid on."""
    return data.ground or "white"


def first_line(error: Exception) -> str:
    """What a library says went wrong."""
    return str(error).partition("\n")[0] or type(error).__name__


# --- steps -------------------------------------------------------------------------------------------------------


def _undecodable(where: str, error: Exception) -> DataError:
    return DataError(f"{where} is not an image that can be decoded ({first_line(error)}); mend or remove it")


def _finer_than_8_bits(image: Image.Image) -> str:
    """What says that Pillow would cut samples to 8 bits; empty where it would not, or has decoded them already."""
    if not isinstance(image, ImageFile.ImageFile):
        return ""
    bits_in = BITS_IN_HEADER.get(image.format or "")
    bits = bits_in(_file_of(image)) if bits_in else 8
    if bits > 8:
        return f"{image.mode} of {bits} bits"
    for tile in image.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw_mode = str(arguments[0]) if arguments else ""
        if FINE.fullmatch(raw_mode):
            return raw_mode
        is_fine_ppm = tile[0] in ("ppm", "ppm_plain") and len(arguments) > 1 and arguments[1] > 255
        if is_fine_ppm or tile[0] == "SGI16" or (tile[0] == "bcn" and raw_mode == BC6H):
            return f"{image.mode} of 16 bits"
    if image.format == "TIFF" and image.tile:  # whose planes are decoded one by one, in a raw mode that does not tell
        bits = max(_whole_numbers(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)), default=8)
        return f"{image.mode} of {bits} bits" if bits > 8 else ""
    return ""


def _whole_numbers(value: object) -> list[int]:
    """The numbers of a tag that may hold one, several or something else."""
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, int)]


def _file_of(image: ImageFile.ImageFile) -> bytes:
    """All bytes of the file that an image will be decoded from."""
    file = image.fp
    if file is None or getattr(file, "closed", False):
        return b""
    at = file.tell()
    file.seek(0)
    raw = file.read()
    file.seek(at)
    return raw


def _bits_of_jpeg_2000(raw: bytes) -> int:
    """The depth of the first component, which stands at the end of SIZ, the first marker of a codestream."""
    start = raw.find(b"\xff\x4f\xff\x51")
    return (raw[start + 42] & 0x7F) + 1 if 0 <= start < len(raw) - 42 else 8


def _bits_of_avif(raw: bytes) -> int:
    """10 or 12 bits are a flag in the third byte of the configuration of the codec."""
    start = raw.find(b"av1C")
    return 10 if 0 <= start < len(raw) - 6 and raw[start + 6] & 0x40 else 8


def _bits_of_icons(raw: bytes) -> int:
    """The depth of the finest picture in a file of icons, which are PNG, JPEG 2000, or of 8 bits."""
    headers = [raw[found.end() : found.end() + 17] for found in re.finditer(re.escape(PNG), raw)]
    depths = [header[16] for header in headers if len(header) == 17]
    return max([*depths, _bits_of_jpeg_2000(raw)])


BITS_IN_HEADER: dict[str, Callable[[bytes], int]] = {
    "JPEG2000": _bits_of_jpeg_2000,
    "AVIF": _bits_of_avif,
    "ICO": _bits_of_icons,
    "ICNS": _bits_of_icons,
}
"""Formats whose depth Pillow does not tell."""


def _turned(image: Image.Image, done: tuple[str, ...]) -> Opened:
    """An image, decoded and upright; as it is where its orientation is none of the eight, or cannot be read."""
    by_pillow = image.format == "TIFF" and _orientation(image) in UPRIGHT  # in load, which takes the orientation away
    image.load()
    orientation = _orientation(image)
    if orientation is None:
        return Opened(image, (*done, ODD_EXIF))
    if by_pillow:
        return Opened(image, (*done, TURNED))
    way = UPRIGHT.get(orientation)
    return Opened(image, done) if way is None else Opened(image.transpose(way), (*done, TURNED))


def _orientation(image: Image.Image) -> int | None:
    """How the camera was held: 1 is upright, or not said; None where it cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF is a file format of its own, and as often damaged
        return None
    return orientation if isinstance(orientation, int) else 1


MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with opaque alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGB with opaque alpha",
}
"""Modes of Pillow as people call them."""
