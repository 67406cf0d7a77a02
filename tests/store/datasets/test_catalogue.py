"""Sets by name, and the real ones where they are at hand."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import planes
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "message"), [("cifar", "did you mean 'cifar10'"), ("xyzzy", "the sets are digits, mnist, .*parquet")]
)
def test_an_unknown_set(name, message):
    with pytest.raises(DataError, match=rf"data.name: there is no set '{name}'; {message}"):
        open_source(Data(name=name))


@pytest.mark.parametrize("name", ["folder", "parquet", "tiny_imagenet"])
def test_a_path_that_is_needed(name, tmp_path):
    with pytest.raises(DataError, match=r"data.path"):
        open_source(Data(name=name, path=str(tmp_path / "nowhere")))
    if name != "tiny_imagenet":
        with pytest.raises(DataError, match=f"data.path: {name} needs the folder or URI"):
            open_source(Data(name=name))


def test_a_path_of_an_unknown_kind():
    with pytest.raises(DataError, match="nope://x/ cannot be read"):
        open_source(Data(name="parquet", path="nope://x"))


@pytest.mark.parametrize(
    ("name", "first", "shape", "train"),
    [
        ("cifar10", ("airplane", "automobile", "bird"), (3, 32, 32), 50_000),
        ("mnist", ("0", "1", "2"), (1, 28, 28), 60_000),
    ],
)
def test_shared_sets(name, first, shape, train):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} in ../shared/data")
    data = Data(name=name, path=str(SHARED / name))
    source = open_source(data)
    assert source.class_names[:3] == first
    assert len(source.class_names) == 10
    assert source.shape == shape
    assert sum(map(len, source.shards["train"])) == train
    assert sum(map(len, source.shards["test"])) == 10_000
    shard = source.shards["test"][-1]
    found = decode(shard, rows_of(shard), data)
    table = pq.read_table(next((SHARED / name).glob("test-*.parquet")))
    row = shard.last - 1
    expected = np.asarray(Image.open(io.BytesIO(table.column("image")[row]["bytes"].as_py())))
    np.testing.assert_array_equal(found.images[-1], planes(expected))
    np.testing.assert_array_equal(found.labels, table.column("label").to_numpy()[shard.first : shard.last])
