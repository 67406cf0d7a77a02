"""The loop over segments, in this process: what each segment sees, what is done once, and what is found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from local_pool import SMALL, WALKS, LocalPool, local_run, shared_experts, small

from dasm_ray.config import matchers
from dasm_ray.config.matchers import BaseMatcher, keys_without_meaning
from dasm_ray.core.matching import gradient
from dasm_ray.core.seed import torch_generator
from dasm_ray.method.dasm import Distilled, distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.sets import flattened
from dasm_ray.runtime import worker
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.studies.rows import evaluate_rows

TRAINED = {"rounds": 2, "networks": 1, "steps": 2}
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "idc": {},
    "idc, a network in the loop": {"matcher": {"name": "idc", "network": "train", **TRAINED}},
    "dsa": {"matcher": {"name": "dsa", "inner_steps": 1, **TRAINED}},
    "dm": {"matcher": {"name": "dm", "rounds": 2, "networks": 2, "batch_real": 8}},
    "cafe": {"synthetic": {"group_size": None}, "matcher": {"name": "cafe", "batch_real": 8, **TRAINED}},
    "datm": WALKS,
}


def distilled(real: RealRefs, folder: Path, pool: LocalPool | None = None, **sections: Any) -> tuple[Any, Any]:
    """What came out, and the pool."""
    sections = {**sections, "experts": shared_experts() | sections.get("experts", {})}
    run = local_run(small(**sections), folder, real, pool)
    return distil(run, train_experts(run)), run.pool


def bytes_of(made: Distilled) -> bytes:
    parts = [(each.pixels, each.logits) for each in made.segments]
    return b"".join(array.tobytes() for part in parts for array in part if array is not None)


class Whole(NamedTuple):
    """An undisturbed run: what it made, all its tasks, and where; another run may go on there, which is over."""

    made: Any
    done: tuple[str, ...]
    folder: Path


@pytest.fixture(scope="module")
def undisturbed(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Whole]:
    """The run of a method as it is in the table, of so many images a class; made once."""

    @cache
    def done_by(name: str, ipc: int) -> Whole:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        made, pool = distilled(digits, folder, **with_keys(METHODS[name], {"synthetic": {"ipc": ipc}}))
        return Whole(made, tuple(pool.done), folder)

    return lambda name, ipc=2: done_by(name, ipc)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_distils_all_segments_and_goes_on_from_its_files(
    digits: RealRefs, undisturbed: Callable[..., Whole], name: str
) -> None:
    whole, done, folder = undisturbed(name)
    assert [each.pixels.shape for each in whole.segments] == [(10, 1, 1, 8, 8)] * 2
    for segment, start in zip(whole.segments, whole.starts, strict=True):
        assert not np.array_equal(segment.pixels, start.pixels)
    again, idle = distilled(digits, folder, **METHODS[name])
    assert bytes_of(again) == bytes_of(whole)
    assert not [task for task in idle.done if "round" in task], "a segment that is done was distilled again"
    assert len(idle.done) < len(done)


@pytest.mark.parametrize("name", ["idc", "datm"])
def test_inputs_lost_on_the_way_change_no_byte(
    digits: RealRefs, undisturbed: Callable[..., Whole], tmp_path: Path, name: str
) -> None:
    whole = undisturbed(name)
    second = next(task for task in whole.done if "round 1" in task)
    more = {"runtime": {"max_lost": 3}}
    lossy, again = distilled(digits, tmp_path / "lossy", LocalPool(lose=[second]), **METHODS[name], **more)
    assert bytes_of(lossy) == bytes_of(whole.made)
    assert "expert 0" in again.done[again.done.index("start of segment 1, group 0") :], (
        "experts may have gone with the node"
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [("idc", {"matcher": {"probe_share": 0.5}}), ("datm", {}), ("dm", {"matcher": {"probe_share": 1.0}})],
)
def test_probes_are_trained_once_a_segment(digits: RealRefs, tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    """Though the scores, the states of rounds and the place of start epochs all ask for them."""
    sections = {**METHODS[name]}
    if more:
        sections["matcher"] = METHODS[name].get("matcher", {}) | more["matcher"]
    _, pool = distilled(digits, tmp_path, **sections)
    trained = Counter(task for task in pool.done if task.startswith("probe "))
    assert trained == {"probe 0 before segment 2": 1, "probe 1 before segment 2": 1}


def test_each_segment_is_told_with_those_before(digits: RealRefs, tmp_path: Path) -> None:
    run, heard = local_run(small(), tmp_path, digits), []
    made = distil(run, train_experts(run), lambda frozen: heard.append([each.pixels for each in frozen]))
    assert [len(segments) for segments in heard] == [1, 2]
    assert heard[1][0].tobytes() == heard[0][0].tobytes() == made.segments[0].pixels.tobytes()


def test_no_real_image_starts_two_segments(digits: RealRefs, tmp_path: Path) -> None:
    made, _ = distilled(digits, tmp_path, synthetic={"init": "real"})
    first, second = ({image.tobytes() for image in each.pixels.reshape(-1, 64)} for each in made.starts)
    assert len(first) == len(second) == 10
    assert not first & second


def test_without_its_mechanisms_a_run_is_what_it_was(
    digits: RealRefs, undisturbed: Callable[..., Whole], tmp_path: Path
) -> None:
    """Every key of the method at its default, written out: the same digest, and the same bytes."""
    written, _ = distilled(digits, tmp_path / "written", **OFF)
    assert bytes_of(written) == bytes_of(undisturbed("idc").made)
    assert local_run(small(**OFF), tmp_path, digits).key == local_run(small(), tmp_path, digits).key


# --- the mechanisms of the method ------------------------------------------------------------------------------------

OFF: dict[str, dict[str, Any]] = {
    "synthetic": {"sizes": None, "init": "mix"},
    "matcher": {"strata": False, "relative": False, "depth": False, "bank_share": 0.0, "union_rate": False}
    | {"budget": "segment", "polish": 0.0, "context": "alone", "deviation": False, "frontier_share": 0.0},
}
"""Keys of the method, each at what leaves a run as it was."""

ONE: dict[str, dict[str, Any]] = {"synthetic": {"ipc": 2, "segments": 1}, "window": {"policy": "all"}}
"""One segment and no window: the base matcher."""


MECHANISMS: list[tuple[str, dict[str, Any]]] = [
    ("idc", {"synthetic": {"init": "loop"}}),
    ("idc", {"window": {"policy": "size"}}),
    ("idc", {"matcher": {"strata": True}}),
    ("dm", {"matcher": {"strata": True}}),
    ("idc", {"matcher": {"frontier_share": 0.5}}),
    ("idc", {"matcher": {"frontier_share": 0.5, "strata": True, "polish": 0.5}}),
    ("dm", {"matcher": {"deviation": True, "context": "union"}}),
    ("idc", {"matcher": {"relative": True}}),
    ("idc", {"matcher": {"depth": True}, "synthetic": {"ipc": 10}}),
    ("datm", {"matcher": {"depth": True}, "synthetic": {"ipc": 10}}),
    ("idc", {"matcher": {"bank_share": 0.7}}),
    ("dsa", {"matcher": {"bank_share": 0.7}}),
    ("dm", {"matcher": {"bank_share": 0.7}}),
    ("datm", {"matcher": {"bank_share": 0.7}}),
    ("idc", {"matcher": {"polish": 0.5}}),
    ("cafe", {"matcher": {"polish": 0.5}}),
    ("datm", {"matcher": {"polish": 0.5}}),
    ("idc", {"matcher": {"budget": "set"}}),
    ("idc", {"matcher": {"context": "union"}}),
    ("cafe", {"matcher": {"context": "union"}}),
    ("idc", {"matcher": {"scale_lr": True, "lr_img": 0.1, "union_rate": True}}),
]


def with_keys(*trees: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of trees laid over one another, key by key."""
    found: dict[str, dict[str, Any]] = {}
    for tree in trees:
        for section, keys in tree.items():
            is_whole = section == "matcher" and not found.get(section) and "name" not in keys
            found[section] = (SMALL["matcher"] if is_whole else found.get(section, {})) | keys
    return found


