"""What lies below a folder, here or in an object store, sorted, without what systems hide there.

What must stay true: every file is listed or counted as hidden; a link that leads nowhere or back, and a name that is
not text, are a DataError that names them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dasm_ray.config.shown import escaped, not_utf8
from dasm_ray.errors import DataError
from dasm_ray.store.place import Place

SYSTEM_NAMES = frozenset(
    {
        *("Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"),
        *("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    }
)
"""What systems and archivers leave in folders, beside all names that begin with a dot."""


@dataclass(frozen=True)
class Listing:
    """Sorted paths, relative to a place, of the folders and files below it; and those of hidden ones."""

    place: Place
    folders: tuple[str, ...]
    files: tuple[str, ...]
    hidden: tuple[str, ...]  # a hidden folder stands for all it holds


def list_all(place: Place) -> Listing:
    """Everything below a folder."""
    return _sorted(place, *(_walked(place.local) if place.local else _split_hidden(*place.walk())))


def list_one_level(place: Place) -> Listing:
    """What a folder itself holds."""
    if place.local is None:
        children = place.children()
        folders, files = (
            [name for name, is_dir in children if is_dir],
            [name for name, is_dir in children if not is_dir],
        )
        return _sorted(place, *_split_hidden(folders, files))
    return _sorted(place, *_scanned(place.local, ""))


def is_hidden(name: str) -> bool:
    """Whether a system hides it, or left it there for itself."""
    return name.startswith(".") or name in SYSTEM_NAMES


def _sorted(place: Place, folders: list[str], files: list[str], hidden: list[str]) -> Listing:
    return Listing(place, tuple(sorted(folders)), tuple(sorted(files)), tuple(sorted(hidden)))


def _split_hidden(folders: list[str], files: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The same without what is hidden, and what is, as far up as it is."""
    kept: tuple[list[str], list[str]] = ([], [])
    hidden: dict[str, None] = {}
    for kind, paths in enumerate((folders, files)):
        for path in paths:
            parts = path.split("/")
            at = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
            if at is None:
                kept[kind].append(path)
            else:
                hidden["/".join(parts[: at + 1])] = None
    return *kept, list(hidden)


def _walked(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Folders, files and hidden things below a local folder; links are followed."""
    folders, files, hidden = _scanned(root, "")
    todo = list(folders)
    while todo:
        folder = todo.pop()
        _check_no_circle(root, folder)
        below = _scanned(root / folder, f"{folder}/")
        todo += below[0]
        for every, found in zip((folders, files, hidden), below, strict=True):
            every += found
    return folders, files, hidden


def _scanned(folder: Path, prefix: str) -> tuple[list[str], list[str], list[str]]:
    """The same of one folder, each path with ``prefix`` before it."""
    folders: list[str] = []
    files: list[str] = []
    hidden: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if is_hidden(entry.name):
                    hidden.append(name)
                    continue
                _check_text(folder, entry.name)
                if entry.is_dir():
                    folders.append(name)
                elif entry.is_file():
                    files.append(name)
                else:
                    _refuse_odd(entry)
    except NotADirectoryError:
        raise DataError(f"data.path: {folder} is a file; name the folder that it lies in") from None
    except OSError as error:
        raise DataError(f"{escaped(str(folder))} cannot be listed ({error.strerror}); mend that") from None
    return folders, files, hidden


def _check_text(folder: Path, name: str) -> None:
    shown = not_utf8(name)
    if shown is not None:
        raise DataError(f"{escaped(str(folder))}/{shown}: the name is not UTF-8; rename it")


def _refuse_odd(entry: os.DirEntry[str]) -> None:
    """A DataError for what is neither file nor folder."""
    what = "is a link that leads nowhere" if entry.is_symlink() else "is neither a file nor a folder"
    raise DataError(f"{escaped(entry.path)} {what}; mend or remove it")


def _check_no_circle(root: Path, folder: str) -> None:
    """DataError for a link to a folder that it lies in."""
    path = root / folder
    if path.is_symlink() and path.resolve() in (path.absolute().parent.resolve(), *path.parent.resolve().parents):
        raise DataError(f"{escaped(str(path))} is a link that leads back to a folder that it lies in; remove it")
