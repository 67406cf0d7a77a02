"""What a sweep is: a recipe, keys of it with the values to try, and so a numbered list of trials.

What must stay true: the list follows from the file alone. So every trial is known, and checked, before one starts, and
has the same number whenever the file is read again. Tune is given the list; it draws nothing.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
from pydantic import Field, StrictInt, StrictStr

from dasm_ray.config import plain_yaml
from dasm_ray.config.digests import digest_of, result_keys
from dasm_ray.config.keys import Natural, Number, RunConfig, Section, Text, Whole
from dasm_ray.config.parsing import (
    apply_overrides,
    as_one_of_many,
    field_of,
    meet,
    parse_config,
    said_of,
    sentences_of,
    set_key,
)
from dasm_ray.config.recipes import located
from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Plain, Tree

YARDSTICK = (
    "data.name",
    "data.val_share",
    "data.test_share",
    "data.image_size",
    "data.ground",
    "evaluate.seeds",
    "evaluate.base_seed",
    "evaluate.checkpoints",
    "evaluate.rows",
)
"""Keys that trials are compared by, so they must be the same in all."""

DIGITS = 4
"""Of a number that is drawn: what a table shows is what was tried."""

MOST_TRIALS = 10_000
"""Of one sweep: all of them are checked before one starts."""

Drawn = Annotated[StrictInt, Field(ge=-(2**62), le=2**62)]


class Values(Section):
    """What to try for one key: all of some values, or draws."""

    grid: tuple[Plain, ...] | None = Field(None, description="all of these, crossed with the grids of other keys")
    choice: tuple[Plain, ...] | None = Field(None, description="one of these a draw")
    uniform: tuple[Number, Number] | None = Field(None, description="a number between two")
    loguniform: tuple[Number, Number] | None = Field(None, description="the same, evenly over magnitudes")
    integers: tuple[Drawn, Drawn] | None = Field(None, alias="int", description="a whole number, ends included")

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Values:
        kinds = [
            field.alias or name for name, field in type(self).model_fields.items() if getattr(self, name) is not None
        ]
        if len(kinds) != 1:
            raise ValueError("must say one of grid, choice, uniform, loguniform and int")
        if self.grid == () or self.choice == ():
            raise ValueError("has no value to try")
        for pair in (self.uniform, self.loguniform, self.integers):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError("must begin below its end")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("must begin above 0")
        if self.uniform is not None and math.isinf(self.uniform[1] - self.uniform[0]):
            raise ValueError("is wider than any number")
        return self

    def draw(self, generator: np.random.Generator) -> Plain:
        """One value of what is no grid."""
        if self.choice is not None:
            return self.choice[generator.integers(len(self.choice))]
        if self.integers is not None:
            return int(generator.integers(self.integers[0], self.integers[1] + 1))
        if self.loguniform is not None:
            first, last = self.loguniform
            return _rounded(math.exp(generator.uniform(math.log(first), math.log(last))), first, last)
        assert self.uniform is not None
        return _rounded(generator.uniform(*self.uniform), *self.uniform)


def _rounded(number: float, first: float, last: float) -> float:
    return min(max(float(f"{number:.{DIGITS}g}"), first), last)


class Scheduler(Section):
    """Which trials go on after a segment."""

    name: Literal["all", "asha"] = Field("all", description="all: every trial to its end; asha: the better ones")
    grace: Whole = Field(1, le=1000, description="asha: segments before a trial may be stopped")
    reduction: Annotated[int, Field(ge=2, le=1000, strict=True)] = Field(2, description="asha: one in so many goes on")


def _by_name(value: Plain) -> Plain:
    return {"name": value} if isinstance(value, str) else value


class SweepFile(Section):
    """A sweep as it is written."""

    name: Annotated[StrictStr, Field(pattern=r"^\w[\w.-]*$", max_length=200)] = Field(
        description="names the default folder, runs/NAME"
    )
    recipe: Text = Field(description="the config that is changed: a name, or a path from the sweep file")
    set: dict[StrictStr, Plain] = Field({}, description="keys of the recipe changed for all trials")
    space: Annotated[dict[StrictStr, Values], Field(min_length=1)] = Field(description="what to try, by key")
    samples: Whole = Field(1, le=MOST_TRIALS, description="draws; each is crossed with all grids")
    scheduler: Annotated[Scheduler, pydantic.BeforeValidator(_by_name)] = Scheduler()
    workers: Whole = Field(1, le=10_000, description="of one trial; the result does not depend on it")
    seed: Natural = Field(0, description="draws follow from it; a run's own seed is a key of the recipe")


@dataclass(frozen=True)
class Trial:
    """One point of a sweep: its number, the swept keys' values, and the configuration that they make."""

    number: int
    values: Tree
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """A sweep in which no trial contradicts itself."""

    name: str
    trials: tuple[Trial, ...]
    scheduler: Scheduler
    workers: int

    @property
    def definition(self) -> Tree:
        """All that the sweep is, as JSON has it: a folder serves one of them."""
        return {
            "space": [trial.values for trial in self.trials],
            "recipe": digest_of([result_keys(trial.config) for trial in self.trials]),
            "scheduler": self.scheduler.model_dump(),
        }


