"""Files by path and URI: written whole, read back, and faults as sentences."""

import pickle
import signal
import subprocess
import sys

import pytest
from pyarrow import fs

from dasm_ray.errors import RunDirError
from dasm_ray.store import place as place_module
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
    with pytest.raises(RunDirError, match=r"nope://x/y cannot be read \(Unrecognized filesystem type"):
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
    with pytest.raises(RunDirError, match=r"f cannot be written \(No space left on device\)"):
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
