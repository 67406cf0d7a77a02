"""The finished set: exact values back, a stable digest, and nothing damaged, half written or made up is ever read."""

import copy
import dataclasses
import hashlib
import io
import json
import resource
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import RunConfig
from dasm_ray.errors import ArtifactError, RunDirError
from dasm_ray.store import artifact as artifacts
from dasm_ray.store import checked, tensors
from dasm_ray.store import room as rooms
from dasm_ray.store.artifact import Artifact, digest, read_artifact, write_artifact
from dasm_ray.store.place import Place


def artifact_of(count=6, classes=3, shape=(3, 4, 5), soft=True, **changes):
    generator = np.random.default_rng(0)
    whole = Artifact(
        pixels=generator.random((count, *shape), dtype=np.float32),
        labels=(np.arange(count) % classes).astype(np.int64),
        segments=(np.arange(count) // 3).astype(np.int32),
        soft_labels=generator.normal(size=(count, classes)).astype(np.float32) if soft else None,
        class_names=("zebra", "ant/eater", "0")[:classes],
        mean=(0.1, 0.2, 1 / 3)[: shape[0]],
        std=(0.25,) * shape[0],
        factor=2,
        step_size=0.017 if soft else None,
        recipe={"model": {"arch": "convnet", "width": 16}, "training": {"epochs": 30, "augment": "color_crop"}},
        provenance={"seed": 0, "run": "x"},
    )
    return dataclasses.replace(whole, **changes)


def assert_same(one, other):
    for field in dataclasses.fields(Artifact):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        else:
            assert left == right, field.name


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 8, 8)])
@pytest.mark.parametrize("memory", [True, False])
def test_what_is_written_is_read(tmp_path, soft, shape, memory):
    place = Place(f"mock://{tmp_path.name}/set") if memory else Place(tmp_path / "set")
    whole = artifact_of(soft=soft, shape=shape)
    assert write_artifact(place, whole) == digest(whole)
    found = read_artifact(place)
    assert_same(found, whole)
    assert all(array.flags.writeable for array in (found.pixels, found.labels, found.segments))


