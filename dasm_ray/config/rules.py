"""Combinations of legal values that contradict one another: a sentence for each, before anything is started.

What must stay true: whatever is accepted here can be run.
"""

from __future__ import annotations

from collections.abc import Iterator

from dasm_ray.config.keys import NORMS, RunConfig


def impossible(config: RunConfig) -> Iterator[str]:
    """One sentence for each combination of legal values that cannot be run."""
    model, synthetic, matcher, base = config.model, config.synthetic, config.matcher, config.base
    if model.norm not in NORMS[model.arch]:
        known = " or ".join(NORMS[model.arch])
        yield f"model.norm: {model.arch} takes {known}, not {model.norm}; set model.norm to {NORMS[model.arch][0]}"
    if model.depth is not None and model.arch != "convnet":
        yield f"model.depth: {model.arch} has a depth of its own; leave the key out"
    if synthetic.ipc % synthetic.segments:
        yield (
            f"synthetic.ipc: {synthetic.ipc} images a class cannot be cut into {synthetic.segments} equal segments; "
            f"make synthetic.ipc a multiple of synthetic.segments"
        )
    if matcher.batch_syn < synthetic.factor**2:
        yield (
            f"matcher.batch_syn: {matcher.batch_syn} cannot hold the {synthetic.factor**2} images of one slot at "
            f"factor {synthetic.factor}; raise it to at least {synthetic.factor**2}"
        )
    yield from _impossible_matcher(config)
    if config.is_trajectory:
        yield from _impossible_trajectory(config)
    starts_at_snapshots = base.states.get(matcher.network) == "experts" and not config.is_trajectory
    for first, last in matcher.snapshots:
        if first >= last:
            yield f"matcher.snapshots: [{first}, {last}] is empty; the first epoch must be below the last"
        elif last > config.experts.epochs + 1 and starts_at_snapshots:
            yield (
                f"matcher.snapshots: [{first}, {last}] reaches past epoch {config.experts.epochs}, the last that "
                f"experts.epochs trains; lower it or train longer"
            )
    if not matcher.snapshots:
        yield "matcher.snapshots: is empty; give at least one range [first, last]"
    if config.score.early > config.experts.epochs:
        yield f"score.early: {config.score.early} is more than the {config.experts.epochs} epochs of experts.epochs"
    if config.score.static == "forgetting" and config.experts.epochs < 2:
        yield "score.static: forgetting needs at least 2 epochs; raise experts.epochs"
    if "distilled" not in config.evaluate.rows or "random" not in config.evaluate.rows:
        yield "evaluate.rows: must hold at least distilled and random"
    if len(set(config.evaluate.rows)) < len(config.evaluate.rows):
        yield "evaluate.rows: names a row twice"
    gpus = config.runtime.gpus_per_worker
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        yield f"runtime.gpus_per_worker: {gpus} is neither a share of one GPU nor a whole number of them"


def _impossible_matcher(config: RunConfig) -> Iterator[str]:
    """The same, of what the matcher's row in the table does not allow."""
    base, name, matcher = config.base, config.matcher.name, config.matcher
    if matcher.network not in base.states:
        others = [network for network in base.states if network is not None]
        hint = f" or say {' or '.join(others)}" if others else ""
        yield f"matcher.network: {matcher.network} has no meaning for {name}; leave the key out{hint}"
    if matcher.metric is not None and base.metric is None:
        yield f"matcher.metric: has no meaning for {name}; leave the key out"
    if matcher.augment == "none" and base.unaugmented is not None:
        other = base.unaugmented
        yield f"matcher.augment: {name} without augmentation is {other}; set matcher.name to {other}"
    if base.couples == "set" and config.synthetic.group_size is not None:
        yield f"synthetic.group_size: {name} tells all classes apart, so they are one group; leave the key out"


def _impossible_trajectory(config: RunConfig) -> Iterator[str]:
    """The same, of what trajectories ask for."""
    name, matcher, trajectory = config.matcher.name, config.matcher, config.trajectory
    if config.synthetic.factor != 1:
        yield f"synthetic.factor: {name} matches images as they are stored; set it to 1"
    if matcher.probe_share > 0:
        yield f"matcher.probe_share: {name} starts from experts alone; set it to 0 (trajectory.by_probe places them)"
    if matcher.augment == "none" and trajectory.single:
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