@pytest.mark.parametrize(("name", "keys"), MECHANISMS, ids=[f"{name} {keys}" for name, keys in MECHANISMS])
def test_a_mechanism_changes_the_set_and_goes_on_from_its_files(
    digits: RealRefs, undisturbed: Callable[..., Whole], tmp_path: Path, name: str, keys: dict[str, Any]
) -> None:
    plain = undisturbed(name, keys.get("synthetic", {}).get("ipc", 2))
    first, pool = distilled(digits, tmp_path / "first", **with_keys(METHODS[name], keys))
    assert bytes_of(first) != bytes_of(plain.made)
    *_, lost = [task for task in pool.done if "segment" in task and "round" in task]
    more = with_keys(METHODS[name], keys, {"runtime": {"max_lost": 3}})
    lossy, _ = distilled(digits, tmp_path / "lossy", LocalPool(lose=[lost]), **more)
    assert bytes_of(lossy) == bytes_of(first), "what is lost on the way is made again"
    again, idle = distilled(digits, tmp_path / "first", **with_keys(METHODS[name], keys))
    assert bytes_of(again) == bytes_of(first)
    assert not [task for task in idle.done if "round" in task]


def test_what_acts_from_the_second_segment_on_leaves_one_segment_the_base_matcher(
    digits: RealRefs, tmp_path: Path
) -> None:
    plain, _ = distilled(digits, tmp_path / "plain", **with_keys(ONE, {"matcher": {"scale_lr": True}}))
    later = {"matcher": {"scale_lr": True, "context": "union", "union_rate": True, "bank_share": 0.5}}
    later["matcher"] |= {"frontier_share": 0.5}
    later["matcher"] |= {"budget": "set", "polish": 0.3}
    made, pool = distilled(digits, tmp_path / "made", **with_keys(ONE, later))
    assert bytes_of(made) == bytes_of(plain)
    assert not [task for task in pool.done if task.startswith(("probe", "bank"))]


