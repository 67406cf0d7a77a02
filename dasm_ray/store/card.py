"""Dataset cards: what the hub and `datasets.load_dataset` read of a synthetic set, and of a run that holds several.

`load_dataset` keeps what it once read under the folder's name and the name of a configuration, and takes every file
below a folder without a card for one table. So a card names a configuration for each set, by the set's digest.

What must stay true: two different sets have different configuration names, so neither is ever taken for the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import yaml

from dasm_ray.config.shown import several
from dasm_ray.errors import ArtifactError
from dasm_ray.plain import Tree
from dasm_ray.store.description import DESCRIPTION, read_description
from dasm_ray.store.place import Place

CARD = "README.md"
FILES = "data/train-*.parquet"


PICTURE = "picture.png"
UNKNOWN = "unknown"
"""The licence of a set of which nobody has said one: what it was made of has one of its own."""

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
"""How the hub speaks of so many rows, and less."""


@dataclass(frozen=True)
class Facts:
    """What the card of a set says, beside how its files are read."""

    digest: str
    shape: tuple[int, ...]  # (N, C, H, W)
    class_names: tuple[str, ...]
    factor: int
    space: str
    """In words what the values of the pixels are."""
    is_soft: bool
    source: str
    """What it was made of."""
    of: int | None
    """Training images of that, where it is known."""
    recipe: str
    """In words what it was evaluated by."""
    accuracies: Sequence[tuple[str, str]] = ()
    """Rows of its table: of which set, and test accuracy in %."""
    has_picture: bool = False
    licence: str = UNKNOWN


def card_text(facts: Facts) -> str:
    """The dataset card: YAML front matter that the hub reads, then what a person needs."""
    count, channels, height, width = facts.shape
    title = f"Synthetic set of {count} images in {len(facts.class_names)} classes"
    more: Tree = {"license": facts.licence, "size_categories": [_size(count)]}
    if re.fullmatch(r"[a-z0-9_]+", facts.source) and facts.source not in ("folder", "parquet", UNKNOWN):
        more["source_datasets"] = [f"extended|{facts.source}"]
    names = ", ".join(f"`{name.replace('`', chr(39))}`" for name in facts.class_names[:MOST_NAMES])
    left = len(facts.class_names) - MOST_NAMES
    of = f"{facts.of} training images of {facts.source}" if facts.of else facts.source
    facts_told = {
        "made of": of,
        "stored images": f"{count} of {channels} x {height} x {width}",
        "training images": f"{count * facts.factor**2}, {facts.factor} x {facts.factor} tiles of each stored one",
        "labels": "soft, logits" if facts.is_soft else "hard",
        "evaluated by": facts.recipe,
        "licence": _licence(facts.licence),
        "digest": facts.digest,
    }
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts_told.items())
    picture = f"\n![some of its images, a row a class]({PICTURE})\n" if facts.has_picture else ""
    return f"""{front_matter(title, {set_name(facts.digest): FILES}, more)}
# {title}

A distilled stand-in for a larger labelled image set, made by dasm_ray.
{picture}
| | |
|---|---|
{rows}

Classes, in label order: {names}{f" and {left} more" if left > 0 else ""}.
{_table(facts)}
| column | holds |
|---|---|
| `image` | 8-bit preview |
| `pixels` | exact values {facts.space}, float32, in (channel, row, column) order |
| `label` | class |
| `soft_label` | logits of the learned label, where there are any |
| `segment` | the segment in which the image was made, from 0 |

`dataset.json` holds the class names in label order, the normalisation and the recipe to train with. Open the images
with `datasets.load_dataset(PATH)`, or all that training needs with `dasm_ray.load(PATH)`:

```python
{SNIPPET}```

`train.transform` prepares a test image for the network: a PIL image, or (C, H, W) levels 0..255 or floats in [0, 1].
"""


SNIPPET = """import dasm_ray
import torch

