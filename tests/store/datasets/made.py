"""Small sets made of real bytes, for the tests of what reads them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode


def pixels_of(seed, height=6, width=5, channels=3):
    shape = (height, width, channels) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, form="PNG", mode=None):
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form)
    return out.getvalue()


def png(seed, **size):
    return encoded(pixels_of(seed, **size))


def table_of(images, labels, *, names=None, image="image", label="label", label_type=None):
    """The layout of Hugging Face: images as struct<bytes, path>, class names in the metadata."""
    column = [None if data is None else {"bytes": data, "path": "x.png"} for data in images]
    table = pa.table(
        {
            image: pa.array(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            label: pa.array(labels, label_type or pa.int64()),
        }
    )
    if names is None:
        return table
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path, table, rows=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def parquet(path, **more):
    return Data(name="parquet", path=str(path), **more)


def decode_all(data, split="train"):
    """All images, labels and keys of a split, shard by shard, and the source."""
    source = open_source(data)
    parts = [decode(shard, rows_of(shard), data) for shard in source.shards[split]]
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "keys"))
    return source, *arrays


def planes(pixels):
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def save(path, seed, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(seed, **size)).save(path, quality=100)


def folder(path, **more):
    return Data(name="folder", path=str(path), **more)
