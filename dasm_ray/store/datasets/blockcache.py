"""Sets that are decoded and sorted by class, kept on disk for all commands, by what they depend on.

    CACHE/KEY/index.json                        what the set holds, under a checksum
    CACHE/KEY/blocks/SPLIT/CLASS-PART.arrow     its images, in files of one class each
    CACHE/KEY/in_use                            locked, side by side, by whoever reads the set
    CACHE/KEY/whole                             there unless the folder holds copies of some of its files
    CACHE/.KEY.lock                             locked by the one command that makes it
    CACHE/.KEY.UUID.tmp                         a set while it is made; left by a command that was killed
    CACHE/chunks/KEY-UUID/                      the same in an object store, but for what is under its key by then

What must stay true: a set under its key is whole, or it is found not to be and made anew; nothing is removed that a
command uses, or that is no set of ours, whatever folder was named; and what is not as it was written is never used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import resource
import shutil
import stat
import tempfile
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import filelock
import numpy as np
from numpy.typing import NDArray

from dasm_ray.config.keys import Data
from dasm_ray.errors import DasmError, ResourceError, RunDirError, StorageError
from dasm_ray.plain import Values
from dasm_ray.store.checked import read_checked_json, write_checked_json
from dasm_ray.store.datasets.blockfile import Damaged, Part, Shape, mapped
from dasm_ray.store.datasets.splits import SPLITS
from dasm_ray.store.place import Place

INDEX, IN_USE, WHOLE = "index.json", "in_use", "whole"

UNDER_WAY = re.compile(r"\.(?P<key>[^.]+)\.[0-9a-f]{32}\.tmp")
CHUNKS_UNDER_WAY = re.compile(r"[^.]+-[0-9a-f]{32}")
"""Names of what is being made, here and in an object store: others are somebody else's."""

VARIABLE = "DASM_RAY_CACHE"
"""Of the environment: the folder of all caches of a machine, where it is not ~/.cache/dasm_ray."""

LEFT_SECONDS = 24 * 3600.0
"""A folder in an object store in which nothing was written for so long was left by a command that was killed."""

GB = 10**9

Notice = Callable[[str], None]
Bring = Callable[[str, Path], None]
"""Writes the file of a set that has this name to a path."""


# --- what a set holds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """What a sorted set holds: images of a ``shape``, in ``parts[split][class]``; ``digests[class][split]`` of blocks.

    ``mean`` and ``std`` are per channel, of the training pixels in [0, 1]; ``digest`` covers all splits; ``told`` is
    what decoding has found out.
    """

    shape: Shape
    parts: Mapping[str, tuple[tuple[Part, ...], ...]]
    digests: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    told: Values

    @property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Images a class (K,), by split."""
        return {
            split: np.array([sum(part.rows for part in parts) for parts in of_split], np.int64)
            for split, of_split in self.parts.items()
        }

    @property
    def files(self) -> dict[str, int]:
        """Bytes of every file, by its name in the set."""
        return {name: part.bytes for name, part in self._named()}

    def _named(self) -> Iterator[tuple[str, Part]]:
        for split, of_split in self.parts.items():
            for label, parts in enumerate(of_split):
                yield from ((part_name(split, label, number), part) for number, part in enumerate(parts))

    def write(self, place: Place) -> None:
        """Writes index.json into the folder of a set."""
        parts = {
            split: [[f"{part.rows} {part.bytes} {part.crc}" for part in parts] for parts in of_split]
            for split, of_split in self.parts.items()
        }
        write_checked_json(place / INDEX, {**vars(self), "parts": parts})

    @classmethod
    def read(cls, place: Place) -> Index | None:
        """The index of the set in a folder; None where there is none that is as it was written."""
        found = read_checked_json(place / INDEX)
        if found is None:
            return None
        try:
            parts = {
                split: tuple(
                    tuple(Part(*map(int, text.split())) for text in of_class) for of_class in found["parts"][split]
                )
                for split in SPLITS
            }
            channels, height, width = found["shape"]
            return cls(
                shape=(channels, height, width),
                parts=parts,
                digests=tuple(map(tuple, found["digests"])),
                mean=tuple(found["mean"]),
                std=tuple(found["std"]),
                digest=found["digest"],
                told=found["told"],
            )
        except (KeyError, TypeError, ValueError):
            return None


def part_name(split: str, label: int, number: int) -> str:
    """The name of a file in its set."""
    return f"blocks/{split}/{label:06}-{number:03}.arrow"


