"""What cannot stand in one fair table is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dasm_ray.config.compared import Plan, at_size, check
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError

PLAN = Plan((2,), ("random", "herding"), ("hard",), ())


def recipe(name: str, **sections: dict[str, Any]) -> RunConfig:
    return parse_config({"name": name, **sections})


@pytest.mark.parametrize(
    ("configs", "plan", "words"),
    [
        ([recipe("a"), recipe("a")], PLAN, "'a' names more than one row"),
        ([recipe("random")], PLAN, "'random' names more than one row"),
        ([recipe("a"), recipe("b", evaluate={"lr": 0.5})], PLAN, "evaluate: differs between a and b"),
        ([recipe("a")], Plan((2,), ("random", "magic"), ("hard",), ()), "--select magic: there is no such"),
        ([recipe("a")], Plan((2,), ("herding",), ("hard",), ()), "--select: must hold random"),
        ([recipe("a")], Plan((2,), ("random",), ("firm",), ()), "--labels firm: there is no such choice"),
        ([recipe("a")], Plan((0,), ("random",), ("hard",), ()), "--ipc: must be 1 or more"),
        ([recipe("a")], Plan((2,), ("random",), (), ()), "--labels: is empty"),
        (
            [recipe("a"), recipe("b", networks={"mlp": {"lr": 0.5}})],
            Plan((2,), ("random",), ("hard",), ("mlp",)),
            "networks: differs between a and b",
        ),
        ([recipe("a")], Plan((2, 1, 2), ("random",), ("hard",), ()), "--ipc: holds 2 twice; leave one"),
        ([recipe("a")], Plan((2,), ("random", "random"), ("hard",), ()), "--select: holds random twice"),
        ([recipe("a")], Plan((2,), ("random",), ("hard", "hard"), ()), "--labels: holds hard twice"),
        ([recipe("a")], Plan((2,), ("random",), ("hard",), ("mlp", "mlp")), "--network: holds mlp twice"),
        ([recipe("a")], Plan((2,), ("random",), ("hard",), ("resnet",)), "resnet: there is no such network"),
    ],
)
def test_what_cannot_stand_in_one_table_is_refused(configs: list[RunConfig], plan: Plan, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(configs, plan)


def test_another_size_keeps_as_many_segments_as_can_be_equal() -> None:
    config = recipe("a", synthetic={"ipc": 6, "segments": 3})
    assert [at_size(config, ipc).synthetic.segments for ipc in (1, 6, 9, 10)] == [1, 3, 3, 1]
    unequal = recipe("a", synthetic={"ipc": 7, "segments": 3, "sizes": [2, 2, 3]})
    assert at_size(unequal, 7) == unequal
    assert at_size(unequal, 9).sizes == (3, 3, 3)
