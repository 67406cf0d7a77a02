"""The table of base matchers: what each compares, at which network states, and which keys it reads.

A new variant of a family is one row here; a new family is one row and one file of mathematics in ``core.matching``.
What must stay true: nothing outside this file asks for a matcher by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["gradient", "distribution", "trajectory"]
States = Literal["experts", "fresh", "real", "synthetic"]
"""Where network states come from: snapshots of experts, fresh initialisations, or a network that is trained inside the
loop, on real images or on the synthetic set as it stands."""

Coupling = Literal["class", "group", "set"]
"""What one matching step sees at once: one class, the classes of a group, or all classes of the set."""


@dataclass(frozen=True)
class BaseMatcher:
    """One way to compare the synthetic set with the real one.

    ``compared`` names what of a network is held against each other, a row of the family's own table. ``states`` says by
    the key ``matcher.network`` where network states come from; None is the key left unset.
    """

    family: Family
    compared: str
    states: Mapping[str | None, States]
    couples: Coupling
    metric: str | None = None
    """The distance where ``matcher.metric`` is unset; None where there is no choice of one."""
    augments: bool = True
    unaugmented: str | None = None
    """The matcher that this one is when nothing is augmented."""
    learns_labels: bool = False


MATCHERS: dict[str, BaseMatcher] = {
    "idc": BaseMatcher("gradient", "convolutions", {None: "experts", "train": "real"}, "class", "mse"),
    "dc": BaseMatcher("gradient", "weights", {None: "synthetic"}, "class", "cos", augments=False),
    "dsa": BaseMatcher("gradient", "weights", {None: "synthetic"}, "class", "cos", unaugmented="dc"),
    "dm": BaseMatcher("distribution", "hidden", {None: "fresh", "experts": "experts"}, "group"),
    "cafe": BaseMatcher("distribution", "blocks", {None: "synthetic"}, "set"),
    "mtt": BaseMatcher("trajectory", "parameters", {None: "experts"}, "set"),
    "datm": BaseMatcher("trajectory", "parameters", {None: "experts"}, "set", learns_labels=True),
}

# --- which keys a matcher reads ----------------------------------------------------------------------------------

ROUND_KEYS = (
    *("matcher.networks", "matcher.steps", "matcher.batch_real", "matcher.batch_syn"),
    *("matcher.lr_img", "matcher.scale_lr", "matcher.probe_share", "matcher.strata"),
    *("matcher.union_rate", "matcher.frontier_share", "matcher.micro", "matcher.lanes"),
)
"""Keys of gradients and distributions, whose rounds go from one network state to the next."""

STATE_KEYS: dict[States, tuple[str, ...]] = {
    "experts": ("matcher.snapshots", "matcher.perturb"),
    "fresh": (),
    "real": ("matcher.inner_samples", "matcher.inner_lr"),
    "synthetic": ("matcher.inner_steps", "matcher.inner_lr"),
}
"""Keys that say how network states of one kind are come by, where rounds go through them."""

LABEL_KEYS = ("trajectory.lr_label", "trajectory.label_momentum")

MEANT: dict[str, str] = {
    "matcher.lr_img": "trajectory.lr_img",
    "matcher.batch_syn": "trajectory.batch",
    "matcher.steps": "trajectory.steps",
    "matcher.lanes": "trajectory.lanes",
    "matcher.snapshots": "trajectory.starts",
    "matcher.probe_share": "trajectory.by_probe",
    "matcher.inner_steps": "trajectory.steps",
    "trajectory.lr_img": "matcher.lr_img",
    "trajectory.batch": "matcher.batch_syn",
    "trajectory.steps": "matcher.steps",
    "trajectory.lanes": "matcher.lanes",
    "trajectory.starts": "matcher.snapshots",
}
"""The key that does for the other kind of matcher what a key does for one."""


def keys_without_meaning(base: BaseMatcher, network: str | None, keys: Iterable[str]) -> set[str]:
    """Which of the ``keys`` (``section.key``) a matcher never reads at the states that ``matcher.network`` chooses."""
    chosen = base.states.get(network)
    walks = base.family == "trajectory"
    without = {key for key in keys if key.startswith("trajectory.")} if not walks else set(ROUND_KEYS)
    if not base.learns_labels:
        without.update(LABEL_KEYS)
    read = () if walks or chosen is None else STATE_KEYS[chosen]
    without.update(key for of_kind in STATE_KEYS.values() for key in of_kind if key not in read)
    without.update(
        key
        for key, has_meaning in {
            "matcher.network": len(base.states) > 1,
            "matcher.metric": base.metric is not None,
            "matcher.relative": base.family == "gradient",
            "matcher.deviation": base.compared == "hidden",
            "matcher.depth": base.family != "distribution",
            "matcher.augment": base.augments,
            "synthetic.group_size": base.couples != "set",
        }.items()
        if not has_meaning
    )
    return without
