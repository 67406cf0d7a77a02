"""What a command is given, found and checked against this machine before Ray is started.

What must stay true: nothing here waits for Ray or PyTorch, and what can be refused without them is; and a set that came
from elsewhere chooses neither the files that are read here nor the machines that are talked to.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence

from dasm_ray.config.afterwards import AFTERWARDS, RELABELLING, changed, check_allowed, without_address
from dasm_ray.config.compared import Plan, at_size, check
from dasm_ray.config.digests import result_keys
from dasm_ray.config.gains import Size, what_pays
from dasm_ray.config.keys import GROUP_SIZE, RunConfig, Runtime
from dasm_ray.config.parsing import parse_config, parse_result_keys
from dasm_ray.config.shown import escaped
from dasm_ray.config.space import Sweep
from dasm_ray.config.study import Study
from dasm_ray.errors import ArtifactError, ConfigError, UserError
from dasm_ray.plain import Tree, Values
from dasm_ray.runtime.machine import check_whitening, computes_bf16, has_gpus, read_memory
from dasm_ray.store import findings
from dasm_ray.store.card import is_unfinished
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.shards import Source
from dasm_ray.store.description import DESCRIPTION, artifact_place, read_description
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RECORD, RunDir, as_begun, obeyed

WITH_PATH = ("folder", "parquet", "tiny_imagenet")
"""Sets that are nowhere unless `data.path` says where."""

Look = Callable[[], Source]
"""Opens a set, and finds the same one the next time without looking again."""

WORTH_ROUNDING = 1 << 14
"""Values in a network's first block from which its convolutions, not all around them, take the time."""


def check_run(config: RunConfig, run: str | None) -> RunConfig:
    """The configuration of a run, settled; refused where its directory is another's or, unless it is done, its images
    cannot be used.
    """
    uri, look = run or f"runs/{config.name}", _looked_at_once(config)
    config = settled(config, uri, look)
    place = RunDir.check(uri, config)
    if not (place / "synthetic" / DESCRIPTION).exists():
        look()
    return config


def check_sweep(plan: Sweep, run: str | None, *, resume: bool) -> None:
    """Refuses a sweep whose directory is another's or, unless it was begun, whose first trial's images are no good."""
    place = Place(run or f"runs/{plan.name}")
    findings.check_sweep(place, plan.definition, resume=resume)
    check_settled(plan.trials[0].config)
    if not (place / findings.SWEEP).exists():
        open_checked(plan.trials[0].config)


def check_comparison(configs: Sequence[RunConfig], plan: Plan, run: str | None) -> None:
    """Refuses recipes that cannot stand in one table, a folder of something else or of other sets under the same names,
    and images that cannot be used.
    """
    check(configs, plan)
    place = Place(run or "runs/comparison")
    findings.check_comparison(place)
    classes = len(open_checked(configs[0]).class_names)
    if not (place / findings.COMPARISON).exists():
        return
    for config in configs:
        for ipc in plan.ipcs or (configs[0].synthetic.ipc,):
            whole = at_size(with_compiling(with_precision(config)).for_classes(classes), ipc)
            folder = findings.set_place(place, whole)
            RunDir.check(folder, as_begun(whole, folder))


def check_study(study: Study, run: str | None) -> None:
    """Refuses a folder of something else or of another study, and images that cannot be used."""
    findings.check_study(Place(run or f"runs/{study.name}"), study.name)
    check_settled(study.config)
    open_checked(study.config)


def check_set(path: str, changes: Sequence[str], allowed: tuple[str, ...] = AFTERWARDS) -> None:
    """Refuses a path at which no synthetic set lies, and changes that cannot be. Reads its description alone."""
    check_allowed(changes, allowed)
    place = Place(path)
    described, _ = read_description(artifact_place(place))
    open_checked(config_of(place, described.provenance, changes, allowed))


