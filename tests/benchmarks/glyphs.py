"""A set of very many classes that is real and can be had: characters as the fonts of Debian's packages draw them.

    python tests/benchmarks/glyphs.py FOLDER [classes] [faces] [side]

Downloads the packages by name (apt-get, without root; about 96 MB) into FOLDER/packages, unpacks them there, and draws
into FOLDER/set, as Parquet in splits for training, validation and test. A split has font families of its own: the test
asks for characters in faces that nobody has seen. Characters are those that most faces have; of several that a
reference face draws alike, such as the Latin, Greek and Cyrillic A, there is one, and a drawing of a character that two
faces share is taken once. ``faces`` is how many images a class has for training; the other splits have a sixth as many.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

PACKAGES = """
    fonts-adf-accanthis fonts-agave fonts-anonymous-pro fonts-cantarell fonts-cardo fonts-comfortaa fonts-comic-neue
    fonts-courier-prime fonts-creep2 fonts-croscore fonts-crosextra-caladea fonts-crosextra-carlito fonts-dejavu-core
    fonts-dejavu-extra fonts-ebgaramond fonts-ebgaramond-extra fonts-fantasque-sans fonts-firacode fonts-freefont-ttf
    fonts-go fonts-goudybookletter fonts-hack fonts-hosny-amiri fonts-inter fonts-jetbrains-mono fonts-junicode
    fonts-jura fonts-lato fonts-league-spartan fonts-liberation fonts-liberation2 fonts-linex fonts-linuxlibertine
    fonts-lmodern fonts-cmu fonts-monofur fonts-mononoki fonts-noto-core fonts-noto-mono fonts-oldstandard
    fonts-open-sans fonts-paratype fonts-play fonts-prociono fonts-quattrocento fonts-quicksand fonts-roboto-slab
    fonts-roboto-unhinted fonts-sil-andika fonts-sil-charis fonts-sil-doulos fonts-sil-galatia fonts-sil-gentiumplus
    fonts-stix fonts-symbola fonts-texgyre fonts-tuffy fonts-vollkorn fonts-yanone-kaffeesatz
"""
REFERENCE = "DejaVuSans.ttf"
"""The face whose drawings say which characters look alike."""

SHARES = {"train": 60, "validation": 80, "test": 100}
"""Of a hundred families, so many go to a split or to one before it."""


@dataclass(frozen=True)
class Face:
    """One font file, its family, and the characters that it has."""

    file: Path
    family: str
    characters: frozenset[int]

    @property
    def split(self) -> str:
        """By the name of its family, so that the faces of one stay together."""
        share = int(hashlib.sha256(self.family.encode()).hexdigest(), 16) % 100
        return next(name for name, most in SHARES.items() if share < most)


def download(folder: Path) -> None:
    """Packages as files, unpacked beside one another; what is there already is left."""
    unpacked = folder / "unpacked"
    if unpacked.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = PACKAGES.split()
    known = subprocess.run(["apt-cache", "show", "--no-all-versions", *wanted], capture_output=True, text=True)
    there = sorted(line.split()[1] for line in known.stdout.splitlines() if line.startswith("Package: "))
    print(f"{len(there)} of {len(wanted)} packages are to be had", file=sys.stderr)
    subprocess.run(["apt-get", "download", "-qq", *there], cwd=folder, check=True)
    aside = folder / "unpacking"
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, aside], check=True)
    aside.rename(unpacked)


def faces_in(folder: Path) -> list[Face]:
    """All faces that tell their characters."""
    found = []
    for file in sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")]):
        try:
            with TTFont(file, lazy=True) as font:
                names, characters = font["name"], font.getBestCmap()
                family = names.getDebugName(16) or names.getDebugName(1)
        except (TTLibError, KeyError):
            continue
        if characters and family:
            found.append(Face(file, family, frozenset(characters)))
    return found


def characters_of(faces: list[Face], classes: int, wanted: Mapping[str, int], side: int) -> list[str]:
    """The characters that most faces have, none of which looks like another, each drawn by enough faces of a split."""
    reference = next(face for face in faces if face.file.name == REFERENCE)
    pen = ImageFont.truetype(str(reference.file), size_of(side))
    counts = {split: Counter(c for f in faces if f.split == split for c in f.characters) for split in wanted}
    total = Counter(c for face in faces for c in face.characters)
    chosen: list[str] = []
    looks: set[bytes] = set()
    for code in sorted(reference.characters, key=lambda code: (-total[code], code)):
        if unicodedata.category(chr(code))[0] not in "LNSP" or any(counts[s][code] < n for s, n in wanted.items()):
            continue
        look = drawn(chr(code), pen, side).tobytes()
        if look not in looks and any(look):
            looks.add(look)
            chosen.append(chr(code))
        if len(chosen) == classes:
            return chosen
    raise SystemExit(f"only {len(chosen)} characters are drawn by {dict(wanted)} faces; ask for fewer classes or faces")


def size_of(side: int) -> int:
    """Of a font, so that nearly all of its characters fit into a square."""
    return round(side * 0.6)


def drawn(character: str, pen: ImageFont.FreeTypeFont, side: int) -> np.ndarray:
    """White on black, in the middle of a line whose baseline is always at one height: (side, side) uint8."""
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side / 2, side * 0.68), character, 255, pen, anchor="ms")
    return np.asarray(image)


def spread(faces: Iterable[Face]) -> Iterator[Face]:
    """A face of each family, then another of each."""
    families: dict[str, list[Face]] = defaultdict(list)
    for face in faces:
        families[face.family].append(face)
    return (face for turn in zip_longest(*families.values()) for face in turn if face is not None)


def write(folder: Path, faces: list[Face], characters: list[str], wanted: Mapping[str, int], side: int) -> None:
    """One file a split, its rows in the order of a shuffle; no character is drawn alike in two of them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pens = {face.file: ImageFont.truetype(str(face.file), size_of(side)) for face in faces}
    seen: list[set[bytes]] = [{bytes(side * side)} for _ in characters]
    for split, count in wanted.items():
        own, rows = [face for face in faces if face.split == split], []
        for label, character in enumerate(characters):
            able = (face for face in spread(own) if ord(character) in face.characters)
            images = (drawn(character, pens[face.file], side) for face in able)
            rows += [(label, image) for image in islice(unlike(images, seen[label]), count)]
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))
        images = pa.array([{"bytes": as_png(rows[n][1]), "path": f"{n}.png"} for n in order], kind)
        names = [f"U+{ord(each):04X} {unicodedata.name(each, '').lower()}".strip() for each in characters]
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"image": images, "label": pa.array([rows[n][0] for n in order], pa.int64())})
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(told), folder / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(rows)} images by {len({face.family for face in own})} families", file=sys.stderr)


def unlike(images: Iterable[np.ndarray], seen: set[bytes]) -> Iterator[np.ndarray]:
    """Those that are not among the seen; from then on they are."""
    for image in images:
        if (look := image.tobytes()) not in seen:
            seen.add(look)
            yield image


def as_png(image: np.ndarray) -> bytes:
    """A picture that loses nothing."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def main(folder: str, classes: int = 1000, faces: int = 60, side: int = 64) -> None:
    """Makes the set, in the stead of an older one."""
    place = Path(folder)
    download(place / "packages")
    known = faces_in(place / "packages" / "unpacked")
    wanted = {"train": faces, "validation": max(1, faces // 6), "test": max(1, faces // 6)}
    characters = characters_of(known, classes, wanted, side)
    shutil.rmtree(place / "set", ignore_errors=True)
    (place / "set").mkdir()
    write(place / "set", known, characters, wanted, side)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
