"""The cache of sorted sets: found whole or made anew, never removed under its users, never read where it is damaged."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dasm_ray.config.keys import Data
from dasm_ray.errors import ResourceError, RunDirError, StorageError
from dasm_ray.store.datasets import blockcache as module
from dasm_ray.store.datasets.blockcache import (
    INDEX,
    BlockCache,
    Index,
    Kept,
    SortedSet,
    bring_from,
    cache_folder,
    hold,
    make_room,
    part_name,
)
from dasm_ray.store.datasets.blockfile import write_part
from dasm_ray.store.datasets.splits import SPLITS
from dasm_ray.store.place import Place

SHAPE = (1, 4, 4)
COUNTS = {"train": (3, 5), "val": (0, 2), "test": (1, 1)}


def images_of(split: str, label: int) -> np.ndarray:
    draw = np.random.default_rng([SPLITS.index(split), label])
    return draw.integers(0, 256, (COUNTS[split][label], *SHAPE), np.uint8)


def write_set(place: Place) -> Index:
    """Two classes; the second one's training images lie in two parts."""
    folder, parts = place.local, {}
    assert folder is not None
    for split in SPLITS:
        (folder / "blocks" / split).mkdir(parents=True, exist_ok=True)
        of_split = []
        for label in range(2):
            images = images_of(split, label)
            pieces = [images[:3], images[3:]] if len(images) > 3 else [images][: len(images)]
            names = [part_name(split, label, number) for number in range(len(pieces))]
            of_split.append(tuple(write_part(folder / name, piece) for name, piece in zip(names, pieces, strict=True)))
        parts[split] = tuple(of_split)
    index = Index(SHAPE, parts, (("a", "b", "c"),) * 2, (0.5,), (0.25,), "digest", {"converted": {}, "equal": 0})
    index.write(place)
    return index


def cache_at(folder: Path, said: list[str] | None = None, **keys: object) -> BlockCache:
    return BlockCache(Data(cache=str(folder), **keys), (said if said is not None else []).append)  # type: ignore[arg-type]


def made(folder: Path, key: str = "key") -> Index:
    with cache_at(folder).making(key, 100) as making:
        return write_set(making.place)


def read(folder: Path, bring: module.Bring | None = None) -> dict[str, list[list[int]]]:
    opened = SortedSet(folder, "digest", bring)
    return {split: [part.ravel().tolist() for part in opened.split(split)] for split in SPLITS}


def wanted() -> dict[str, list[list[int]]]:
    one = {split: [images_of(split, label) for label in range(2)] for split in SPLITS}
    one["train"][1:] = [one["train"][1][:3], one["train"][1][3:]]
    return {split: [block.ravel().tolist() for block in blocks if len(block)] for split, blocks in one.items()}


# --- making and finding ------------------------------------------------------------------------------------------


def test_a_set_that_is_made_is_found_as_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    index = made(tmp_path)
    assert cache_at(tmp_path, said).find("key") == index
    assert cache_at(tmp_path, said).find("other") is None
    assert said == []
    assert read(tmp_path / "key") == wanted()
    assert {split: counts.tolist() for split, counts in index.counts.items()} == {s: list(COUNTS[s]) for s in SPLITS}
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["key"]


def test_parts_are_known_without_a_look_at_them(tmp_path: Path) -> None:
    made(tmp_path)
    shutil.rmtree(tmp_path / "key" / "blocks")
    parts = SortedSet(tmp_path / "key", "digest").split("train")
    assert (parts.counts.tolist(), parts.sizes.tolist(), parts.shape, len(parts)) == ([3, 5], [3, 3, 2], SHAPE, 3)


