"""Combinations that contradict themselves are refused, each with a sentence, and the edge of what can be run is not."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from tree import problems_of

from dasm_ray.config import rules
from dasm_ray.config.parsing import parse_config

WALKS: dict[str, Any] = {"matcher": {"name": "mtt"}, "trajectory": {"starts": [[0, 1, 2]]}}

IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("a norm of another", {"model": {"arch": "vit"}}, "model.norm: vit takes none, not instance; set model.norm to no"),
    ("no norm at all", {"model": {"arch": "vgg11", "norm": "none"}}, "model.norm: vgg11 takes instance or batch, not"),
    ("depth of another", {"model": {"arch": "resnet18", "depth": 3}}, "model.depth: resnet18 has a depth of its own"),
    ("ipc and segments", {"synthetic": {"ipc": 10, "segments": 3}}, "synthetic.ipc: 10 images a class cannot be cut"),
    (
        "sizes of other segments",
        {"synthetic": {"ipc": 10, "segments": 2, "sizes": [3, 3, 4]}},
        "synthetic.sizes: names 3 segments, but synthetic.segments is 2; make them agree",
    ),
    (
        "sizes of another set",
        {"synthetic": {"ipc": 10, "segments": 3, "sizes": [3, 3, 3]}},
        "synthetic.sizes: add up to 9 images a class, but synthetic.ipc is 10; make them agree",
    ),
    (
        "gradients of convolutions without any",
        {"model": {"arch": "mlp", "norm": "none"}},
        "model.arch: mlp has no convolutions, and idc compares their gradients alone; take another of the two",
    ),
    ("batch and factor", {"synthetic": {"factor": 3}, "matcher": {"batch_syn": 8}}, "raise it to at least 9"),
    (
        "dc on experts",
        {"matcher": {"name": "dc", "network": "experts"}},
        "matcher.network: has no meaning for dc; leave the key out",
    ),
    (
        "dsa on experts",
        {"matcher": {"name": "dsa", "network": "experts"}},
        "matcher.network: has no meaning for dsa",
    ),
    ("dsa that is dc", {"matcher": {"name": "dsa", "augment": "none"}}, "matcher.augment: dsa without augmentation"),
    (
        "dm that trains",
        {"matcher": {"name": "dm", "network": "train"}},
        "matcher.network: train has no meaning for dm; leave the key out or say experts",
    ),
    ("a metric for dm", {"matcher": {"name": "dm", "metric": "l1"}}, "matcher.metric: has no meaning for dm"),
    (
        "groups of cafe",
        {"matcher": {"name": "cafe"}, "synthetic": {"group_size": 3}},
        "synthetic.group_size: has no meaning for cafe",
    ),
    ("walks on tiles", {**WALKS, "synthetic": {"factor": 2}}, "synthetic.factor: mtt matches images as they are"),
    ("a metric for walks", {**WALKS, "matcher": {"name": "mtt", "metric": "cos"}}, "matcher.metric: has no meaning"),
    (
        "a net for walks",
        {**WALKS, "matcher": {"name": "mtt", "network": "train"}},
        "matcher.network: has no meaning for mtt",
    ),
    (
        "probes for walks",
        {**WALKS, "matcher": {"name": "mtt", "probe_share": 0.1}},
        "matcher.probe_share: has no meaning for mtt; trajectory.by_probe is meant",
    ),
    (
        "one of no augmentations",
        {**WALKS, "matcher": {"name": "mtt", "augment": "none"}},
        "trajectory.single: there is",
    ),
    ("no starts", {**WALKS, "trajectory": {"starts": []}}, "trajectory.starts: is empty; give at least one row"),
    ("starts out of order", {**WALKS, "trajectory": {"starts": [[2, 2, 3]]}}, "trajectory.starts: [2, 2, 3] must be"),
    (
        "starts past the end",
        {**WALKS, "trajectory": {"starts": [[0, 1, 20]]}},
        "starts: a student that starts at epoch 19",
    ),
    ("empty range", {"matcher": {"snapshots": [[4, 4]]}}, "matcher.snapshots: [4, 4] is empty"),
    ("no range", {"matcher": {"snapshots": []}}, "matcher.snapshots: is empty; give at least one"),
    (
        "epochs not trained",
        {"matcher": {"snapshots": [[0, 7]]}, "experts": {"epochs": 5}},
        "matcher.snapshots: [0, 7] reaches past epoch 5",
    ),
    ("early beyond epochs", {"score": {"early": 6}, "experts": {"epochs": 5}}, "score.early: 6 is more than the 5"),
    (
        "forgetting in one epoch",
        {
            "score": {"static": "forgetting"},
            "experts": {"epochs": 1},
            "matcher": {"snapshots": [[0, 1]]},
        },
        "score.static: forgetting needs at least 2 epochs",
    ),
    (
        "pixels of walks",
        {**WALKS, "matcher": {"name": "mtt", "lr_img": 1}},
        "matcher.lr_img: has no meaning for mtt; traj",
    ),
    ("walks of idc", {"trajectory": {"epochs": 3}}, "trajectory.epochs: has no meaning for idc; leave the key out"),
    ("lanes of idc", {"trajectory": {"lanes": 2}}, "trajectory.lanes: has no meaning for idc; matcher.lanes is meant"),
    (
        "lanes of mtt",
        {**WALKS, "matcher": {"name": "mtt", "lanes": 4}},
        "matcher.lanes: has no meaning for mtt; trajectory.lanes is meant",
    ),
    (
        "labels of mtt",
        {**WALKS, "trajectory": {"starts": [[0, 1, 2]], "lr_label": 5}},
        "trajectory.lr_label: has no mea",
    ),
    (
        "inner steps of idc",
        {"matcher": {"inner_steps": 3}},
        "matcher.inner_steps: has no meaning for idc; leave the key",
    ),
    (
        "snapshots of a net that is trained",
        {"matcher": {"network": "train", "snapshots": [[0, 2]]}},
        "matcher.snapshots: has no meaning for idc with matcher.network train; leave the key out",
    ),
    (
        "samples for a net that is not trained",
        {"matcher": {"inner_samples": 9}},
        "matcher.inner_samples: has no meaning for idc with matcher.network unset; leave the key out",
    ),
    (
        "augmentation of dc",
        {"matcher": {"name": "dc", "augment": "crop"}},
        "matcher.augment: has no meaning for dc; leave",
    ),
    ("another window's width", {"window": {"width": 0.5}}, "window.width: has no meaning for window.policy frontier"),
    (
        "another window's trim",
        {"window": {"policy": "all", "trim": 0.5}},
        "window.trim: has no meaning for window.policy",
    ),
    (
        "another window's least",
        {"window": {"policy": "trim", "w_min": 0.1}},
        "window.w_min: has no meaning for window.po",
    ),
    ("flatness without a radius", {"experts": {"alpha": 0.5}}, "experts.alpha: has no meaning while experts.rho is 0"),
    (
        "early epochs of forgetting",
        {"score": {"static": "forgetting", "early": 2}},
        "score.early: has no meaning for score",
    ),
    (
        "width of another",
        {"model": {"arch": "vgg11", "width": 64}},
        "model.width: has no meaning for vgg11, which has widths of its own; leave the key out",
    ),
    (
        "fewer rounds than segments",
        {"synthetic": {"ipc": 4, "segments": 4}, "matcher": {"rounds": 3, "budget": "set"}},
        "matcher.rounds: 3 cannot be shared by 4 segments; raise it",
    ),
    (
        "no round to polish in",
        {"matcher": {"rounds": 4, "budget": "set", "polish": 0.1}},
        "matcher.rounds: 4 cannot be shared by 2 segments and a polish; raise it",
    ),
    (
        "more states than all",
        {"matcher": {"bank_share": 0.6, "probe_share": 0.5}},
        "matcher.bank_share: 0.6 and matcher.probe_share 0.5 are more than all network states together; lower one",
    ),
    (
        "a union of walks",
        {**WALKS, "matcher": {"name": "mtt", "context": "union"}},
        "matcher.context: union has no meaning for mtt, whose students are trained on all segments so far under resid",
    ),
    (
        "a rate that is not scaled",
        {"matcher": {"union_rate": True, "scale_lr": False}},
        "matcher.union_rate: has no meaning while matcher.scale_lr is false; leave the key out",
    ),
    (
        "a frontier of walks",
        {**WALKS, "matcher": {"name": "mtt", "frontier_share": 0.5}},
        "matcher.frontier_share: has no meaning for mtt; leave the key out",
    ),
    (
        "strata of walks",
        {**WALKS, "matcher": {"name": "mtt", "strata": True}},
        "matcher.strata: has no meaning for mtt; leave the key out",
    ),
    (
        "relative means",
        {"matcher": {"name": "dm", "relative": True}},
        "matcher.relative: has no meaning for dm; leave the key out",
    ),
    (
        "relative cosines",
        {"matcher": {"metric": "cos", "relative": True}},
        "matcher.relative: has no meaning for the metric cos, which has no unit as it is; leave the key out",
    ),
    (
        "deviations of all layers",
        {"matcher": {"name": "cafe", "deviation": True}},
        "matcher.deviation: has no meaning for cafe; leave the key out",
    ),
    (
        "shallow features",
        {"matcher": {"name": "dm", "depth": True}},
        "matcher.depth: has no meaning for dm; leave the key out",
    ),
    (
        "pieces of a batch that is normalised as one",
        {"model": {"norm": "batch"}, "matcher": {"micro": 8}},
        "matcher.micro: batch normalisation couples the images of a batch, so that it cannot be taken in pieces",
    ),
    (
        "pieces of walks",
        {**WALKS, "matcher": {"name": "mtt", "micro": 8}},
        "matcher.micro: has no meaning for mtt; leave the key out",
    ),
    ("no distilled row", {"evaluate": {"rows": ["random"]}}, "evaluate.rows: must hold at least distilled and random"),
    ("no random row", {"evaluate": {"rows": ["distilled"]}}, "evaluate.rows: must hold at least distilled and random"),
    ("graphs on a processor", {"runtime": {"compile": "graphs"}}, "runtime.compile: graphs are captured on GPUs"),
    ("one GPU and a half", {"runtime": {"gpus_per_worker": 1.5}}, "runtime.gpus_per_worker: 1.5 is neither"),
]


@pytest.mark.parametrize(("tree", "part"), [row[1:] for row in IMPOSSIBLE], ids=[row[0] for row in IMPOSSIBLE])
def test_an_impossible_combination_is_refused(tree: dict[str, Any], part: str) -> None:
    (sentence,) = problems_of(tree)
    assert part in sentence


def test_every_contradiction_has_a_case() -> None:
    """One ``yield`` of a sentence, one key at its head, at least one case above."""
    functions = [
        node
        for node in ast.parse(Path(rules.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_of_")
    ]
    written = [
        ast.unparse(node) for function in functions for node in ast.walk(function) if isinstance(node, ast.Yield)
    ]
    sentences = {problems_of(tree)[0] for _, tree, _ in IMPOSSIBLE}
    starts = {sentence.split(" ")[0] for sentence in sentences}
    for line in written:
        assert any(start in line for start in starts) or "{key}" in line, line
    assert len(written) > 15, "the sentences were found"
    assert len(IMPOSSIBLE) >= len(written)


@pytest.mark.parametrize(
    "tree",
    [
        {"synthetic": {"factor": 2}, "matcher": {"batch_syn": 4}},
        {"matcher": {"snapshots": [[0, 6]]}, "experts": {"epochs": 5}},
        {"matcher": {"name": "dc", "augment": "none"}},
        {"model": {"arch": "vit", "norm": "none"}},
        {"runtime": {"gpus_per_worker": 0.25}},
        {"runtime": {"gpus_per_worker": 2}},
        {"model": {"norm": "group"}, "matcher": {"name": "cafe", "micro": 1}, "synthetic": {"factor": 3}},
    ],
)
def test_the_edge_of_the_possible_is_accepted(tree: dict[str, Any]) -> None:
    parse_config(tree)


def test_combinations_are_told_together() -> None:
    tree = {"synthetic": {"ipc": 10, "segments": 3, "factor": 12}, "evaluate": {"rows": ["full"]}}
    assert len(problems_of(tree)) == 3