@dataclass(frozen=True)
class Kept:
    """Where a sorted set is kept: the cache by its address, and its key.

    ``is_named``: the user named the cache, so it is under this name on every machine. ``most``: bytes that the folder
    may hold. ``node`` of Ray has all of it, where that is not an object store.
    """

    cache: str
    key: str
    is_named: bool = True
    most: int | None = None
    node: str = ""

    @property
    def place(self) -> Place:
        """The folder of the set where all of it is."""
        return Place(self.cache) / self.key

    @property
    def copy(self) -> Path:
        """The folder of the set on a machine that may lack it: one that it shares, unless its own is said."""
        there, is_said = self.place.local, bool(os.environ.get(VARIABLE))
        if there is not None and (self.is_named or (not is_said and (there / INDEX).exists())):
            return there
        own = (cache_folder(None) / self.key).local
        assert own is not None
        return own


# --- where the cache is ------------------------------------------------------------------------------------------


def cache_folder(cache: str | None) -> Place:
    """The folder of sorted sets: as named, or this machine's usual one.

    Where the home cannot be written that is a folder of this user among temporary files.
    """
    if cache is not None:
        return Place(cache)
    root = os.environ.get(VARIABLE)
    if root:
        return Place(root) / "blocks"
    with contextlib.suppress(RunDirError):  # there is nobody's home
        usual = Place("~/.cache/dasm_ray/blocks")
        assert usual.local is not None
        if _is_writable(usual.local):
            return usual
    _check_is_mine(_among_temporary().parent)
    return Place(_among_temporary())


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _among_temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"dasm_ray-{os.getuid()}" / "blocks"


def _check_is_mine(folder: Path) -> None:
    """RunDirError for a folder that somebody else can have put anything into; it is made if need be."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RunDirError(f"data.cache: {folder} belongs to somebody else; name a folder for the sorted images")


# --- making and finding a set ------------------------------------------------------------------------------------


class Making(NamedTuple):
    """Where a set is made: its own files, and what is only needed on the way."""

    place: Place
    chunks: Place


class BlockCache:
    """The cache that `data.cache` names, for whoever makes or finds a set. ``notice`` gets what there is to say."""

    def __init__(self, data: Data, notice: Notice) -> None:
        self._is_named = data.cache is not None
        self.most = None if data.cache_gb is None else int(data.cache_gb * GB)
        self.place, self._notice = cache_folder(data.cache), notice
        if data.cache is None and self.place == Place(_among_temporary()):
            notice(
                f"the home cannot be written: sorted images are kept in {self.place}; data.cache names another folder"
            )

    def kept(self, key: str, node: str = "") -> Kept:
        """Where a set is, for those who read it; ``node`` has it."""
        is_here = self.place.local is not None
        return Kept(self.place.uri, key, self._is_named, self.most, node if is_here else "")

    def find(self, key: str) -> Index | None:
        """The index of a set that is here, whole, and held from now on; None where it is to be made."""
        place = self.place / key
        if place.local is not None and not hold(place.local):
            return None
        index = Index.read(place)
        if index is not None and _is_whole(place, index):
            _touch(place)
            return index
        if place.exists():
            self._notice(f"{place} is not whole, or not as it was written: its images are decoded anew")
        return None

    @contextlib.contextmanager
    def alone(self, key: str, name: str) -> Iterator[None]:
        """No other command of this machine makes the set meanwhile; one that does is waited for."""
        folder = self.place.local
        if folder is None:  # two may make it in an object store: they write the same bytes
            yield
            return
        _make_folder(folder)
        lock = filelock.FileLock(folder / f".{key}.lock", thread_local=False)
        try:
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self._notice(f"{name}: another command decodes and sorts its images; waiting for it")
                lock.acquire()
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def making(self, key: str, needed: int) -> Iterator[Making]:
        """Where a set of about ``needed`` bytes is made, which is the set under its key once all is done, or gone.

        Raises ResourceError where there is no room.
        """
        folder = self.place.local
        if folder is None:
            _remove_left_chunks(self.place / "chunks")
            making = Making(self.place / key, self.place / "chunks" / f"{key}-{uuid.uuid4().hex}")
            try:
                yield making
            finally:
                making.chunks.delete()
            return
        _make_folder(folder)
        for left, whose in _under_way(folder):
            if whose == key:
                shutil.rmtree(left, ignore_errors=True)
        self._check_room(folder, key, needed)
        aside = self.place / f".{key}.{uuid.uuid4().hex}.tmp"
        assert aside.local is not None
        try:
            aside.make_dir()
            yield Making(aside, aside / "chunks")
            (aside / "chunks").delete()
            (aside / WHOLE).write_text("")
            self._put_in_place(aside.local, folder / key)
        finally:
            shutil.rmtree(aside.local, ignore_errors=True)

    def _check_room(self, folder: Path, key: str, needed: int) -> None:
        """Makes room; while it is sorted a set is there twice."""
        for said in make_room(folder, needed, self.most, keep=key, twice=True):
            self._notice(said)
        free = shutil.disk_usage(folder).free
        if free < 2 * needed:
            raise ResourceError(
                f"data.cache: {folder} has room for {free / GB:.1f} GB, and to sort these images takes "
                f"{2 * needed / GB:.1f}; free some or name a folder on a larger disk"
            )

    def _put_in_place(self, aside: Path, final: Path) -> None:
        try:
            if final.exists():
                trash = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
                final.rename(trash)
                shutil.rmtree(trash, ignore_errors=True)
            aside.rename(final)
        except OSError as error:
            raise StorageError(f"{final} cannot be made ({error.strerror}); mend that and run again") from None
        hold(final)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise RunDirError(f"data.cache: {folder} cannot be written ({why}); name another folder")


def _is_whole(place: Place, index: Index) -> bool:
    """Whether all files of a set are there, each of its size."""
    sizes = place.sizes()
    return all(sizes.get(name) == size for name, size in index.files.items())


def _touch(place: Place) -> None:
    """Says that a set is used now."""
    if place.local is not None:
        with contextlib.suppress(OSError):
            os.utime(place.local / INDEX)


# --- holding and removing ----------------------------------------------------------------------------------------

_held: dict[Path, int] = {}
"""Open files by which this process says, to its end, that it uses a set."""


def hold(folder: Path) -> bool:
    """Says that this process uses a set, so that nobody removes it; False where there is no such folder."""
    while folder.is_dir():
        try:
            held = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        except OSError:
            return True  # a folder that only others can write: they see to it
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_SH)
        if _is_at(held, folder / IN_USE):
            if folder in _held:
                os.close(_held.pop(folder))
            _held[folder] = held
            return True
        os.close(held)
    return False


def _is_at(held: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), os.stat(file))
    except FileNotFoundError:
        return False


def make_room(folder: Path, needed: int, most: int | None, keep: str, *, twice: bool = False) -> list[str]:
    """Removes sets that nobody uses, those that were used longest ago first, and says so.

    Until ``needed`` bytes more are within ``most``, and the disk has room for them (``twice``: for two times as many).
    """
    _remove_left(folder)
    sets = sorted((when, file.parent) for file in folder.glob(f"[!.]*/{INDEX}") if (when := _used_last(file)))
    sizes = {path: _bytes_below(path) for _, path in sets}
    said = []
    for _, path in sets:
        is_within = most is None or sum(sizes.values()) - sizes.get(folder / keep, 0) + needed <= most
        if is_within and shutil.disk_usage(folder).free >= (2 if twice else 1) * needed:
            break
        if path.name != keep and _remove(path):
            said.append(f"{path}: sorted images that nobody uses were removed to make room")
            del sizes[path]
    return said


def _used_last(index: Path) -> float | None:
    """When a set was last used; None where another command has just removed it, or it is another program's file."""
    with contextlib.suppress(OSError):
        when = index.stat().st_mtime
        return when if Index.read(Place(index.parent)) is not None else None
    return None


