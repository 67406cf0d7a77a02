"""What a study is: a recipe, arms that change it, and the sizes and seeds at which all of them are tried.

What must stay true: arms differ in how a set is made and in nothing that sets are judged by, so every difference of two
arms at one seed is a pair; and every arm at every size is known, and checked, before one starts.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, StrictBool, StrictStr

from dasm_ray.config import plain_yaml
from dasm_ray.config.designs import (
    FEWEST_SCREENED,
    MOST_CROSSED,
    MOST_SCREENED,
    Design,
    full_factorial,
    leave_one_out,
    plackett_burman,
)
from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import Natural, RunConfig, Section, Text, Whole, listed, one_of
from dasm_ray.config.parsing import (
    apply_overrides,
    as_one_of_many,
    field_of,
    meet,
    parse_config,
    repeated,
    sentences_of,
    set_key,
)
from dasm_ray.config.recipes import located
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import escaped, several
from dasm_ray.config.space import name_of
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree

SELECTED = ("random", *SELECTIONS, "full")
"""What an arm can train on instead of a set that is made."""

JUDGED_BY = ("data", "model", "evaluate", "runtime", "networks")
"""Sections that must be the same in all arms."""

SAID_ELSEWHERE = {"synthetic.ipc": "ipc", "seed": "seeds", "name": "the names of its arms"}
"""Keys of the recipe that a study says by keys of its own."""

MOST_TRAININGS = 10_000
"""Of one study, over arms, sizes and both kinds of seeds."""

Name = Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$", max_length=60)]
Keys = dict[StrictStr, Plain]


class ArmFile(Section):
    """An arm as it is written: the recipe under changes, or real images."""

    set: Keys = Field({}, description="keys of the recipe changed for this arm")
    select: Annotated[StrictStr, one_of(SELECTED), listed(SELECTED)] | None = Field(
        None, description="real images instead: random, a selection, or full for all of them"
    )
    take: Literal["distilled", "initial"] = Field(
        "distilled", description="initial: the images that the set would start from, not matched"
    )
    labels: Literal["hard", "soft"] = Field("hard", description="soft: those that were learned, else the experts'")


class Factor(Section):
    """A factor of a screen: what is changed at its low and at its high level."""

    low: Keys = Field({}, description="keys of the recipe at the low level")
    high: Keys = Field({}, description="the same at the high level")


class Screen(Section):
    """Arms that follow from factors, and so say what each factor does."""

    design: Literal["plackett_burman", "full", "leave_one_out"] = Field(
        "plackett_burman", description="12 runs; all combinations; or all high and each low alone"
    )
    set: Keys = Field({}, description="keys changed for all arms of the screen")
    factors: Annotated[dict[Name, Factor], Field(min_length=1, max_length=MOST_SCREENED)] = Field(
        description="by name: what low and high change"
    )


class StudyFile(Section):
    """A study as it is written."""

    name: Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$", max_length=100)] = Field(
        description="names the default folder, runs/NAME"
    )
    recipe: Text = Field(description="the config that arms change: a name, or a path from the study file")
    set: Keys = Field({}, description="keys of the recipe changed for all arms; an arm may change them again")
    arms: Annotated[dict[Name, ArmFile], Field(max_length=200)] = Field({}, description="by name")
    screen: Screen | None = Field(None, description="more arms, generated from factors")
    against: Name | None = Field(None, description="the arm that differences are counted from")
    ipc: Annotated[tuple[Annotated[Whole, Field(le=100_000)], ...], Field(max_length=20)] = Field(
        (), description="images per class; unset: the recipe's"
    )
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1, max_length=1000)] = Field(
        (0,),
        description="of distillation: each makes experts and sets anew; how often each is evaluated: evaluate.seeds",
    )
    test: StrictBool = Field(True, description="off: the test set is never read, for what only chooses")
    thirds: StrictBool = Field(False, description="accuracy by difficulty third of the validation images as well")


@dataclass(frozen=True)
class Arm:
    """One arm: ``source`` is distilled, initial, or one of SELECTED. ``configs`` by size, under the first seed."""

    name: str
    source: str
    labels: str
    configs: Mapping[int, RunConfig]

    @property
    def is_selected(self) -> bool:
        """Whether it is real images that are trained on."""
        return self.source in SELECTED

    def at(self, ipc: int, seed: int) -> RunConfig:
        """The configuration of its set at a size and a distillation seed."""
        return self.configs[ipc].model_copy(update={"seed": seed, "name": self.name})


@dataclass(frozen=True)
class Screened:
    """The arms of a screen by their names, a row of levels each, and the names of the columns that are factors.

    Further columns have no factor; what they seem to do is error.
    """

    kind: str
    factors: tuple[str, ...]
    runs: tuple[str, ...]
    design: Design


@dataclass(frozen=True)
class Study:
    """A study in which no arm contradicts itself, and none is another again."""

    name: str
    arms: tuple[Arm, ...]
    screen: Screened | None
    against: str | None
    ipcs: tuple[int, ...]
    seeds: tuple[int, ...]
    reads_test: bool
    thirds: bool

    @property
    def config(self) -> RunConfig:
        """The first arm's, under the name of the study; all agree in what sets are judged by."""
        return self.arms[0].at(self.ipcs[0], self.seeds[0]).model_copy(update={"name": self.name})

    @property
    def reference(self) -> Arm:
        """The arm whose experts say how difficult a validation image is: the opponent, or the first."""
        return next((arm for arm in self.arms if arm.name == self.against), self.arms[0])


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> Study:
    """Reads a study, a file or a shipped name, and lists its arms; ``overrides`` (``a.b=c``) hold for all of them.

    Raises ConfigError with one sentence for each problem found, in the file or in any of its arms.
    """
    overrides, name = list(overrides), name_of(path)
    path = located(path, "study")
    file = _parsed(path)
    screened, generated = _generated(file.screen)
    arms = {**file.arms, **generated}
    given = [override.partition("=")[0].strip() for override in overrides]
    problems = list(_misplaced(file, arms, generated, given))
    if problems:
        raise ConfigError(*(f"{name}: {problem}" for problem in problems))
    tree = as_one_of_many(plain_yaml.read_file(located(file.recipe, "recipe", Path(path).parent)))
    _change(tree, file.set, f"{name}: set")
    apply_overrides(tree, overrides)
    ipcs = file.ipc or (parse_config(tree).synthetic.ipc,)
    made = _checked(name, tree, arms, generated, ipcs, file.seeds[0])
    study = Study(file.name, made, screened, file.against, ipcs, file.seeds, file.test, file.thirds)
    _check_extent(name, study)
    return study