def test_the_folder_explains_itself(tmp_path):
    stamp = write_artifact(Place(tmp_path), artifact_of())
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["schema_version"] == 1
    assert described["digest"] == stamp
    assert described["class_names"] == ["zebra", "ant/eater", "0"]
    assert described["recipe"]["model"]["width"] == 16
    assert described["provenance"] == {"seed": 0, "run": "x"}
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert front["configs"] == [
        {"config_name": f"set-{stamp}", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]


def test_others_read_images_and_names_from_the_parquet(tmp_path):
    whole = artifact_of()
    write_artifact(Place(tmp_path), whole)
    table = pq.read_table(tmp_path / "data" / "train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": ["zebra", "ant/eater", "0"], "_type": "ClassLabel"}
    assert list(features) == table.schema.names
    assert features["pixels"]["length"] == 60
    preview = np.asarray(Image.open(io.BytesIO(table.column("image")[4]["bytes"].as_py())))
    np.testing.assert_allclose(preview.transpose(2, 0, 1) / 255, whole.pixels[4], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(np.float32(table.column("pixels")[4].as_py()), whole.pixels[4].reshape(-1))


def test_many_rows_make_many_files_and_an_older_set_is_gone(tmp_path, monkeypatch):
    whole = artifact_of(count=7)
    monkeypatch.setattr(artifacts, "FILE_BYTES", 3 * 4 * 60)
    write_artifact(Place(tmp_path), whole)
    assert Place(tmp_path / "data").names() == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    assert_same(read_artifact(Place(tmp_path)), whole)
    monkeypatch.undo()
    write_artifact(Place(tmp_path), whole)
    assert Place(tmp_path / "data").names() == ["train-00000-of-00001.parquet"]
    assert_same(read_artifact(Place(tmp_path)), whole)


def test_the_same_set_gives_the_same_bytes(tmp_path):
    for name in "xy":
        write_artifact(Place(tmp_path / name), artifact_of())
    for file in ("data/train-00000-of-00001.parquet", "dataset.json", "README.md"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


@pytest.mark.parametrize("has_room", [True, False])
def test_large_files_are_made_on_disk_part_by_part(tmp_path, monkeypatch, has_room):
    monkeypatch.setattr(artifacts, "PART_BYTES", 2 * 4 * 60)
    made, make = [], artifacts.tempfile.TemporaryDirectory

    def noted(**named):
        if not has_room:
            raise OSError(28, "No space left on device")
        made.append(make(**named, dir=tmp_path))
        return made[-1]

    monkeypatch.setattr(artifacts.tempfile, "TemporaryDirectory", noted)
    whole = artifact_of()
    assert write_artifact(Place(tmp_path / "set"), whole) == digest(whole)
    assert (len(made) == 1) is has_room
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    assert pq.read_metadata(file).num_row_groups == 3
    assert_same(read_artifact(Place(tmp_path / "set")), whole)


@pytest.mark.parametrize("memory", [True, False])
def test_a_set_larger_than_memory_is_read_into_files(tmp_path, monkeypatch, memory):
    place = Place(f"mock://{tmp_path.name}/set") if memory else Place(tmp_path / "set")
    whole = artifact_of(count=7)
    monkeypatch.setattr(artifacts, "FILE_BYTES", 3 * 4 * 60)
    monkeypatch.setattr(artifacts, "PART_BYTES", 2 * 4 * 60)
    write_artifact(place, whole)
    monkeypatch.setattr(rooms, "HELD_BYTES", 0)
    monkeypatch.setattr(checked, "PIECE_BYTES", 1000)
    found = read_artifact(place)
    assert_same(found, whole)
    assert all(array.flags.writeable for array in (found.pixels, found.labels, found.segments))


def moved(array):
    other = array.copy()
    other.flat[-1] = np.float32(0.123) if other.dtype == np.float32 else (other.flat[-1] + 1) % 3
    return other


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": moved(artifact_of().pixels)},
        {"labels": moved(artifact_of().labels)},
        {"segments": moved(artifact_of().segments)},
        {"soft_labels": moved(artifact_of().soft_labels)},
        {"soft_labels": None},
        {"class_names": ("ant/eater", "zebra", "0")},
        {"mean": (0.1, 0.2, 0.3)},
        {"std": (0.25, 0.25, 0.3)},
        {"factor": 1},
        {"step_size": None},
        {"recipe": {"epochs": 30}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_sees_all_that_evaluation_needs(changes):
    assert digest(artifact_of(**changes)) != digest(artifact_of())


def test_the_digest_does_not_see_where_it_came_from():
    assert digest(artifact_of(provenance={"run": "y"})) == digest(artifact_of())
    assert len(digest(artifact_of())) == 16
    tuples = {**artifact_of().recipe, "rows": (1, 2)}
    assert digest(artifact_of(recipe=tuples)) == digest(artifact_of(recipe={**tuples, "rows": [1, 2]}))


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": artifact_of().pixels[:, :2]}, r"pixels of shape \(6, 2, 4, 5\) are not \(N, 1 or 3, H, W\)"),
        ({"pixels": artifact_of().pixels + 0.5}, r"a pixel lies outside \[0, 1\]"),
        ({"pixels": np.full((6, 3, 4, 5), np.nan, np.float32)}, "a pixel lies outside"),
        ({"pixels": artifact_of().pixels[:5]}, "differ in number"),
        ({"pixels": artifact_of().pixels.astype(np.float64)}, "must be float32"),
        ({"labels": artifact_of().labels + 1}, r"a label lies outside 0\.\.2"),
        ({"segments": artifact_of().segments.astype(np.int64)}, "segments must be int32"),
        ({"soft_labels": np.zeros((6, 4), np.float32)}, r"soft labels must be \(N, K\)"),
        ({"mean": (0.5,)}, "mean and std need one value a channel"),
        ({"factor": 0}, "factor: input should be greater than or equal to 1, not 0"),
    ],
)
def test_an_unsound_set_is_never_written(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=f"not sound: .*{message}"):
        write_artifact(Place(tmp_path / "set"), artifact_of(**changes))
    assert not (tmp_path / "set").exists()


@pytest.fixture
def written(tmp_path):
    write_artifact(Place(tmp_path), artifact_of())
    return tmp_path


def edit(folder, **changes):
    described = json.loads((folder / "dataset.json").read_text()) | changes
    kept = {key: value for key, value in described.items() if value != "gone"}
    (folder / "dataset.json").write_text(json.dumps(kept))


def test_a_later_version_is_refused(written):
    edit(written, schema_version=2)
    with pytest.raises(ArtifactError, match=r"later version of dasm_ray \(schema 2, .* up to 1\); upgrade dasm_ray"):
        read_artifact(Place(written))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "one"}, "lacks its schema_version"),
        ({"schema_version": True}, "lacks its schema_version"),
        ({"schema_version": 0}, "lacks its schema_version"),
        ({"digest": "gone"}, "lacks its schema_version or its digest"),
        ({"mean": [0.1, 0.2, 0.4]}, "does not have the digest"),
        ({"class_names": ["ant/eater", "zebra", "0"]}, "does not have the digest"),
        ({"shape": [6, 3, 5, 4]}, "does not have the digest"),
        ({"shape": [7, 3, 4, 5]}, "is damaged"),
        ({"shape": None}, "is damaged"),
        ({"mean": None}, "is damaged"),
        ({"factor": "two"}, "is damaged"),
        ({"recipe": "gone"}, "recipe: is missing"),
        ({"files": {}}, "is damaged"),
        ({"soft_labels": False}, "its column soft_label is not packed as it was written"),
        ({"files": {"train-9.parquet": "0" * 64}}, "files: must be train-00000-of-00001.parquet"),
        ({"class_names": ["zebra"]}, "its column soft_label is not packed as it was written"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(written, changes, message):
    edit(written, **changes)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(Place(written))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_description_that_is_damaged(written, text):
    (written / "dataset.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"dataset.json (cannot be read|lacks)"):
        read_artifact(Place(written))


def test_a_missing_set(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no dataset.json, so it is no finished synthetic set"):
        read_artifact(Place(tmp_path / "none"))


def test_missing_data(written):
    (written / "data" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(ArtifactError, match="is not whole"):
        read_artifact(Place(written))


def test_flipped_bytes_never_change_the_set_in_silence(written):
    file = written / "data" / "train-00000-of-00001.parquet"
    data = file.read_bytes()
    refused = 0
    for at in range(0, len(data), 41):
        file.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = read_artifact(Place(written))
        except ArtifactError:
            refused += 1
        else:
            assert_same(found, artifact_of())  # a byte of a preview, of statistics or of the writer's name
    assert refused > 20


def test_a_file_that_is_cut_short(written):
    file = written / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_artifact(Place(written))


def test_a_write_that_fails_leaves_no_finished_set(written, monkeypatch):
    def full(self, text):
        raise RunDirError("the disk is full")

    monkeypatch.setattr(Place, "write_text", full)
    with pytest.raises(RunDirError, match="the disk is full"):
        write_artifact(Place(written), artifact_of(factor=1))
    with pytest.raises(ArtifactError, match=r"holds no dataset.json"):
        read_artifact(Place(written))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot be written"):
        write_artifact(Place(tmp_path / "file" / "set"), artifact_of())


# --- normalised and whitened sets ------------------------------------------------------------------------------------


def whitened(**changes):
    """A set as a network sees it, and the pictures it shows."""
    generator = np.random.default_rng(1)
    pictures = generator.random((6, 3, 4, 5)).astype(np.float32)
    mean, matrix = generator.normal(size=60), np.eye(60) + 0.01 * generator.normal(size=(60, 60))
    matrix = (matrix + matrix.T) / 2
    normalised = (pictures - np.reshape((0.1, 0.2, 1 / 3), (-1, 1, 1))) / 0.25
    pixels = ((normalised.reshape(6, -1) - mean) @ matrix).reshape(pictures.shape).astype(np.float32)
    fields = {
        "pixels": pixels,
        "is_normalised": True,
        "whitening_mean": mean.astype(np.float32),
        "whitening_matrix": matrix.astype(np.float32),
    }
    return artifact_of(**{**fields, **changes}), pictures


def test_a_whitened_set_comes_back_and_shows_its_pictures(tmp_path):
    artifact, pictures = whitened()
    stamp = write_artifact(Place(tmp_path), artifact)
    found = read_artifact(Place(tmp_path))
    assert_same(found, artifact)
    assert digest(found) == stamp
    np.testing.assert_allclose(found.visible(), pictures, atol=1e-5)
    table = pq.read_table(tmp_path / "data")
    shown = np.asarray(Image.open(io.BytesIO(table.column("image")[2].as_py()["bytes"])))
    np.testing.assert_allclose(shown.transpose(2, 0, 1) / 255, pictures[2], atol=0.5 / 255 + 1e-4)


def test_the_whitening_is_part_of_the_digest_and_goes_when_the_set_goes(tmp_path):
    artifact, _ = whitened()
    stamp = write_artifact(Place(tmp_path), artifact)
    other = dataclasses.replace(artifact, whitening_mean=artifact.whitening_mean + 1)
    assert digest(other) != stamp
    assert digest(dataclasses.replace(artifact, is_normalised=False)) != stamp
    write_artifact(Place(tmp_path), artifact_of())
    assert not (tmp_path / "whitening.safetensors").exists()
    assert read_artifact(Place(tmp_path)).whitening_matrix is None


def test_a_missing_or_damaged_whitening_is_found(tmp_path):
    write_artifact(Place(tmp_path), whitened()[0])
    file = tmp_path / "whitening.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"whitening\.safetensors is damaged"):
        read_artifact(Place(tmp_path))
    file.unlink()
    with pytest.raises(ArtifactError, match="is damaged"):
        read_artifact(Place(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [{"whitening_mean": None}, {"whitening_matrix": np.eye(3, dtype=np.float32)}, {"is_normalised": False}],
)
def test_a_whitening_that_does_not_fit_is_refused(tmp_path, changes):
    artifact, _ = whitened(**changes)
    with pytest.raises(ArtifactError, match=r"the whitening does not fit|a pixel lies outside"):
        write_artifact(Place(tmp_path), artifact)


# --- sets that somebody made up ------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
FILE = "train-00000-of-00001.parquet"


def forge(folder, table=None, data=None, stamp=True, **changes):
    """Puts another table, or other bytes, into a set, with a checksum that fits, and changes its description."""
    if table is not None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **changes.pop("packing", {}))
        data = sink.getvalue().to_pybytes()
    (folder / "data" / FILE).write_bytes(data)
    sums = {"files": {FILE: hashlib.sha256(data).hexdigest()}} if stamp else {}
    edit(folder, **sums, **changes)
    return len(data)


def columns_of(folder):
    return pq.read_table(folder / "data" / FILE)


def put(table, name, values):
    return table.set_column(table.schema.names.index(name), name, values)


def empty_table(rows, size, value=0.5):
    """Rows that are all alike, which Parquet packs into next to nothing."""
    return pa.table(
        {
            "pixels": pa.FixedSizeListArray.from_arrays(pa.array(np.full(rows * size, value, np.float32)), size),
            "label": pa.array(np.zeros(rows, np.int64)),
            "soft_label": pa.nulls(rows, pa.list_(pa.float32())),
            "segment": pa.array(np.zeros(rows, np.int32)),
        }
    )


def peak():
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("says_so", [False, True], ids=["its shape says six", "its shape says so"])
@pytest.mark.parametrize("packed", ["SNAPPY", "ZSTD", "GZIP"])
def test_a_small_file_that_unpacks_to_very_much_is_refused_before_it_does(written, says_so, packed):
    edit(written, soft_labels=False)
    rows = 400_000
    table = empty_table(rows, 60)
    shape = [rows, 3, 4, 5] if says_so else [6, 3, 4, 5]
    size = forge(written, table, packing={"compression": packed}, shape=shape)
    before, whole = peak(), table.nbytes
    del table
    with pytest.raises(ArtifactError, match=r"would unpack to|is not packed as|unpacks to|hold 400000 images"):
        read_artifact(Place(written))
    assert whole > 100_000_000
    assert size < 1_000_000
    assert peak() - before < whole / 2


def test_a_set_of_many_gigabytes_in_words_only(written):
    edit(written, shape=[10**8, 3, 1000, 1000])
    with pytest.raises(ArtifactError, match="would unpack to 1200000000000000"):
        read_artifact(Place(written))


def test_a_file_that_is_larger_than_its_shape_explains_is_not_read(written):
    with (written / "data" / FILE).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="it has 1099511627776 bytes, and at most"):
        read_artifact(Place(written))


def test_a_whitening_that_is_larger_than_its_shape_explains_is_not_read(tmp_path):
    write_artifact(Place(tmp_path), whitened()[0])
    with (tmp_path / "whitening.safetensors").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="it has 1099511627776 bytes, and at most"):
        read_artifact(Place(tmp_path))


SOFT = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["segment"]), "has no column segment"),
        (lambda t: t.append_column("label", t["label"]), "has no column label"),
        (lambda t: put(t, "label", t["label"].cast(pa.float64())), "label is not of type int64"),
        (lambda t: put(t, "label", pa.array(["0"] * 6)), "label is not of type int64"),
        (lambda t: put(t, "pixels", t["pixels"].cast(SOFT)), "pixels is not of type"),
        (lambda t: put(t, "pixels", t["pixels"].cast(pa.list_(pa.float64(), 60))), "pixels is not of type"),
        (lambda t: put(t, "segment", pa.array([-1] * 6, pa.int32())), "a segment is negative"),
        (lambda t: put(t, "segment", pa.array([None] * 6, pa.int32())), "its column segment lacks a number"),
        (lambda t: put(t, "label", pa.array([9] * 6, pa.int64())), r"a label lies outside 0\.\.2"),
        (lambda t: put(t, "label", pa.array([None, 0, 0, 0, 0, 0], pa.int64())), "its column label lacks a number"),
        (lambda t: put(t, "soft_label", pa.array([[NAN] * 3] * 6, SOFT)), "a soft label is no number"),
        (lambda t: put(t, "soft_label", pa.array([[INF] * 3] * 6, SOFT)), "a soft label is no number"),
        (lambda t: put(t, "soft_label", pa.array([[0.5] * 2] * 6, SOFT)), "soft_label is not packed as"),
        (lambda t: put(t, "soft_label", pa.array([[0.5] * 3] * 5 + [None], SOFT)), "soft_label is not packed as"),
        (lambda t: put(t, "soft_label", pa.array([[0.5] * 4, [0.5] * 2] * 3, SOFT)), "digest"),
        (lambda t: t.slice(0, 5), "files hold 5 images, not 6"),
        (lambda t: pa.concat_tables([t, t]), "files hold 12 images, not 6"),
        (lambda t: t.slice(0, 0), "files hold 0 images, not 6"),
    ],
)
def test_a_table_that_somebody_changed(written, change, message):
    forge(written, change(columns_of(written)))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(Place(written))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, b"\0" * 1000])
