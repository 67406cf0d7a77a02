"""Files by path and URI: written whole, read back, and faults as sentences."""

import errno
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from dasm_ray.errors import RunDirError, StorageError
from dasm_ray.store import place as place_module
from dasm_ray.store import retries
from dasm_ray.store.place import Place

# --- Place -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:S3CR3T@bucket/run",
        "s3://KEY:S3/CR3T@bucket/run",
        "s3://bucket/run?secret_key=S3CR3T",
        "hdfs://me:S3CR3T@host/x",
    ],
)
def test_a_place_holds_no_credentials(uri):
    with pytest.raises(RunDirError, match="AWS_ACCESS_KEY_ID") as caught:
        Place(uri)
    assert "S3CR3T" not in str(caught.value)


def test_files_come_back_as_they_were_written(place):
    (place / "a" / "x.bin").write_bytes(b"\0\1\2")
    (place / "a/x.txt").write_text("naïve ×")
    (place / "x.json").write_json({"é": [1, 2.5, None]})
    assert (place / "a" / "x.bin").read_bytes() == b"\0\1\2"
    assert (place / "a" / "x.txt").read_text() == "naïve ×"
    assert (place / "x.json").read_json() == {"é": [1, 2.5, None]}


def test_names_and_walk_are_sorted_and_relative(place):
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "top.txt"):
        (place / name).write_bytes(b"x")
    assert place.names() == ["a", "b", "top.txt"]
    assert place.children() == [("a", True), ("b", True), ("top.txt", False)]
    assert place.walk() == (["a", "a/deep", "b"], ["a/deep/3.png", "b/1.png", "b/2.png", "top.txt"])


def test_existence_and_kind(place):
    assert not place.exists()
    assert place.names() == []
    place.make_dir()
    place.make_dir()
    (place / "file").write_bytes(b"")
    assert place.is_dir()
    assert (place / "file").exists()
    assert not (place / "file").is_dir()


def test_delete_takes_files_folders_and_nothing(place):
    (place / "folder" / "file").write_bytes(b"x")
    (place / "file").write_bytes(b"x")
    (place / "file").delete()
    (place / "folder").delete()
    (place / "never").delete()
    assert place.names() == []


def test_what_somebody_else_removes_meanwhile_is_removed(tmp_path, monkeypatch):
    """Two commands that share a folder tidy up the same file."""
    for name in ("file", "folder"):
        place = Place(tmp_path) / name
        (place if name == "file" else place / "file").write_bytes(b"x")
        looked = type(place._fs).get_file_info

        def look_and_lose(self, at, looked=looked, place=place):
            found = looked(self, at)
            shutil.rmtree(place.local) if place.local.is_dir() else place.local.unlink()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Place, "_fs", SimpleNamespace(
                get_file_info=lambda at, fs=place._fs: look_and_lose(fs, at),
                delete_file=place._fs.delete_file,
                delete_dir=place._fs.delete_dir,
            ))  # fmt: skip
            place.delete()
        assert not place.exists()


def test_a_rewrite_replaces_the_file_and_leaves_nothing_aside(place):
    (place / "f").write_bytes(b"old")
    (place / "f").write_bytes(b"new")
    assert (place / "f").read_bytes() == b"new"
    assert [info.base_name for info in place._fs.get_file_info(fs.FileSelector(place._at))] == ["f"]


def test_open_reads_at_any_offset(place):
    (place / "f").write_bytes(b"0123456789")
    with (place / "f").open() as file:
        file.seek(7)
        assert file.read(2) == b"78"


def test_a_place_travels_by_pickle_and_by_text(place):
    (place / "f").write_bytes(b"x")
    for copy in (pickle.loads(pickle.dumps(place)), Place(str(place))):
        assert copy == place
        assert hash(copy) == hash(place)
        assert (copy / "f").read_bytes() == b"x"
    assert place != place / "f"


def test_a_relative_path_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place("here")
    monkeypatch.chdir("/")
    assert place.local == tmp_path / "here"
    assert place.name == "here"


def test_the_home_folder_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Place("~/x").local == tmp_path / "x"