def _parsed(path: str | Path) -> StudyFile:
    try:
        return StudyFile.model_validate(plain_yaml.read_file(path))
    except pydantic.ValidationError as error:
        raise ConfigError(*(f"{name_of(path)}: {sentence}" for sentence in sentences_of(error, StudyFile))) from None


# --- screens -----------------------------------------------------------------------------------------------------


def _generated(screen: Screen | None) -> tuple[Screened | None, dict[str, ArmFile]]:
    """The design of a screen, and its arms by name: ``screen_01``, or ``screen_all`` and ``without_NAME``."""
    if screen is None:
        return None, {}
    factors = tuple(screen.factors)
    if screen.design == "leave_one_out":
        design, runs = leave_one_out(len(factors)), ("screen_all", *(f"without_{factor}" for factor in factors))
    else:
        crossed = screen.design == "full" and len(factors) <= MOST_CROSSED  # more are refused with a sentence
        design = full_factorial(len(factors)) if crossed else plackett_burman()
        runs = tuple(f"screen_{number:02d}" for number in range(1, len(design) + 1))
    arms = {run: ArmFile(set=_levels(screen, row)) for run, row in zip(runs, design, strict=True)}
    return Screened(screen.design, factors, runs, design), arms


def _levels(screen: Screen, row: tuple[bool, ...]) -> Keys:
    """The keys that a run of the screen changes; columns beyond the factors change none."""
    chosen = [factor.high if level else factor.low for factor, level in zip(screen.factors.values(), row, strict=False)]
    return {**screen.set, **{key: value for keys in chosen for key, value in keys.items()}}


# --- what cannot be meant ----------------------------------------------------------------------------------------


def _misplaced(
    file: StudyFile, arms: Mapping[str, ArmFile], generated: Mapping[str, ArmFile], given: list[str]
) -> Iterator[str]:
    if not arms:
        yield "arms: there is none; name some, or a screen"
    for name in file.arms.keys() & generated.keys():
        yield f"arms.{name}: is the name of an arm of the screen too; take another"
    if file.against is not None and file.against not in arms:
        yield f"against: there is no arm {file.against!r}; take any of {', '.join(arms)}"
    for name, values in (("ipc", file.ipc), ("seeds", file.seeds)):
        for value in repeated(values):
            yield f"{name}: holds {value} twice; leave one"
    for where, key in _changed_keys(file):
        is_arm = where != "set"
        yield from _of_key(where, key, given if is_arm else (), is_arm=is_arm)
    for key in given:
        yield from _of_key("--set", key, (), is_arm=False)
    for name, arm in file.arms.items():
        if arm.select is not None and arm.take == "initial":
            yield f"arms.{name}.take: a selection has no initialisation; leave out take or select"
        if arm.select == "full" and arm.labels == "soft":
            yield f"arms.{name}.labels: the full data are trained on with their own labels; leave labels out"
    yield from _of_factors(file.screen)


def _changed_keys(file: StudyFile) -> Iterator[tuple[str, str]]:
    """Every key of the recipe that the file changes, with where it says so."""
    yield from (("set", key) for key in file.set)
    yield from ((f"arms.{name}.set", key) for name, arm in file.arms.items() for key in arm.set)
    if file.screen is not None:
        yield from (("screen.set", key) for key in file.screen.set)
        for name, factor in file.screen.factors.items():
            yield from ((f"screen.factors.{name}", key) for key in {**factor.low, **factor.high})


