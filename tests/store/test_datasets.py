"""Real images from real bytes: what is decoded, and every way in which it is refused."""

import hashlib
import io
import json
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store import datasets
from dasm_ray.store.datasets import Source, check_counts, decode, digest_block, open_source, split_of
from dasm_ray.store.place import Place

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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
    parts = [decode(shard, data) for shard in source.shards[split]]
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels", "keys"))
    return source, *arrays


def planes(pixels):
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- Parquet -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(datasets, "SHARD_ROWS", 7)
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
    write(tmp_path / "train.parquet", table_of([data], [0]))
    _, images, _, _ = decode_all(parquet(tmp_path))
    np.testing.assert_array_equal(images[0], planes(np.asarray(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize(("first", "shape"), [("L", (1, 6, 5)), ("RGB", (3, 6, 5)), ("P", (3, 6, 5)), ("1", (1, 6, 5))])
def test_the_first_image_says_whether_a_set_is_grey(tmp_path, first, shape):
    modes = [first, "RGB", "L", "RGBA"]
    write(tmp_path / "train.parquet", table_of([encoded(pixels_of(i), mode=m) for i, m in enumerate(modes)], [0] * 4))
    source, images, _, _ = decode_all(parquet(tmp_path))
    assert source.shape == shape
    colour = Image.fromarray(pixels_of(1)).convert("L" if shape[0] == 1 else "RGB")
    np.testing.assert_array_equal(images[1], planes(np.asarray(colour)))


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
def test_a_bad_row_is_named_by_file_and_row(tmp_path, bad):
    (image, label), message = BAD_ROWS[bad]
    table = table_of([png(0), png(1), png(2), png(3)], [0, 1, 2, 0], names=["a", "b", "c"])
    cells = [*table.column("image").to_pylist()]
    cells[2] = {"bytes": image, "path": "x.png"} if isinstance(image, bytes) else image
    table = table.set_column(0, "image", pa.array(cells, table.schema.field("image").type))
    table = table.set_column(1, "label", pa.array([0, 1, label, 0]))
    write(tmp_path / "train-7.parquet", table, rows=2)
    data = parquet(tmp_path)
    source = open_source(data)
    with pytest.raises(DataError, match=rf"train-7\.parquet: {message}"):
        decode(source.shards["train"][0], data)


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
    pq.write_table(table_of([png(i) for i in range(50)], [0] * 50), path, compression="zstd", row_group_size=25)
    data = parquet(tmp_path)
    shard = open_source(data).shards["train"][0]
    damaged = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    damaged[start + 30 : start + 300] = bytes(270)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"train\.parquet: row"):
        decode(shard, data)


def test_a_file_that_changed_meanwhile_is_noticed(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0), png(1), png(2)], [0, 1, 0]))
    data = parquet(tmp_path)
    shard = open_source(data).shards["train"][0]
    write(tmp_path / "train.parquet", table_of([png(0), png(1)], [0, 1]))
    with pytest.raises(DataError, match="changed while it was read"):
        decode(shard, data)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match=r"train\.parquet cannot be read \(No such file"):
        decode(shard, data)


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


# --- folders -----------------------------------------------------------------------------------------------------


def save(path, seed, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(seed, **size)).save(path, quality=100)


def folder(path, **more):
    return Data(name="folder", path=str(path), **more)


def test_a_folder_per_class_in_the_order_of_names(tmp_path):
    for seed, name in enumerate(["b/2.png", "a/deep/x.PNG", "b/10.png", "a/a.jpg", "c/1.bmp"]):
        save(tmp_path / name, seed)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / "a" / ".thumbs" / "t.png", 9)
    source, images, labels, _ = decode_all(folder(tmp_path))
    assert source.class_names == ("a", "b", "c")
    assert not source.has_test
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2])
    assert [Path(file).name for file in source.shards["train"][0].files] == [
        "a.jpg",
        "x.PNG",
        "10.png",
        "2.png",
        "1.bmp",
    ]
    np.testing.assert_array_equal(images[3], planes(pixels_of(0)))


@pytest.mark.parametrize("beside", ["test", "val"])
def test_a_folder_with_splits(tmp_path, beside):
    for seed, name in enumerate(["train/a/1.png", "train/b/1.png", f"{beside}/b/1.png"]):
        save(tmp_path / name, seed)
    _, images, labels, _ = decode_all(folder(tmp_path), "test")
    np.testing.assert_array_equal(labels, [1])
    np.testing.assert_array_equal(images[0], planes(pixels_of(2)))