def _remove_left(folder: Path) -> None:
    """Removes what killed commands have left: sets that were being made, and that nobody makes now."""
    for left, key in _under_way(folder):
        lock = filelock.FileLock(folder / f".{key}.lock", thread_local=False)
        with contextlib.suppress(filelock.Timeout, OSError, NotImplementedError), lock.acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def _under_way(folder: Path) -> list[tuple[Path, str]]:
    """The folders in which sets are being made, or were, with the keys of the sets."""
    found = [(path, UNDER_WAY.fullmatch(path.name)) for path in folder.glob(".*.tmp")]
    return [(path, name["key"]) for path, name in found if name is not None]


def _remove_left_chunks(chunks: Place) -> None:
    """The same in an object store, where nobody can lock: by age, where that is known of all files in a folder."""
    newest: dict[str, float] = {}
    for path, when in chunks.times(recursive=True).items():
        folder = path.partition("/")[0]
        newest[folder] = max(newest.get(folder, 0.0), math.inf if when is None else when)
    for folder, when in newest.items():
        if time.time() - when > LEFT_SECONDS and CHUNKS_UNDER_WAY.fullmatch(folder):
            with contextlib.suppress(DasmError):  # somebody else may be removing it, and it does no harm
                (chunks / folder).delete()


def _remove(folder: Path) -> bool:
    """Removes a set unless it is used."""
    try:
        held = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trash = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(held)
    return True


