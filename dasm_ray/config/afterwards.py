"""What can be changed once a set is there.

What must stay true: what is changed afterwards leaves the set what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import apply_overrides, parse_config
from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError

AFTERWARDS = ("evaluate.", "runtime.", "data.path", "data.download", "data.cache")
"""What can be changed once a set is there."""

RELABELLING = ("experts.", *AFTERWARDS)
"""What can be changed where experts give it soft labels."""


def changed(config: RunConfig, changes: Sequence[str], allowed: tuple[str, ...] = AFTERWARDS) -> RunConfig:
    """A kept configuration under changes that leave its artifact what it is."""
    check_allowed(changes, allowed)
    tree = config.model_dump(mode="json")
    apply_overrides(tree, changes)
    return parse_config(tree)


def check_allowed(changes: Sequence[str], allowed: tuple[str, ...]) -> None:
    """ConfigError for a change of anything else."""
    for change in changes:
        if not change.strip().startswith(allowed):
            known = ", ".join(name.removesuffix(".") for name in allowed)
            raise ConfigError(f"--set {escaped(change, 120)}: after distillation only {known} can be changed")


def without_address(config: RunConfig) -> RunConfig:
    """A kept configuration without the cluster that it was once run on; --address or RAY_ADDRESS names one."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"address": None})})
