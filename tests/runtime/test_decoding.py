"""Real images through the cluster against a plain loop over the same files."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from local_pool import blocks_of
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.errors import DataError, ResourceError, SessionError
from dasm_ray.runtime import decoding as real_module
from dasm_ray.runtime.decoding import SPLITS, RealRefs, load_real
from dasm_ray.runtime.progress import Progress
from dasm_ray.store.datasets import catalogue, folders, shards
from dasm_ray.store.datasets.blockcache import Making
from dasm_ray.store.datasets.catalogue import open_source, rows_of
from dasm_ray.store.datasets.shards import Source, decode, split_of
from dasm_ray.store.datasets.sorting import merge, pieces
from dasm_ray.store.datasets.splits import CALLED
from dasm_ray.store.place import Place


def load(data: Data) -> tuple[RealRefs, list[str]]:
    notices: list[str] = []
    return load_real(open_source(data), data, notices.append), notices


def fetched(real: RealRefs) -> dict[str, list[np.ndarray]]:
    return {split: blocks_of(real, split) for split in real.splits}


def one_by_one(data: Data) -> dict[str, list[list[np.ndarray]]]:
    """The same images in a plain loop, in one process."""
    source = open_source(data)
    lists: dict[str, list[list[np.ndarray]]] = {split: [[] for _ in source.class_names] for split in SPLITS}
    for split, of_split in source.shards.items():
        for shard in of_split:
            found = decode(shard, rows_of(shard), data)
            names = split_of(found.keys, source.cut) if split == "train" else [split] * len(shard)
            for image, label, name in zip(found.images, found.labels, names, strict=True):
                lists[name][label].append(image)
    return lists


def assert_equal(blocks: Mapping[str, list[np.ndarray]], lists: Mapping[str, list[list[np.ndarray]]]) -> None:
    for split in SPLITS:
        assert len(blocks[split]) == len(lists[split])
        for block, images in zip(blocks[split], lists[split], strict=True):
            assert (block.dtype, len(block)) == (np.uint8, len(images))
            assert not images or np.array_equal(block, np.stack(images))


@pytest.fixture
def mnist(data_folder: Path, tmp_path: Path) -> Path:
    """The published test file, standing in for the training file too, with fewer rows."""
    file = data_folder / "mnist" / "test-00000-of-00001.parquet"
    if not file.exists():
        pytest.skip(f"needs the MNIST test file as Parquet at {file}")
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 2600), tmp_path / "train-00000-of-00001.parquet", row_group_size=700)
    pq.write_table(table.slice(5000, 300), tmp_path / "test-00000-of-00001.parquet")
    return tmp_path


def test_digits_are_those_of_a_plain_loop(ray_session: object) -> None:
    data = Data(name="digits")
    real, notices = load(data)
    blocks, lists = fetched(real), one_by_one(data)
    assert_equal(blocks, lists)
    assert sum(int(counts.sum()) for counts in real.counts.values()) == 1797
    assert (real.shape, real.class_names) == ((1, 8, 8), tuple("0123456789"))
    source = open_source(data)
    assert notices[: len(source.found.lines())] == source.found.lines()
    sizes = ", ".join(f"{name} {int(real.counts[s].sum())}" for s, name in CALLED.items())
    assert f"  decoded    {sizes}; grey" in notices[len(source.found.lines()) :]


def test_parquet_is_that_of_a_plain_loop(ray_session: object, mnist: Path) -> None:
    data = Data(name="mnist", path=str(mnist))
    real, _ = load(data)
    assert_equal(fetched(real), one_by_one(data))
    assert int(real.counts["train"].sum() + real.counts["val"].sum()) == 2600
    assert int(real.counts["test"].sum()) == 300
    for split, blocks in fetched(real).items():
        assert real.counts[split].tolist() == [len(block) for block in blocks]


def test_mean_and_std_are_exact(ray_session: object, mnist: Path) -> None:
    real, _ = load(Data(name="mnist", path=str(mnist)))
    pixels = np.concatenate(fetched(real)["train"]).astype(np.float64) / 255
    np.testing.assert_allclose(real.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(real.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def cut_anew(source: Source, rows: int) -> Source:
    """The same set in other shards."""

    def cut(shard: Any) -> list[Any]:
        starts = range(shard.first, shard.last, rows)
        return [dataclasses.replace(shard, first=first, last=min(first + rows, shard.last)) for first in starts]

    shards = {split: tuple(s for shard in old for s in cut(shard)) for split, old in source.shards.items()}
    return dataclasses.replace(source, shards=shards)


def test_the_digest_does_not_know_the_shards(ray_session: object, mnist: Path) -> None:
    data = Data(name="mnist", path=str(mnist))
    whole, _ = load(data)
    cut = load_real(cut_anew(open_source(data), 390), data, lambda text: None)
    assert (cut.digest, cut.mean, cut.std) == (whole.digest, whole.mean, whole.std)
    assert_equal(fetched(cut), {split: [list(block) for block in of] for split, of in fetched(whole).items()})


def test_images_too_large_for_a_shard_come_to_the_same_set(
    ray_session: object, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(name="parquet", path=str(mnist))
    whole = load(data)[0]
    monkeypatch.setattr(shards, "SHARD_BYTES", 50 * 28 * 28)
    source = open_source(data)
    assert {len(shard) for shard in source.shards["train"][:-1]} == {50}
    assert_equal(fetched(cut := load(data)[0]), one_by_one(data))
    assert (cut.digest, cut.mean, cut.std) == (whole.digest, whole.mean, whole.std)


def test_the_digest_knows_every_pixel(ray_session: object, tmp_path: Path) -> None:
    digests = set()
    for value in (0, 1):
        folder = tmp_path / str(value)
        write_folder(folder, changed=value)
        digests.add(load(Data(name="folder", path=str(folder)))[0].digest)
    assert len(digests) == 2


def write_folder(folder: Path, changed: int = 0) -> None:
    """Three classes of colour images; ``changed`` moves one pixel."""
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng([label, number]).integers(0, 255, (5, 4, 3), np.uint8)
            pixels[0, 0, 0] += changed if (label, number) == (2, 7) else 0
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number:02}.png")


def test_colour_folders_keep_their_channels(ray_session: object, tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    data = Data(name="folder", path=str(tmp_path / "set"))
    real, _ = load(data)
    assert_equal(fetched(real), one_by_one(data))
    assert real.shape == (3, 5, 4)
    assert len(real.mean) == len(real.std) == 3


def images(folder: Path, mode: str = "RGB", count: int = 20) -> None:
    for number in range(count):
        pixels = np.random.default_rng([len(str(folder)), number]).integers(0, 255, (5, 4, 3), np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:02}.png")


def test_a_validation_split_of_the_set_is_the_validation_split(ray_session: object, tmp_path: Path) -> None:
    """And nothing is cut from the training images then."""
    for split in ("Training", "VALID", "eval"):
        for name in "ab":
            images(tmp_path / split / name, count=10)
    data = Data(name="folder", path=str(tmp_path))
    real, _ = load(data)
    assert {split: counts.tolist() for split, counts in real.counts.items()} == {s: [10, 10] for s in SPLITS}
    assert_equal(fetched(real), one_by_one(data))
    assert real.found["counts"] == dict.fromkeys(SPLITS, (10, 10))


def test_an_image_in_colour_makes_the_set_so_wherever_it_stands(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        images(tmp_path / name, "L")
    grey, _ = load(Data(name="folder", path=str(tmp_path)))
    assert grey.shape == (1, 5, 4)
    Image.fromarray(np.full((5, 4, 3), [200, 10, 10], np.uint8)).save(tmp_path / "b" / "07.png")
    monkeypatch.setattr(catalogue, "LOOKED_AT", 2)
    data = Data(name="folder", path=str(tmp_path))
    assert open_source(data).shape == (1, 5, 4)
    real, notices = load(data)
    assert real.shape == (3, 5, 4)
    in_b = np.concatenate([of_split[1] for of_split in fetched(real).values()])
    assert (in_b[:, 0] != in_b[:, 1]).any()
    assert real.found["converted"] == {"grey turned to RGB": 59}
    assert any("1 training image is in colour" in notice for notice in notices)


def test_a_test_image_in_colour_leaves_a_grey_set_grey(ray_session: object, tmp_path: Path) -> None:
    for name in "ab":
        images(tmp_path / "train" / name, "L")
        images(tmp_path / "test" / name, "RGB", 3)
    real, _ = load(Data(name="folder", path=str(tmp_path)))
    assert real.shape == (1, 5, 4)
    assert real.found["converted"] == {"RGB turned to grey": 6}


def test_images_that_are_all_equal_are_said_to_be(ray_session: object, tmp_path: Path) -> None:
    """As drawings in black on a clear ground that is black as well."""
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(5):
            drawn = np.zeros((5, 4, 4), np.uint8)
            drawn[number, :, 3] = 255
            Image.fromarray(drawn).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match="all 15 images are equal, pixel for pixel"):
        load(Data(name="folder", path=str(tmp_path), ground="black"))


def test_copies_are_counted_within_and_across_splits(ray_session: object, tmp_path: Path) -> None:
    for name in "ab":
        images(tmp_path / "train" / name, count=30)
    twin = np.full((5, 4, 3), 7, np.uint8)
    for path in ("train/a/x.png", "train/a/y.png", "train/b/z.png", "val/a/x.png", "test/b/x.png", "test/b/y.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(twin).save(tmp_path / path)
    images(tmp_path / "val" / "longer name to differ", count=1)
    shutil.move(tmp_path / "val" / "longer name to differ" / "00.png", tmp_path / "val" / "a" / "00.png")
    (tmp_path / "val" / "longer name to differ").rmdir()
    real, _ = load(Data(name="folder", path=str(tmp_path)))
    assert (real.found["equal"], real.found["leaked"]) == (2 + 30, {"val": 1, "test": 2})


def test_a_class_whose_images_were_all_held_out(ray_session: object, tmp_path: Path) -> None:
    for name in "ab":
        images(tmp_path / name)
    for number in range(40):  # classes of one image: some will be held out
        images(tmp_path / f"t{number:02}" / ("x" * number), count=1)
    with pytest.raises(DataError, match=r"has no training image: of the 1 of class \d+ all were held out, 1 to the"):
        load(Data(name="folder", path=str(tmp_path)))


def test_a_whitening_that_fits_no_node_is_refused_before_decoding(
    ray_session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert real_module.largest_memory() > 2**28
    monkeypatch.setattr(real_module, "largest_memory", lambda: 2**20)
    monkeypatch.setattr(real_module, "_decode_all", None)
    with pytest.raises(ResourceError, match=r"data\.zca: whitening 1024 values"):
        load(Data(zca=0.1, image_size=32))


def test_a_corrupt_image_stops_the_loading_and_leaves_nothing_behind(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "SHARD_ROWS", 4)  # 15 shards: some done, some under way, some never sent
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "class0" / "05.png").write_bytes(b"no image")  # in a shard that is not looked at before
    before = references()
    with pytest.raises(DataError, match=r"class0/05\.png") as caught:
        load(Data(name="folder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache")))
    assert [name for name in kept_in(tmp_path / "cache") if not name.startswith(".")] == []
    assert type(caught.value) is DataError
    del caught
    assert references() <= before


def references() -> int:
    """Objects that this process holds in Ray."""
    import gc

    gc.collect()
    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def kept_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_a_set_that_is_kept_is_not_decoded_again(
    ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever recipe; a file that has changed makes another set of it."""
    write_folder(tmp_path / "set")
    data = Data(name="folder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache"))
    real, said = load(data)
    decode = real_module._decode_all
    monkeypatch.setattr(real_module, "_decode_all", None)
    again, said_again = load(data.model_copy(update={"zca": 0.1, "cache_gb": 3.0}))
    kept = f"  kept       sorted images in {real.kept.place}; nothing is decoded"
    assert kept in said_again
    assert [line for line in said_again if line != kept] == said
    for name in ("shape", "class_names", "mean", "std", "digest", "found", "splits"):
        assert getattr(again, name) == getattr(real, name), name
    assert_equal(fetched(again), one_by_one(data))
    monkeypatch.setattr(real_module, "_decode_all", decode)
    write_folder(tmp_path / "other", changed=1)
    shutil.copy(tmp_path / "other" / "class2" / "07.png", tmp_path / "set" / "class2" / "07.png")
    assert load(data)[0].digest != real.digest
    assert len(kept_in(tmp_path / "cache")) == 2


