"""Combinations of legal values that contradict one another: a sentence for each, before anything is started.

What must stay true: whatever is accepted here can be run, and a key that is set is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pydantic

from dasm_ray.config.keys import NORMS, RunConfig
from dasm_ray.config.matchers import MEANT, keys_without_meaning
from dasm_ray.config.shown import several


def contradictions(config: RunConfig) -> Iterator[str]:
    """One sentence for each combination of legal values that cannot be run, and for each key that nothing reads."""
    yield from _of_the_network(config)
    yield from _of_the_set(config)
    yield from _of_the_matcher(config)
    yield from _of_experts_and_scores(config)
    yield from _of_the_table(config)
    yield from _without_meaning(config)


def _of_the_network(config: RunConfig) -> Iterator[str]:
    model, gpus = config.model, config.runtime.gpus_per_worker
    if model.norm not in NORMS[model.arch]:
        known = " or ".join(NORMS[model.arch])
        yield f"model.norm: {model.arch} takes {known}, not {model.norm}; set model.norm to {NORMS[model.arch][0]}"
    if model.depth is not None and model.arch != "convnet":
        yield f"model.depth: {model.arch} has a depth of its own; leave the key out"
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        yield f"runtime.gpus_per_worker: {gpus} is neither a share of one GPU nor a whole number of them"
    if gpus and config.runtime.device == "cpu":
        yield (
            f"runtime.gpus_per_worker: {gpus:g} would be held by workers that compute on the CPU, as runtime.device "
            f"says; leave one of the two out"
        )
    if config.runtime.compile == "graphs" and config.runtime.device != "cuda":
        yield "runtime.compile: graphs are captured on GPUs; set runtime.device to cuda, or runtime.compile to true"


def _of_the_set(config: RunConfig) -> Iterator[str]:
    synthetic, matcher = config.synthetic, config.matcher
    if synthetic.sizes is None and synthetic.ipc % synthetic.segments:
        yield (
            f"synthetic.ipc: {several(synthetic.ipc, 'images')} a class cannot be cut into {synthetic.segments} equal "
            f"segments; make synthetic.ipc a multiple of synthetic.segments, or give synthetic.sizes"
        )
    if synthetic.sizes is not None and len(synthetic.sizes) != synthetic.segments:
        yield (
            f"synthetic.sizes: names {several(len(synthetic.sizes), 'segments')}, but synthetic.segments is "
            f"{synthetic.segments}; make them agree"
        )
    elif synthetic.sizes is not None and sum(synthetic.sizes) != synthetic.ipc:
        yield (
            f"synthetic.sizes: add up to {several(sum(synthetic.sizes), 'images')} a class, but synthetic.ipc is "
            f"{synthetic.ipc}; make them agree"
        )
    if config.is_trajectory and synthetic.factor != 1:
        yield f"synthetic.factor: {matcher.name} matches images as they are stored; set it to 1"
    elif not config.is_trajectory and matcher.batch_syn < synthetic.factor**2:
        yield (
            f"matcher.batch_syn: {matcher.batch_syn} cannot hold the {synthetic.factor**2} images of one slot at "
            f"factor {synthetic.factor}; raise it to at least {synthetic.factor**2}"
        )


def _of_the_matcher(config: RunConfig) -> Iterator[str]:
    base, name, matcher = config.base, config.matcher.name, config.matcher
    if len(base.states) > 1 and matcher.network not in base.states:
        others = " or ".join(str(network) for network in base.states if network is not None)
        yield f"matcher.network: {matcher.network} has no meaning for {name}; leave the key out or say {others}"
    if base.compared == "convolutions" and config.model.arch == "mlp":
        yield f"model.arch: mlp has no convolutions, and {name} compares their gradients alone; take another of the two"
    if matcher.augment == "none" and base.unaugmented is not None:
        other = base.unaugmented
        yield f"matcher.augment: {name} without augmentation is {other}; set matcher.name to {other}"
    if matcher.micro is not None and config.model.norm == "batch" and not config.is_trajectory:
        yield (
            "matcher.micro: batch normalisation couples the images of a batch, so that it cannot be taken in pieces; "
            "set model.norm to another or leave the key out"
        )
    stages = config.synthetic.segments + (matcher.polish > 0 and config.synthetic.segments > 1)
    if min(config.rounds_of(stage) for stage in range(stages)) < 1:
        yield (
            f"matcher.rounds: {matcher.rounds} cannot be shared by {config.synthetic.segments} segments"
            f"{' and a polish' * (matcher.polish > 0)}; raise it"
        )
    if matcher.probe_share + matcher.bank_share > 1:
        yield (
            f"matcher.bank_share: {matcher.bank_share:g} and matcher.probe_share {matcher.probe_share:g} are more than "
            f"all network states together; lower one"
        )
    if config.is_trajectory:
        yield from _of_walks(config)
    elif base.states.get(matcher.network) == "experts":
        yield from _of_snapshots(config)


def _of_snapshots(config: RunConfig) -> Iterator[str]:
    """Of gradients and distributions at expert states."""
    if not config.matcher.snapshots:
        yield "matcher.snapshots: is empty; give at least one range [first, last]"
    for first, last in config.matcher.snapshots:
        if first >= last:
            yield f"matcher.snapshots: [{first}, {last}] is empty; the first epoch must be below the last"
        elif last > config.experts.epochs + 1:
            yield (
                f"matcher.snapshots: [{first}, {last}] reaches past epoch {config.experts.epochs}, the last that "
                f"experts.epochs trains; lower it or train longer"
            )


def _of_walks(config: RunConfig) -> Iterator[str]:
    """Of trajectories."""
    trajectory = config.trajectory
    if config.matcher.context == "union":
        yield (
            f"matcher.context: union has no meaning for {config.matcher.name}, whose students are trained on all "
            f"segments so far under residual; say that"
        )
    if config.matcher.augment == "none" and trajectory.single:
        yield "trajectory.single: there is no augmentation to choose from; set it to false or matcher.augment to some"
    if not trajectory.starts:
        yield "trajectory.starts: is empty; give at least one row [first, open, last]"
    for first, opened, last in trajectory.starts:
        if not first < opened <= last:
            yield (
                f"trajectory.starts: [{first}, {opened}, {last}] must be first < open <= last, where the range "
                f"[first, open) widens to [first, last)"
            )
        elif last - 1 + trajectory.epochs > config.experts.epochs:
            yield (
                f"trajectory.starts: a student that starts at epoch {last - 1} is held against epoch "
                f"{last - 1 + trajectory.epochs}, past the {config.experts.epochs} of experts.epochs; "
                f"lower the last start or train longer"
            )


def _of_experts_and_scores(config: RunConfig) -> Iterator[str]:
    score, experts = config.score, config.experts
    if score.static != "forgetting" and score.early > experts.epochs:
        yield f"score.early: {score.early} is more than the {several(experts.epochs, 'epochs')} of experts.epochs"
    if score.static == "forgetting" and experts.epochs < 2:
        yield "score.static: forgetting needs at least 2 epochs; raise experts.epochs"


def _of_the_table(config: RunConfig) -> Iterator[str]:
    rows = config.evaluate.rows
    if "distilled" not in rows or "random" not in rows:
        yield "evaluate.rows: must hold at least distilled and random"
    if len(set(rows)) < len(rows):
        yield "evaluate.rows: names a row twice"


# --- keys that nothing reads -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """When a key has a meaning beside another key: in words, as a test, and in words where it has none."""

    when: str
    holds: Callable[[RunConfig], bool]
    otherwise: Callable[[RunConfig], str]


def _under_policy(policy: str) -> Condition:
    return Condition(
        f"window.policy {policy}",
        lambda config: config.window.policy == policy,
        lambda config: f"for window.policy {config.window.policy}",
    )


CONDITIONS: dict[str, Condition] = {
    "model.width": Condition(
        "model.arch convnet",
        lambda config: config.model.arch == "convnet",
        lambda config: f"for {config.model.arch}, which has widths of its own",
    ),
    "experts.alpha": Condition(
        "experts.rho above 0", lambda config: config.experts.rho > 0, lambda config: "while experts.rho is 0"
    ),
    "score.early": Condition(
        "score.static other than forgetting",
        lambda config: config.score.static != "forgetting",
        lambda config: "for score.static forgetting, which counts all epochs",
    ),
    "matcher.relative": Condition(
        "matcher.metric mse or l1",
        lambda config: config.metric != "cos",
        lambda config: "for the metric cos, which has no unit as it is",
    ),
    "matcher.union_rate": Condition(
        "matcher.scale_lr true",
        lambda config: config.matcher.scale_lr,
        lambda config: "while matcher.scale_lr is false",
    ),
    "window.w_min": _under_policy("frontier"),
    "window.width": _under_policy("quantile"),
    "window.trim": _under_policy("trim"),
}


def _without_meaning(config: RunConfig) -> Iterator[str]:
    """A sentence for each key that differs from its default and has no meaning beside the others."""
    changed = set(_changed(config))
    if config.augment == config.matcher.augment:
        changed.discard("matcher.augment")  # dc with augmentation none says what is so
    matcher = config.matcher.name
    for key in sorted(keys_without_meaning(config.base, config.matcher.network, changed) & changed):
        meant = MEANT.get(key)
        hint = f"{meant} is meant, or leave it out" if meant and _has_meaning(config, meant) else "leave the key out"
        yield f"{key}: has no meaning for {_described(config, key, matcher)}; {hint}"
    for key, condition in CONDITIONS.items():
        if key in changed and not condition.holds(config):
            yield f"{key}: has no meaning {condition.otherwise(config)}; leave the key out"


def _changed(config: RunConfig) -> Iterator[str]:
    """Every ``section.key`` whose value is not its default."""
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, pydantic.BaseModel):
            fields = type(section).model_fields.items()
            yield from (f"{name}.{key}" for key, field in fields if getattr(section, key) != field.default)


def _has_meaning(config: RunConfig, key: str) -> bool:
    return key not in keys_without_meaning(config.base, config.matcher.network, [key])


def _described(config: RunConfig, key: str, matcher: str) -> str:
    """The matcher, and its states where the key would have a meaning at others."""
    elsewhere = [
        network for network in config.base.states if key not in keys_without_meaning(config.base, network, [key])
    ]
    if not elsewhere or config.matcher.network in elsewhere:
        return matcher
    set_to = "unset" if config.matcher.network is None else config.matcher.network
    return f"{matcher} with matcher.network {set_to}"
