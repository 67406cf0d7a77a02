"""The description of a set: what it says is believed only if all of it can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dasm_ray.config.digests import result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.errors import ArtifactError
from dasm_ray.store.description import artifact_place, fault_of_meaning, file_names, read_description
from dasm_ray.store.place import Place

CONFIG = RunConfig()
GOOD: dict[str, Any] = {
    "schema_version": 1,
    "digest": "0123456789abcdef",
    "shape": [6, 3, 8, 9],
    "soft_labels": False,
    "class_names": ["ant", "bee", "läuft"],
    "mean": [0.1, 0.2, 0],
    "std": [0.25, 0.5, 1],
    "factor": 2,
    "step_size": None,
    "is_normalised": False,
    "recipe": {"model": result_keys(CONFIG.model), "image_size": [8, 9], "training": result_keys(CONFIG.evaluate)},
    "provenance": {"config": CONFIG.model_dump(mode="json"), "versions": {"torch": "2"}},
    "files": {"train-00000-of-00001.parquet": "0" * 64},
}


def described(place: Place, changes: Mapping[str, Any]) -> None:
    place.write_json({name: value for name, value in (GOOD | dict(changes)).items() if value != "gone"})


def test_what_this_package_writes_is_believed(tmp_path: Path) -> None:
    described(Place(tmp_path / "dataset.json"), {})
    found, plain = read_description(Place(tmp_path))
    assert (found.shape, found.size, found.class_names[2]) == ((6, 3, 8, 9), 216, "läuft")
    assert plain["recipe"]["training"]["lr"] == 0.01


NAN, INF = float("nan"), float("inf")
MODEL, TRAINING = GOOD["recipe"]["model"], GOOD["recipe"]["training"]
CRAFTED: dict[str, tuple[dict[str, Any], str]] = {
    "std 0": ({"std": [0.25, 0, 0.5]}, r"std\.1: input should be greater than or equal to 0.00000001, not 0"),
    "std that float32 takes for 0": ({"std": [0.25, 1e-300, 0.5]}, r"std\.1: input should be greater"),
    "std below 0": ({"std": [0.25, -0.1, 0.5]}, r"std\.1: input should be greater"),
    "std NaN": ({"std": [0.25, NAN, 0.5]}, "cannot be read: it holds NaN"),
    "std infinite": ({"std": [0.25, INF, 0.5]}, "cannot be read: it holds Infinity"),
    "std as text": ({"std": [0.25, "0.5", 0.5]}, r"std\.1: input should be a valid number"),
    "std true": ({"std": [0.25, True, 0.5]}, r"std\.1: input should be a valid number"),
    "mean NaN": ({"mean": [NAN, 0, 0]}, "cannot be read: it holds NaN"),
    "mean out of reach": ({"mean": [1e30, 0, 0]}, r"mean\.0: input should be less than or equal to 1"),
    "a mean for another channel": ({"mean": [0.5]}, "mean and std need one value a channel, of which there are 3"),
    "factor 9 on 8 pixels": ({"factor": 9}, "factor: 9 tiles do not fit into images of 8 x 9"),
    "factor 10**9": ({"factor": 10**9}, "factor: input should be less"),
    "factor true": ({"factor": True}, "factor: input should be a valid integer"),
    "factor 2.0": ({"factor": 2.0}, "factor: input should be a valid integer"),
    "factor 0": ({"factor": 0}, "factor: input should be greater"),
    "class names that are numbers": ({"class_names": [1, 2, 3]}, r"class_names\.0: input should be a valid string"),
    "class names that are nothing": (
        {"class_names": [None, "a", "b"]},
        r"class_names\.0: input should be a valid string",
    ),
    "one text for class names": ({"class_names": "abc"}, "class_names: must be a list in brackets"),
    "no class": ({"class_names": []}, "class_names: "),
    "ESC in a class name": (
        {"class_names": ["\x1b[2Jx", "b", "c"]},
        r"class_names\.0: holds \\x1b, a character .*'\\x1b\[2Jx'",
    ),
    "a line break in a class name": ({"class_names": ["a\nb", "b", "c"]}, r"class_names\.0: holds \\n"),
    "a name that is read backwards": ({"class_names": ["a\u202eb", "b", "c"]}, r"class_names\.0: holds \\u202e"),
    "half a character in a name": (
        {"class_names": ["a\udc80", "b", "c"]},
        r"class_names\.0: input should be .*'a\\udc80'",
    ),
    "a name without end": ({"class_names": ["a" * 5000, "b", "c"]}, r"class_names\.0: .*at most 1000 characters"),
    "recipe {}": ({"recipe": {}}, r"recipe\.model: is missing"),
    "no recipe": ({"recipe": "gone"}, "recipe: is missing"),
    "a recipe that is a list": ({"recipe": [1]}, "recipe: must have keys below it"),
    "a recipe without training": ({"recipe": {"model": MODEL}}, r"recipe\.training: is missing"),
    "a rate that is none": ({"recipe": {"model": MODEL, "training": {"lr": "fast"}}}, r"recipe\.training\.lr: input"),
    "a network that there is not": (
        {"recipe": {"model": {"arch": "x"}, "training": TRAINING}},
        r"recipe\.model\.arch: 'x'",
    ),
    "a key that there is not": ({"recipe": {"model": {"widht": 1}, "training": {}}}, r"widht: .*did you mean 'width'"),
    "10**9 seeds": ({"recipe": {"model": {}, "training": {"seeds": 10**9}}}, r"recipe\.training\.seeds: .*less than"),
    "images of another size": ({"recipe": GOOD["recipe"] | {"image_size": [9, 8]}}, "recipe.image_size: is not 8 x 9"),
    "a step size below 0": ({"step_size": -0.1}, "step_size: input should be greater than 0"),
    "a step size of 0": ({"step_size": 0.0}, "step_size: input should be greater than 0"),
    "a step size NaN": ({"step_size": NAN}, "cannot be read: it holds NaN"),
    "a step size as text": ({"step_size": "0.1"}, "step_size: input should be a valid number"),
    "a shape without end": ({"shape": [10**12, 3, 8, 9]}, r"shape\.0: input should be less"),
    "sides without end": ({"shape": [6, 3, 10**9, 10**9]}, r"shape\.2: input should be less"),
    "a shape below 0": ({"shape": [6, 3, -8, 9]}, r"shape\.2: input should be greater"),
    "a shape of three": ({"shape": [3, 8, 9]}, "shape"),
    "a shape of five": ({"shape": [6, 1, 3, 8, 9]}, "shape"),
    "fractions of images": ({"shape": [6.5, 3, 8, 9]}, r"shape\.0: input should be a valid integer"),
    "two channels": (
        {"shape": [6, 2, 8, 9], "mean": [0, 0], "std": [1, 1]},
        "is not that of images of 1 or 3 channels",
    ),
    "is_normalised as a number": ({"is_normalised": 1}, "is_normalised: input should be a valid boolean"),
    "soft_labels as text": ({"soft_labels": "no"}, "soft_labels: input should be a valid boolean"),
    "a file two folders up": ({"files": {"../../x.parquet": "0" * 64}}, "files: must be train-00000-of-00001.parquet"),
    "a file of the system": ({"files": {"/etc/passwd": "0" * 64}}, "files: must be"),
    "a file elsewhere": ({"files": {"s3://theirs/x.parquet": "0" * 64}}, "files: must be"),
    "a file by another separator": ({"files": {"..\\x.parquet": "0" * 64}}, "files: must be"),
    "files out of order": ({"files": dict.fromkeys(reversed(file_names(2)), "0" * 64)}, "files: must be"),
    "one file of two": ({"files": dict.fromkeys(file_names(2)[:1], "0" * 64)}, "files: must be"),
    "more files than images": ({"files": dict.fromkeys(file_names(7), "0" * 64)}, "no more than there are images"),
    "no file": ({"files": {}}, "files: must be"),
    "files as a list": ({"files": ["train-00000-of-00001.parquet"]}, "files: must have keys below it"),
    "a checksum that is none": ({"files": {"train-00000-of-00001.parquet": "0"}}, "files"),
    "a digest that is none": ({"digest": "../../../etc"}, "digest: "),
    "a provenance that is text": ({"provenance": "mine"}, "provenance: must have keys below it"),
    "something else": ({"extra": 1}, "extra: there is no such key"),
    "something nearly right": ({"factors": 1}, "factors: there is no such key; did you mean 'factor'?"),
}


@pytest.mark.parametrize(("changes", "message"), CRAFTED.values(), ids=CRAFTED.keys())
def test_a_description_that_somebody_made_up(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """No other file is there, so it is refused before any is opened."""
    text = json.dumps({name: value for name, value in (GOOD | changes).items() if value != "gone"})
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_description(Place(tmp_path))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper than 64"),
        ('{"schema_version": 1, "schema_version": 2}', "gives 'schema_version' twice"),
        ('{"schema_version": 1e999}', "a number that is too large"),
        ('{"schema_version": 1' + "0" * 5000 + "}", "a number of 5001 digits"),
        ("x", "it is not JSON"),
        ("[]", "lacks its schema_version or its digest"),
    ],
)
def test_a_description_that_no_json_reader_should_take(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_description(Place(tmp_path))


def test_a_description_of_terabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "dataset.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match=r"dataset\.json cannot be read: it has \d+ bytes, and at most"):
        read_description(Place(tmp_path))


def test_the_meaning_of_a_set_is_checked_by_the_same_rules_before_it_is_written() -> None:
    names = ("class_names", "mean", "std", "factor", "step_size", "is_normalised", "recipe")
    meaning = {name: GOOD[name] for name in names}
    assert fault_of_meaning(meaning, (6, 3, 8, 9)) is None
    assert "std.0" in str(fault_of_meaning(meaning | {"std": [0.0, 1, 1]}, (6, 3, 8, 9)))
    assert "std.0" in str(fault_of_meaning(meaning | {"std": [NAN, 1, 1]}, (6, 3, 8, 9)))
    assert "factor" in str(fault_of_meaning(meaning, (6, 3, 1, 9)))


def test_an_artifact_is_found_in_its_run_and_by_itself(tmp_path: Path) -> None:
    (tmp_path / "synthetic").mkdir()
    assert artifact_place(Place(tmp_path)) == Place(tmp_path / "synthetic")
    (tmp_path / "dataset.json").write_text("{}")
    assert artifact_place(Place(tmp_path)) == Place(tmp_path)
