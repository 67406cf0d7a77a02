"""Names of places: what can be read in two ways is refused in one sentence, and secrets are hidden."""

from __future__ import annotations

import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dasm_ray.config.shown import masked
from dasm_ray.errors import RunDirError
from dasm_ray.store.place import Place
from dasm_ray.store.uris import split

REFUSED = {
    "nothing": ("", "'' names no place"),
    "blanks": ("  ", "names no place"),
    "a null byte": ("a\0b", "control character"),
    "a line break": ("runs/a\nb", "control character"),
    "a line break in a URI": ("s3://bucket/a\nb", "control character"),
    "an escaped null byte": ("file:///a%00b", "control character"),
    "a blank in a file URI": ("file:///a b", "%20"),
    "half an escape": ("file:///a%2", "%25"),
    "no escape": ("file:///100%", "%25"),
    "a question in a file URI": ("file:///a?b", "%3F"),
    "a file URI of nothing": ("file://", "no URI of a file"),
    "a relative file URI": ("file://relative", "file:///relative"),
    "a deeper relative file URI": ("file://here/there", "file:///here/there"),
    "another host": ("file://host.example/x", "'host.example'"),
    "one slash": ("s3:/bucket/x", "write s3://bucket/x for the one, ./s3:/bucket/x for the other"),
    "no slash": ("s3:bucket/x", "write s3://bucket/x"),
    "one slash of gs": ("gs:/bucket", "write gs://bucket"),
    "one slash of file": ("file:/a", "write file:///a"),
    "no slash of hf": ("hf:datasets/a/b", "write hf://datasets/a/b"),
    "one slash of an unknown scheme": ("nas:/export/x", "may be a URI or a local path"),
    "a bracket": ("s3://[bad", "is no URI"),
    "a bracket that is closed": ("s3://[bad]/x", "is no URI"),
    "a port that is none": ("hdfs://host:eighty/x", "is no URI"),
    "somebody's home": ("~nobody-at-all/x", "home of nobody"),
}
POSIX_ONLY = {
    "a drive": (r"C:\data\run", "path of Windows"),
    "a drive with slashes": ("C:/data/run", "path of Windows"),
    "a drive alone": ("d:", "path of Windows"),
    "a share": (r"\\server\share", "path of Windows"),
}
if sys.platform != "win32":
    REFUSED |= POSIX_ONLY


@pytest.mark.parametrize(("text", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_a_name_that_can_be_read_in_two_ways_or_in_none(text: str, part: str) -> None:
    with pytest.raises(RunDirError) as caught:
        Place(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a b/c", "/a b/c"),
        ("/a//b/../c", "/a/c"),
        ("file:///a%20b", "/a b"),
        ("file://localhost/a/b", "/a/b"),
        ("FILE:///a", "/a"),
        ("/100%/x?y#z", "/100%/x?y#z"),
        ("/a:b", "/a:b"),
    ],
)
def test_local_names(text: str, path: str) -> None:
    assert split(text) == ("", path)


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_a_colon_in_a_name_is_a_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split("run:1") == ("", str(tmp_path / "run:1"))
    assert split("./s3:/x") == ("", str(tmp_path / "s3:" / "x"))


@pytest.mark.parametrize(
    ("text", "root", "path"),
    [
        ("s3://bucket/a/b/", "s3://bucket/", "/a/b"),
        ("s3://bucket", "s3://bucket/", "/"),
        ("s3://bucket/a?region=x", "s3://bucket/?region=x", "/a"),
        ("s3://bucket/a#b", "s3://bucket/", "/a#b"),
        ("s3://bucket/a b", "s3://bucket/", "/a b"),
        ("S3://bucket/a", "s3://bucket/", "/a"),
        ("hf://datasets/OWNER/NAME@refs%2Fpr%2F1/x", "hf://datasets/", "/OWNER/NAME@refs%2Fpr%2F1/x"),
        ("abfss://box@account.dfs.core.windows.net/x", "abfss://box@account.dfs.core.windows.net/", "/x"),
    ],
)
def test_remote_names(text: str, root: str, path: str) -> None:
    assert split(text) == (root, path)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("s3://bucket/x?access_key=A&secret_key=B&region=r", "s3://bucket/x?access_key=***&secret_key=***&region=r"),
        ("s3://bucket/x?session_token=T", "s3://bucket/x?session_token=***"),
        ("abfss://c@a.net/x?sas_token=S%2BT&sig=U", "abfss://c@a.net/x?sas_token=***&sig=***"),
        ("https://user:pass@host/x?X-Amz-Signature=abc", "https://***@host/x?X-Amz-Signature=***"),
        ("hdfs://user@host/x", "hdfs://user@host/x"),
        ("s3://bucket/secret/token=1", "s3://bucket/secret/token=1"),
        ("/home/user:x@y/token", "/home/user:x@y/token"),
    ],
)
def test_what_people_see(uri: str, shown: str) -> None:
    assert masked(uri) == shown


def test_a_name_that_is_not_utf8_is_refused_with_its_bytes() -> None:
    with pytest.raises(RunDirError, match=r"^/a/caf\\xe9: the name is not UTF-8; rename it$"):
        split("/a/caf\udce9")


def test_a_name_that_is_refused_does_not_show_its_secret() -> None:
    for text in ("s3://KEY:S3CR3T@[bad/x", "s3://KEY:S3CR3T@bucket/\n"):
        with pytest.raises(RunDirError) as caught:
            Place(text)
        assert "S3CR3T" not in str(caught.value)


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(RunDirError, match=r"nope://x/y cannot be read \(no file system is known by the name nope\)"):
        Place("nope://x/y").exists()


@pytest.mark.parametrize("uri", ["s3://bucket/x?zone=1", "s3:///x", "gs://bucket/x?zone=1"])
def test_options_and_buckets_that_are_none(uri: str) -> None:
    with pytest.raises(RunDirError, match="cannot be read") as caught:
        Place(uri).read_bytes()
    assert "\n" not in str(caught.value)


def test_the_hub_without_its_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(RunDirError, match=r"it needs huggingface_hub: pip install 'dasm-ray\[hub\]'"):
        Place("hf://datasets/OWNER/NAME").exists()


class Hub(MemoryFileSystem):
    """A hub as far as fsspec sees it: names without a leading slash, and errors of its own."""

    protocol = "hub-of-tests"
    store: dict = {}  # noqa: RUF012 - as its base class has it
    pseudo_dirs = [""]  # noqa: RUF012

    def rm_file(self, path: str) -> None:
        if path.endswith("/f"):
            raise RuntimeError("401 Unauthorized")
        super().rm_file(path)


def test_any_file_system_of_fsspec_is_a_place() -> None:
    fsspec.register_implementation("hub-of-tests", Hub, clobber=True)
    place = Place("hub-of-tests://owner/name")
    (place / "a" / "f").write_bytes(b"0123456")
    assert place.walk() == (["a"], ["a/f"])
    assert (place / "a" / "f").read_bytes() == b"0123456"
    with (place / "a" / "f").open() as file:
        file.seek(5)
        assert file.read() == b"56"
    with pytest.raises(RunDirError, match=r"f cannot be removed \(401 Unauthorized\)"):
        (place / "a" / "f").delete()
    with pytest.raises(RunDirError, match=r"options after \? have no meaning"):
        Place("hub-of-tests://owner/name?x=1").exists()
