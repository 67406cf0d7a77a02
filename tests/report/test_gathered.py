"""What is gathered of a run directory: all of it, as far as it goes, and with a word on what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from local_pool import blocks_of, local_real, small
from PIL import Image

from dasm_ray.config.keys import Data, RunConfig
from dasm_ray.errors import ArtifactError, DataError, RunDirError
from dasm_ray.plain import Tree
from dasm_ray.report import gathered as module
from dasm_ray.report.gathered import BINS, gather, gather_all, real_bytes, runs_in, stored_bytes
from dasm_ray.report.neighbours import nearest
from dasm_ray.report.table import Row, as_json
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store.artifact import digest, read_artifact
from dasm_ray.store.checked import write_checked_json
from dasm_ray.store.checkpoints import read_scores
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place

MakeRun = Callable[[RunConfig, Path, RealRefs], Path]


def copied(folder: Path, to: Path, *without: str) -> Path:
    """A run as it was before it had come to these folders."""
    shutil.copytree(folder, to)
    for name in without:
        shutil.rmtree(to / name)
    return to


def test_a_finished_run(run_folder: Path, digits: RealRefs) -> None:
    run = gather(Place(run_folder))
    artifact = read_artifact(Place(run_folder) / "synthetic")
    assert run.digest == digest(artifact)
    assert run.class_names == digits.class_names
    assert run.real_count == int(digits.counts["train"].sum())
    assert [row.name for row in run.rows][:2] == ["distilled", "initial"]
    assert run.row is not None
    assert run.row.accuracies == json.loads((run_folder / "report" / "table.json").read_text())["rows"][0]["accuracies"]
    assert run.row_of("full") == next(row for row in run.rows if row.name == "full")
    assert [len(curve) for curve, _ in run.experts] == [4, 4]
    assert (run.log.losses, [task.worker for task in run.log.work if task.lost]) == (0, [2])
    assert list(run.log.distances) == [0, 1]
    assert run.remarks == []
    assert sum(run.sizes.values()) == sum(path.stat().st_size for path in run_folder.rglob("*") if path.is_file())


def test_pictures_are_the_set_and_its_starts_are_real_images(run_folder: Path, digits: RealRefs) -> None:
    run = gather(Place(run_folder))
    pictures, artifact = run.pictures, run.artifact
    assert pictures is not None
    assert artifact is not None
    assert np.abs(pictures.images / 255 - artifact.pixels).max() <= 0.5 / 255 + 1e-6
    assert pictures.segments.tolist() == artifact.segments.tolist()
    assert pictures.starts is not None
    assert pictures.nearest is not None
    found = nearest(open_source(run.config.data), run.config.data, pictures.starts, pictures.labels, 2)
    assert found.distances.max() < 0.01, "each tile is a shrunk real image"
    assert (pictures.nearest.distances >= 0).all()


def test_trajectories_keep_where_they_started(walked_folder: Path, digits: RealRefs) -> None:
    run = gather(Place(walked_folder))
    assert run.pictures is not None
    assert run.pictures.starts is not None
    for start, label in zip(run.pictures.starts, run.pictures.labels, strict=True):
        distance = np.abs(blocks_of(digits)[label].astype(int) - start).max(axis=(1, 2, 3)).min()
        assert distance <= 1, "as a picture, it is a real image"


def test_windows_and_errors_are_counted_as_a_loop_counts_them(run_folder: Path) -> None:
    run = gather(Place(run_folder), looks_at_data=False)
    scores = read_scores(Place(run_folder) / "scores", 1, None)
    assert scores is not None
    wrong = [[scores.wrong[i] for i in range(len(scores.label)) if scores.label[i] == label] for label in range(10)]
    assert run.wrong()[1] == pytest.approx([sum(of) / len(of) for of in wrong])
    shares = run.window_paths()
    assert shares.shape == (2, BINS)
    seen = there = 0
    for label in range(10):
        mine = [i for i in range(len(scores.label)) if scores.label[i] == label]
        ranked = sorted(mine, key=lambda i: (scores.static[i], i))
        first = [i for rank, i in enumerate(ranked) if rank * BINS // len(ranked) == 0]
        seen, there = seen + sum(int(scores.window[i]) for i in first), there + len(first)
    assert shares[1, 0] == pytest.approx(seen / there)


def test_a_run_on_its_way_is_shown_as_far_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    folder = copied(run_folder, tmp_path / "run", "synthetic", "report")
    (folder / "segments" / "segment_001_group_0001.safetensors").unlink()
    run = gather(Place(folder))
    assert (run.artifact, run.digest, run.rows) == (None, None, [])
    assert run.pictures is not None
    assert set(run.pictures.segments) == {0}
    assert len(run.pictures.labels) == 10
    shutil.rmtree(folder / "segments")
    shutil.rmtree(folder / "scores")
    run = gather(Place(folder))
    assert (run.pictures, run.scores) == (None, [])


def test_trajectories_on_their_way_have_no_pictures_and_say_so(walked_folder: Path, tmp_path: Path) -> None:
    run = gather(Place(copied(walked_folder, tmp_path / "run", "synthetic", "report")))
    assert run.pictures is None
    assert any("once it is done" in remark for remark in run.remarks)


def test_starts_that_were_not_kept_are_said(walked_folder: Path, tmp_path: Path) -> None:
    run = gather(Place(copied(walked_folder, tmp_path / "run", "segments")), looks_at_data=False)
    assert run.pictures is not None
    assert run.pictures.starts is None
    assert run.remarks == ["Where the images started is not kept in this run directory."]


def test_real_images_that_cannot_be_shown_are_said(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "is_too_much", lambda source: True)
    assert any("too many" in remark for remark in gather(Place(run_folder)).remarks)
    folder = copied(run_folder, tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(
        config.read_text().replace("name: digits", "name: folder").replace("path: null", "path: /nowhere")
    )
    run = gather(Place(folder))
    assert run.pictures is not None
    assert run.pictures.nearest is None
    assert any("cannot be opened here" in remark for remark in run.remarks)
    assert "/nowhere" not in " ".join(run.remarks)


def test_images_with_another_service_are_not_asked_for_unless_the_run_was_made_here(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run directory may come from a stranger: no page fetches what its file names, or talks to whom."""
    asked: list[tuple[str | None, bool]] = []

    def asking(data: Data) -> NoReturn:
        asked.append((data.path, data.download))
        raise DataError("nothing there")

    monkeypatch.setattr(module, "open_source", asking)
    folder = copied(run_folder, tmp_path / "run")
    config, elsewhere = folder / "config.yaml", "http://127.0.0.1:9/images"
    text = config.read_text().replace("name: digits", "name: parquet").replace("download: false", "download: true")
    config.write_text(text.replace("path: null", f"path: {elsewhere}"))
    remarks = gather(Place(folder)).remarks
    assert asked == []
    assert any("lie with another service than the run" in remark for remark in remarks)
    gather(Place(folder), is_own=True)
    assert asked == [(elsewhere, True)]
    config.write_text(text.replace("path: null", "path: /nowhere"))
    gather(Place(folder))
    assert asked[1:] == [("/nowhere", False)]


