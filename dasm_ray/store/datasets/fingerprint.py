"""What the sorted images of a set depend on, as a short name: its files by name, size and time, and how they are read.

What must stay true: two sets that could differ in a pixel, a label or a split have two names. A file that is changed,
also in place and to the same size, gives its set another name; so does another version of what decodes it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import features

from dasm_ray.config.digests import result_keys
from dasm_ray.config.keys import Data
from dasm_ray.plain import Plain
from dasm_ray.store.datasets.builtin import TORCHVISION, digits_file
from dasm_ray.store.datasets.shards import Shard, Source
from dasm_ray.store.place import Place

LAYOUT = 1
"""Of the files of sorted images; another number makes all of them anew."""

DECODERS = ("pillow", "torchvision")


def read_keys(data: Data) -> dict[str, Plain]:
    """The keys of `data` that what is decoded depends on; whitening comes after it."""
    return {name: value for name, value in result_keys(data).items() if name != "zca"}


def fingerprint(source: Source, data: Data) -> str:
    """The name of a set that was found: 32 hex digits."""
    total = hashlib.sha256(json.dumps([LAYOUT, read_keys(data), _versions(), source.class_names]).encode())
    for shards in source.shards.values():
        for shard in shards:
            total.update(repr(shard).encode())
    paths = dict.fromkeys(_files(shard for shards in source.shards.values() for shard in shards))
    for stamp in _stamps(paths):
        total.update(repr(stamp).encode())
    return total.hexdigest()[:32]


def _versions() -> list[str]:
    """What decodes images here, by version."""
    return [*(importlib.metadata.version(name) for name in DECODERS), features.version("libjpeg_turbo") or ""]


def _files(shards: Iterable[Shard]) -> Iterator[str]:
    """What shards are read from."""
    for shard in shards:
        if shard.kind == "digits":
            yield digits_file()
        elif shard.kind in TORCHVISION:
            yield from _below(Path(shard.path) / TORCHVISION[shard.kind].files)
        else:
            yield from shard.files or (shard.path,)


def _below(root: Path) -> Iterator[str]:
    """The files of a loader of arrays: all in a folder, or all of one kind beside a file."""
    beside = root.rglob("*") if root.is_dir() else root.parent.glob(f"*{root.suffix}")
    yield from sorted(str(path) for path in beside if path.is_file())


Stamp = tuple[str, int, int | str, int]
"""The path of a file, its bytes, and when it and what is known of it were last written, or its version elsewhere."""


def _stamps(paths: Iterable[str]) -> Iterator[Stamp]:
    """Of every file; in an object store, folder by folder."""
    far: dict[str, list[str]] = {}
    for path in paths:
        if os.path.isabs(path):
            found = os.stat(path)
            yield path, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        else:
            far.setdefault(Place(path).parent.uri, []).append(path)
    for folder, inside in far.items():
        names = {path: Place(path).name for path in inside}
        stamps = Place(folder).stamps(names.values())
        yield from ((path, *stamps.get(name, (0, 0)), 0) for path, name in names.items())