def test_a_file_that_is_no_parquet(written, data):
    forge(written, data=data)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_artifact(Place(written))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["mean", "matrix"])
def test_a_whitening_with_a_number_that_is_none(tmp_path, name, value):
    artifact, _ = whitened()
    array = getattr(artifact, f"whitening_{name}").copy()
    array.flat[3] = value
    with pytest.raises(ArtifactError, match="the whitening does not fit"):
        write_artifact(Place(tmp_path), dataclasses.replace(artifact, **{f"whitening_{name}": array}))


def test_a_whitening_that_somebody_put_there(written, tmp_path):
    """Where the set has none, with no checksum, and with one."""
    arrays = {"mean": np.zeros(60, np.float32), "matrix": np.eye(60, dtype=np.float32)}
    (written / "whitening.safetensors").write_bytes(safetensors.numpy.save(arrays))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_artifact(Place(written))
    tensors.write(Place(written / "whitening.safetensors"), arrays, {})
    with pytest.raises(ArtifactError, match="the whitening does not fit"):
        read_artifact(Place(written))


@pytest.mark.parametrize(
    "changes",
    [
        {"std": (0.0, 0.5, 0.5)},
        {"std": (NAN, 0.5, 0.5)},
        {"mean": (INF, 0, 0)},
        {"factor": 5},
        {"factor": True},
        {"class_names": (1, 2, 3)},
        {"class_names": ("\x1b[2J", "b", "c")},
        {"recipe": {}},
        {"step_size": -1.0},
        {"step_size": NAN},
        {"soft_labels": np.full((6, 3), NAN, np.float32)},
        {"segments": np.full(6, -1, np.int32)},
    ],
    ids=str,
)
def test_what_would_be_refused_is_never_written(tmp_path, changes):
    with pytest.raises(ArtifactError, match="not sound") as caught:
        write_artifact(Place(tmp_path / "set"), artifact_of(**changes))
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_set_as_it_was_written_before_is_read_as_it_was(tmp_path):
    """With all of the configuration in its provenance, and a card that names it `default`."""
    config = RunConfig()
    recipe = {"model": result_keys(config.model), "image_size": [4, 5], "training": result_keys(config.evaluate)}
    whole = artifact_of(
        recipe=json.loads(json.dumps(recipe)),
        provenance={
            "config": config.model_dump(mode="json"),
            "config_digest": digest_of(result_keys(config)),
            "data_digest": "0" * 16,
            "device": "cpu",
            "versions": {"python": "3.11"},
        },
    )
    stamp = write_artifact(Place(tmp_path), whole)
    (tmp_path / "README.md").write_text("---\nconfigs: []\n---\n")
    assert_same(read_artifact(Place(tmp_path)), whole)
    assert stamp == "2cc088126d89efd2", "the digest of what is there does not change"


