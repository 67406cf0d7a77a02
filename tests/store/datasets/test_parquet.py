"""Sets in Parquet: what is read, and every way in which it is refused."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import decode_all, encoded, parquet, pixels_of, planes, png, table_of, write
from PIL import Image

from dasm_ray.errors import DataError
from dasm_ray.store.datasets import catalogue
from dasm_ray.store.datasets import parquet as parquet_module
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import Source, decode
from dasm_ray.store.place import Place


def test_parquet_keeps_pixels_labels_names_and_order(tmp_path):
    labels = [2, 0, 1, 1]
    write(tmp_path / "train-00000.parquet", table_of([png(i) for i in range(4)], labels, names=["zebra", "ant", "cow"]))
    source, images, found, keys = decode_all(parquet(tmp_path))
    assert source.class_names == ("zebra", "ant", "cow")
    assert source.shape == (3, 6, 5)
    assert not source.has_test
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, [planes(pixels_of(i)) for i in range(4)])
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.int64
    assert np.all((keys >= 0) & (keys < 1))


def test_shards_cut_across_row_groups_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "SHARD_ROWS", 7)
    for file, (first, last) in enumerate([(0, 20), (20, 33)]):
        images = [png(i, height=2, width=2) for i in range(first, last)]
        write(
            tmp_path / "data" / f"train-{file}.parquet", table_of(images, [i % 3 for i in range(first, last)]), rows=4
        )
    source, images, labels, _ = decode_all(parquet(tmp_path))
    assert [len(shard) for shard in source.shards["train"]] == [7, 7, 6, 7, 6]
    np.testing.assert_array_equal(images, [planes(pixels_of(i, 2, 2)) for i in range(33)])
    np.testing.assert_array_equal(labels, np.arange(33) % 3)


def test_a_shard_is_plain_values(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0), png(1)], [0, 1]))
    source = open_source(parquet(tmp_path))
    assert pickle.loads(pickle.dumps(source)) == source
    assert isinstance(source, Source)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train-0.parquet", "test-0.parquet"], 1, 1),
        (["train-0.parquet", "train-1.parquet", "validation-0.parquet"], 2, 1),
        (["train-0.parquet", "validation-0.parquet", "test-0.parquet", "extra-0.parquet"], 1, 1),
        (["0000.parquet", "0001.parquet"], 2, None),
        (["data/train-0.parquet", "data/test-0.parquet", "README.md"], 1, 1),
    ],
)
def test_splits_follow_the_names_of_files(tmp_path, names, train, test):
    for name in names:
        write(tmp_path / name, table_of([png(0), png(1)], [0, 1], names=["a", "b"]))
    source = open_source(parquet(tmp_path))
    assert len(source.shards["train"]) == train
    assert len(source.shards.get("test", ())) == (test or 0)
    assert source.has_test is (test is not None)


def test_one_file_may_be_the_whole_set(tmp_path):
    write(tmp_path / "mine.parquet", table_of([png(0), png(1)], [0, 1]))
    source, images, _, _ = decode_all(parquet(tmp_path / "mine.parquet"))
    assert source.class_names == ("0", "1")
    assert len(images) == 2


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_parquet_is_read_from_uris(tmp_path, kind):
    root = Place(tmp_path.as_uri()) if kind == "file" else Place(f"mock://{tmp_path.name}")
    sink = io.BytesIO()
    pq.write_table(table_of([png(0), png(1)], [0, 1]), sink)
    (root / "set" / "train-0.parquet").write_bytes(sink.getvalue())
    _, images, _, _ = decode_all(parquet(root / "set"))
    np.testing.assert_array_equal(images[1], planes(pixels_of(1)))


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("image", "labels")])
@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_columns_have_several_names_and_types(tmp_path, image, label, binary):
    table = pa.table({label: pa.array([1, 0], pa.uint8()), image: pa.array([png(0), png(1)], binary)})
    write(tmp_path / "train.parquet", table)
    _, images, labels, _ = decode_all(parquet(tmp_path))
    np.testing.assert_array_equal(images[0], planes(pixels_of(0)))
    np.testing.assert_array_equal(labels, [1, 0])


def test_jpeg_decodes_as_pillow_does(tmp_path):
    data = encoded(pixels_of(0, 16, 16), "JPEG")
    write(tmp_path / "train.parquet", table_of([data, data], [0, 1]))
    _, images, _, _ = decode_all(parquet(tmp_path))
    np.testing.assert_array_equal(images[0], planes(np.asarray(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize(
    ("modes", "shape"),
    [
        (["L", "LA", "1", "L"], (1, 6, 5)),
        (["L", "L", "L", "RGB"], (3, 6, 5)),
        (["L", "L", "P", "L"], (3, 6, 5)),
        (["RGB", "L", "1", "RGBA"], (3, 6, 5)),
    ],
)
def test_a_set_is_grey_if_every_training_image_is(tmp_path, modes, shape):
    images = [encoded(pixels_of(i), mode=mode) for i, mode in enumerate(modes)]
    write(tmp_path / "train.parquet", table_of(images, [0, 1, 0, 1]))
    write(tmp_path / "test.parquet", table_of([png(9), png(8)], [0, 1]))
    source, images, _, _ = decode_all(parquet(tmp_path))
    assert source.shape == shape
    for number, mode in enumerate(modes):
        alone = Image.fromarray(pixels_of(number)).convert(mode).convert("L" if shape[0] == 1 else "RGB")
        np.testing.assert_array_equal(images[number], planes(np.asarray(alone)))


def test_image_size_scales_and_crops_the_middle(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 3:13] = 200  # the middle square is bright, and as far around it as the filter reaches
    write(tmp_path / "train.parquet", table_of([encoded(wide), png(0, height=9, width=3)], [0, 1]))
    source, images, _, _ = decode_all(parquet(tmp_path, image_size=4))
    assert source.shape == (3, 4, 4)
    np.testing.assert_array_equal(images[0], np.full((3, 4, 4), 200))


BAD_ROWS = {
    "null image": ((None, 1), "row 2 holds no image"),
    "null bytes": (({"bytes": None, "path": "x.png"}, 1), "row 2 holds no image"),
    "truncated JPEG": ((encoded(pixels_of(0, 6, 5), "JPEG")[:-40], 1), "row 2 is not an image that can be decoded"),
    "truncated PNG": ((png(0)[:-30], 1), "row 2 is not an image that can be decoded"),
    "not an image": ((b"GIF, honestly", 1), "row 2 is not an image that can be decoded"),
    "empty": ((b"", 1), "row 2 is not an image that can be decoded"),
    "other size": ((png(0, height=5, width=6), 1), r"row 2 is 5 x 6 where the set is 6 x 5 .*set data.image_size"),
    "16 bits": ((encoded(pixels_of(0, channels=1).astype(np.uint16) * 256), 1), "row 2 has more than 8 bits a channel"),
    "null label": ((png(0), None), "row 2 has no label"),
    "label too large": ((png(0), 3), r"row 2 has label 3, which is not in 0\.\.2"),
    "negative label": ((png(0), -1), r"row 2 has label -1, which is not in 0\.\.2"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_row(tmp_path, monkeypatch, bad):
    (image, label), message = BAD_ROWS[bad]
    table = table_of([png(0), png(1), png(2), png(3)], [0, 1, 2, 0], names=["a", "b", "c"])
    cells = [*table.column("image").to_pylist()]
    cells[2] = {"bytes": image, "path": "x.png"} if isinstance(image, bytes) else image
    table = table.set_column(0, "image", pa.array(cells, table.schema.field("image").type))
    table = table.set_column(1, "label", pa.array([0, 1, label, 0]))
    write(tmp_path / "train-7.parquet", table, rows=2)
    data = parquet(tmp_path)
    for looked_at in (64, 1):  # found when the set is opened, and later by who decodes it
        monkeypatch.setattr(catalogue, "LOOKED_AT", looked_at)
        with pytest.raises(DataError, match=rf"train-7\.parquet: {message}"):
            [decode(shard, rows_of(shard), data) for shard in open_source(data).shards["train"]]


def test_a_bad_first_image_is_found_when_the_set_is_opened(tmp_path):
    write(tmp_path / "train.parquet", table_of([b"nothing", png(1)], [0, 1]))
    with pytest.raises(DataError, match="row 0 is not an image"):
        open_source(parquet(tmp_path))


def test_a_label_that_skips_a_class_is_a_gap(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(i) for i in range(3)], [0, 1, 3]))
    with pytest.raises(DataError, match="labels reach from 0 to 3 and class 2 has no training image"):
        open_source(parquet(tmp_path))


def test_labels_that_are_all_null(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0)], [None]))
    with pytest.raises(DataError, match=r"train.parquet holds no labelled row"):
        open_source(parquet(tmp_path))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: table_of([png(0)], ["cat"], label_type=pa.string()), "column label is string, not whole numbers"),
        (lambda: table_of([png(0)], [0.0], label_type=pa.float64()), "column label is double, not whole numbers"),
        (lambda: pa.table({"image": ["a.png"], "label": [0]}), "column image is string, not encoded images"),
        (lambda: pa.table({"image": [b"x"], "class": [0]}), "no column label or labels or fine_label; rename one"),
        (lambda: pa.table({"picture": [b"x"], "label": [0]}), r"no column image or img; rename one \(it has picture"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, table, message):
    write(tmp_path / "train.parquet", table())
    with pytest.raises(DataError, match=rf"train\.parquet.*{message}"):
        open_source(parquet(tmp_path))


def test_files_of_two_sets_are_not_mixed(tmp_path):
    write(tmp_path / "train-0.parquet", table_of([png(0)], [0], names=["a", "b"]))
    write(tmp_path / "test-0.parquet", table_of([png(0)], [0], names=["b", "a"]))
    with pytest.raises(DataError, match=r"test-0.parquet names other classes than .*train-0.parquet"):
        open_source(parquet(tmp_path))


@pytest.mark.parametrize("metadata", ["not json", '{"info": {"features": null}}', '{"info": {"features": {}}}'])
def test_metadata_that_does_not_name_the_classes_leaves_numbers(tmp_path, metadata):
    table = table_of([png(0), png(1)], [0, 1]).replace_schema_metadata({"huggingface": metadata})
    write(tmp_path / "train.parquet", table)
    assert open_source(parquet(tmp_path)).class_names == ("0", "1")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0)], [0]))
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet .*copy it again"):
        open_source(parquet(tmp_path))


def test_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table_of([png(i) for i in range(50)], [0, 1] * 25), path, compression="zstd", row_group_size=25)
    data = parquet(tmp_path)
    shard = open_source(data).shards["train"][0]
    damaged = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    damaged[start + 30 : start + 300] = bytes(270)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"train\.parquet: row"):
        decode(shard, rows_of(shard), data)


def test_a_file_that_changed_meanwhile_is_noticed(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0), png(1), png(2)], [0, 1, 0]))
    data = parquet(tmp_path)
    shard = open_source(data).shards["train"][0]
    write(tmp_path / "train.parquet", table_of([png(0), png(1)], [0, 1]))
    with pytest.raises(DataError, match="changed while it was read"):
        decode(shard, rows_of(shard), data)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet cannot be read \(No such file"):
        decode(shard, rows_of(shard), data)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no Parquet file"),
        (["test-0.parquet"], "holds no Parquet file"),
        (["train.parquet"], "no training image"),
    ],
)
def test_parquet_without_training_images(tmp_path, files, message):
    for name in files:
        write(tmp_path / name, table_of([], [], names=["a"]))
    with pytest.raises(DataError, match=message):
        open_source(parquet(tmp_path))
