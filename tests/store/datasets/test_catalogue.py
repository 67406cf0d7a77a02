"""Sets by name, and the real ones where they are at hand."""

import importlib.util
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made import pixels_of, planes, png, save, table_of, write
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError
from dasm_ray.store.datasets import folders as folders_module
from dasm_ray.store.datasets import parquet as parquet_module
from dasm_ray.store.datasets.catalogue import first_pictures, open_source, rows_of
from dasm_ray.store.datasets.shards import decode

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


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
    found = decode(shard, rows_of(shard), data)
    table = pq.read_table(next((SHARED / name).glob("test-*.parquet")))
    row = shard.last - 1
    expected = np.asarray(Image.open(io.BytesIO(table.column("image")[row]["bytes"].as_py())))
    np.testing.assert_array_equal(found.images[-1], planes(expected))
    np.testing.assert_array_equal(found.labels, table.column("label").to_numpy()[shard.first : shard.last])


# --- sets as people really have them -----------------------------------------------------------------------------

CASES = SHARED.parent / "cases" / "make.py"


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """All the sets that ../shared/cases/make.py writes."""
    if not CASES.exists():
        pytest.skip("no ../shared/cases/make.py; the same kinds are made by hand in the tests beside this file")
    spec = importlib.util.spec_from_file_location("cases_of_people", CASES)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.OUT = str(tmp_path_factory.mktemp("cases"))
    make.folders()
    make.tables()
    return Path(make.OUT)


def all_of(train, val=None, test=None, **more):
    sizes = {"train": train, "val": val, "test": test}
    return {role: size for role, size in sizes.items() if size is not None}, more


READ = {
    "splits_title": all_of(120, None, 120, classes="abc", says="120 images (Testing)"),
    "train_valid": all_of(120, None, 120, classes="abc", says="120 images (valid, the validation split, which serves"),
    "pq_eval": all_of(90, None, 30, says="30 images (eval.parquet)"),
    "train_val_test": all_of(120, 120, 120, classes="abc", says="120 images (val)"),
    "pq_prefixed": all_of(90, None, 30, says="30 images (cifar_test.parquet)"),
    "pq_training": all_of(90, None, 30, says="30 images (testing.parquet)"),
    "pq_hub": all_of(90, None, 30, says="30 images (test-00000-of-00001.parquet)"),
    "pq_split_folders": all_of(90, None, 30, says="30 images (test)"),
    "pq_numbered": all_of(120, None, 30, says="120 images (train*.parquet)"),
    "pq_test_unlabelled": all_of(90, None, 30, says="30 test images, none of which has a label (test.parquet)"),
    "pq_test_without_names": all_of(90, None, 30, says="test.parquet: no class names; those of train.parquet hold"),
    "pq_fine_label": all_of(90, says="column img and fine_label"),
    "one_level_too_many": all_of(120, classes="abc", says="all images are in images, so the folders in it are taken"),
    "class_called_train": all_of(120, classes=("bus", "car", "train"), says="train: images lie in it as in the other"),
    "first_image_grey": all_of(120, classes="abc", done={"grey turned to RGB": 1}),
    "exif_sideways": all_of(120, classes="abc", done={"turned upright as their EXIF says": 40}),
    "alpha": all_of(120, classes="abc", done={"transparent, laid on white": 120}),
    "jfif_some": all_of(120, classes="abc"),
    "long_tail": all_of(132, says="from 1 training image (t00) to 40 (a)"),
    "wide": all_of(120, classes="abc", shape=(3, 32, 64)),
    "plain": all_of(120, classes="abc", shape=(3, 16, 16)),
}
"""What is read of a case: images by what they serve as; class names, a piece of what is said, what is done to them."""

REFUSED = {
    "pq_shard_missing": r"/train-00001-of-00003\.parquet is missing from the training split, .* 2 of its 3 files",
    "flat_val": r"/val/ILSVRC2012_val_00000000\.png lies in no class folder, as the folder val was taken for the "
    r"validation split; sort its images into class folders, or move val away to leave it out",
    "animated": r"/a/000\.gif holds 3 frames, and could be read as the first or as all of them",
    "sixteen_bits": r"/b/zz\.png has more than 8 bits a channel \(mode I;16\); save it with 8",
    "name_not_utf8": r"/a/caf\\xe9\.png: the name is not UTF-8; rename it",
}


