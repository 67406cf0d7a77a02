"""A digest sees exactly the keys that can change a result."""

from __future__ import annotations

import types
import typing
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from tree import LEAVES

from dasm_ray.config.digests import digest_of, keys_that_differ, result_keys
from dasm_ray.config.keys import ArchRecipe, Data, RunConfig
from dasm_ray.config.parsing import parse_config


def another(field: FieldInfo, value: Any) -> Any:
    """A value of the field's type other than ``value``."""
    options = [choice for choice in choices(field.annotation) if choice != value]
    if options:
        return options[0]
    if isinstance(value, bool):
        return not value
    if LEAVES["data.ground"] is field:
        return "black"
    if isinstance(value, dict):
        return {"mlp": ArchRecipe(lr=1)}
    if isinstance(value, tuple):
        return value[:-1] if len(value) > 1 else value * 2
    return f"{value}x" if isinstance(value, str) else 3 if value is None else value + 1


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values of ``Literal[...]``, also where None may stand instead."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return parts
    return sum(map(choices, parts), ()) if isinstance(annotation, types.UnionType) else ()


def changed(key: str) -> RunConfig:
    """The default configuration with one field changed."""
    base = RunConfig()
    section, _, name = key.rpartition(".")
    holder = getattr(base, section) if section else base
    holder = holder.model_copy(update={name: another(LEAVES[key], getattr(holder, name))})
    return base.model_copy(update={section: holder}) if section else holder


def is_how(key: str) -> bool:
    extra = LEAVES[key].json_schema_extra
    return isinstance(extra, dict) and extra.get("affects_result") is False


@pytest.mark.parametrize("key", LEAVES)
def test_the_digest_sees_exactly_the_fields_that_can_change_the_result(key: str) -> None:
    before, after = RunConfig(), changed(key)
    assert after != before
    assert (digest_of(result_keys(after)) == digest_of(result_keys(before))) == is_how(key)


def test_a_key_that_came_later_is_no_part_of_a_digest_until_it_is_set() -> None:
    """The digest that 0.1.0 gave to its default data section, whose results are still found under it."""
    older = {"name": "digits", "image_size": None, "zca": None, "val_share": 0.1, "test_share": 0.2}
    assert result_keys(Data()) == older
    assert digest_of(result_keys(Data(ground="black"))) != digest_of(older)


def test_what_a_run_is_does_not_hold_where_it_is_done() -> None:
    """Written out, so that marking one more field as NOT_IN_RESULT is a decision that this line records."""
    assert sorted(filter(is_how, LEAVES)) == [
        "data.cache",
        "data.cache_gb",
        "data.download",
        "data.path",
        "evaluate.cache",
        "experts.cache",
        "name",
        "networks",
        "runtime.address",
        "runtime.checkpoint_seconds",
        "runtime.idle_seconds",
        "runtime.max_lost",
        "runtime.memory_per_worker",
        "runtime.page",
        "runtime.task_minutes",
        "runtime.tensorboard",
        "runtime.workers",
        "score.shards",
    ]


def test_a_digest_is_stable_and_sees_the_order_of_its_parts() -> None:
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    assert digest_of(1, 2) != digest_of(2, 1)
    assert len(digest_of()) == 16


def test_keys_that_differ_are_named_but_for_those_that_change_no_result() -> None:
    one = RunConfig()
    other = parse_config({"name": "other", "seed": 1, "matcher": {"batch_real": 7}, "runtime": {"workers": 3}})
    assert keys_that_differ(one, other) == ["matcher.batch_real", "seed"]
    assert keys_that_differ(one, one) == []
