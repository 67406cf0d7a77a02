"""Sets that come as arrays, from files of the published formats."""

import hashlib
import pickle
import re
import struct

import numpy as np
import pytest
from made import decode_all, png, table_of, write

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets import builtin
from dasm_ray.store.datasets.catalogue import open_source


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, images, labels, keys = decode_all(Data())
    assert source.name == "digits"
    assert source.class_names == tuple("0123456789")
    assert "test" not in source.shards
    assert images.shape == (1797, 1, 8, 8)
    scans = load_digits()
    np.testing.assert_array_equal(labels, scans.target)
    np.testing.assert_array_equal(images[:, 0], np.round(scans.images * 255 / 16))
    assert len(np.unique(keys)) == 1797


def test_a_path_beside_digits_is_refused(tmp_path):
    """Who forgets data.name means other images than these."""
    with pytest.raises(DataError, match=r"data.path: .* is not looked at, since digits are built in"):
        open_source(Data(name="digits", path=str(tmp_path)))


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


def test_a_label_that_mnist_has_not_is_refused(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", 23, 11)
    write_idx(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.array([*range(10), 15]))
    with pytest.raises(DataError, match=r"mnist, test, image 10: its label is 15, and the classes are 0 to 9"):
        open_source(Data(name="mnist", path=str(tmp_path)))


def test_arrays_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "ARRAY_ROWS", 10)
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

    rows = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    splits = {}
    for split in ("train", "test", "extra"):
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": rows.transpose(2, 3, 1, 0), "y": np.array([10, *range(1, 10)])[:, None]})
        splits[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    source, images, labels, _ = decode_all(Data(name="svhn", path=str(tmp_path)))
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(images, rows)
    np.testing.assert_array_equal(labels, np.arange(10))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_a_missing_set_says_what_to_set(tmp_path, name):
    message = rf"data.name: {name} is not in {re.escape(str(tmp_path))}.*set data.path .* or data.download"
    with pytest.raises(DataError, match=message):
        open_source(Data(name=name, path=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("variable", "below"), [("HOME", ".cache/dasm_ray/data"), ("DASM_RAY_CACHE", "data")])
def test_without_a_path_the_cache_is_looked_at(tmp_path, monkeypatch, variable, below):
    monkeypatch.delenv("DASM_RAY_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(DataError, match=rf"mnist is not in {re.escape(str(tmp_path / below))} "):
        open_source(Data(name="mnist"))
    write_mnist(tmp_path / below / "MNIST" / "raw", 10, 10)
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
