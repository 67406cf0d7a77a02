"""Rows without a network: selections by features, and reading sets of image files.

What must stay true: ours is what a worker's task calls; what both read lies in a temporary folder that goes with the
process.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pairs import MEAN, STD, Pair, Sizes, gap, share_of_other_picks
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.core import selection
from dasm_ray.core.seed import numpy_generator
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode

CHOSEN = 10
"""Images a class that selections choose."""


def k_center(sizes: Sizes) -> Pair:
    """Greedy k-center: 10 of 5000 samples of 2048 features, in each of 10 classes."""
    return _selection(sizes, "k_center")


def herding(sizes: Sizes) -> Pair:
    """Herding of the same."""
    return _selection(sizes, "herding")


def _selection(sizes: Sizes, method: str) -> Pair:
    classes, count, wide = sizes.pick(10, 2), sizes.pick(5000, 100), sizes.pick(2048, 16)
    generator = numpy_generator("benchmark", method)
    features = generator.standard_normal((classes, count, wide), dtype=np.float32)
    plain, by_twin = torch.from_numpy(features), getattr(peers, method)

    def ours() -> Any:
        return [selection.PICKS[method](of_class, CHOSEN, generator)[0] for of_class in features]

    return Pair(
        ours=ours,
        twin=lambda: [by_twin(of_class, CHOSEN) for of_class in plain],
        units=classes * count,
        unit="samples",
        apart=share_of_other_picks,
    )


def decode_files(sizes: Sizes) -> Pair:
    """A folder a class of JPEG files, 32 x 32."""
    folder = tempfile.TemporaryDirectory(prefix="dasm-ray-bench-")
    count = sizes.pick(2000, 60)
    for place, raw in enumerate(_pictures(count)):
        file = Path(folder.name) / str(place % 10) / f"{place:05d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(raw)
    return _reading(folder, Data(name="folder", path=folder.name), peers.read_folder, Path(folder.name), count)


def decode_rows(sizes: Sizes) -> Pair:
    """The same images as rows of a Parquet file."""
    folder = tempfile.TemporaryDirectory(prefix="dasm-ray-bench-")
    count, file = sizes.pick(2000, 60), Path(folder.name) / "train.parquet"
    images = [{"bytes": raw, "path": None} for raw in _pictures(count)]
    pq.write_table(pa.table({"image": images, "label": [place % 10 for place in range(count)]}), file)
    return _reading(folder, Data(name="parquet", path=folder.name), peers.read_parquet, file, count)


def _pictures(count: int) -> list[bytes]:
    """Blurred noise as JPEG, 32 x 32 in colour: about as large as photographs of that size."""
    generator, encoded = numpy_generator("benchmark", "pictures"), []
    for coarse in generator.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8):
        kept = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(kept, "JPEG", quality=95)
        encoded.append(kept.getvalue())
    return encoded


def _reading(folder: tempfile.TemporaryDirectory[str], data: Data, by_twin: Any, path: Path, count: int) -> Pair:
    """Ours: every shard decoded, with content keys and checks. The twin's: float32 images, normalised."""

    def ours() -> Any:
        source = open_source(data)
        shards = source.shards["train"]
        found = [decode(shard, rows_of(shard), data) for shard in shards]
        assert Path(folder.name).exists()  # the folder lives as long as who reads it
        return [(each.images, each.labels) for each in found]

    def apart(ours: Any, twin: Any) -> float:
        images, labels = (np.concatenate(column) for column in zip(*ours, strict=True))
        assert sorted(labels) == sorted(twin[1].tolist())
        return gap([peers.normalised(torch.from_numpy(images).float() / 255, MEAN, STD)], [twin[0]])

    return Pair(ours, lambda: by_twin(path, MEAN, STD), count, apart=apart)
