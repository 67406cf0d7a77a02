"""Sets of image files: what is read, and every way in which it is refused."""

import re
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
    assert "test" not in source.shards
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


@pytest.mark.parametrize("name", ["IMG_1", "IMG_1.heic", "x.xml"])
def test_a_class_folder_of_other_files_says_what_it_holds(tmp_path, name):
    save(tmp_path / "a" / "1.png", 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_bytes(png(0))
    with pytest.raises(
        DataError,
        match=rf"class b has no training image, but 1 file that is no image by its name .*b/{re.escape(name)}",
    ):
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


# --- splits and classes by the names of folders ------------------------------------------------------------------


def fill(root, *folders, count=2):
    """Images in each folder."""
    for number, name in enumerate(folders):
        for seed in range(count):
            save(root / name / f"{seed}.png", 100 * number + seed)


def both(*splits):
    return [f"{split}/{name}" for split in splits for name in "ab"]


def serving(source):
    """What the set calls each split, by what it serves as."""
    return {split.role: split.name for split in source.found.splits}


def said(source):
    return " ".join(" ".join(source.found.lines()).split())


@pytest.mark.parametrize("test", ["test", "TEST", "Testing", "eval", "Evaluation", "test2017", "my_test", "test set"])
@pytest.mark.parametrize("train", ["train", "Training", "TRAIN", "train_set"])
def test_every_spelling_of_train_and_test(tmp_path, train, test):
    fill(tmp_path, *both(train, test))
    source = open_source(folder(tmp_path))
    assert serving(source) == {"train": train, "test": test}
    assert source.class_names == ("a", "b")


@pytest.mark.parametrize("val", ["val", "valid", "VALID", "Validation", "dev", "val2017"])
def test_every_spelling_of_validation(tmp_path, val):
    fill(tmp_path, *both("train", val))
    source = open_source(folder(tmp_path))
    assert serving(source) == {"train": "train", "test": val}
    assert (source.cut.test, source.cut.val) == (0.0, 0.1)
    assert "the validation split, which serves as such" in said(source)
    fill(tmp_path, *both("test"))
    source = open_source(folder(tmp_path))
    assert serving(source) == {"train": "train", "val": val, "test": "test"}
    assert (source.cut.test, source.cut.val) == (0.0, 0.0)
    assert {role: sum(map(len, shards)) for role, shards in source.shards.items()} == {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (both("train", "test", "eval"), "holds eval and test, and either could be the test split"),
        (both("train", "val", "dev"), "holds dev and val, and either could be the validation split"),
        (both("train", "Train", "test"), "and either could be the training split"),
        (both("train", "train_test"), "train_test can be read as the training split and as the test split by its name"),
        (both("val", "test"), "holds no training split, only test, val; add"),
        (both("test"), "holds no training split, only test; add .* or name .*/test itself as data.path"),
        ([*both("train"), "bus"], "could be read as a set with splits .* or as the classes bus, train"),
        ([*both("val", "test"), "bus"], "could be read as a set with splits .* or as the classes bus, test, val"),
        (
            ["train", "test"],
            "train/0.png lies in no class folder, as the folder train was taken for the training split",
        ),
        (
            [*both("train"), "test"],
            "test/0.png lies in no class folder, as the folder test .* or move test away to leave",
        ),
        ([*both("train", "test"), "test"], "test/0.png lies in no class folder, as .*; move it into one"),
        ([*both("train"), "test/a", "test/c"], "test/c is no class of the training images; remove it .*a, b"),
        (["a/train", "a/test", "b/train", "b/test"], "a holds the folders test and train, which could be splits"),
        (["a/test", "b/test"], "a holds the folders test, which could be splits of it or parts of one class"),
        (["a", "b", "b/Valid"], "b holds the folders Valid, which could be splits of it"),
        (["images/cat", "images/dog", "val"], "could be read as a set with splits .* or as the classes images, val"),
        (["x/cat", "x/dog", "y/car"], r"can be read as the classes x, y, or as those one folder down, car, cat, dog"),
        (["s1/cat", "s1/dog", "s2/cat", "s2/dog"], "the classes s1, s2, or as those one folder down, cat, dog"),
        (["train/a"], "train holds one class only, a"),
        (["only"], "holds one class only, only, so there is nothing to tell apart"),
        (["out/only"], "holds one class only, only"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, folders, message):
    fill(tmp_path, *folders)
    with pytest.raises(DataError, match=message) as caught:
        open_source(folder(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "test", "dev", "val_tmp", "Training", "test_tube"])
def test_a_class_may_be_called_as_a_split_where_it_can_be_nothing_else(tmp_path, name):
    fill(tmp_path, "bus", "car", name)
    source = open_source(folder(tmp_path))
    assert set(source.class_names) == {"bus", "car", name}
    assert serving(source) == {"train": ""}
    assert f"{name}: images lie in it as in the other folders, so it is taken for a class" in said(source)


def test_classes_that_are_all_called_a_little_like_splits(tmp_path):
    fill(tmp_path, "test_tube", "dev board")
    assert open_source(folder(tmp_path)).class_names == ("dev board", "test_tube")


def test_folders_that_are_called_as_splits_are_no_classes(tmp_path):
    fill(tmp_path, "test", "val")
    with pytest.raises(DataError, match="holds no training split, only test, val"):
        open_source(folder(tmp_path))


@pytest.mark.parametrize("wrapped", ["images", "data/images", "imagenette2-160"])
def test_a_folder_around_all_is_looked_through_with_a_word(tmp_path, wrapped):
    fill(tmp_path, *(f"{wrapped}/{path}" for path in both("train", "val")))
    (tmp_path / "LICENSE").write_text("")
    source = open_source(folder(tmp_path))
    assert serving(source) == {"train": "train", "test": "val"}
    assert f"all images are in {wrapped}, so the folders in it are taken" in said(source)


def test_a_folder_around_the_classes_of_each_split(tmp_path):
    fill(tmp_path, "train/images/a", "train/images/b", "test/images/b", "val/a", "val/b")
    source, _, labels, _ = decode_all(folder(tmp_path), "test")
    assert source.class_names == ("a", "b")
    np.testing.assert_array_equal(labels, [1, 1])


def test_folders_below_class_folders_are_read_with_a_word(tmp_path):
    fill(tmp_path, "a/images", "b/images", "b/images/more")
    source, _, labels, _ = decode_all(folder(tmp_path))
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1, 1])
    assert "6 images lie in folders below their class folder (a/images/0.png)" in said(source)