def _of_key(where: str, key: str, given: Iterable[str], *, is_arm: bool) -> Iterator[str]:
    """Why a key of the recipe cannot be changed at a place."""
    shown, field = f"{where}.{escaped(key)}" if where != "--set" else f"--set {escaped(key)}", field_of(key)
    if key in SAID_ELSEWHERE:
        yield f"{shown}: a study says so by {SAID_ELSEWHERE[key]}"
    elif key in ("synthetic", "experts") or (is_arm and field is not None and field.is_section):
        yield f"{shown}: is a section; name one of its keys"
    elif is_arm and key.partition(".")[0] in JUDGED_BY:
        yield f"{shown}: arms are judged by it, so it must be the same in all; put it under set"
    elif is_arm and field is not None and not field.affects_result:
        yield f"{shown}: does not change the result of a run, so it tells no arms apart; put it under set"
    for other in given:
        if meet(key, other):
            yield f"{shown}: is set by --set {escaped(other)} too, for all arms; leave one of the two out"


def _of_factors(screen: Screen | None) -> Iterator[str]:
    """Levels that say nothing, or that two factors dispute about."""
    if screen is None:
        return
    if screen.design == "full" and len(screen.factors) > MOST_CROSSED:
        yield (
            f"screen.factors: {len(screen.factors)} of them make {2 ** len(screen.factors)} arms, and at most "
            f"{MOST_CROSSED} are crossed; take design plackett_burman"
        )
    if screen.design == "plackett_burman" and len(screen.factors) < FEWEST_SCREENED:
        yield (
            f"screen.factors: 12 runs of {len(screen.factors)} factors hold the same run twice; "
            f"take design full, of {2 ** len(screen.factors)} runs"
        )
    for name, factor in screen.factors.items():
        if factor.low == factor.high:
            yield f"screen.factors.{name}: is the same at both levels; say what low or high changes"
    touched = {name: {**factor.low, **factor.high} for name, factor in screen.factors.items()}
    for (one, mine), (other, theirs) in itertools.combinations(touched.items(), 2):
        if any(meet(key, another) for key in mine for another in theirs):
            yield f"screen.factors.{other}: changes a key that {one} changes too; leave one of the two out"


def _checked(
    name: str,
    tree: Tree,
    arms: Mapping[str, ArmFile],
    generated: Mapping[str, ArmFile],
    ipcs: tuple[int, ...],
    seed: int,
) -> tuple[Arm, ...]:
    """Every arm at every size, checked. Of what is wrong with a key in many arms the first is said."""
    made: list[Arm] = []
    problems: dict[str, str] = {}
    seen: dict[tuple[str, bool], str] = {}
    for arm_name, arm in arms.items():
        try:
            configs = {ipc: _config_of(tree, arm_name, arm, ipc, seed) for ipc in ipcs}
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem.partition(":")[0], f"{name}: arms.{arm_name}: {problem}")
            continue
        made.append(Arm(arm_name, arm.select or arm.take, arm.labels, configs))
        twin = seen.setdefault((_identity(made[-1]), arm_name in generated), arm_name)  # both may hold the same arm
        if twin != arm_name:
            problems[f"arms.{arm_name}"] = f"{name}: arms.{arm_name}: is what {twin} is; leave one of the two out"
    if problems:
        raise ConfigError(*problems.values())
    return tuple(made)


def _config_of(tree: Tree, name: str, arm: ArmFile, ipc: int, seed: int) -> RunConfig:
    changed = copy.deepcopy(tree)
    _change(changed, arm.set, "set")
    _change(changed, {"synthetic.ipc": ipc, "seed": seed, "name": name}, "ipc")
    return parse_config(changed)


def _change(tree: Tree, keys: Keys, where: str) -> None:
    for key, value in keys.items():
        set_key(tree, key, value, f"{where}.{escaped(key)}")


def _identity(arm: Arm) -> str:
    """What an arm is but for its name. Of real images chosen without a network, under their own labels, only that."""
    is_plain = arm.source in ("random", "full") and arm.labels == "hard"
    made = [] if is_plain else [result_keys(config) for config in arm.configs.values()]
    return digest_of(arm.source, arm.labels, made)


def _check_extent(name: str, study: Study) -> None:
    seeds = study.config.evaluate.seeds
    count = len(study.arms) * len(study.ipcs) * len(study.seeds) * seeds
    if count > MOST_TRAININGS:
        raise ConfigError(
            f"{name}: arms: {several(len(study.arms), 'arms')}, {several(len(study.ipcs), 'sizes')}, "
            f"{several(len(study.seeds), 'seeds')} and "
            f"evaluate.seeds {seeds} make {count} trainings, and at most {MOST_TRAININGS} are run; take fewer"
        )
