"""The command of the benchmarks: what it makes of samples, what it refuses, that it goes on; and a set it draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench
import limits
import matplotlib
import numpy as np
import on_gpu
import pytest
import rows_runtime
import shown
import spent
import torch
from demo import by_stage
from glyphs import SHARES, Face, drawn, size_of, spread, unlike
from local_pool import LocalPool, fetch, put
from measuring import ALLOCATOR, _environment
from PIL import ImageFont

from dasm_ray.runtime.decoding import RealRefs

NAMES = ("match", "k_center", "demo")


def sample(ours: float, twin: float, plain: float) -> dict[str, dict[str, float]]:
    return {
        form: {"cpu": cpu, "wall": 2 * cpu, "faults": 1.0}
        for form, cpu in (("ours", ours), ("twin", twin), ("plain", plain))
    }


def outcome(width: int = 32) -> dict[str, object]:
    samples = [sample(1, 2, 3), sample(2, 8, 10), sample(1, 3, 3)]
    return {
        "row": "match",
        "width": width,
        "units": 100,
        "unit": "images",
        "differ": 2e-6,
        "limit": 1e9,
        "work": 5e8,
        "memory": {"ours": {"added": 3 << 20, "peak": 9 << 20}, "twin": {"more_than": 7 << 20}},
        **shown.figures(samples),
    }


def test_a_ratio_is_that_of_pairs() -> None:
    ratios = outcome()["ratios"]
    assert ratios["twin_cpu"] == {"median": 3, "least": 2, "most": 4}
    assert ratios["plain_wall"] == {"median": 3, "least": 3, "most": 5}
    assert outcome()["forms"]["ours"]["cpu"] == {"median": 1, "least": 1, "most": 2}


def test_a_line_has_all_that_was_measured() -> None:
    text = shown.line(outcome())
    assert "1.000 (100 images)" in text
    assert "3.00 (2.00–4.00)" in text
    assert "3 / > 7" in text
    assert "50 / 17" in text
    assert "– / –" in shown.line(outcome(width=0)), "what has no network has no share of convolutions"


def test_an_operation_is_of_one_kind() -> None:
    of = {
        "aten::mkldnn_convolution": "convolutions",
        "mkldnn::_convolution_pointwise": "convolutions",
        "aten::convolution_backward": "their derivatives",
        "aten::bmm": "products",
        "## Call CompiledFxGraph fxk ##": "compiled loops",
        "aten::_to_copy": "copies",
        "aten::native_group_norm": spent.REST,
        "aten::empty": spent.REST,
    }
    assert {name: spent.kind_of(name) for name in of} == of


def test_shares_of_time_add_up_and_say_what_could_be_gained() -> None:
    found = spent.shares([("aten::conv2d", 1.0), ("aten::mm", 2.0), ("aten::mm", 1.0), ("aten::relu", 4.0)])
    assert found["products"] == 0.375
    assert found[spent.REST] == 0.5
    assert sum(found.values()) == 1
    assert spent.bound(found, 3.0) == 6.0


def test_where_time_goes_is_told_of_rows_with_a_network() -> None:
    rows = [outcome() | {"spent": spent.shares([("aten::mm", 3.0), ("aten::relu", 1.0)])}, {"row": "demo"}]
    text = shown.where_time_goes(rows)
    shares = "0 % 0 % 75 % 0 % 0 % 25 %"
    assert " ".join(text.splitlines()[2].split()) == f"match 32 {shares} 3.00 → 4.00"
    assert shown.where_time_goes([{"row": "demo"}]) == ""


def test_where_time_is_spent_is_seen() -> None:
    images, weight = torch.rand(8, 4, 16, 16), torch.rand(4, 4, 3, 3)
    assert spent.spent(lambda: torch.nn.functional.conv2d(images, weight))["convolutions"] > 0.3


def test_a_row_that_failed_says_why() -> None:
    failed = {"row": "dm", "width": 32, "failed": "its process died (exit code -9)"}
    assert shown.line(failed).endswith("could not be measured: its process died (exit code -9)")


def test_stages_of_one_name_are_added_up() -> None:
    events = [
        {"kind": "stage", "stage": "data", "time": 12.0},
        {"kind": "stage_end", "stage": "data", "seconds": 1.0},
        {"kind": "stage_end", "stage": "distil", "seconds": 2.0},
        {"kind": "stage_end", "stage": "distil", "seconds": 3.5},
    ]
    found = by_stage(events, began=10.0)
    assert found == {"start": 2.0, "stages": {"data": 1.0, "distil": 5.5}}
    told = shown.told({"row": "demo", "seconds": 9.0, **found})
    assert told.endswith("9.0 in all; until the first stage 2.0, data 1.0, distil 5.5")


def test_rows_of_the_runtime_are_told_in_a_line() -> None:
    ratios = {"cpu": {"median": 1.02, "least": 1.0, "most": 1.1}, "wall": {"median": 1.9, "least": 1.8, "most": 2.0}}
    ratios["apart"] = {"median": 1.95, "least": 1.9, "most": 2.0}
    both = {"ratios": ratios, "differ": 0.0}
    assert "CPU 1.02 (1.00–1.10), wall 1.90" in shown.told({"row": "coordinator", **both})
    assert "as one: wall 1.90 (1.80–2.00), where two that share nothing are 1.95 (1.90–2.00)" in shown.told(
        {"row": "workers", **both}
    )
    assert "1 done 0.500" in shown.told({"row": "rounds", "rounds": {"1 done": {"median": 0.5}}})
    assert shown.told({"row": "rounds", "failed": "why"}) == "rounds could not be measured: why"


def test_rounds_are_timed_after_few_and_many_segments_and_on_small_and_large_sets() -> None:
    found = rows_runtime.rounds(1, quick=True)
    alone, residual = (
        ["1 done alone", "16 done alone", "256 done alone"],
        [f"{n} done residual" for n in (1, 16, 64, 256)],
    )
    assert list(found["rounds"]) == [*alone, *residual, "1000 images", "4000 images", "16000 images"]
    assert all(seconds["least"] > 0 for seconds in found["rounds"].values())


def test_a_bare_loop_of_core_calls_comes_to_what_the_coordinator_does(digits: RealRefs) -> None:
    pool = LocalPool()
    pool._worker = rows_runtime.Timed(1, fetch)  # type: ignore[assignment]
    bench = rows_runtime.prepared(rows_runtime.recipe(quick=True), digits, put)
    ours = rows_runtime.coordinated(bench, pool)  # type: ignore[arg-type]
    seconds, (ref,) = rows_runtime.asked(pool, "loop", bench.job, bench.inputs, bench.initial, count=2)  # type: ignore[arg-type]
    assert np.array_equal(ours, pool.fetch(ref))
    assert not np.array_equal(ours, bench.initial)
    assert 0 < seconds < rows_runtime.asked(pool, "cpu")[0]  # type: ignore[arg-type]


@pytest.mark.slow(40)
def test_the_coordinator_one_worker_and_two_come_to_what_a_bare_loop_does(ray_session: object) -> None:
    for row in (rows_runtime.coordinator, rows_runtime.workers):
        found = row(1, True)
        assert found["differ"] == 0
        (sample,) = found["samples"]
        assert all(seconds > 0 for clocks in sample.values() for seconds in clocks.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "match,typo"], "there is no row 'typo'; there are match, k_center, demo"),
        (["--width", "32,wide"], "'32,wide' is no list of widths"),
        (["--width", "0"], "'0' is no list of widths"),
        (["--precision", "bf16,half"], "'bf16,half' is no list of float32 and bf16"),
        (["--pairs", "0"], "0 pairs say nothing"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        bench.read(arguments, NAMES)
    assert exit.value.code == 2
    assert said in capsys.readouterr().err


def test_rows_stand_in_the_order_of_the_table() -> None:
    settings = bench.read(["--rows", "k_center,match", "--width", "8,4"], NAMES)
    assert [key for key, _ in bench.todo(settings)] == ["match/8", "match/4", "k_center"]
    both = bench.read(["--rows", "k_center,match", "--width", "8", "--precision", "bf16,float32"], NAMES)
    assert [key for key, _ in bench.todo(both)] == ["match/8/bf16", "match/8", "k_center"]


def test_short_calls_are_made_several_times() -> None:
    assert [bench.repeats(seconds) for seconds in (1.0, 0.2, 0.05, 1e-12)] == [1, 1, 4, bench.MOST_REPEATS]


def test_a_plain_process_has_no_allocator_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOCATOR[0], "5")
    with _environment({"OMP_NUM_THREADS": "3"}):
        assert ALLOCATOR[0] not in os.environ
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ[ALLOCATOR[0]] == "5"


def test_the_processor_is_told() -> None:
    found = limits.processor()
    assert found["name"]
    assert found["bf16"] == bool(set(found["flags"]) & set(limits.BF16))


def test_loops_are_timed_on_a_device_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the processor, at sizes that say nothing."""
    monkeypatch.setattr(on_gpu, "FORMS", ("eager/float32",))
    file = tmp_path / "gpu.json"

    def run(*options: str) -> int:
        return on_gpu.main(["--device", "cpu", "--quick", "--width", "4", "--json", str(file), *options])

    assert run("--minutes", "0") == 3
    assert run() == 0
    rows = json.loads(file.read_text())["rows"]
    assert list(rows) == [f"{name}/4/eager/float32" for name in on_gpu.LOOPS]
    assert all(row["images_s"] > 0 and len(row["samples"]) == 5 for row in rows.values())
    monkeypatch.setattr(on_gpu, "measured", None)  # nothing is measured again
    assert run("--minutes", "0") == 0
    assert "All samples are in" in capsys.readouterr().out
    file.write_text(json.dumps({**json.loads(file.read_text()), "torch": "0.4"}))
    with pytest.raises(SystemExit, match="figures of another device, torch or size"):
        run()