def check_relabelling(path: str, to: str, changes: Sequence[str]) -> Place:
    """Where the set is written anew; refuses a folder in use, and a set of which nobody knows the experts."""
    target, place = Place(to), Place(path)
    if target.exists() and target.names() and not is_unfinished(target):
        raise ArtifactError(f"{target}: is not empty; name a new folder")
    check_allowed(changes, RELABELLING)
    run = place.parent if artifact_place(place) == place else place
    if not (run / RECORD).exists() and not any(
        change.partition("=")[0].strip() == "experts.cache" for change in changes
    ):
        raise ConfigError(
            f"experts.cache: {place} stands alone, away from the run that made it; name the folder where its experts "
            f"are, or shall be trained, by --set experts.cache=FOLDER"
        )
    return target


def settled(config: RunConfig, run: str | Place, look: Look | None = None) -> RunConfig:
    """The configuration of a run with what the number of classes and the machine decide filled in, as it is kept.

    ``look`` opens the set, if it must be: here, and in what is decided here, at most once.

    The classes are looked up unless the run directory says by what it keeps that they were: a run that was begun
    before the key was filled in goes on as it was begun. So does one that was begun when `auto` meant something else.
    """
    look = look or _looked_at_once(config)
    config = with_compiling(with_precision(config, look, run), run, look)
    if not config.waits_for_classes:
        return config
    with contextlib.suppress(UserError):  # who opens the directory says what is wrong with it
        kept = RunDir.read(run).config.synthetic.group_size
        if kept in (None, GROUP_SIZE):
            return config.model_copy(update={"synthetic": config.synthetic.model_copy(update={"group_size": kept})})
    return config.for_classes(len(look().class_names))


def _looked_at_once(config: RunConfig) -> Look:
    """Opens the set of a configuration when it is first asked for: a folder of many files is listed once."""
    return functools.cache(functools.partial(open_checked, config))


def open_checked(config: RunConfig) -> Source:
    """The set of a configuration, found but not decoded; what it holds stands in ``found``.

    Raises DataError for a set that cannot be used, ResourceError for a whitening that does not fit this machine. Where
    the work is done on a cluster elsewhere, its own memory is looked at once it has answered.
    """
    source = open_source(config.data)
    if config.data.zca is not None and not (config.runtime.address or os.environ.get("RAY_ADDRESS")):
        check_whitening(source.shape, read_memory())
    return source


def with_precision(config: RunConfig, look: Look | None = None, run: str | Place | None = None) -> RunConfig:
    """The configuration with ``runtime.precision: auto`` as this machine decides it; it is kept so.

    As the directory of the ``run`` has it, if it was begun.

    bf16 where workers here multiply it and the first block is large enough to be waited for, but for features alone:
    what gradients and trajectories make it made worse (docs/benchmarks.md). Raises ConfigError for work that is done
    on other machines.
    """
    if config.runtime.precision != "auto":
        return config
    begun = _begun_with(run)
    if begun is not None and begun.precision != "auto":
        return config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": begun.precision})})
    if config.runtime.address or os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "runtime.precision: auto is decided by the machine that the command runs on, and the work is done "
            "elsewhere; say bf16 or float32"
        )
    _, height, width = (look or _looked_at_once(config))().shape
    runtime = config.runtime
    by_gpu = runtime.device != "cpu" and runtime.gpus_per_worker != 0
    is_large = config.model.width * height * width >= WORTH_ROUNDING
    gains = is_large and config.base.family == "distribution" and computes_bf16(by_gpu)
    precision = "bf16" if gains else "float32"
    return config.model_copy(update={"runtime": runtime.model_copy(update={"precision": precision})})


def with_compiling(config: RunConfig, run: str | Place | None = None, look: Look | None = None) -> RunConfig:
    """The configuration with ``runtime.compile: auto`` decided by its own steps; it is kept so.

    As the directory of the ``run`` has it, if it was begun. On GPUs steps are compiled, as where the key is unset.
    Raises ConfigError where nobody has said whether work that is done on other machines is done on GPUs.
    """
    if config.runtime.compile != "auto":
        return config
    begun = _begun_with(run)
    decided = None if begun is None or begun.compile == "auto" else begun.compile
    if decided is None:
        decided = _by_gpu(config.runtime) or what_pays(config, size_of((look or _looked_at_once(config))()))
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"compile": decided})})