def test_a_set_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(ValueError), cache_at(tmp_path).making("key", 100) as making:
        write_set(making.place)
        raise ValueError("no image")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_command_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    mine = "0123456789abcdef" * 2
    (tmp_path / f".key.{mine}.tmp" / "chunks").mkdir(parents=True)
    (tmp_path / f".dead.{mine}.tmp").mkdir()
    (tmp_path / f".alive.{mine}.tmp").mkdir()
    with cache_at(tmp_path).alone("alive", "digits"):
        made(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock"))
    assert left == [f".alive.{mine}.tmp", "key"], "what another command makes now is its own"


def spoil_index(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"digest": "digest"', '"digest": "foreign"'))


def cut_part(folder: Path) -> None:
    with (folder / part_name("train", 0, 0)).open("r+b") as file:
        file.truncate(100)


@pytest.mark.parametrize(
    "harm",
    [
        spoil_index,
        cut_part,
        lambda folder: (folder / part_name("test", 1, 0)).unlink(),
        lambda folder: (folder / INDEX).unlink(),
        lambda folder: (folder / INDEX).write_text("{}"),
        lambda folder: (folder / INDEX).write_bytes(b"\xff\x00"),
    ],
    ids=["foreign", "cut", "missing", "no index", "empty index", "no text"],
)
def test_a_set_that_is_not_whole_is_said_to_be_and_made_anew(tmp_path: Path, harm: object) -> None:
    said: list[str] = []
    index = made(tmp_path)
    harm(tmp_path / "key")  # type: ignore[operator]
    assert cache_at(tmp_path, said).find("key") is None
    assert said == [f"{tmp_path}/key is not whole, or not as it was written: its images are decoded anew"]
    made(tmp_path)
    assert cache_at(tmp_path, said).find("key") == index
    assert read(tmp_path / "key") == wanted()


def test_two_commands_make_a_set_one_after_the_other(tmp_path: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with cache_at(tmp_path, said).alone("key", "digits"):
            order.append("second")

    with cache_at(tmp_path).alone("key", "digits"), cache_at(tmp_path).alone("other", "mnist"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert said == ["digits: another command decodes and sorts its images; waiting for it"]


def make_until_killed(folder: str, begun: object) -> None:
    cache = BlockCache(Data(cache=folder), print)
    with cache.alone("key", "digits"), cache.making("key", 100) as making:
        (making.chunks / "000000.raw").write_bytes(b"half")
        begun.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_command_that_is_killed_while_it_makes_a_set_leaves_it_to_the_next(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begun, said = context.Event(), list[str]()
    process = context.Process(target=make_until_killed, args=(str(tmp_path), begun))
    process.start()
    assert begun.wait(60)
    assert [path.name for path in tmp_path.rglob("*.raw")] == ["000000.raw"]
    assert cache_at(tmp_path, said).find("key") is None
    process.kill()
    process.join()
    with cache_at(tmp_path, said).alone("key", "digits"):
        index = made(tmp_path)
    assert cache_at(tmp_path, said).find("key") == index
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key"]
    assert said == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"data\.cache: .*file/c cannot be written \(Not a directory\); name another"):
        made(tmp_path / "file" / "c")


def test_a_set_that_has_no_room_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"has room for .* GB, and to sort these images takes 2000000\.0; free some"),
        cache_at(tmp_path).making("key", 10**15),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


# --- removing ----------------------------------------------------------------------------------------------------


def used_at(folder: Path, key: str, seconds: float) -> None:
    made(folder, key)
    os.close(module._held.pop(folder / key))  # as a command that is over
    os.utime(folder / key / INDEX, (seconds, seconds))


def keys_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_sets_that_nobody_uses_go_when_there_is_no_room_oldest_first(tmp_path: Path) -> None:
    for seconds, key in enumerate(["b", "a", "c"]):
        used_at(tmp_path, key, 1000.0 + seconds)
    size = module._bytes_below(tmp_path / "a")
    assert make_room(tmp_path, size, 4 * size, keep="new") == []
    said = make_room(tmp_path, size, 3 * size + 5, keep="new")
    assert said == [f"{tmp_path}/b: sorted images that nobody uses were removed to make room"]
    assert keys_in(tmp_path) == ["a", "c"]
    assert len(make_room(tmp_path, 10 * size, size, keep="c")) == 1
    assert keys_in(tmp_path) == ["c"], "what is being made anew is no room"


def test_a_folder_that_holds_other_things_too_loses_none_of_them(tmp_path: Path) -> None:
    """Whatever `data.cache` names: only sets, and what is left of sets, go."""
    kept = [
        tmp_path / "website" / INDEX,
        tmp_path / "thesis" / INDEX,
        tmp_path / "0123456789abcdef0123456789abcdef" / INDEX,
        tmp_path / ".important.backup.tmp" / "letter.txt",
        tmp_path / ".key.0123.tmp" / "letter.txt",
    ]
    for file in kept:
        file.parent.mkdir()
        file.write_text('{"pages": 3}')
    used_at(tmp_path, "old", 1000.0)
    with cache_at(tmp_path).making("key", 100) as making:
        write_set(making.place)
    assert len(make_room(tmp_path, 10**6, 1, keep="key")) == 1, "the set alone"
    assert [file for file in kept if not file.exists()] == []
    assert not (tmp_path / "old").exists()


def test_a_full_disk_makes_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "ab":
        used_at(tmp_path, key, 1000.0 + ord(key))
    free = iter([1000, 1000, 5000, 5000])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    assert len(make_room(tmp_path, 2000, None, keep="new", twice=True)) == 2
    assert keys_in(tmp_path) == []


def hold_until(folder: str, ready: object, over: object) -> None:
    hold(Path(folder))
    ready.set()  # type: ignore[attr-defined]
    over.wait(60)  # type: ignore[attr-defined]


@pytest.fixture
def another(tmp_path: Path) -> Iterator[multiprocessing.Process]:
    """Another process that uses the set ``key`` until it is killed."""
    used_at(tmp_path, "key", 1000.0)
    context = multiprocessing.get_context("spawn")
    ready, over = context.Event(), context.Event()
    process = context.Process(target=hold_until, args=(str(tmp_path / "key"), ready, over))
    process.start()
    assert ready.wait(60)
    yield process  # type: ignore[misc]
    process.kill()
    process.join()


def test_what_another_command_uses_is_not_removed(tmp_path: Path, another: multiprocessing.Process) -> None:
    assert make_room(tmp_path, 10**6, 1, keep="new") == []
    assert keys_in(tmp_path) == ["key"]
    another.kill()  # as by the machine: what it held is free
    another.join()
    assert len(make_room(tmp_path, 10**6, 1, keep="new")) == 1
    assert keys_in(tmp_path) == []


def test_what_this_command_uses_is_not_removed(tmp_path: Path) -> None:
    made(tmp_path)
    assert make_room(tmp_path, 10**6, 1, keep="new") == []
    assert cache_at(tmp_path).find("key") is not None


# --- reading -----------------------------------------------------------------------------------------------------


def test_images_are_mapped_when_asked_for_and_let_go_when_many_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    opened = SortedSet(tmp_path / "key", "digest")
    assert list(opened._open) == []
    monkeypatch.setattr(module, "_most_open", lambda: 2)
    for split in ("train", "test"):
        for number in (0, 1, 0):
            images = opened.split(split)[number]
            assert not images.flags.writeable
    assert list(opened._open) == [part_name("test", 1, 0), part_name("test", 0, 0)]


def test_half_of_the_files_that_a_process_may_open_are_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1024, 512), (20, 16), (10**6, 8192), (resource.RLIM_INFINITY, 8192)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert module._most_open() == most


def change_a_pixel(folder: Path) -> None:
    file = folder / part_name("train", 1, 0)
    data, pixels = file.read_bytes(), images_of("train", 1)[:3].tobytes()
    at = data.index(pixels)
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_part_that_is_damaged_is_never_used_and_the_next_command_makes_it_anew(tmp_path: Path) -> None:
    made(tmp_path)
    change_a_pixel(tmp_path / "key")
    assert cache_at(tmp_path).find("key") is not None, "its size is right, and nobody has looked inside yet"
    words = r"000001-000\.arrow is damaged \(its checksum does not match\) and was removed; run the same command again"
    with pytest.raises(StorageError, match=words):
        read(tmp_path / "key")
    assert cache_at(tmp_path).find("key") is None
    made(tmp_path)
    assert read(tmp_path / "key") == wanted()


def test_a_part_that_changes_after_a_look_is_looked_at_again(tmp_path: Path) -> None:
    made(tmp_path)
    opened = SortedSet(tmp_path / "key", "digest")
    opened.split("train")[1]
    opened._open.clear()
    change_a_pixel(tmp_path / "key")
    with pytest.raises(StorageError, match="is damaged"):
        opened.split("train")[1]


@pytest.mark.parametrize("gone", ["set", "part"])
def test_images_that_were_removed_by_hand_are_said_to_be(tmp_path: Path, gone: str) -> None:
    made(tmp_path)
    opened = SortedSet(tmp_path / "key", "digest")
    shutil.rmtree(tmp_path / "key") if gone == "set" else (tmp_path / "key" / part_name("test", 0, 0)).unlink()
    with pytest.raises(StorageError, match="is gone, or of another set: the sorted images were removed"):
        opened.split("test")[0]
    if gone == "set":
        with pytest.raises(StorageError, match=r"index\.json is gone"):
            SortedSet(tmp_path / "key", "digest")


def test_an_index_of_other_images_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(StorageError, match="of another set"):
        SortedSet(tmp_path / "key", "another digest")


# --- a machine that lacks it -------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path) -> tuple[Path, list[str], module.Bring]:
    """A set in another place, an empty folder here, and what is asked for."""
    made(tmp_path / "far")
    asked: list[str] = []
    copy = bring_from(Place(tmp_path / "far" / "key"))

    def bring(name: str, to: Path) -> None:
        asked.append(name)
        copy(name, to)

    return tmp_path / "near" / "key", asked, bring


def test_parts_are_fetched_when_they_are_asked_for_and_once(
    tmp_path: Path, far: tuple[Path, list[str], module.Bring]
) -> None:
    near, asked, bring = far
    opened = SortedSet(near, "digest", bring)
    assert opened.split("train")[1].ravel().tolist() == wanted()["train"][1]
    assert asked == [INDEX, part_name("train", 1, 0)]
    assert SortedSet(near, "digest", bring).split("train")[1].ravel().tolist() == wanted()["train"][1]
    assert len(asked) == 2
    assert read(near, bring) == wanted()
    assert len(asked) == 1 + 6
    assert not [path for path in (tmp_path / "near").rglob("*") if path.name.endswith(".tmp")]


def test_a_shared_folder_need_not_be_writable(far: tuple[Path, list[str], module.Bring]) -> None:
    near, asked, bring = far
    read(near, bring)
    asked.clear()
    for folder in (near, *near.rglob("*/")):
        folder.chmod(0o555)
    assert read(near, bring) == wanted()
    for folder in (near, *near.rglob("*/")):
        folder.chmod(0o755)
    assert asked == []


def test_a_copy_that_is_damaged_is_fetched_again(far: tuple[Path, list[str], module.Bring]) -> None:
    near, asked, bring = far
    read(near, bring)
    change_a_pixel(near)
    spoil_index(near)
    asked.clear()
    assert read(near, bring) == wanted()
    assert asked == [INDEX, part_name("train", 1, 0)]


def test_a_copy_that_comes_damaged_is_not_used(tmp_path: Path, far: tuple[Path, list[str], module.Bring]) -> None:
    near, asked, bring = far
    change_a_pixel(tmp_path / "far" / "key")
    with pytest.raises(StorageError, match="is damaged"):
        read(near, bring)
    assert asked.count(part_name("train", 1, 0)) == 2


def test_a_copy_goes_when_it_must_and_comes_again(far: tuple[Path, list[str], module.Bring]) -> None:
    near, asked, bring = far
    opened = SortedSet(near, "digest", bring, 3000)
    for _ in range(2):
        for split in SPLITS:
            for number, block in enumerate(wanted()[split]):
                opened._open.clear()
                assert opened.split(split)[number].ravel().tolist() == block
                assert sum(file.stat().st_size for file in near.rglob("*.arrow")) <= 3000
    assert len(asked) > 7


def test_a_whole_set_is_no_copy_and_loses_no_part(tmp_path: Path, far: tuple[Path, list[str], module.Bring]) -> None:
    """Of two drivers, each of which is a node of the other one's cluster."""
    _, asked, bring = far
    here = made(tmp_path / "near")
    (tmp_path / "near" / "key" / part_name("test", 0, 0)).unlink()
    opened = SortedSet(tmp_path / "near" / "key", "digest", bring, 3000)
    assert opened.split("test")[0].ravel().tolist() == wanted()["test"][0]
    assert asked == [part_name("test", 0, 0)]
    assert module._is_whole(Place(tmp_path / "near" / "key"), here)


def test_a_folder_for_copies_that_is_full_is_said(tmp_path: Path, far: tuple[Path, list[str], module.Bring]) -> None:
    near, _, bring = far

    def full(name: str, to: Path) -> None:
        if name != INDEX:
            raise OSError(28, "No space left on device")
        bring(name, to)

    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); make room there, or name"):
        read(near, full)
    with pytest.raises(RunDirError, match="cannot be written"):
        read(tmp_path / "far" / "key" / INDEX / "x", bring)


# --- where it is -------------------------------------------------------------------------------------------------


def test_the_folder_is_named_by_the_key_or_the_variable_or_is_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder(str(tmp_path / "x")) == Place(tmp_path / "x")
    monkeypatch.setenv("DASM_RAY_CACHE", str(tmp_path / "y"))
    assert cache_folder(None) == Place(tmp_path / "y" / "blocks")
    monkeypatch.delenv("DASM_RAY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(None) == Place(tmp_path / "home" / ".cache" / "dasm_ray" / "blocks")
    own = tmp_path / "home" / ".cache" / "dasm_ray" / "blocks" / "key"
    assert Kept("memory://bucket/c", "key").copy == own
    assert Kept(str(tmp_path / "z"), "key", is_named=False).copy == own
    assert Kept(str(tmp_path / "z"), "key").copy == tmp_path / "z" / "key"
    made(tmp_path / "z")
    assert Kept(str(tmp_path / "z"), "key", is_named=False).copy == tmp_path / "z" / "key", "a disk that is shared"
    monkeypatch.setenv("DASM_RAY_CACHE", str(tmp_path / "y"))
    assert Kept(str(tmp_path / "z"), "key", is_named=False).copy == tmp_path / "y" / "blocks" / "key"


def test_a_home_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASM_RAY_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"dasm_ray-{os.getuid()}"
    assert cache_folder(None) == Place(mine / "blocks")
    assert mine.stat().st_mode & 0o777 == 0o700
    said: list[str] = []
    BlockCache(Data(), said.append)
    assert said == [
        f"the home cannot be written: sorted images are kept in {mine}/blocks; data.cache names another folder"
    ]
    mine.chmod(0o777)
    with pytest.raises(RunDirError, match="belongs to somebody else"):
        cache_folder(None)
    mine.rmdir()
    (tmp_path / "theirs").mkdir()
    mine.symlink_to(tmp_path / "theirs")
    with pytest.raises(RunDirError, match="belongs to somebody else"):
        cache_folder(None)


def test_a_set_in_an_object_store_is_made_in_place_and_its_index_comes_last(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.place = Place("memory://bucket/c")
    with contextlib.suppress(ValueError), cache.alone("key", "digits"), cache.making("key", 100) as making:
        (making.chunks / "000000.raw").write_bytes(b"chunk")
        assert making.place == Place("memory://bucket/c/key")
        raise ValueError
    assert cache.place.walk()[1] == []


@pytest.mark.parametrize("kind", ["timed", "timeless"])
def test_what_a_killed_command_has_left_in_an_object_store_is_removed_once_it_is_a_day_old(
    kind: str, timeless: Place, tmp_path: Path
) -> None:
    cache = cache_at(tmp_path)
    cache.place = timeless if kind == "timeless" else Place("memory://left-of-a-test/c")
    foreign = cache.place / "chunks" / "of-somebody-else"
    (foreign / "0.raw").write_bytes(b"letter")
    if kind == "timed":
        MemoryFileSystem.store[(foreign / "0.raw")._at].created -= datetime.timedelta(days=2)
    dead, mixed, alive = (cache.place / "chunks" / f"{key}-{'0' * 32}" for key in ("key", "other", "third"))
    for file in (dead / "0.raw", dead / "1.raw", *(mixed / f"{number}.raw" for number in range(3)), alive / "0.raw"):
        file.write_bytes(b"chunk")
    for file in (dead / "0.raw", dead / "1.raw", mixed / "0.raw", mixed / "2.raw"):
        MemoryFileSystem.store[file._at].created -= datetime.timedelta(days=2)
    with cache.making("key", 100):
        left = [dead, mixed, alive] if kind == "timeless" else [mixed, alive]
        assert (cache.place / "chunks").names() == sorted(folder.name for folder in (*left, foreign))