@pytest.mark.slow(105)
@pytest.mark.timeout(900)
def test_the_command_keeps_each_row_and_goes_on(tmp_path: Path) -> None:
    """At sizes that say nothing: eager steps, one pair. A row that is there is not measured again."""
    file, script = tmp_path / "bench.json", Path(bench.__file__)

    def run(*options: str) -> str:
        command = [sys.executable, str(script), "--quick", "--width", "4", "--pairs", "1", "--json", str(file)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "match" in run("--rows", "match")
    first = json.loads(file.read_text())
    assert list(first["rows"]) == ["match/4"]
    assert first["rows"]["match/4"]["differ"] < 1e-3
    assert len(first["rows"]["match/4"]["samples"]) == 1
    assert first["rows"]["match/4"]["work"] > 0
    assert sum(first["rows"]["match/4"]["spent"].values()) == pytest.approx(1)
    text = run("--rows", "match,herding", "--resume")
    second = json.loads(file.read_text())
    assert second["rows"]["match/4"] == first["rows"]["match/4"]
    assert second["rows"]["herding"]["differ"] == 0
    assert text.index("\nmatch") < text.index("\nherding")
    assert list(tmp_path.iterdir()) == [file]


# --- the set of characters ---------------------------------------------------------------------------------------


def face(family: str, name: str = "x") -> Face:
    return Face(Path(name), family, frozenset("ab"))  # type: ignore[arg-type]


def test_families_of_fonts_are_dealt_to_splits_as_a_whole() -> None:
    split = {family: face(family).split for family in map(str, range(200))}
    assert set(split.values()) == set(SHARES)
    assert all(face(family, "another").split == split[family] for family in split)
    assert 100 < list(split.values()).count("train") < 140


def test_each_family_draws_once_before_one_draws_twice() -> None:
    faces = [face("a", "1"), face("a", "2"), face("a", "3"), face("b", "4"), face("c", "5"), face("c", "6")]
    assert [each.file.name for each in spread(faces)] == ["1", "4", "5", "2", "6", "3"]


def test_a_drawing_is_taken_once_and_says_where_its_line_is() -> None:
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    pen = ImageFont.truetype(str(file), size_of(32))
    hyphen, underscore, comma = (drawn(character, pen, 32) for character in "-_,")
    assert hyphen.shape == (32, 32)
    assert hyphen.any(1).nonzero()[0].max() < 22 <= underscore.any(1).nonzero()[0].min()
    seen: set[bytes] = {bytes(32 * 32)}
    assert list(map(id, unlike([hyphen, comma, hyphen, np.zeros_like(hyphen)], seen))) == [id(hyphen), id(comma)]
    assert list(unlike([comma], seen)) == []
