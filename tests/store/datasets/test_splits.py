"""Names that say a split, held against those of `datasets`; series of files; what serves as what."""

import pytest

from dasm_ray.config.keys import Data
from dasm_ray.store.datasets.splits import (
    WORDS,
    Cut,
    Series,
    cut_of,
    number_missing,
    roles_of,
    series_of,
    shard_of,
    shards_missing,
    splits_named,
)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", ["{}", "mnist-{}-00000-of-00001", "x_{}_y", "{}2017", "my.{}", "{} 1", "2_{}"])
def test_a_word_counts_in_any_case_between_separators(word, form):
    for spelling in (word, word.upper(), word.title()):
        assert splits_named(form.format(spelling)) == (WORDS[word],)


@pytest.mark.parametrize(
    "name", ["trained", "contest", "latest", "devices", "values", "retraining", "bus", "restrain", "attest", "trainval"]
)
def test_a_word_within_a_word_does_not(name):
    assert splits_named(name) == ()


def test_two_words_are_both_found():
    assert splits_named("train_test") == ("train", "test")
    assert splits_named("eval-dev") == ("val", "test")
    assert splits_named("test-testing") == ("test",)


def test_the_words_and_separators_are_those_of_datasets():
    files = pytest.importorskip("datasets.data_files")
    theirs = {word: str(split) for split, words in files.SPLIT_KEYWORDS.items() for word in words}
    assert theirs == {word: {"val": "validation"}.get(split, split) for word, split in WORDS.items()}
    assert files.NON_WORDS_CHARS == "-._ 0-9"


@pytest.mark.parametrize(
    ("splits", "roles", "cut"),
    [
        (("train",), {"train": "train"}, Cut(0.2, 0.1 * 0.8)),
        (("train", "test"), {"train": "train", "test": "test"}, Cut(0.0, 0.1)),
        (("train", "val"), {"train": "train", "val": "test"}, Cut(0.0, 0.1)),
        (("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}, Cut(0.0, 0.0)),
    ],
)
def test_what_serves_as_what(splits, roles, cut):
    found = roles_of(splits)
    assert found == roles
    assert cut_of(found.values(), Data(val_share=0.1, test_share=0.2)) == cut


@pytest.mark.parametrize(
    ("stem", "series"),
    [
        ("train", Series("train", None)),
        ("train1", Series("train*", 1)),
        ("train-00012", Series("train-*", 12)),
        ("0003", Series("*", 3)),
        ("train-00000-of-00002", Series("train-*-of-*", None)),
        ("train-00000-of-00002-b42a5af5633f3b1c", Series("train-*-of-*", None)),
        ("cifar10_train", Series("cifar10_train", None)),
        ("cifar100_train_3", Series("cifar100_train_*", 3)),
        ("part-00003-3f2a1b4c-aaaa-4bbb-8ccc-0123456789ab-c000.snappy", Series("part-00003-*-c*.snappy", None)),
    ],
)
def test_the_series_of_a_name(stem, series):
    assert series_of(stem) == series


def test_shards_say_how_many_they_are():
    assert shard_of("train-00001-of-00003") == (1, 3)
    assert shard_of("train_2_of_4") == (2, 4)
    assert shard_of("a-of-b") is None
    assert shards_missing(["train-00000-of-00003", "train-00002-of-00003"]) == ("train-00001-of-00003",)
    assert shards_missing(["x_1_of_3", "x_3_of_3"]) == ("x_2_of_3",)
    assert shards_missing([f"train-{i:05}-of-00002" for i in range(2)]) == ()
    assert shards_missing(["train"]) == ()
    assert len(shards_missing(["train-00000-of-99999999999"])) == 10**6 - 1  # however large a number is claimed


def test_a_gap_in_plain_numbers():
    assert number_missing(["train-01", "train-03"]) == "train-02"
    assert number_missing(["0009", "0011"]) == "0010"
    assert number_missing(["train7", "train8", "train9"]) == ""
    assert number_missing(["train", "train-00000-of-00002"]) == ""
