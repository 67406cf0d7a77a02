"""What every kind of set shares: splits by content, counts, digests, and keys of pixels."""

import hashlib

import numpy as np
import pytest
from made import decode_all, encoded, parquet, pixels_of, table_of, write

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.shards import SHARD_BYTES, Shard, check_classes, check_counts, split_of
from dasm_ray.store.datasets.splits import cut_of


def test_keys_depend_on_the_pixels_alone(tmp_path):
    grey = pixels_of(3, channels=1)
    images = [encoded(grey), encoded(pixels_of(4, channels=1)), encoded(grey, "BMP")]
    write(tmp_path / "train.parquet", table_of(images, [0, 1, 2]))
    _, _, _, keys = decode_all(parquet(tmp_path))
    assert keys[0] == keys[2] != keys[1]
    first = int.from_bytes(hashlib.sha256(grey.tobytes()).digest(), "big") / 2**256
    assert keys[0] == pytest.approx(first, abs=1e-15)


def test_a_shard_is_cut_by_the_bytes_of_its_pixels_where_a_part_can_be_read_alone():
    photo, rows = (3, 224, 224), SHARD_BYTES // (3 * 224 * 224)
    whole = Shard("parquet", "train", "a.parquet", 2000, 4000, 7, columns=("image", "label"))
    parts = whole.shaped(photo)
    assert [(part.first, part.last) for part in parts] == [(n, min(n + rows, 4000)) for n in range(2000, 4000, rows)]
    assert {(part.kind, part.path, part.shape, part.columns) for part in parts} == {
        ("parquet", "a.parquet", photo, ("image", "label"))
    }
    files, labels = tuple(f"{n}.png" for n in range(900)), tuple(n % 7 for n in range(900))
    parts = Shard("images", "test", "0.png", 4000, 4900, 7, files=files, labels=labels).shaped(photo)
    assert [(len(part), part.path) for part in parts] == [(rows, "0.png"), (rows, f"{rows}.png"), (10, "890.png")]
    assert sum((part.files for part in parts), ()) == files
    assert sum((part.labels for part in parts), ()) == labels
    assert len(whole.shaped((3, 32, 32))) == 1
    assert len(parts[0].shaped((3, 9000, 9000))) == rows  # one image at a time, however large
    # Each part would read the whole file.
    assert len(Shard("stl10", "train", "", 0, 5000, 10).shaped((3, 500, 500))) == 1


def test_splits_have_their_shares_and_the_test_split_does_not_move_with_val():
    keys = np.random.default_rng(0).random(20_000)
    with_test = split_of(keys, cut_of({"train", "test"}, Data(val_share=0.1)))
    without = split_of(keys, cut_of({"train"}, Data(val_share=0.25, test_share=0.2)))
    assert set(with_test) == {"train", "val"}
    assert np.mean(with_test == "val") == pytest.approx(0.1, abs=0.01)
    assert np.mean(without == "test") == pytest.approx(0.2, abs=0.01)
    assert np.mean(without == "val") == pytest.approx(0.25 * 0.8, abs=0.01)
    other = split_of(keys, cut_of({"train"}, Data(val_share=0.4, test_share=0.2)))
    np.testing.assert_array_equal(other == "test", without == "test")
    assert set(split_of(keys, cut_of({"train", "val", "test"}, Data()))) == {"train"}


def counts_of(train, val=(0, 0), test=(0, 0)):
    return {"train": np.array(train), "val": np.array(val), "test": np.array(test)}


def test_counts_name_the_classes_that_are_missing():
    check_counts(counts_of([1, 2]), ("a", "b"))
    with pytest.raises(DataError, match=r"class 1 \(b\) has no training image; add images of it"):
        check_counts(counts_of([1, 0]), ("a", "b"))
    with pytest.raises(DataError, match=r"class 0 \(0\), 1 \(1\).*4 \(4\) and 3 more has no"):
        check_counts(counts_of(np.zeros(8, int), np.zeros(8), np.zeros(8)), [str(label) for label in range(8)])


def test_a_class_that_was_held_out_whole_says_so():
    with pytest.raises(DataError, match=r"of the 3 of class 1 all were held out, 1 to the validation split and 2 to"):
        check_counts(counts_of([4, 0], [1, 1], [0, 2]), ("a", "b"))


def test_one_class_is_no_set():
    check_classes(("a", "b"), "here")
    with pytest.raises(DataError, match="here holds one class only, a"):
        check_classes(("a",), "here")


@pytest.mark.parametrize("name", ["a\x1b[2J", "two\nlines", "\u202egnp", "\udcff"])
def test_a_class_whose_name_an_artifact_could_not_hold_is_refused_before_anything_is_made_of_it(name):
    with pytest.raises(DataError, match=r"here: class .* in its name, which cannot be shown; rename it") as caught:
        check_classes(("a", name), "here")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a" * 1001, "b"), r"class a+ \.\.\. \(1001 characters\) has too long a name; shorten it to 1000 characters"),
        (("a", "b", "a"), r"classes 0 and 2 are both called a; give each a name of its own"),
        (range(100_001), r"here has 100001 classes, and a set can hold 100000; take some out"),
    ],
)
def test_class_names_that_no_set_can_hold_are_refused_before_anything_is_made_of_it(names, said):
    with pytest.raises(DataError, match=said) as caught:
        check_classes(tuple(map(str, names)), "here")
    assert len(str(caught.value)) < 200
    check_classes(("a" * 1000, "b"), "here")


def test_a_set_in_parquet_with_two_classes_of_one_name_is_refused_as_it_is_opened(tmp_path):
    images = [encoded(pixels_of(seed)) for seed in range(3)]
    write(tmp_path / "train.parquet", table_of(images, [0, 1, 2], names=["ant", "bee", "ant"]))
    with pytest.raises(DataError, match="classes 0 and 2 are both called ant"):
        open_source(parquet(tmp_path))