@pytest.mark.parametrize("name", ["idc", "datm"])
def test_in_the_polish_all_segments_move(digits: RealRefs, tmp_path: Path, name: str) -> None:
    """One round each of four for two segments, and the last two for both, at the base matcher's own states."""
    keys = {"matcher": {"rounds": 4, "budget": "set", "polish": 0.5, "bank_share": 0.5}}
    heard: list[list[int]] = []
    sections = with_keys(METHODS[name], keys, {"experts": shared_experts()})
    run = local_run(small(**sections), tmp_path / "run", digits)
    made = distil(run, train_experts(run), lambda frozen: heard.append([each.pixels.size for each in frozen]))
    assert isinstance(run.pool, LocalPool)
    done = [task for task in run.pool.done if "round" in task and not ("step" in task or "checkpoint" in task)]
    rounds = Counter(task.partition(",")[0] for task in done)
    of_round = len({task.split(", ")[-1 if name == "datm" else 1] for task in done if ", round 0" in task})
    assert rounds["segment 3"] == 2 * of_round
    assert rounds["segment 1"] + rounds["segment 2"] == 2 * of_round
    assert [each.pixels.shape[:2] for each in made.segments] == [(10, 1), (10, 1)]
    without = with_keys(sections, {"matcher": {"rounds": 2, "polish": 0.0}})
    before = local_run(small(**without), tmp_path / "before", digits)
    unpolished = distil(before, train_experts(before))
    for polished, frozen in zip(made.segments, unpolished.segments, strict=True):
        assert (polished.pixels != frozen.pixels).any(axis=(2, 3, 4)).all(), "every image of every segment"
    made_of = {task.rpartition(" ")[2] for task in run.pool.done if task.startswith(("probe", "bank"))}
    assert made_of == {"2"}, "no network that knows all of it is asked"
    assert len(heard) == 2, "each segment is told once, the last one polished"


@pytest.mark.parametrize("name", ["idc", "datm"])
@pytest.mark.parametrize("init", ["mix", "loop"])
def test_a_prefix_of_unequal_segments_is_the_smaller_set(
    digits: RealRefs, tmp_path: Path, name: str, init: str
) -> None:
    more = {section: keys for section, keys in METHODS[name].items() if section != "synthetic"}
    group, window = METHODS[name].get("synthetic", {}), {"policy": "size"}
    if name == "datm":
        group = {"group_size": None}
    sizes = {"ipc": 3, "segments": 2, "sizes": [1, 2], "init": init, **group}
    nested, _ = distilled(digits, tmp_path / "nested", synthetic=sizes, window=window, **more)
    alone = {"ipc": 1, "segments": 1, "init": init, **group}
    small_one, _ = distilled(digits, tmp_path / "small", synthetic=alone, window=window, **more)
    assert [each.pixels.shape[:2] for each in nested.segments] == [(10, 1), (10, 2)]
    assert nested.segments[0].pixels.tobytes() == small_one.segments[0].pixels.tobytes()


def test_soft_labels_start_as_what_the_experts_say(undisturbed: Callable[..., Whole]) -> None:
    made = undisturbed("datm").made
    for start, segment in zip(made.starts, made.segments, strict=True):
        assert start.logits is not None
        assert start.logits.shape == (10, 1, 10)
        right = start.logits.argmax(-1)[:, 0] == np.arange(10)
        assert right.mean() >= 0.8, "images that experts know start a segment"
        assert not np.array_equal(start.logits, segment.logits)
    assert made.starts[1].step_size == made.segments[0].step_size