def test_a_folder_beside_splits_is_left_out_with_a_word(tmp_path):
    fill(tmp_path, *both("train", "test"), *both("extra"))
    source = open_source(folder(tmp_path))
    assert source.class_names == ("a", "b")
    assert "left out 4 images in folder extra, which names no split (extra/a/0.png)" in said(source)


@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_split_without_images_is_refused(tmp_path, name):
    fill(tmp_path, *both("train"))
    (tmp_path / name / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{name} is named as a split but holds no image; fill it or remove it"):
        open_source(folder(tmp_path))


def test_other_files_are_counted_and_named(tmp_path):
    fill(tmp_path, "a", "b")
    for name in ("a/notes.txt", "a/0.json", "b/clip.mp4", "readme.md"):
        (tmp_path / name).write_text("")
    for name in ("a/Thumbs.db", "b/.DS_Store", "__MACOSX/a/._0.png", "a/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    source = open_source(folder(tmp_path))
    assert source.class_names == ("a", "b")
    assert sum(map(len, source.shards["train"])) == 4
    assert "left out 4 files that are no images by their names (a/0.json)" in said(source)
    assert "left out 4 hidden or system files and folders (__MACOSX)" in said(source)


@pytest.mark.parametrize("suffix", ["jfif", "JPG", "jpe", "jp2", "tga", "ico", "pcx", "TIFF"])
def test_every_suffix_of_pillow_is_read(tmp_path, suffix):
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        form = Image.registered_extensions()[f".{suffix.lower()}"]
        Image.fromarray(pixels_of(number, 16, 16)).save(tmp_path / name / f"x.{suffix}", form)
    _, _, labels, _ = decode_all(folder(tmp_path))
    np.testing.assert_array_equal(labels, [0, 1])


def test_the_odd_one_of_two_sizes_is_blamed(tmp_path):
    fill(tmp_path, "a", "b", count=4)
    save(tmp_path / "a" / "0.png", 0, height=9, width=9)
    with pytest.raises(DataError, match=r"a/0\.png is 9 x 9 where the set is 6 x 5 .*set data.image_size"):
        open_source(folder(tmp_path))


def test_linked_folders_are_read(tmp_path):
    fill(tmp_path / "elsewhere", "a", "b")
    (tmp_path / "set").mkdir()
    for name in "ab":
        (tmp_path / "set" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert len(decode_all(folder(tmp_path / "set"))[1]) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: write(root / "x" / "train.parquet", table_of([png(0)], [0])), "set data.name to parquet"),
        (lambda root: (root / "a").mkdir() or (root / "a" / "1.npy").write_bytes(b""), "1 other file such as a/1.npy"),
        (lambda root: None, r"lay the images out as .*/CLASS/IMAGE"),
    ],
)
def test_a_folder_of_something_else_says_what_it_holds(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(DataError, match=f"holds no class folders with images; .*{message}"):
        open_source(folder(tmp_path))


def test_an_archive_is_no_folder(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"set\.zip is a file; name the folder"):
        open_source(folder(tmp_path / "set.zip"))


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
    assert source.found.class_folders == ("n02", "n01", "n03")
    np.testing.assert_array_equal(labels, [0, 1, 2])
    assert images.shape == (3, 3, 6, 5)
    _, images, labels, _ = decode_all(tiny_data(tiny), "test")
    np.testing.assert_array_equal(labels, [2, 0])
    expected = np.asarray(Image.open(tiny / "val" / "images" / "val_11.JPEG"))
    np.testing.assert_array_equal(images[0], planes(expected))


def test_tiny_imagenet_says_what_it_leaves_out(tiny):
    source = open_source(tiny_data(tiny))
    assert serving(source) == {"train": "train", "test": "val"}
    assert "left out 1 image that no list gives a label (test/images/test_0.JPEG)" in said(source)


def test_tiny_imagenet_whose_list_names_a_file_that_is_not_there(tiny):
    (tiny / "val" / "images" / "val_11.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_annotations\.txt: line 1 names images/val_11\.JPEG, which is not there"):
        open_source(tiny_data(tiny))


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