def _bytes_below(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return 0


# --- reading -----------------------------------------------------------------------------------------------------


class SortedSet:
    """A sorted set as this process reads it: a part is mapped when it is first asked for, and let go when many are.

    ``bring`` gets the parts that ``folder`` lacks, whose cache may hold ``most`` bytes; None where it must have all.
    """

    def __init__(self, folder: Path, digest: str, bring: Bring | None = None, most: int | None = None) -> None:
        self._folder, self._most, self._bring = folder, most, bring
        if bring is not None and not folder.is_dir():  # one that is shared may be for reading alone
            _make_folder(folder)
        hold(self._folder)
        self.index = self._index(digest)
        _touch(Place(self._folder))
        self._open: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._checked: dict[str, tuple[int, int]] = {}

    def split(self, name: str) -> Parts:
        """The parts of a split, class after class."""
        return Parts(self, name)

    def get(self, name: str, part: Part) -> NDArray[np.uint8]:
        """The images of a part, in place."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        self._open[name] = images = self._mapped(name, part)
        while len(self._open) > _most_open():
            self._open.popitem(last=False)
        return images

    def _index(self, digest: str) -> Index:
        found = Index.read(Place(self._folder))
        if (found is None or found.digest != digest) and self._bring is not None:
            self._fetch(INDEX, 0, anew=True)
            found = Index.read(Place(self._folder))
        if found is None or found.digest != digest:
            raise self._gone(INDEX)
        return found

    def _mapped(self, name: str, part: Part) -> NDArray[np.uint8]:
        """A part, fetched if it is not here; one that is damaged is removed, and fetched once more where it can be."""
        file = self._folder / name
        for is_last in (False, True):
            if not file.exists():
                self._fetch(name, part.bytes)
            try:
                state = file.stat()
                stamp = (state.st_ino, state.st_mtime_ns)
                images = mapped(file, part, self.index.shape, is_checked=self._checked.get(name) == stamp)
                self._checked[name] = stamp
                return images
            except FileNotFoundError:
                continue
            except Damaged as damage:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
                if is_last or self._bring is None:
                    raise StorageError(
                        f"{file} is damaged ({damage}) and was removed; run the same command again: it decodes the "
                        f"images anew"
                    ) from None
        raise self._gone(name)

    def _fetch(self, name: str, size: int, *, anew: bool = False) -> None:
        """Brings a file here, one process at a time."""
        if self._bring is None:
            raise self._gone(name)
        file = self._folder / name
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self._folder / ".fetching", thread_local=False):
                if file.exists() and not anew:
                    return
                self._make_room(size)
                aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
                try:
                    self._bring(name, aside)
                    aside.replace(file)
                finally:
                    aside.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{file} cannot be written ({error.strerror or error}); make room there, or name another folder as "
                f"data.cache, and the same command goes on"
            ) from None

    def _make_room(self, size: int) -> None:
        """For a part: of other sets first, then of this one's parts that were fetched longest ago."""
        cache = self._folder.parent
        make_room(cache, size, self._most, keep=self._folder.name)
        if self._most is None or (self._folder / WHOLE).exists():
            return
        files = sorted(self._folder.rglob("*.arrow"), key=lambda file: file.stat().st_mtime)
        over = _bytes_below(cache) + size - self._most
        for file in files:
            if over <= 0:
                break
            over -= file.stat().st_size
            file.unlink(missing_ok=True)

    def _gone(self, name: str) -> StorageError:
        return StorageError(
            f"{self._folder / name} is gone, or of another set: the sorted images were removed while they were used; "
            f"run the same command again: it decodes them anew"
        )


class Parts(Sequence[NDArray[np.uint8]]):
    """The parts of a split as arrays, each mapped when it is asked for. ``counts`` (K,), ``sizes`` (P,) of images."""

    def __init__(self, of: SortedSet, split: str) -> None:
        self._of = of
        self._names = [
            (part_name(split, label, number), part)
            for label, parts in enumerate(of.index.parts[split])
            for number, part in enumerate(parts)
        ]
        self.counts = of.index.counts[split]
        self.sizes = np.array([part.rows for _, part in self._names], np.int64)
        self.shape = of.index.shape

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, number: slice) -> list[NDArray[np.uint8]]: ...

    def __getitem__(self, number: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        return self._of.get(*self._names[number])


def _most_open() -> int:
    """Parts that a process keeps mapped: half of the files that it may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 8192 if soft == resource.RLIM_INFINITY else max(16, min(8192, soft // 2))


def bring_from(place: Place) -> Bring:
    """Copies files of a set out of an object store."""

    def bring(name: str, to: Path) -> None:
        with (place / name).open() as source, to.open("wb") as sink:
            while piece := source.read(1 << 24):
                sink.write(piece)

    return bring