def test_folders_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD_ROWS", 2)
    for seed in range(5):
        save(tmp_path / "ab"[seed % 2] / f"{seed}.png", seed)
    source, images, labels, _ = decode_all(folder(tmp_path))
    assert [len(shard) for shard in source.shards["train"]] == [2, 2, 1]
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(images[4], planes(pixels_of(3)))


def test_a_folder_on_a_uri(tmp_path):
    root = Place(f"mock://{tmp_path.name}/set")
    for label, name in enumerate("ab"):
        (root / name / "1.png").write_bytes(png(label))
    _, images, labels, _ = decode_all(folder(root))
    np.testing.assert_array_equal(labels, [0, 1])
    np.testing.assert_array_equal(images[1], planes(pixels_of(1)))


def test_a_class_folder_without_images_is_a_gap(tmp_path):
    save(tmp_path / "a" / "1.png", 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"class 1 \(b\) has no training image; add images of it or take the class out"):
        open_source(folder(tmp_path))


def test_an_image_outside_the_class_folders_is_not_dropped(tmp_path):
    save(tmp_path / "a" / "1.png", 0)
    save(tmp_path / "stray.png", 1)
    with pytest.raises(DataError, match=r"stray.png lies in no class folder"):
        open_source(folder(tmp_path))


def test_a_test_class_that_is_never_trained(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", 0)
    save(tmp_path / "test" / "b" / "1.png", 1)
    with pytest.raises(DataError, match="test/b is no class of the training images"):
        open_source(folder(tmp_path))


def test_a_folder_without_class_folders(tmp_path):
    with pytest.raises(DataError, match="holds no class folders; lay the images out as"):
        open_source(folder(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:80]), r"b/2\.png is not an image"),
        (lambda file: save(file, 0, height=3), r"b/2\.png is 3 x 5 where the set is 6 x 5"),
        (lambda file: file.unlink(), r"b/2\.png cannot be read \(No such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, spoil, message):
    for seed, name in enumerate(["a/1.png", "b/1.png", "b/2.png"]):
        save(tmp_path / name, seed)
    data = folder(tmp_path)
    source = open_source(data)
    spoil(tmp_path / "b" / "2.png")
    with pytest.raises(DataError, match=message):
        decode(source.shards["train"][0], data)


# --- tiny_imagenet -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """The published layout: classes in the order of wnids.txt, which is not sorted; test labels are not public."""
    for seed, wnid in enumerate(["n02", "n01", "n03"]):
        save(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", seed)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1")
    for seed in (10, 11):
        save(tmp_path / "val" / "images" / f"val_{seed}.JPEG", seed)
    save(tmp_path / "test" / "images" / "test_0.JPEG", 20)
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "val_11.JPEG\tn03\t0\t0\t1\t1\nval_10.JPEG\tn02\t0\t0\t1\t1\n"
    )
    (tmp_path / "wnids.txt").write_text("n02\nn01\nn03\n")
    (tmp_path / "words.txt").write_text("n00\tentity\nn01\tcrane\nn02\tgoldfish, Carassius auratus\nn03\tcrane, bird\n")
    return tmp_path


def tiny_data(path):
    return Data(name="tiny_imagenet", path=str(path))


def test_tiny_imagenet_as_published(tiny):
    source, images, labels, _ = decode_all(tiny_data(tiny))
    assert source.class_names == ("goldfish", "crane (n01)", "crane (n03)")
    np.testing.assert_array_equal(labels, [0, 1, 2])
    assert images.shape == (3, 3, 6, 5)
    _, images, labels, _ = decode_all(tiny_data(tiny), "test")
    np.testing.assert_array_equal(labels, [2, 0])
    expected = np.asarray(Image.open(tiny / "val" / "images" / "val_11.JPEG"))
    np.testing.assert_array_equal(images[0], planes(expected))


def test_tiny_imagenet_without_lists_goes_by_folders(tiny):
    (tiny / "wnids.txt").unlink()
    (tiny / "words.txt").unlink()
    (tiny / "val" / "val_annotations.txt").unlink()
    (tiny / "val" / "images").rename(tiny / "val" / "n03")
    source = open_source(tiny_data(tiny))
    assert source.class_names == ("n01", "n02", "n03")
    assert source.shards["test"][0].labels == (2, 2)