def data_of(cases, case):
    return Data(name="parquet" if case.startswith("pq_") else "folder", path=str(cases / case))


@pytest.mark.parametrize("case", READ)
def test_a_case_is_read(cases, case):
    sizes, more = READ[case]
    data = data_of(cases, case)
    source = open_source(data)
    assert {role: sum(map(len, shards)) for role, shards in source.shards.items()} == sizes
    assert {split.role: split.images for split in source.found.splits} == sizes
    assert source.class_names == tuple(more.get("classes", source.class_names))
    assert source.shape == more.get("shape", source.shape)
    said = " ".join(" ".join(source.found.lines()).split())
    assert more.get("says", "") in said
    done = Counter()
    for shards in source.shards.values():
        for shard in shards:
            done.update(decode(shard, rows_of(shard), data).done)
    assert done == more.get("done", {})


@pytest.mark.parametrize("case", REFUSED)
def test_a_case_is_refused(cases, case):
    data = data_of(cases, case)
    with pytest.raises(DataError, match=REFUSED[case]) as caught:
        [decode(shard, rows_of(shard), data) for shard in open_source(data).shards["train"]]
    assert "\n" not in str(caught.value)


def test_every_case_is_here(cases):
    assert {path.name for path in cases.iterdir()} == READ.keys() | REFUSED.keys()


def test_what_was_sideways_stands_upright(cases):
    data = data_of(cases, "exif_sideways")
    (shard,) = open_source(data).shards["train"]
    found = decode(shard, rows_of(shard), data)
    upright = found.images[found.labels == 0]
    assert upright[:, :, :6].mean() > 250
    assert upright[:, :, 10:].mean() < 5


# --- beside `datasets` -------------------------------------------------------------------------------------------

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
OTHERWISE = {
    "splits_title": "it knows the words in lower case only, and trains on both splits",
    "class_called_train": "it takes one class for the training split and drops the others",
}
"""Cases that `datasets` reads in another way, and how."""


@pytest.mark.parametrize("case", [case for case in READ if case not in OTHERWISE])
def test_datasets_reads_the_same(cases, tmp_path, monkeypatch, case):
    hub = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    kind = "parquet" if case.startswith("pq_") else "imagefolder"
    theirs = hub.load_dataset(kind, data_dir=str(cases / case), cache_dir=str(tmp_path))
    data = data_of(cases, case)
    source = open_source(data)
    for split in source.found.splits:
        rows = theirs[SPLIT_NAMES[split.split]]
        column = next(name for name in ("label", "fine_label") if name in rows.column_names)
        assert rows.features[column].names == list(source.class_names)
        image = next(name for name in ("image", "img") if name in rows.column_names)
        ours = [decode(shard, rows_of(shard), data) for shard in source.shards[split.role]]
        assert sorted(np.concatenate([part.labels for part in ours])) == sorted(rows[column])
        if case != "alpha":
            seen = {np.asarray(row.convert("RGB")).transpose(2, 0, 1).tobytes() for row in rows[image]}
            assert {pixels.tobytes() for part in ours for pixels in part.images} == seen


def test_a_share_that_cuts_nothing_is_said_to(tmp_path):
    for split in ("train", "val", "test"):
        for seed, name in enumerate("ab"):
            save(tmp_path / split / name / "1.png", seed)
    path = str(tmp_path)
    assert open_source(Data(name="folder", path=path)).found.notes == ()
    (note,) = open_source(Data(name="folder", path=path, val_share=0.2)).found.notes
    assert note == "data.val_share has no effect, since images of the set serve as validation split"


# --- the first pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_the_first_pictures_of_each_class(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(parquet_module, "SHARD_ROWS", 4)
    monkeypatch.setattr(folders_module, "SHARD_ROWS", 4)
    labels = [0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 2]
    if kind == "parquet":
        write(tmp_path / "train.parquet", table_of([png(i) for i in range(11)], labels))
    else:
        for seed, label in enumerate(labels):
            save(tmp_path / "abc"[label] / f"{seed:02}.png", seed)
    data = Data(name=kind, path=str(tmp_path))
    found = first_pictures(open_source(data), data, most=3)
    expected = [[0, 1, 2], [5, 7, 8], [10]]
    for images, seeds in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, [planes(pixels_of(seed)) for seed in seeds])
    few = first_pictures(open_source(data), data, most=3, classes=2)
    assert [len(images) for images in few] == [3, 3]
    np.testing.assert_array_equal(few[1], found[1])