def test_a_uri_keeps_its_options():
    place = Place("s3://bucket/a/?region=us-east-1") / "b"
    assert str(place) == "s3://bucket/a/b?region=us-east-1"
    assert place.local is None
    assert place._at == "bucket/a/b"


def test_an_unknown_kind_of_uri_is_a_sentence():
    with pytest.raises(RunDirError, match=r"nope://x/y cannot be read \(no file system is known by the name nope"):
        Place("nope://x/y").exists()


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(RunDirError, match=r"file/f cannot be written \(a file stands where"):
        (Place(tmp_path / "file") / "f").write_bytes(b"x")
    with pytest.raises(RunDirError, match="cannot be made"):
        (Place(tmp_path / "file") / "folder").make_dir()


def test_a_missing_file_is_named(place):
    with pytest.raises(RunDirError, match=r"where/none.json cannot be read"):
        (place / "none.json").read_json()


def test_damaged_text_and_json_are_named(place):
    (place / "t").write_bytes(b"\xff\xfe")
    (place / "j").write_bytes(b'{"half": ')
    with pytest.raises(RunDirError, match="where/t cannot be read: it is not text"):
        (place / "t").read_text()
    with pytest.raises(RunDirError, match="where/j cannot be read: it is not JSON"):
        (place / "j").read_json()