def load_sweep(path: str | Path, overrides: Iterable[str] = (), workers: int | None = None) -> Sweep:
    """Reads a sweep, a file or a shipped name, and lists its trials; ``overrides`` (``a.b=c``) hold for all of them.

    Raises ConfigError with one sentence for each problem found, in the file or in any of its trials.
    """
    overrides, name = list(overrides), name_of(path)
    path = located(path, "sweep")
    file = _parsed(path, {"workers": workers} if workers is not None else {})
    tree = as_one_of_many(plain_yaml.read_file(located(file.recipe, "recipe", Path(path).parent)))
    before = copy.deepcopy(tree)
    for key, value in file.set.items():
        set_key(tree, key, value, f"{name}: set.{escaped(key)}")
    changed = {*file.set, *(override.partition("=")[0].strip() for override in overrides)}
    apply_overrides(tree, overrides)
    # Also what a section that is set as a whole, as in `score: {batch: 100}`, says of a key.
    changed |= {key for key in (*file.space, "runtime.workers") if said_of(tree, key) != said_of(before, key)}
    problems = list(_misplaced(file, changed))
    if problems:
        raise ConfigError(*(f"{name}: {problem}" for problem in problems))
    runtime = tree.setdefault("runtime", {})
    if isinstance(runtime, dict):
        runtime["workers"] = file.workers
    sweep = Sweep(file.name, _checked(path, file, tree), file.scheduler, file.workers)
    _check_scheduler(path, sweep)
    return sweep


def name_of(path: str | Path) -> str:
    """A path as a sentence may name it."""
    return escaped(str(path))


def _parsed(path: str | Path, changes: Tree) -> SweepFile:
    try:
        return SweepFile.model_validate(plain_yaml.read_file(path) | changes)
    except pydantic.ValidationError as error:
        raise ConfigError(*(f"{name_of(path)}: {sentence}" for sentence in sentences_of(error, SweepFile))) from None


def _misplaced(file: SweepFile, changed: set[str]) -> Iterator[str]:
    """Keys that stand where they have no meaning, and more trials than anybody could run."""
    for one, other in itertools.combinations(file.set, 2):
        if meet(one, other):
            yield f"set.{escaped(one)}: speaks of what set.{escaped(other)} sets too; leave one of the two out"
    count = file.samples * math.prod(len(values.grid) for values in file.space.values() if values.grid is not None)
    if count > MOST_TRIALS:
        yield f"space: makes {count} trials, and at most {MOST_TRIALS} are run; try fewer values or samples"
    for key in file.space:
        where, field = f"space.{escaped(key)}", field_of(key)
        if key in changed:
            yield f"{where}: is set to one value too; leave one of the two out"
        if key in YARDSTICK:
            yield f"{where}: trials are compared by it, so it must be the same in all; put it under set"
        elif field is not None and not field.affects_result:
            yield f"{where}: does not change the result of a run, so there is nothing to try; put it under set"
        elif key.startswith("runtime."):
            yield f"{where}: says how the work is done, the same way for all trials; put it under set"
        elif field is not None and field.is_section:
            yield f"{where}: is a section; name one of its keys"
    if "runtime.workers" in changed:
        yield "set.runtime.workers: a sweep says so by workers, or --workers"
    if file.samples > 1 and all(values.grid is not None for values in file.space.values()):
        yield f"samples: {file.samples} draws of nothing, since every key is a grid; leave the key out"


def _checked(path: str | Path, file: SweepFile, tree: Tree) -> tuple[Trial, ...]:
    """Every trial, checked; equal ones are one. Of what is wrong with a key in many trials the first is said."""
    trials: dict[str, Trial] = {}
    problems: dict[str, str] = {}
    for point in _points(file):
        try:
            config = _at(tree, point)
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem.partition(":")[0], problem)
            continue
        values = {key: _value(config, key) for key in point}
        trials.setdefault(digest_of(result_keys(config)), Trial(len(trials), values, config))
    if problems:
        raise ConfigError(*(f"{name_of(path)}: {problem}" for problem in problems.values()))
    return tuple(trials.values())


def _points(file: SweepFile) -> Iterator[Tree]:
    """Values by key: for each sample all crossings of the grids, which have its draws in common."""
    grids = {key: values.grid for key, values in file.space.items() if values.grid is not None}
    for sample in range(file.samples):
        drawn = {
            key: values.draw(_generator(file.seed, sample, key))
            for key, values in file.space.items()
            if values.grid is None
        }
        for crossing in itertools.product(*grids.values()):
            point = drawn | dict(zip(grids, crossing, strict=True))
            yield {key: point[key] for key in file.space}


def _generator(seed: int, sample: int, key: str) -> np.random.Generator:
    """Of one key's draw, so that another key, or one more sample, moves no other draw."""
    return np.random.Generator(np.random.PCG64(int(digest_of(seed, "sweep", sample, key), 16)))


def _at(tree: Tree, point: Tree) -> RunConfig:
    changed = copy.deepcopy(tree)
    for key, value in point.items():
        set_key(changed, key, value, f"space.{key}")
    return parse_config(changed)


def _value(config: RunConfig, key: str) -> Plain:
    value: Plain = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def _check_scheduler(path: str | Path, sweep: Sweep) -> None:
    """ASHA compares trials after the same segment, and stops them before their last."""
    if sweep.scheduler.name == "all":
        return
    segments = {trial.config.synthetic.segments for trial in sweep.trials}
    if len(segments) > 1:
        raise ConfigError(
            f"{name_of(path)}: scheduler: asha compares trials after the same segment, so synthetic.segments cannot "
            f"be swept with it; fix it, or set scheduler to all"
        )
    if sweep.scheduler.grace >= max(segments):
        raise ConfigError(
            f"{name_of(path)}: scheduler: asha can stop a trial after segment {sweep.scheduler.grace} at the "
            f"earliest, and there are {max(segments)}; raise synthetic.segments, lower grace, or set scheduler to all"
        )