# --- anything done to a set ----------------------------------------------------------------------------------------

ODD_JSON = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        9,
        10**6,
        10**30,
        0.5,
        -0.0,
        1e-320,
        1e308,
        "",
        "x",
        "\x1b",
        "../x",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
    ]
)
SETS = ("plain", "soft", "white")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One set of each kind, and the same of other images."""
    folder = tmp_path_factory.mktemp("sets")
    made = {"plain": artifact_of(soft=False), "soft": artifact_of(), "white": whitened()[0]}
    for name, artifact in made.items():
        write_artifact(Place(folder / name), artifact)
        other = dataclasses.replace(artifact, pixels=np.ascontiguousarray(artifact.pixels[::-1]))
        write_artifact(Place(folder / f"other_{name}"), other)
    return folder, made


def paths_in(value, above=()):
    """Where every value of a JSON tree stands."""
    yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from paths_in(part, (*above, name))


def replaced(value, path, new):
    whole = copy.deepcopy(value)
    if not path:
        return new
    node = whole
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = new
    return whole


@st.composite
def damages(draw):
    """A kind of set, and a function that does something to a copy of it."""
    kind = draw(st.sampled_from(SETS))
    where, bits = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4)), draw(st.integers(1, 255))
    odd, cut = draw(ODD_JSON), draw(st.floats(0, 1))
    how = draw(st.sampled_from(["flip", "cut", "json", "drop", "swap", "fitting flip", "key"]))

    def flip(folder, file):
        data = bytearray(file.read_bytes())
        for at in where:
            data[at % len(data)] ^= bits
        return bytes(data)

    def damage(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
        file = files[where[0] % len(files)]
        described = json.loads((folder / "dataset.json").read_text())
        paths = list(paths_in(described))
        path = paths[where[0] % len(paths)]
        if how == "flip":
            file.write_bytes(flip(folder, file))
        elif how == "fitting flip":
            forge(folder, data=flip(folder, folder / "data" / FILE))
        elif how == "cut":
            file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
        elif how == "json":
            (folder / "dataset.json").write_text(json.dumps(replaced(described, path, odd)))
        elif how == "key":
            (folder / "dataset.json").write_text(json.dumps({**described, draw_name(where[0]): odd}))
        elif how == "drop":
            file.unlink()
        else:
            shutil.copy(folder.parent / f"other_{kind}" / file.relative_to(folder), file)

    damage.__name__ = how
    return kind, damage


def draw_name(number):
    return ["Digest", "digest ", "pixels", "extra", "", "__class__"][number % 6]


def read_or_refused(place):
    """The set, or the sentence that refuses it; no other error is let by."""
    try:
        return read_artifact(place)
    except ArtifactError as error:
        return str(error)


@settings(max_examples=500)
@given(damages())
def test_whatever_is_done_to_a_set_it_is_refused_or_the_same(sets, done):
    (folder, made), (kind, damage) = sets, done
    copied = folder / "copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder / kind, copied)
    damage(copied)
    found = read_or_refused(Place(copied))
    if isinstance(found, str):
        assert "\n" not in found
        assert "\x1b" not in found
        return
    assert digest(found) == digest(made[kind])
    assert_same(dataclasses.replace(found, provenance=made[kind].provenance), made[kind])
