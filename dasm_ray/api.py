"""What a program or a notebook calls: each function takes a recipe, a run or a set in any form, and gives a result.

What must stay true: a call does what the command of its name does, with the same files and the same bytes; whatever a
file says, only the caller names code to be run.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from dasm_ray import pipeline
from dasm_ray.config import parsing
from dasm_ray.config.compared import at_size
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError
from dasm_ray.pipeline import Result, Table
from dasm_ray.plain import Plain, Tree, Values
from dasm_ray.report import notebook, webpage
from dasm_ray.store.memory import keep
from dasm_ray.store.place import Place
from dasm_ray.store.uris import text_of
from dasm_ray.studies.cells import Accuracies

Config = str | os.PathLike[str] | Values | RunConfig
"""A recipe: the name of one that comes with the package, a YAML file, a mapping of keys, or one that was loaded."""

Where = str | os.PathLike[str] | Place | Result
"""A run directory or an artifact, local or by URI; or what `distill` gave back."""

Changes = Values | Iterable[str]
"""Keys to change: {"matcher.rounds": 8}, or texts as of --set, "matcher.rounds=8", one or a list of them."""


@dataclass(frozen=True)
class Page:
    """A report as a file; a notebook shows it."""

    place: Place

    def __str__(self) -> str:
        return str(self.place)

    def _repr_html_(self) -> str:
        return notebook.page(self.place.read_bytes().decode(), str(self.place))


# --- recipes -----------------------------------------------------------------------------------------------------


def load_config(config: Config, set: Changes = ()) -> RunConfig:
    """A recipe with some keys changed by ``set``. Raises ConfigError with a sentence for each problem."""
    changes = _as_texts(set)
    if isinstance(config, RunConfig | Mapping):
        tree = config.model_dump(mode="json") if isinstance(config, RunConfig) else _copied(config)
        parsing.apply_overrides(tree, changes)
        return parsing.parse_config(tree)
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"config: {escaped(repr(config), 60)} is no recipe; give the name or the file of one, or a mapping of keys"
        )
    return parsing.load_config(text_of(config), changes)


def _copied(tree: Values) -> Tree:
    """A mapping of plain values of one's own, so that the caller's is left alone."""
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _as_texts(changes: Changes, **more: Plain) -> list[str]:
    """Changes as --set spells them, and those of ``more`` that are given; a value may be anything that JSON holds."""
    texts = [] if isinstance(changes, Mapping) else list(_listed("set", changes))
    given = {**(changes if isinstance(changes, Mapping) else {}), **{k: v for k, v in more.items() if v is not None}}
    try:
        return [*texts, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())]
    except TypeError as error:
        raise ConfigError(f"set: {error}; give numbers, texts, lists and mappings") from None


def _listed(name: str, given: object) -> tuple[str, ...]:
    """Several texts, or one, which is not walked letter by letter; ConfigError for what is neither."""
    several = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    texts = tuple(each for each in several if isinstance(each, str))
    if len(texts) < len(several):
        raise ConfigError(f"{name}: {escaped(repr(given), 60)} must be a text or a list of texts")
    return texts


def _whole(name: str, given: object) -> int:
    """A whole number, as of any library that has such; ConfigError for what is none."""
    if isinstance(given, SupportsIndex) and not isinstance(given, bool):
        return operator.index(given)
    raise ConfigError(f"{name}: {escaped(repr(given), 60)} must be a whole number")


# --- commands ----------------------------------------------------------------------------------------------------


def distill(
    config: Config,
    run: str | os.PathLike[str] | Place | None = None,
    *,
    data: object = None,
    class_names: Sequence[str] | None = None,
    ipc: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    set: Changes = (),
    on_event: Callable[[Tree], None] | None = None,
) -> Result:
    """Distils a labelled image set into a small one, evaluates it, and returns both.

    ``config``: a recipe. ``run``: the run directory, a folder or URI (runs/NAME). The same call goes on where it was
    stopped, and gives back what is done. ``data``: images of this program instead of the recipe's, see
    `store.memory.keep`; they are written to RUN-data. ``ipc``: images a class, in as many segments as can be equal.
    ``set``: other keys. ``on_event`` gets each fact of the run as it happens, such as {"kind": "stage", ...}.

    Raises a DasmError: a ConfigError or DataError for what is to be mended, a RunFailure for what went wrong.
    """
    settings = load_config(
        config, _as_texts(set, **{"seed": seed, "runtime.workers": workers, "runtime.address": address})
    )
    if ipc is not None:
        settings = at_size(settings, _whole("ipc", ipc))
    if on_event is not None and not callable(on_event):
        raise ConfigError(f"on_event: {escaped(repr(on_event), 60)} cannot be called; give a function of one event")
    place = Place(run if run is not None else f"runs/{settings.name}")
    if data is not None:
        names = None if class_names is None else _listed("class_names", class_names)
        path = keep(place.parent / f"{place.name}-data", data, names)
        settings = load_config(settings, {"data.name": "parquet", "data.path": path.uri})
    elif class_names is not None:
        raise ConfigError("class_names: are those of data, and there is none; leave them out")
    return pipeline.distill(settings, place, on_event)


def evaluate(
    path: Where,
    set: Changes = (),
    *,
    network: str | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    data_path: str | os.PathLike[str] | None = None,
) -> Result:
    """Trains networks on a set anew, and reads the test set once each. ``set`` takes keys of evaluate and runtime,
    data.path, data.download and data.cache.

    ``network``: ARCH or ARCH:NORM of `core.networks.zoo`, or one of your own, MODULE:FUNCTION with a function of
    (shape (C, H, W), classes) that gives a torch.nn.Module of images to logits, or timm:NAME. ``seeds``: how many
    trainings; ``data_path``: where the real images lie, for an artifact alone.
    """
    changes = {
        "evaluate.seeds": seeds,
        "runtime.workers": workers,
        "data.path": None if data_path is None else text_of(data_path),
    }
    if network is not None:
        (network,) = _listed("network", [network])
    return pipeline.evaluate(_path(path), _as_texts(set, **changes), network)


def audit(path: Where, networks: int = 8, set: Changes = ()) -> Tree:
    """How much a set tells of its real images, as plain values; `docs/audit.md` says what they mean."""
    return pipeline.audit(_path(path), _whole("networks", networks), _as_texts(set))


def incremental(path: Where, steps: int = 5, set: Changes = ()) -> Accuracies:
    """Class-incremental learning with a set as the memory, beside as many random images.

    Test accuracies in [0, 1], one a seed, by ("distilled" or "random", "4 classes").
    """
    return pipeline.learn_incrementally(_path(path), _whole("steps", steps), _as_texts(set))


def compare(
    configs: Config | Sequence[Config],
    run: str | os.PathLike[str] | None = None,
    *,
    ipcs: Sequence[int] = (),
    selections: Sequence[str] = ("random", "herding", "k_center"),
    labels: Sequence[str] = ("hard",),
    networks: Sequence[str] = (),
    set: Changes = (),
) -> Table:
    """Distils every recipe at every size, and trains on each set, and on each selection of real images, alike."""
    several = list(configs) if isinstance(configs, Sequence) and not isinstance(configs, str) else [configs]
    changes = _as_texts(set)
    return pipeline.compare(
        [load_config(config, changes) for config in several],
        ipcs=tuple(_whole("ipcs", ipc) for ipc in (ipcs if isinstance(ipcs, Iterable) else [ipcs])),
        selections=_listed("selections", selections),
        labels=_listed("labels", labels),
        networks=_listed("networks", networks),
        run=None if run is None else text_of(run),
    )


def report(*runs: Where, to: str | os.PathLike[str] | None = None) -> Page:
    """Draws one HTML page of a run, or of several side by side, which then needs ``to``: its file."""
    if not runs:
        raise ConfigError("report: names no run; give one or more")
    return Page(webpage.report([_path(run) for run in runs], None if to is None else text_of(to)))


def _path(where: Where) -> str:
    """A place as the commands take it."""
    if isinstance(where, Result):
        return where.place.uri
    return where.uri if isinstance(where, Place) else text_of(where)