def test_tiny_imagenet_with_an_odd_annotation(tiny):
    with (tiny / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_12.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_annotations.txt: line 3 names no class"):
        open_source(tiny_data(tiny))


def test_tiny_imagenet_with_a_listed_class_that_is_missing(tiny):
    (tiny / "wnids.txt").write_text("n02\nn01\nn03\nn04\n")
    with pytest.raises(DataError, match=r"class 3 \(n04\) has no training image"):
        open_source(tiny_data(tiny))


def test_tiny_imagenet_elsewhere(tmp_path):
    with pytest.raises(DataError, match="holds no folder train"):
        open_source(tiny_data(tmp_path))


def test_tiny_imagenet_in_parquet(tmp_path):
    write(tmp_path / "train.parquet", table_of([png(0), png(1)], [0, 1]))
    assert open_source(tiny_data(tmp_path)).name == "tiny_imagenet"


# --- digits and torchvision --------------------------------------------------------------------------------------


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, images, labels, keys = decode_all(Data())
    assert source.name == "digits"
    assert source.class_names == tuple("0123456789")
    assert not source.has_test
    assert images.shape == (1797, 1, 8, 8)
    scans = load_digits()
    np.testing.assert_array_equal(labels, scans.target)
    np.testing.assert_array_equal(images[:, 0], np.round(scans.images * 255 / 16))
    assert len(np.unique(keys)) == 1797


def test_digits_may_be_resized():
    source, images, _, _ = decode_all(Data(image_size=16))
    assert source.shape == (1, 16, 16)
    assert images.shape == (1797, 1, 16, 16)


def write_idx(path, array):
    """The format of MNIST: magic with the type and number of axes, sizes (big endian), bytes."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(raw, train, test, labels=None):
    for stem, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(raw / f"{stem}-images-idx3-ubyte", images)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(count if labels is None else labels) % 10)


@pytest.mark.parametrize(
    ("name", "title", "first"), [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top")]
)
def test_the_files_of_mnist(tmp_path, name, title, first):
    write_mnist(tmp_path / title / "raw", 23, 11)
    data = Data(name=name, path=str(tmp_path))
    source, images, labels, _ = decode_all(data)
    assert source.class_names[0] == first
    assert len(source.class_names) == 10
    assert source.shape == (1, 28, 28)
    expected = np.random.default_rng(23).integers(0, 256, (23, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(images[:, 0], expected)
    np.testing.assert_array_equal(labels, np.arange(23) % 10)
    assert len(decode_all(data, "test")[1]) == 11


def test_mnist_with_fewer_labels_than_images(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", 23, 11, labels=9)
    with pytest.raises(DataError, match=r"23 images have 9 labels; fetch the files again"):
        open_source(Data(name="mnist", path=str(tmp_path)))


def test_arrays_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "ARRAY_ROWS", 10)
    write_mnist(tmp_path / "MNIST" / "raw", 23, 11)
    source, _, labels, _ = decode_all(Data(name="mnist", path=str(tmp_path)))
    assert [len(shard) for shard in source.shards["train"]] == [10, 10, 3]
    np.testing.assert_array_equal(labels, np.arange(23) % 10)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "title", "label"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_the_files_of_cifar(tmp_path, monkeypatch, name, title, label):
    """Files of the published format under checksums of their own: torchvision opens only what it knows."""
    import torchvision.datasets

    known = getattr(torchvision.datasets, title)
    base = tmp_path / known.base_folder
    base.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    entry = {"data": rows.reshape(4, -1), label: [1, 0, 2, 1]}
    lists = {}
    for which in ("train_list", "test_list"):
        lists[which] = []
        for file, _ in getattr(known, which):
            (base / file).write_bytes(pickle.dumps(entry))
            lists[which].append([file, md5(base / file)])
        monkeypatch.setattr(known, which, lists[which])
    meta = base / known.meta["filename"]
    meta.write_bytes(pickle.dumps({known.meta["key"]: ["x", "y", "z"]}))
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5(meta)})
    source, images, labels, _ = decode_all(Data(name=name, path=str(tmp_path)), "test")
    assert source.class_names == ("x", "y", "z")
    np.testing.assert_array_equal(images, rows)
    np.testing.assert_array_equal(labels, [1, 0, 2, 1])


def test_the_files_of_svhn(tmp_path, monkeypatch):
    import scipy.io
    import torchvision.datasets

    rows = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    splits = {}
    for split in ("train", "test", "extra"):
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": rows.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [2], [9]])})
        splits[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    source, images, labels, _ = decode_all(Data(name="svhn", path=str(tmp_path)))
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(images, rows)
    np.testing.assert_array_equal(labels, [0, 1, 2, 9])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_a_missing_set_says_what_to_set(tmp_path, name):
    message = rf"data.name: {name} is not in {re.escape(str(tmp_path))}.*set data.path .* or data.download"
    with pytest.raises(DataError, match=message):
        open_source(Data(name=name, path=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_the_cache_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=rf"mnist is not in {re.escape(str(tmp_path))}/\.cache"):
        open_source(Data(name="mnist"))
    write_mnist(tmp_path / ".cache" / "dasm_ray" / "data" / "MNIST" / "raw", 10, 10)
    assert open_source(Data(name="mnist")).shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_a_download_that_fails_is_a_sentence(tmp_path, monkeypatch, name):
    """A proxy that is not there stands for no network, whatever this machine can reach."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError, match=rf"data.download: {name} could not be fetched .*set data.path"):
        open_source(Data(name=name, path=str(tmp_path), download=True))


def test_a_download_below_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.download: mnist could not be fetched"):
        open_source(Data(name="mnist", path=str(tmp_path / "file" / "x"), download=True))


def test_torchvision_files_must_be_local():
    with pytest.raises(DataError, match="holds no Parquet, and the files of torchvision must be local"):
        open_source(Data(name="mnist", path="mock://empty/folder"))


def test_a_named_set_reads_parquet_where_there_is_some(tmp_path):
    write(tmp_path / "train-0.parquet", table_of([png(0), png(1)], [0, 1], names=["no", "yes"]))
    source = open_source(Data(name="cifar10", path=str(tmp_path)))
    assert source.name == "cifar10"
    assert source.class_names == ("no", "yes")


# --- names, paths, splits ----------------------------------------------------------------------------------------


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


def test_keys_depend_on_the_pixels_alone(tmp_path):
    grey = pixels_of(3, channels=1)
    images = [encoded(grey), encoded(pixels_of(4, channels=1)), encoded(grey, "BMP")]
    write(tmp_path / "train.parquet", table_of(images, [0, 1, 2]))
    _, _, _, keys = decode_all(parquet(tmp_path))
    assert keys[0] == keys[2] != keys[1]
    first = int.from_bytes(hashlib.sha256(grey.tobytes()).digest(), "big") / 2**256
    assert keys[0] == pytest.approx(first, abs=1e-15)


def test_splits_have_their_shares_and_the_test_split_does_not_move_with_val():
    keys = np.random.default_rng(0).random(20_000)
    with_test = split_of(keys, True, Data(val_share=0.1))
    without = split_of(keys, False, Data(val_share=0.25, test_share=0.2))
    assert set(with_test) == {"train", "val"}
    assert np.mean(with_test == "val") == pytest.approx(0.1, abs=0.01)
    assert np.mean(without == "test") == pytest.approx(0.2, abs=0.01)
    assert np.mean(without == "val") == pytest.approx(0.25 * 0.8, abs=0.01)
    other = split_of(keys, False, Data(val_share=0.4, test_share=0.2))
    np.testing.assert_array_equal(other == "test", without == "test")


def test_counts_name_the_classes_that_are_missing():
    check_counts(np.array([1, 2]), ("a", "b"))
    with pytest.raises(DataError, match=r"class 1 \(b\) has no training image"):
        check_counts(np.array([1, 0]), ("a", "b"))
    with pytest.raises(DataError, match=r"class 0 \(0\), 1 \(1\).*4 \(4\) and 3 more has no"):
        check_counts(np.zeros(8), [str(label) for label in range(8)])


def test_the_digest_of_a_block_sees_pixels_and_shape():
    block = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    other = block.copy()
    other[1, 2, 1, 1] += 1
    digests = {digest_block(block), digest_block(other), digest_block(block.reshape(2, 3, 4, 1))}
    assert len(digests) == 3
    assert digest_block(block) == digest_block(np.asfortranarray(block))


# --- the shared real sets ----------------------------------------------------------------------------------------


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
    found = decode(shard, data)
    table = pq.read_table(next((SHARED / name).glob("test-*.parquet")))
    row = shard.last - 1
    expected = np.asarray(Image.open(io.BytesIO(table.column("image")[row]["bytes"].as_py())))
    np.testing.assert_array_equal(found.images[-1], planes(expected))
    np.testing.assert_array_equal(found.labels, table.column("label").to_numpy()[shard.first : shard.last])