def test_what_is_damaged_is_said_or_refused(run_folder: Path, tmp_path: Path) -> None:
    folder = copied(run_folder, tmp_path / "run")
    for name in ("scores/segment_000.parquet", "segments/segment_000_group_0000.safetensors"):
        (folder / name).write_bytes(b"x" * 100)
    run = gather(Place(folder), looks_at_data=False)
    assert len(run.remarks) >= 2
    assert all("damaged" in remark or "not kept" in remark for remark in run.remarks)
    (folder / "synthetic" / "dataset.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        gather(Place(folder))


@pytest.mark.parametrize(
    "table", [{"title": "x"}, {"title": "x", "rows": [{"name": "a"}]}, {"title": "x", "rows": 3},
              {"title": "x", "rows": [{"name": "a", "accuracies": [], "validation": [], "labels": "hard"}]}]
)  # fmt: skip
def test_a_table_or_an_audit_that_is_none_of_ours_is_said_and_passed_over(
    run_folder: Path, tmp_path: Path, table: Tree
) -> None:
    folder = copied(run_folder, tmp_path / "run")
    write_checked_json(Place(folder / "report" / "table.json"), table)
    write_checked_json(
        Place(folder / "report" / "audit.json"), {"set": digest(read_artifact(Place(folder / "synthetic")))}
    )
    run = gather(Place(folder), looks_at_data=False)
    assert (run.rows, run.audits) == ([], {})
    assert any("table.json is damaged (it is no table of ours" in remark for remark in run.remarks)


def test_bytes_of_a_set_and_of_what_it_stands_for(run_folder: Path, digits: RealRefs) -> None:
    run = gather(Place(run_folder), looks_at_data=False)
    assert stored_bytes(run) == 20 * 64 * 4 + 20
    assert real_bytes(run) == int(digits.counts["train"].sum()) * 65


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (256, 1), (257, 2), (1000, 2)])
def test_a_hard_label_takes_whole_bytes_in_the_set_as_in_what_it_stands_for(
    run_folder: Path, classes: int, size: int
) -> None:
    run = gather(Place(run_folder), looks_at_data=False)
    assert run.artifact is not None
    names = tuple(map(str, range(classes)))
    run = replace(run, class_names=names, artifact=replace(run.artifact, class_names=names))
    assert stored_bytes(run) == 20 * 64 * 4 + 20 * size
    assert run.real_count is not None
    assert real_bytes(run) == run.real_count * (64 + size)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="is no run directory"):
        gather(Place(tmp_path))
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunDirError, match="no run yet"):
        runs_in(Place(tmp_path))