def test_a_failed_write_leaves_the_old_file_and_nothing_aside(tmp_path, monkeypatch):
    place = Place(tmp_path)
    (place / "f").write_bytes(b"old")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place_module, "_flush_to_disk", full)
    with pytest.raises(
        StorageError, match=r"f cannot be written \(No space left on device\).*the same command goes on"
    ):
        (place / "f").write_bytes(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_write_that_is_killed_leaves_only_a_hidden_file(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from dasm_ray.store import place\n"
        "place._flush_to_disk = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "(place.Place(sys.argv[1]) / 'f').write_bytes(b'new')\n"
    )
    (tmp_path / "f").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    assert Place(tmp_path).names() == ["f"]
    assert Place(tmp_path).walk() == ([], ["f"])


def test_the_folder_above() -> None:
    assert Place("/a/b/c").parent == Place("/a/b")
    assert Place("/a/b/").parent == Place("/a")
    assert Place("/a").parent == Place("/")
    assert str((Place("s3://bucket/one/two")).parent) == "s3://bucket/one"


# --- a storage service -------------------------------------------------------------------------------------------


def test_files_in_an_s3(bucket) -> None:
    assert not bucket.exists()
    (bucket / "a" / "x").write_bytes(b"12345")
    (bucket / "a" / "x").write_bytes(b"123456")
    (bucket / "j").write_json({"é": 1})
    assert (bucket / "j").read_json() == {"é": 1}
    assert bucket.names() == ["a", "j"]
    assert bucket.walk() == (["a"], ["a/x", "j"])
    with (bucket / "a" / "x").open() as file:
        file.seek(4)
        assert file.read(1) == b"5"
        file.seek(-2, 2)
        assert file.read() == b"56"
    copy = pickle.loads(pickle.dumps(bucket))
    assert (copy / "a" / "x").read_bytes() == b"123456"
    (bucket / "a").delete()
    (bucket / "j").delete()
    assert bucket.walk()[1] == []
    with pytest.raises(RunDirError, match=r"none\?.* cannot be read \(No such file"):
        (bucket / "none").read_bytes()


OUTAGES = {
    "write": lambda place: (place / "f").write_bytes(b"new"),
    "read": lambda place: (place / "f").read_bytes(),
    "list": lambda place: place.walk(),
    "ask": lambda place: (place / "f").exists(),
    "delete": lambda place: (place / "f").delete(),
}


@pytest.mark.parametrize(("name", "mode"), [*((name, "busy") for name in OUTAGES), ("write", "cut"), ("list", "cut")])
def test_an_outage_is_ridden_out(bucket, s3_proxy, name, mode) -> None:
    (bucket / "f").write_bytes(b"old")
    with s3_proxy.failing(mode, seconds=0.25):
        OUTAGES[name](bucket)


@pytest.mark.parametrize("name", ["write", "read", "list"])
def test_an_outage_that_lasts_is_a_fault_of_storage_after_one_notice(
    bucket, s3_proxy, name, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(retries, "PATIENCE", 0.6)
    (bucket / "f").write_bytes(b"old")
    began = time.monotonic()
    with (
        s3_proxy.failing("busy"),
        pytest.raises(StorageError, match=r"cannot be \w+ \(.*503.*\).*the same command goes on") as caught,
    ):
        OUTAGES[name](bucket)
    assert caught.value.exit_code == 1
    assert time.monotonic() - began < 10
    assert len([record for record in caplog.records if "does not answer" in record.message]) == 1
    assert (bucket / "f").read_bytes() == b"old"


def test_a_file_that_is_being_read_rides_out_an_outage(bucket, s3_proxy) -> None:
    (bucket / "f").write_bytes(bytes(100_000))
    with (bucket / "f").open() as file:
        file.read(10)
        with s3_proxy.failing("cut", seconds=0.25):
            assert len(file.read()) == 99_990


def test_nobody_listens(tmp_path, s3_proxy, monkeypatch) -> None:
    """Arrow itself would try for 6 seconds and say nothing."""
    monkeypatch.setattr(retries, "PATIENCE", 0.2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"Could not connect"):
        Place(f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http").exists()
    assert time.monotonic() - began < 3


def test_what_waiting_does_not_mend_is_said_at_once(bucket, s3_proxy) -> None:
    began = time.monotonic()
    with s3_proxy.failing("denied"), pytest.raises(RunDirError, match="ACCESS_DENIED") as caught:
        (bucket / "f").read_bytes()
    with pytest.raises(RunDirError, match=r"Bucket 'none' not found|NO_SUCH_BUCKET"):
        (Place(bucket.uri.replace("//bucket/", "//none/")) / "f").write_bytes(b"x")
    assert time.monotonic() - began < 2
    assert caught.value.exit_code == 2


def test_in_a_run_that_could_write_before_lost_rights_are_a_fault_of_storage(bucket, s3_proxy) -> None:
    """Credentials run out in the middle: the configuration is what it was."""
    (bucket / "mark").write_text("")
    held = bucket.within("mark")
    (held / "f").write_bytes(b"x")
    with s3_proxy.failing("denied", only=("PUT", "POST")), pytest.raises(StorageError, match="ACCESS_DENIED"):
        (held / "f").write_bytes(b"y")


# --- a folder that goes away while it is in use ------------------------------------------------------------------


def gone_by_removal(folder: Path) -> None:
    shutil.rmtree(folder)


def gone_by_move(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")


def gone_by_unmounting(folder: Path) -> None:
    """What is below the mount point then: an empty folder."""
    shutil.rmtree(folder)
    folder.mkdir()


def gone_by_another(folder: Path) -> None:
    """Another driver has made the folder anew."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "another mark").write_text("")


CHANGES = {
    "a file": lambda place: (place / "f").write_bytes(b"x"),
    "a file further down": lambda place: (place / "experts" / "key" / "f").write_text("x"),
    "JSON": lambda place: (place / "f.json").write_json({}),
    "a folder": lambda place: (place / "folder").make_dir(),
    "a line": lambda place: (place / "log").append(b"x"),
    "removal": lambda place: (place / "f").delete(),
}


@pytest.mark.parametrize("gone", [gone_by_removal, gone_by_move, gone_by_unmounting, gone_by_another])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_folder_that_is_gone_is_never_made_anew(tmp_path: Path, change, gone) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("")
    place = pickle.loads(pickle.dumps(Place(tmp_path / "run").within("mark")))  # as a worker has it
    (place / "deep" / "er").write_text("x")
    gone(tmp_path / "run")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=r"run is not there any more.*put it back, and the same command goes on"):
        change(place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_folder_that_goes_between_the_look_and_the_write_is_not_made_anew(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("")
    place = Place(tmp_path / "run").within("mark")
    looked = Place.check

    def look_and_lose(self: Place) -> None:
        looked(self)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(Place, "check", look_and_lose)
    with pytest.raises(StorageError):
        (place / "experts" / "f").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError):
        (place / "f").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_within_a_folder_needs_both_marks(tmp_path: Path) -> None:
    for folder in (tmp_path / "sweep", tmp_path / "sweep" / "trial"):
        folder.mkdir()
        (folder / "mark").write_text("")
    place = (Place(tmp_path / "sweep").within("mark") / "trial").within("mark")
    (place / "f").write_bytes(b"x")
    (tmp_path / "sweep" / "mark").unlink()
    with pytest.raises(StorageError, match="sweep is not there any more"):
        (place / "f").write_bytes(b"y")


def test_an_s3_folder_that_another_driver_has_taken(bucket) -> None:
    (bucket / "mark").write_text("")
    held = bucket.within("mark")
    (held / "f").write_bytes(b"x")
    bucket.delete()
    with pytest.raises(StorageError, match="is not there any more"):
        (held / "f").write_bytes(b"y")
    assert bucket.walk()[1] == []


# --- disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.EFBIG])
def test_faults_of_the_disk_are_faults_of_storage(tmp_path: Path, monkeypatch, number: int) -> None:
    def fails(path: str) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(place_module, "_flush_to_disk", fails)
    with pytest.raises(StorageError, match=re.escape(os.strerror(number))):
        (Place(tmp_path) / "f").write_bytes(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_disk(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"log cannot be written \(No space left on device\)"):
        (Place(tmp_path) / "log").append(b"x")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_what_another_name_would_mend_is_the_users(tmp_path: Path, monkeypatch, number: int) -> None:
    def fails(path: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place_module, "_flush_to_disk", fails)
    with pytest.raises(RunDirError, match="name another place"):
        (Place(tmp_path) / "f").write_bytes(b"new")


def test_temporary_files_are_those_of_our_own_writes(tmp_path: Path) -> None:
    own = f".f.{'0' * 32}.tmp"
    for name in (own, ".notes.tmp", ".hidden", "x.tmp"):
        (tmp_path / name).write_text("")
    assert Place(tmp_path).names() == [".hidden", ".notes.tmp", "x.tmp"]
    assert list(Place(tmp_path).temporaries()) == [own]


def test_an_empty_folder_is_removed_and_no_other(place) -> None:
    place.make_dir()
    (place / "f").write_text("x")
    place.delete_if_empty()
    assert (place / "f").exists()
    (place / "f").delete()
    place.delete_if_empty()
    assert not place.exists()
    place.delete_if_empty()


def test_stamps_are_of_the_files_of_a_folder(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (place / "a").write_bytes(b"12")
    (place / "b" / "c").write_bytes(b"12345")
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_123_456_789))
    assert place.stamps(["a", "b", "none"]) == {"a": (2, 1_700_000_000_123_456_789)}
    assert place.stamps([]) == {}
    assert (place / "nothing").stamps(["a"]) == {}


@pytest.mark.parametrize("kind", ["timed", "timeless"])
def test_a_file_that_is_replaced_by_one_of_the_same_size_has_another_stamp(kind: str, timeless: Place) -> None:
    """By the time where fsspec knows one, and by its bytes where it knows nothing."""
    place = timeless if kind == "timeless" else Place("memory://stamps-of-a-test/folder")
    for name in ("a", "b"):
        (place / name).write_bytes(b"12")
    before = place.stamps(["a", "b"])
    assert place.stamps(["a", "b"]) == before
    (place / "a").write_bytes(b"34")
    after = place.stamps(["a", "b"])
    assert (after["a"][0], after["b"]) == (2, before["b"])
    assert after["a"] != before["a"]
    assert list(place.times().values()).count(None) == (2 if kind == "timeless" else 0)


def test_sizes_are_of_all_files_below_that_are_whole(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (place / "a").write_bytes(b"12")
    (place / "b" / "c" / "d").write_bytes(b"12345")
    (tmp_path / "b" / ".d.00000000000000000000000000000000.tmp").write_bytes(b"1")
    assert place.sizes() == {"a": 2, "b/c/d": 5}
    assert (place / "nothing").sizes() == {}


def test_what_is_appended_to_disk_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(place_module, "_flush_to_disk", flushed.append)
    (Place(tmp_path) / "log").append(b"x")
    assert flushed == []
    (Place(tmp_path) / "rows").append(b"x", to_disk=True)
    assert flushed == [str(tmp_path / "rows")]
