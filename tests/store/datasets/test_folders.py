"""Sets of image files: what is read, and every way in which it is refused."""

from pathlib import Path

import numpy as np
import pytest
from made import decode_all, folder, pixels_of, planes, png, save, table_of, write
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets import folders as folders_module
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import decode
from dasm_ray.store.place import Place


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
    monkeypatch.setattr(folders_module, "SHARD_ROWS", 2)
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
    for seed, name in enumerate(["train/a/1.png", "train/c/1.png", "test/b/1.png"]):
        save(tmp_path / name, seed)
    with pytest.raises(DataError, match="test/b is no class of the training images"):
        open_source(folder(tmp_path))


def test_a_folder_without_class_folders(tmp_path):
    with pytest.raises(DataError, match="holds no class folders with images; lay the images out as"):
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
        decode(source.shards["train"][0], rows_of(source.shards["train"][0]), data)


# --- tiny_imagenet ----------------------------------------------------------------------------------------------------


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