def test_runs_of_a_comparison_have_their_rows_from_its_table(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    copied(run_folder, folder / "sets" / "small_ipc2", "report")
    (folder / "comparison.json").write_text("{}")
    rows = [Row("small", [0.5], ipc=2), Row("random", [0.4], ipc=2), Row("small", [0.9], ipc=1), Row("full", [0.95])]
    write_checked_json(Place(folder) / "table.json", as_json(rows, "a title"))
    (run,) = gather_all(Place(folder), looks_at_data=False)
    assert [(row.name, row.mean) for row in run.rows] == [("distilled", 0.5), ("random", 0.4), ("full", 0.95)]
    assert runs_in(Place(folder)) == [Place(folder / "sets" / "small_ipc2")]


def of_images(folder: Path, images: np.ndarray) -> Path:
    """A data set of ten images in each of two classes, as files."""
    for number, image in enumerate(images):
        split = "train" if number % 10 < 6 else "val" if number % 10 < 8 else "test"
        file = folder / split / "ab"[number // 10] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def test_real_images_that_were_replaced_are_not_shown_beside_the_set(make_run: MakeRun, tmp_path: Path) -> None:
    images = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (20, 8, 8), np.uint8)
    data = of_images(tmp_path / "data", images)
    config = small(data={"name": "folder", "path": str(data), "val_share": 0.2})
    run = make_run(config, tmp_path / "run", local_real(config))
    found = gather(Place(run))
    assert found.pictures is not None
    assert (found.pictures.nearest is not None, found.remarks) == (True, [])
    of_images(tmp_path / "data", 255 - images)
    found = gather(Place(run))
    assert found.pictures is not None
    assert (found.pictures.nearest, found.remarks) == (None, [module.OTHERS])


@pytest.mark.parametrize(
    ("counts", "remark"),
    [
        (None, "Nothing kept tells whether"),
        ({"train": [1, 2]}, "Nothing kept tells whether"),
        ({split: [True] * 10 for split in ("train", "val", "test")}, "Nothing kept tells whether"),
        ({split: [1] * 10 for split in ("train", "val", "test")}, module.OTHERS),
    ],
)
def test_real_images_of_a_run_on_its_way_are_told_by_their_numbers(
    run_folder: Path, tmp_path: Path, counts: object, remark: str
) -> None:
    folder = copied(run_folder, tmp_path / "run", "synthetic", "report")
    assert gather(Place(folder)).remarks == []
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = [{**line, "counts": counts} if line["kind"] == "data" else line for line in lines]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (found,) = gather(Place(folder)).remarks
    assert found.startswith(remark)