# --- the table of matchers ---------------------------------------------------------------------------------------


def test_a_matcher_is_one_row_and_one_function(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy that compares biases alone: digits are distilled by it, and by nothing else's bytes."""
    monkeypatch.setitem(gradient.COMPARED, "biases", lambda shape: len(shape) == 1)
    toy = BaseMatcher("gradient", "biases", {None: "experts"}, "class", "l1")
    monkeypatch.setitem(matchers.MATCHERS, "toy", toy)
    measure = {"rounds": 2, "networks": 2, "batch_real": 8}
    monkeypatch.setitem(gradient.METRICS, "l1", lambda real, synthetic: (real - synthetic).abs().sum())
    made, _ = distilled(digits, tmp_path / "toy", matcher={"name": "toy", **measure})
    other, _ = distilled(digits, tmp_path / "idc", matcher={"name": "idc", **measure})
    assert made.starts[0].pixels.tobytes() == other.starts[0].pixels.tobytes()
    assert bytes_of(made) != bytes_of(other)


CHANGES: dict[str, Any] = {
    "networks": 3, "steps": 3, "batch_real": 5, "batch_syn": 3, "lr_img": 0.02, "scale_lr": True, "snapshots": [[1, 2]],
    "perturb": 0.3, "probe_share": 0.7, "inner_samples": 100, "inner_steps": 2, "inner_lr": 0.3, "metric": "l1",
    "augment": "flip", "strata": True, "relative": True, "depth": True, "union_rate": True,
    "deviation": True, "frontier_share": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if name != "idc"])
def test_a_key_that_is_said_to_have_no_meaning_has_none(
    digits: RealRefs, undisturbed: Callable[..., Whole], tmp_path: Path, name: str
) -> None:
    """Past the rules that refuse them, all such keys at once change no byte."""
    config = small(**METHODS[name])
    keys = [f"matcher.{key}" for key in CHANGES]
    without = [key.partition(".")[2] for key in keys_without_meaning(config.base, config.matcher.network, keys)]
    changes = {key: CHANGES[key] for key in without if key in CHANGES}
    assert changes
    matcher, experts = config.matcher.model_copy(update=changes), config.experts.model_copy(update=shared_experts())
    run = local_run(config.model_copy(update={"matcher": matcher, "experts": experts}), tmp_path, digits)
    assert bytes_of(distil(run, train_experts(run))) == bytes_of(undisturbed(name).made)


WITH_A_MEANING = (
    "networks",
    "steps",
    "batch_real",
    "lr_img",
    "snapshots",
    "perturb",
    "probe_share",
    "metric",
    "augment",
)


@pytest.mark.parametrize("key", WITH_A_MEANING)
def test_a_key_with_a_meaning_changes_the_set(
    digits: RealRefs, undisturbed: Callable[..., Whole], tmp_path: Path, key: str
) -> None:
    changed, _ = distilled(digits, tmp_path, matcher={key: CHANGES[key]})
    assert bytes_of(changed) != bytes_of(undisturbed("idc").made)


def test_no_two_tasks_of_a_run_draw_the_same_numbers(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def noted(*parts: Any) -> torch.Generator:
        drawn.append(parts)
        return torch_generator(*parts)

    monkeypatch.setattr(worker, "torch_generator", noted)
    keys = {"synthetic": {"ipc": 3, "segments": 3}, "matcher": SMALL["matcher"] | {"bank_share": 0.5}}
    run = local_run(small(**keys), tmp_path, digits)
    made = distil(run, train_experts(run))
    evaluate_rows(run, {"distilled": flattened(made.segments), "initial": flattened(made.starts)}, 1, None, None)
    by_tasks = [parts for parts in drawn if parts != ("pace",)]
    assert {parts[1] for parts in by_tasks} == {"expert", "probe", "bank", "evaluate"}
    assert len(by_tasks) == len(set(by_tasks))


def test_no_real_image_starts_two_of_three_segments(digits: RealRefs, tmp_path: Path) -> None:
    keys = {"synthetic": {"ipc": 9, "segments": 3, "init": "real"}, "window": {"policy": "quantile", "width": 0.05}}
    made, _ = distilled(digits, tmp_path, **keys)
    images = [image.tobytes() for each in made.starts for image in each.pixels.reshape(-1, 64)]
    assert len(images) == len(set(images)) == 90
