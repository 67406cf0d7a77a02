"""Folders as systems leave them: hidden files, links, names that are no text, object stores."""

import os

import pytest

from dasm_ray.errors import DataError
from dasm_ray.store.datasets.listing import list_all, list_one_level
from dasm_ray.store.place import Place

TREE = [
    "a/1.png",
    "a/deep/2.png",
    "b/3.png",
    ".DS_Store",
    "a/._1.png",
    ".git/config",
    "__MACOSX/a/1.png",
    "b/Thumbs.db",
]
HIDDEN = (".DS_Store", ".git", "__MACOSX", "a/._1.png", "b/Thumbs.db")


def fill(root):
    for path in TREE:
        (root / path).write_bytes(b"x")


def test_hidden_things_are_kept_apart_wherever_the_folder_is(place):
    fill(place)
    found = list_all(place)
    assert found.folders == ("a", "a/deep", "b")
    assert found.files == ("a/1.png", "a/deep/2.png", "b/3.png")
    assert found.hidden == HIDDEN
    top = list_one_level(place)
    assert (top.folders, top.files, top.hidden) == (("a", "b"), (), (".DS_Store", ".git", "__MACOSX"))


def test_links_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert list_all(Place(tmp_path / "set")).files == ("2.png", "a/1.png")


def test_a_link_that_leads_back_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"a/up is a link that leads back to a folder that it lies in; remove it"):
        list_all(Place(tmp_path))


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.png is a link that leads nowhere; mend or remove it"):
        list_all(Place(tmp_path))
    (tmp_path / "gone.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is neither a file nor a folder"):
        list_all(Place(tmp_path))


def test_a_name_that_is_no_text_is_shown_as_it_can_be(tmp_path):
    (tmp_path / "a").mkdir()
    with open(os.fsencode(tmp_path) + b"/a/caf\xe9.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"a/caf\\xe9\.png: the name is not UTF-8; rename it") as caught:
        list_all(Place(tmp_path))
    str(caught.value).encode()  # it can be printed anywhere


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"x\.zip is a file; name the folder that it lies in"):
        list_all(Place(tmp_path / "x.zip"))