def _begun_with(run: str | Place | None) -> Runtime | None:
    """What a run directory that is there keeps of these keys."""
    if run is not None:
        with contextlib.suppress(UserError):  # who opens the directory says what is wrong with it
            return RunDir.read(run).config.runtime
    return None


def _by_gpu(runtime: Runtime) -> bool:
    """Whether workers compute on GPUs."""
    if runtime.device is not None or runtime.gpus_per_worker is not None:
        return runtime.device != "cpu" and (runtime.device == "cuda" or bool(runtime.gpus_per_worker))
    if runtime.address or os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "runtime.compile: auto depends on whether workers compute on GPUs, and the work is done elsewhere; set "
            "runtime.device to cpu or cuda"
        )
    return has_gpus()


def size_of(source: Source) -> Size:
    """How large a set is, before it is decoded: what is cut from the training images by their content, about."""
    found, train = source.found, source.found.of_train.images
    held_out = {"val": round(found.cut.val * train), "test": round(found.cut.test * train)}
    parts = {role: split.images if (split := found.of(role)) else held_out[role] for role in held_out}
    return Size(train - sum(held_out.values()), **parts, classes=len(source.class_names), shape=source.shape)


def check_settled(config: RunConfig) -> None:
    """ConfigError for what nobody decided: of a sweep or a study, whose runs share experts, and machines."""
    if config.runtime.compile == "auto":
        raise ConfigError(
            "runtime.compile: auto is decided for a single run; say true, trainings or false here, or leave it out"
        )
    if config.runtime.precision == "auto":
        raise ConfigError("runtime.precision: auto is decided for a single run; say bf16 or float32 here")


# --- what made a set -------------------------------------------------------------------------------------------------


def config_of(
    place: Place, provenance: Values, changes: Sequence[str] = (), allowed: tuple[str, ...] = AFTERWARDS
) -> RunConfig:
    """What made the set in ``place``, a run's or one alone, under ``changes``.

    Of its own words, the ``provenance`` of its description, only what can change a result is heard.

    Where images and experts lie is known to the run that it lies in, if it does; else it has to be said. Where Ray is
    has to be said always, and what lies with another service than the run: a file that came from elsewhere must not
    choose whom this machine talks to, nor which folders serve it as caches.
    """
    folder = artifact_place(place)
    kept = provenance.get("config")
    if not isinstance(kept, dict):
        raise ArtifactError(
            f"{folder}: does not say which configuration made it, so there is nothing to compare it with"
        )
    try:
        config = parse_result_keys(kept)
    except ConfigError as error:
        raise ArtifactError(f"{folder} was made by another version of dasm_ray: {error.problems[0]}") from None
    images = None
    if (folder.parent / "run.json").exists():
        run = RunDir.read(folder.parent)
        images = run.config.data.path
        kept_there = obeyed(run.config, run.place).model_dump()
        config = parse_config(_overlaid(kept_there, result_keys(config)))
    config = changed(without_address(config), changes, allowed)
    if config.data.path is None and images is not None:
        raise ConfigError(
            f"data.path: {place} says that its images lie in {escaped(images)}, with another service than itself, "
            f"which is not asked on a run's word alone; name them by --set data.path=PLACE"
        )
    if config.data.path is None and config.data.name in WITH_PATH:
        raise ConfigError(f"data.path: {place} does not say where its images lie; name them by --set data.path=FOLDER")
    return config


def _overlaid(tree: Tree, values: Tree) -> Tree:
    """The tree with the values that are given set in it, section by section."""
    return tree | {
        name: _overlaid(tree.get(name) or {}, value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