def test_a_set_that_is_damaged_is_decoded_anew(ray_session: object, tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    data = Data(name="folder", path=str(tmp_path / "set"), cache=str(tmp_path / "cache"))
    real, _ = load(data)
    (file,) = (tmp_path / "cache").rglob("train/000001-000.arrow")
    file.write_bytes(file.read_bytes()[:-8])
    again, said = load(data)
    assert f"{real.kept.place} is not whole, or not as it was written: its images are decoded anew" in said
    assert again.digest == real.digest
    assert_equal(fetched(again), one_by_one(data))


def test_a_digest_is_that_of_all_blocks(ray_session: object) -> None:
    """Written out: everything that was ever made of a set is found under it."""
    data = Data(name="digits")
    lists = one_by_one(data)
    digests = []
    for label in range(10):
        blocks = [np.stack(lists[split][label]) for split in SPLITS]
        digests.append([hashlib.sha256(str(block.shape).encode() + block.tobytes()).hexdigest() for block in blocks])
    assert load(data)[0].digest == hashlib.sha256(json.dumps([digests]).encode()).hexdigest()[:16]


def test_no_image_goes_through_the_object_store(ray_session: object) -> None:
    before = references()
    load(Data(name="digits"))
    assert references() <= before


def test_a_class_without_a_training_image_is_named(ray_session: object, mnist: Path) -> None:
    file = mnist / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pa.compute.not_equal(table["label"], 4)), file)
    with pytest.raises(DataError, match=r"class 4 "):
        load(Data(name="mnist", path=str(mnist)))


