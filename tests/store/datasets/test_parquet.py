"""Sets in Parquet: what is read, and every way in which it is refused."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import decode_all, encoded, parquet, pixels_of, planes, png, table_of, write
from PIL import Image

from dasm_ray.config.keys import Data
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
    assert "test" not in source.shards
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, [planes(pixels_of(i)) for i in range(4)])
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.int64
    assert np.all((keys >= 0) & (keys < 1))


@pytest.mark.parametrize("at_once", [1, 4 << 20])
def test_shards_cut_across_row_groups_and_files(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(parquet_module, "SHARD_ROWS", 7)
    monkeypatch.setattr(parquet_module, "AT_ONCE", at_once)
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
    assert ("test" in source.shards) is (test is not None)


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
    table = table.set_column(1, "label", pa.array([0, 1, label, 2]))
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


@pytest.mark.parametrize(
    "metadata", ["not json", '{"info": {"features": null}}', '{"info": {"features": {}}}', "[" * 100_000]
)
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


# --- splits by the names of files and folders --------------------------------------------------------------------


def put(root, *names, rows=4, **more):
    """A small Parquet file under each name, of two classes."""
    for number, name in enumerate(names):
        images = [png(100 * number + row) for row in range(rows)]
        write(root / name, table_of(images, [row % 2 for row in range(rows)], **{"names": ["a", "b"], **more}))


def rows_by_role(source):
    return {role: sum(map(len, shards)) for role, shards in source.shards.items()}


def said(source):
    return " ".join(" ".join(source.found.lines()).split())


TRAIN_AND_TEST = [
    ("cifar_train.parquet", "cifar_test.parquet"),
    ("training.parquet", "testing.parquet"),
    ("Train.parquet", "TEST.parquet"),
    ("train.parquet", "eval.parquet"),
    ("train.parquet", "x_evaluation_y.parquet"),
    ("mnist-train-00000-of-00001.parquet", "mnist-test-00000-of-00001.parquet"),
    ("train-00000-of-00001-b42a5af5633f3b1c.parquet", "test-00000-of-00001-0a1b2c3d4e5f6789.parquet"),
    ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    ("train/0000.parquet", "test/0000.parquet"),
    ("default/train/0000.parquet", "default/test/0000.parquet"),
    ("data/train.PARQUET", "data/test.PARQUET"),
    ("train2017/x.parquet", "test2017/y.parquet"),
]


@pytest.mark.parametrize(("train", "test"), TRAIN_AND_TEST)
def test_train_and_test_by_every_layout(tmp_path, train, test):
    put(tmp_path, train)
    put(tmp_path, test, rows=2)
    assert rows_by_role(open_source(parquet(tmp_path))) == {"train": 4, "test": 2}


@pytest.mark.parametrize("val", ["validation", "valid", "VAL", "dev"])
def test_validation_is_validation_where_there_is_a_test_split(tmp_path, val):
    put(tmp_path, "train.parquet")
    put(tmp_path, f"{val}.parquet", rows=2)
    source = open_source(parquet(tmp_path))
    assert rows_by_role(source) == {"train": 4, "test": 2}
    assert f"({val}.parquet, the validation split, which serves as such)" in said(source)
    put(tmp_path, "test.parquet", rows=6)
    assert rows_by_role(open_source(parquet(tmp_path))) == {"train": 4, "val": 2, "test": 6}


def test_numbered_files_are_one_split(tmp_path):
    put(tmp_path, "train1.parquet", "train2.parquet", "train3.parquet", "test.parquet")
    assert rows_by_role(open_source(parquet(tmp_path))) == {"train": 12, "test": 4}


READ_IN_TWO_WAYS = {
    "a shard that is missing": (
        ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
        r"train-00001-of-00003\.parquet is missing from the training split, which has 2 of its 3 files; fetch the set",
    ),
    "the last shards": (
        ["train-00000-of-00004.parquet", "test.parquet"],
        r"train-00001-of-00004\.parquet and 2 more files are missing from the training split",
    ),
    "a shard of the test split": (
        ["train.parquet", "test-00001-of-00002.parquet"],
        r"test-00000-of-00002\.parquet is missing from the test split",
    ),
    "a shard in a folder": (
        ["train/0_of_2.parquet", "test/0.parquet"],
        r"train/1_of_2\.parquet is missing from the training split",
    ),
    "a shard of files without a word": (["mnist-00000-of-00002.parquet"], r"mnist-00001-of-00002\.parquet is missing"),
    "shards with hashes": (
        ["train-00000-of-00002-b42a5af5633f3b1c.parquet"],
        r"train-00001-of-00002\.parquet is missing",
    ),
    "a gap in numbers": (["train1.parquet", "train3.parquet"], r"are numbered, and train2\.parquet is missing"),
    "two writings": (
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        "are of two writings of the training split, and either could be meant",
    ),
    "one shard twice": (
        ["train-00000-of-00001-b42a5af5633f3b1c.parquet", "train-00000-of-00001-0a1b2c3d4e5f6789.parquet"],
        "are of two writings of the training split",
    ),
    "a copy": (
        ["train.parquet", "train (1).parquet"],
        "could be two parts of the training split or belong",
    ),
    "two sets": (["cifar10_train.parquet", "cifar100_train.parquet"], "belong to two sets"),
    "two sets without a word": (["mine.parquet", "yours.parquet"], "belong to two sets"),
    "two folders of sets": (["cifar10/train.parquet", "mnist/train.parquet"], r"cifar10 and in .*/mnist, .*; name one"),
    "here and in data": (["train.parquet", "data/train.parquet"], "could be one set or several; name one"),
    "two words": (["train_test.parquet"], "train_test.parquet can be read as the training split and as the test split"),
    "folder against name": (["train/test-0.parquet"], "can be read as the training split and as the test split"),
    "no word beside a test split": (
        ["mnist.parquet", "mnist_test.parquet"],
        r"holds mnist_test\.parquet beside mnist\.parquet, which could be the training images or no part of the set",
    ),
    "only test": (["test-0.parquet"], r"holds no Parquet file with training images, only test-0\.parquet"),
    "two folders down": (["a/b/train.parquet"], r"there is some in .*/a/b, name that folder"),
}


@pytest.mark.parametrize("case", READ_IN_TWO_WAYS)
def test_names_that_can_be_read_in_two_ways_are_refused(tmp_path, case):
    names, message = READ_IN_TWO_WAYS[case]
    put(tmp_path, *names)
    with pytest.raises(DataError, match=message) as caught:
        open_source(parquet(tmp_path))
    assert "\n" not in str(caught.value)


def test_hub_layout_is_found_under_the_name_of_a_set(tmp_path):
    put(tmp_path, "plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet")
    source = open_source(Data(name="cifar10", path=str(tmp_path)))
    assert (source.name, rows_by_role(source)) == ("cifar10", {"train": 4, "test": 4})


def test_what_names_no_split_is_left_out_with_a_word(tmp_path):
    put(tmp_path, "train.parquet", "test.parquet", "extra.parquet", "._train.parquet")
    source = open_source(parquet(tmp_path))
    assert rows_by_role(source) == {"train": 4, "test": 4}
    assert "left out 1 Parquet file whose name says no split (extra.parquet)" in said(source)
    assert "left out 1 hidden Parquet file (._train.parquet)" in said(source)


def test_a_shard_that_is_named_alone_is_said_to_be_one(tmp_path):
    put(tmp_path, "train-00000-of-00002.parquet")
    source = open_source(parquet(tmp_path / "train-00000-of-00002.parquet"))
    assert "is taken alone, as data.path names it, and is one of 2 shards" in said(source)


# --- labels and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, None])
def test_a_split_without_labels_is_left_out_with_a_word(tmp_path, label):
    put(tmp_path, "train.parquet", "validation.parquet")
    write(tmp_path / "test.parquet", table_of([png(i) for i in range(7)], [label] * 7, names=["a", "b"]))
    source = open_source(parquet(tmp_path))
    assert rows_by_role(source) == {"train": 4, "test": 4}
    assert "left out 7 test images, none of which has a label (test.parquet)" in said(source)
    assert "validation.parquet, the validation split, which serves as such" in said(source)


@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize(("label", "message"), [(2, "has label 2, which is not in 0..1"), (None, "has no label")])
def test_one_odd_label_is_named_in_every_split_before_an_image_is_read(tmp_path, split, label, message):
    put(tmp_path, "train.parquet", "test.parquet", "validation.parquet")
    write(tmp_path / f"{split}.parquet", table_of([b"no image"] * 3, [0, label, 1], names=["a", "b"]))
    with pytest.raises(DataError, match=rf"{split}\.parquet: row 1 {message}"):
        open_source(parquet(tmp_path))


def test_files_without_names_take_those_of_the_others(tmp_path):
    put(tmp_path, "train.parquet", names=None)
    put(tmp_path, "test.parquet", names=["cat", "dog"])
    source = open_source(parquet(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert "train.parquet: no class names; those of test.parquet hold" in said(source)


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_classes_of_a_test_file_without_names_must_be_trained(tmp_path, names):
    put(tmp_path, "train.parquet", names=names)
    write(tmp_path / "test.parquet", table_of([png(i) for i in range(3)], [0, 1, 2]))
    with pytest.raises(DataError, match=r"test\.parquet: row 2 has label 2, which is not in 0\.\.1"):
        open_source(parquet(tmp_path))


def test_two_columns_that_could_be_meant_are_refused(tmp_path):
    table = table_of([png(0), png(1)], [0, 1])
    write(tmp_path / "train.parquet", table.append_column("fine_label", table.column("label")))
    with pytest.raises(DataError, match="has the columns label and fine_label, and either could be meant"):
        open_source(parquet(tmp_path))


@pytest.mark.parametrize("names", ["abc", {}, [], 3])
def test_class_names_that_are_no_list_leave_numbers(tmp_path, names):
    put(tmp_path, "train.parquet", names=names)
    assert open_source(parquet(tmp_path)).class_names == ("0", "1")


def test_a_test_split_without_rows_is_refused(tmp_path):
    put(tmp_path, "train.parquet")
    write(tmp_path / "test.parquet", table_of([], [], names=["a", "b"]))
    with pytest.raises(DataError, match=r"test\.parquet holds no test image; fill it or move it away"):
        open_source(parquet(tmp_path))


def test_one_class_is_refused(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0), png(1)], [0, 0]))
    with pytest.raises(DataError, match="holds one class only, 0"):
        open_source(parquet(tmp_path))


@pytest.mark.parametrize(("train", "test"), TRAIN_AND_TEST)
def test_datasets_reads_the_same_files(tmp_path, monkeypatch, train, test):
    """But for words in capital letters, which it does not know."""
    hub = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    if (train + test).lower() != train + test:
        pytest.skip("datasets knows its words in lower case only")
    put(tmp_path / "set", train)
    put(tmp_path / "set", test, rows=2)
    theirs = hub.load_dataset("parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    ours = open_source(parquet(tmp_path / "set"))
    assert {split: rows.num_rows for split, rows in theirs.items()} == rows_by_role(ours)