train = dasm_ray.load("PATH")  # this folder, or hf://datasets/OWNER/NAME
loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(len(train.classes)))
optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
for images, labels in (batch for epoch in range(100) for batch in loader):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimiser.step()
"""
"""Ten lines that train on the set."""

MOST_NAMES = 20


def _size(count: int) -> str:
    return next((words for most, words in SIZES.items() if count < most), "n>1M")


def _licence(licence: str) -> str:
    if licence != UNKNOWN:
        return licence
    return "unknown: that of the images it was made of may bind it; who publishes it has to say"


def licensed(card: str, licence: str) -> str:
    """A card, a user's own too, under another licence: in the YAML that it begins with, and in the table of our own."""
    lines = card.replace("\r\n", "\n").removeprefix("\ufeff").split("\n")
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    if lines[0].rstrip() != "---" or len(ends) < 2:
        lines, ends = ["---", "---", *lines], [0, 1]
    front, rest = lines[1 : ends[1]], "\n".join(lines[ends[1] + 1 :])
    kept, is_theirs = list[str](), False
    for line in front:
        goes_on = line.startswith((" ", "\t", "- ")) or not line.strip()
        is_theirs = re.match(r"license\s*:", line) is not None or (is_theirs and goes_on)
        if not is_theirs:
            kept.append(line)
    rest = re.sub(r"^\| licence \| .* \|$", f"| licence | {licence} |", rest, count=1, flags=re.MULTILINE)
    return "\n".join(["---", f"license: {licence}", *kept, "---", rest])


def _table(facts: Facts) -> str:
    if not facts.accuracies:
        return ""
    rows = "\n".join(f"| {name} | {accuracy} |" for name, accuracy in facts.accuracies)
    return f"""
Test accuracy in % of networks trained on it and on other sets, mean ± std over seeds:

| trained on | test accuracy |
|---|---|
{rows}
"""


def front_matter(title: str, sets: dict[str, str], more: Tree | None = None) -> str:
    """The YAML that a card begins with; ``sets`` are the patterns of the files of each configuration."""
    front = {
        "pretty_name": title,
        **(more or {}),
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "synthetic"],
        "configs": [_configuration(name, files) for name, files in sets.items()],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _configuration(name: str, files: str) -> Tree:
    return {"config_name": name, "data_files": [{"split": "train", "path": files}]}


def set_name(digest: str, folder: str = "set") -> str:
    """The name of a set's configuration: what it is called, and its digest."""
    return f"{folder}-{digest}"


UNFINISHED = "Not finished"


def write_unfinished(folder: Place) -> None:
    """A card for a set that is being written, so that `load_dataset` fails instead of keeping half of it by a name."""
    (folder / CARD).write_text(_unfinished())


def is_unfinished(folder: Place) -> bool:
    """Whether a set was begun here, by somebody who was stopped."""
    card = folder / CARD
    return card.exists() and card.read_bytes() == _unfinished().encode()


def _unfinished() -> str:
    return front_matter(UNFINISHED, {"unfinished": "nothing-yet.parquet"})


def _is_of_somebody_else(card: Place) -> bool:
    """Whether a README was there before, or was written anew by hand: it has not the tags of ours."""
    return card.exists() and b"- dataset-distillation\n" not in card.read_bytes()


def write_run_card(run: Place, finished: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes the card of a run directory, a configuration for every finished set in it; never over a user's own.

    ``finished``: digests by folder of sets that lack only their description. With several sets `load_dataset(RUN)` asks
    for one by name, with none it fails.
    """
    if _is_of_somebody_else(run / CARD):
        return
    found = dict(sorted({**_sets_in(run), **finished}.items()))
    if not found:
        write_unfinished(run)
        return
    sets = {set_name(digest, folder): f"{folder}/{FILES}" for folder, digest in found.items()}
    title = f"{several(len(found), 'synthetic sets')} of one run"
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
