"""One segment by its matcher: what rounds are given, and where students start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import SMALL, WALKS, local_run, shared_experts, small

from dasm_ray.config.matchers import MATCHERS
from dasm_ray.errors import NonFinite
from dasm_ray.method import match as module
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.match import WALKS as OF_FAMILIES
from dasm_ray.method.match import match
from dasm_ray.method.probes import Probes
from dasm_ray.method.sets import Segment, Target
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import read_group, write_group
from dasm_ray.store.place import Place

WIDE = {**WALKS, "trajectory": {**WALKS["trajectory"], "expansion": 1}}
"""Students start at any of the first two epochs, from the first round on."""


def everything(digits: RealRefs) -> Target:
    """A target without a window or a frontier."""
    counts = digits.counts["train"]
    return Target([np.arange(count) for count in counts], [np.empty(0, np.int64) for _ in counts])


def matched(digits: RealRefs, folder: Path, frozen: list[Segment], **sections: Any) -> tuple[Segment, list[str]]:
    """The last segment after those that are frozen, and what was said."""
    sections = {**sections, "experts": shared_experts() | sections.get("experts", {})}
    run, notes = local_run(small(**sections), folder, digits), []
    run.progress.note = notes.append  # type: ignore[method-assign]
    experts, segment = train_experts(run), len(frozen)
    rate = 0.01 if run.config.is_trajectory else None
    logits = np.zeros((10, 1, 10), np.float32) if run.config.learns_labels else None
    start = Segment(np.full((10, 1, 1, 8, 8), 0.5, np.float32), logits, rate)
    targets = [everything(digits)] * (segment + 1)
    probes = Probes(run, segment, experts, frozen)
    return match(run, segment, start, experts, probes, frozen, targets), notes


def frozen_of(value: float, **more: Any) -> list[Segment]:
    return [Segment(np.full((10, 1, 1, 8, 8), value, np.float32), **more)]


def test_every_family_has_its_way_through_a_segment() -> None:
    assert {base.family for base in MATCHERS.values()} <= set(OF_FAMILIES)


@pytest.mark.parametrize(("context", "depends"), [("alone", False), ("residual", True), ("union", True)])
def test_earlier_segments_take_part_where_the_context_says_so(
    digits: RealRefs, tmp_path: Path, context: str, depends: bool
) -> None:
    results = [
        matched(digits, tmp_path / str(value), frozen_of(value), matcher={"context": context})[0].pixels.tobytes()
        for value in (0.2, 0.9)
    ]
    assert (results[0] != results[1]) == depends


def test_students_start_where_the_probe_stands(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = frozen_of(0.3, logits=np.zeros((10, 1, 10), np.float32), step_size=0.01)
    monkeypatch.setattr(module, "shift_of", lambda losses, probe: 1)
    segment, notes = matched(digits, tmp_path / "shifted", frozen, **WIDE)
    assert "segment 2: students start at expert epochs 1 to 2" in notes
    assert segment.step_size != 0.01
    held = {**WIDE, "trajectory": {**WIDE["trajectory"], "by_probe": False}}
    _, notes = matched(digits, tmp_path / "held", frozen, **held)
    assert "segment 2: students start at expert epochs 0 to 1" in notes


def test_stretches_that_teach_nothing_are_said(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stalled", lambda losses, epochs: [(1, 0)])
    _, notes = matched(digits, tmp_path, [], **WIDE)
    said = "25% of the expert stretches to match do not lower the expert's own loss (such as expert 1, epoch 0)"
    assert [note for note in notes if note.startswith(said)]


def test_labels_that_are_not_learned_are_certainties() -> None:
    certain = module._labels(Segment(np.zeros((3, 2, 1, 2, 2), np.float32)))
    assert certain.shape == (3, 2, 3)
    assert np.array_equal(certain.argmax(-1), [[0, 0], [1, 1], [2, 2]])
    assert certain.sum() == 6


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"matcher": {"lr_img": 1e38, "steps": 3}},
            r"^segment 1, group 0, round 0, network state 0: .*matcher\.lr_img",
        ),
        (
            {**WIDE, "trajectory": {**WIDE["trajectory"], "lr_img": 3e38}},
            r"^segment 1, (step of round 0|round \d, lane \d): .*trajectory\.lr_img \(now 3e\+38\)",
        ),
        (
            {**WIDE, "trajectory": {**WIDE["trajectory"], "lr_step": 1e30}},
            r"^segment 1, step of round 0: .*trajectory\.lr_step \(now 1e\+30\)",
        ),
    ],
    ids=["pixels", "pixels of trajectories", "the student's rate"],
)
def test_a_segment_that_explodes_is_not_kept(
    digits: RealRefs, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(NonFinite, match=words):
        matched(digits, tmp_path, [], **sections)
    for file in (tmp_path / "segments").glob("*"):  # of rounds before
        assert all(np.isfinite(array).all() for array in tensors.read(Place(file))[0].values())


def test_a_student_rate_that_explodes_is_named(digits: RealRefs, tmp_path: Path) -> None:
    config = small(**{**WIDE, "trajectory": {**WIDE["trajectory"], "step_size": 1e38}})
    run = local_run(config, tmp_path, digits)
    start = Segment(np.full((10, 2, 1, 8, 8), 0.5, np.float32), np.ones((10, 2, 10), np.float32), 1e38)
    experts = train_experts(run)
    with pytest.raises(NonFinite, match=r"^segment 1, round 0, lane \d: .*trajectory\.step_size \(now 1e\+38\)"):
        match(run, 0, start, experts, Probes(run, 0, experts, []), [], [everything(digits)])
    assert not list((tmp_path / "segments").glob("*"))


def test_a_finished_segment_of_nan_that_an_older_version_has_kept_is_refused(digits: RealRefs, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"matcher": {"rounds": 1}}
    matched(digits, tmp_path, [], **sections)
    run = local_run(small(**sections, experts=shared_experts()), tmp_path, digits)
    arrays, round = read_group(run.place / "segments", 0, 1, run.key) or pytest.fail("no checkpoint")
    arrays["pixels"][:] = np.nan
    write_group(run.place / "segments", 0, 1, arrays, round, run.key)
    with pytest.raises(NonFinite, match=r"segment 1: its checkpoint in .* not finite; remove that folder"):
        matched(digits, tmp_path, [], **sections)


def test_the_polish_sees_what_any_segment_saw(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[Target]] = []

    def watched(*args: Any) -> Segment:
        given.append(args[-1])
        return match(*args)

    monkeypatch.setattr(module, "match", watched)
    matcher = SMALL["matcher"] | {"rounds": 4, "polish": 0.5}
    sections = {"matcher": matcher, "window": {"policy": "quantile", "width": 0.6}, "experts": shared_experts()}
    run = local_run(small(**sections), tmp_path, digits)
    distil(run, train_experts(run))
    first, second, of_all = given[-1]
    for one, other, both in zip(first.window, second.window, of_all.window, strict=True):
        assert set(both.tolist()) == set(one.tolist()) | set(other.tolist()) != set(one.tolist())