def test_equal_images_are_on_one_side_of_the_split(ray_session: object, mnist: Path) -> None:
    """The training file twice: each image and its twin must both train or both validate."""
    shutil.copy(mnist / "train-00000-of-00001.parquet", mnist / "train-00001-of-00001.parquet")
    blocks = fetched(load(Data(name="mnist", path=str(mnist)))[0])
    train, val = ({hashlib.sha256(image).hexdigest() for block in blocks[s] for image in block} for s in SPLITS[:2])
    assert train
    assert val
    assert not train & val


def test_progress_counts_shards_and_classes(ray_session: object, mnist: Path) -> None:
    events: list[dict[str, Any]] = []
    with Progress(lambda **fields: events.append(fields), live=False) as progress:
        data = Data(name="mnist", path=str(mnist))
        load_real(open_source(data), data, print, progress)
    (found,) = [event for event in events if event["kind"] == "data"]
    assert found["name"] == "mnist"
    assert sum(found["counts"]["test"]) == 300
    last = [event for event in events if event["kind"] == "progress"][-1]
    assert last["done"] == last["total"] == len(open_source(Data(name="mnist", path=str(mnist))).shards["train"]) + 11


def test_a_cluster_that_does_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    real_module._tell_idle(61, "decoding", notices.append)
    assert len(notices) == 1
    monkeypatch.setattr(real_module, "WAIT_LIMIT_SECONDS", 10)
    with pytest.raises(SessionError, match="decoding the real images: nothing happened"):
        real_module._tell_idle(61, "decoding", notices.append)


def test_a_constant_channel_has_a_deviation_that_can_be_divided_by(tmp_path: Path) -> None:
    counts = np.array([[[5], [0], [0]]])
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "000000.raw").write_bytes(bytes([255]) * 20)
    (piece,) = pieces(counts, (1, 2, 2))
    merged = merge(Making(Place(tmp_path), Place(tmp_path) / "chunks"), piece, (1, 2, 2))
    assert real_module._moments(merged, 20) == ((1.0,), (1.0,))
