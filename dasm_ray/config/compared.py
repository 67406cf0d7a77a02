"""What a comparison sets side by side: recipes, and selections, sizes, labels and networks beside them.

What must stay true: what cannot stand in one fair table is refused before anything is loaded or started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config, repeated
from dasm_ray.config.selections import SELECTIONS
from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError

CHOICES = ("random", *SELECTIONS)
LABELS = ("hard", "soft")


@dataclass(frozen=True)
class Plan:
    """What is compared beside the recipes: sizes, selections, kinds of labels, networks (unset: the recipes' own)."""

    ipcs: tuple[int, ...]
    selections: tuple[str, ...]
    labels: tuple[str, ...]
    networks: tuple[str, ...]


def check(configs: Sequence[RunConfig], plan: Plan) -> None:
    """ConfigError where recipes cannot stand in one fair table, at a size, or under a network."""
    names = [config.name for config in configs]
    for name in {name for name in names if names.count(name) > 1 or name in CHOICES or name == "full"}:
        raise ConfigError(f"name: {name!r} names more than one row of the table; give each recipe a name of its own")
    for config in configs[1:]:
        for section in ("data", "model", "evaluate", "runtime", "seed"):
            one, other = getattr(configs[0], section), getattr(config, section)
            if one != other:
                raise ConfigError(
                    f"{section}: differs between {configs[0].name} and {config.name}, so their rows would not be "
                    f"comparable; make them agree, by --set for both"
                )
    for kind, wanted, known in (
        ("--select", plan.selections, CHOICES),
        ("--labels", plan.labels, LABELS),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(f"{kind} {name}: there is no such choice; take any of {', '.join(known)}")
    listed: tuple[tuple[str, tuple[int | str, ...]], ...] = (
        ("--ipc", plan.ipcs),
        ("--select", plan.selections),
        ("--labels", plan.labels),
        ("--network", plan.networks),
    )
    for kind, values in listed:
        for value in repeated(values):
            raise ConfigError(f"{kind}: holds {escaped(value)} twice; leave one")
    if not plan.labels:
        raise ConfigError(f"--labels: is empty, so that nothing would be trained on; take any of {', '.join(LABELS)}")
    if plan.networks:
        for config in configs[1:]:
            if config.networks != configs[0].networks:
                raise ConfigError(
                    f"networks: differs between {configs[0].name} and {config.name}, and a network is trained by one "
                    f"recipe; make them agree"
                )
    if "random" not in plan.selections:
        raise ConfigError("--select: must hold random, which every gain is counted from")
    if any(ipc < 1 for ipc in plan.ipcs):
        raise ConfigError("--ipc: must be 1 or more")
    for config in configs:
        for ipc in plan.ipcs:
            at_size(config, ipc)
    for network in plan.networks:
        configs[0].under(network)


def at_size(config: RunConfig, ipc: int) -> RunConfig:
    """The recipe at another size, in as many of its segments as can be equal; at its own, in its own segments."""
    tree = config.model_dump(mode="json")
    if ipc != config.synthetic.ipc:
        tree["synthetic"] |= {"ipc": ipc, "segments": math.gcd(ipc, config.synthetic.segments), "sizes": None}
    return parse_config(tree)
