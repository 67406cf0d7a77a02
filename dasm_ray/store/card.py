"""Dataset cards: what the hub and `datasets.load_dataset` read of a synthetic set, and of a run that holds several.

`load_dataset` keeps what it once read under the folder's name and the name of a configuration, and takes every file
below a folder without a card for one table. So a card names a configuration for each set, by the set's digest.

What must stay true: two different sets have different configuration names, so neither is ever taken for the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml

from dasm_ray.errors import ArtifactError
from dasm_ray.store.description import DESCRIPTION, read_description
from dasm_ray.store.place import Place

CARD = "README.md"
FILES = "data/train-*.parquet"


def front_matter(title: str, sets: dict[str, str]) -> str:
    """The YAML that a card begins with; ``sets`` are the patterns of the files of each configuration."""
    front = {
        "pretty_name": title,
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "synthetic"],
        "configs": [_configuration(name, files) for name, files in sets.items()],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _configuration(name: str, files: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": files}]}


def set_name(digest: str, folder: str = "set") -> str:
    """The name of a set's configuration: what it is called, and its digest."""
    return f"{folder}-{digest}"


def write_unfinished(folder: Place) -> None:
    """A card for a set that is being written, so that `load_dataset` fails instead of keeping half of it by a name."""
    (folder / CARD).write_text(front_matter("Not finished", {"unfinished": "nothing-yet.parquet"}))


def write_run_card(run: Place, finished: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes the card of a run directory, a configuration for every finished set in it.

    ``finished``: digests by folder of sets that lack only their description. With several sets `load_dataset(RUN)` asks
    for one by name, with none it fails.
    """
    found = dict(sorted({**_sets_in(run), **finished}.items()))
    if not found:
        write_unfinished(run)
        return
    sets = {set_name(digest, folder): f"{folder}/{FILES}" for folder, digest in found.items()}
    title = f"{len(found)} synthetic set(s) of one run"
    rows = "\n".join(
        f'| `{folder}/` | `load_dataset(PATH, "{set_name(digest, folder)}")` |' for folder, digest in found.items()
    )
    text = f"""{front_matter(title, sets)}
# {title}

| folder | `datasets` reads it by |
|---|---|
{rows}

Each is a set of its own, which `dasm_ray.load("PATH/FOLDER")` and `load_dataset("PATH/FOLDER")` read as well.
"""
    (run / CARD).write_text(text)


def _sets_in(run: Place) -> dict[str, str]:
    """Folders of a run that hold a finished set, and the digests that the sets say they have."""
    found = {}
    for folder in run.names():
        if re.fullmatch(r"\w[\w-]*", folder) and (run / folder / DESCRIPTION).exists():
            try:
                found[folder] = read_description(run / folder)[0].digest
            except ArtifactError:
                continue  # damaged, or half written: whoever opens it is told
    return found
