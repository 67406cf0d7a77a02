"""The command line on bad input: one clear sentence that names the thing, the right exit code, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from dasm_ray.cli import main
from dasm_ray.config.parsing import load_config
from dasm_ray.report.page import MARGIN
from dasm_ray.store.artifact import Artifact, write_artifact
from dasm_ray.store.card import write_unfinished
from dasm_ray.store.place import Place
from dasm_ray.store.rundir import RunDir

GOOD = "name: good\ndata: {name: digits}\nmodel: {width: 8, depth: 1}\nsynthetic: {ipc: 2, segments: 2}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str, code: int = 2, sentences: int = 1) -> None:
    """One sentence on stderr with all these parts; no traceback; nothing on stdout."""
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("dasm-ray: ")]
    assert len(said) == sentences, result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


# --- configuration: known before Ray starts ----------------------------------------------------------------------

FILES = {
    "not YAML": ("a: [1", "is not YAML"),
    "a list": ("- 1\n- 2\n", "must be a mapping"),
    "a wrong section": ("matcer: {}\n", "did you mean 'matcher'?"),
    "a typo": ("synthetic: {icp: 2}\n", "synthetic.icp: there is no such key; did you mean 'ipc'?"),
    "text for a number": ("synthetic: {ipc: many}\n", "synthetic.ipc"),
    "true for a rate": ("matcher: {lr_img: true}\n", "matcher.lr_img: must be a number"),
    "a negative rate": ("matcher: {lr_img: -1}\n", "matcher.lr_img"),
    "an unknown matcher": ("matcher: {name: idcc}\n", "did you mean 'idc'?"),
    "an unknown policy": ("window: {policy: frontal}\n", "did you mean 'frontier'?"),
    "an unknown augmentation": ("matcher: {augment: color_crup}\n", "'crup' is no augmentation"),
    "segments that do not divide": (
        "synthetic: {ipc: 5, segments: 2}\n",
        "synthetic.ipc: 5 images a class cannot be cut",
    ),
    "slots larger than the batch": (
        "synthetic: {factor: 4}\nmatcher: {batch_syn: 8}\n",
        "matcher.batch_syn: 8 cannot hold",
    ),
    "snapshots past the end": ("experts: {epochs: 3}\nmatcher: {snapshots: [[0, 9]]}\n", "matcher.snapshots: [0, 9]"),
    "an empty range": ("matcher: {snapshots: [[3, 3]]}\n", "matcher.snapshots: [3, 3] is empty"),
    "dc with experts": ("matcher: {name: dc, network: experts}\n", "matcher.network: has no meaning for dc"),
    "dsa without augmentation": ("matcher: {name: dsa, augment: none}\n", "set matcher.name to dc"),
    "one and a half GPUs": ("runtime: {gpus_per_worker: 1.5}\n", "runtime.gpus_per_worker: 1.5"),
    "a table without random": ("evaluate: {rows: [distilled, full]}\n", "evaluate.rows"),
    "a name that is a path": ("name: ../up\n", "name"),
}


@pytest.mark.parametrize(("text", "part"), FILES.values(), ids=FILES.keys())
def test_configurations_that_cannot_be_meant(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refused(call("distill", path, "--run", tmp_path / "run"), part)
    assert not (tmp_path / "run").exists()


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("synthetic: {icp: 2, factor: none}\nseed: 1.5\n")
    refused(call("distill", path), "synthetic.icp", "synthetic.factor", "seed", sentences=3)


OPTIONS = {
    "no equals sign": (["--set", "seed"], "write it as section.key=value"),
    "into a value": (["--set", "seed.x=1"], "seed"),
    "an unknown key": (["--set", "probe.member=3"], "did you mean 'members'?"),
    "no workers": (["--workers", "0"], "runtime.workers"),
    "64 GPUs": (["--set", "runtime.gpus_per_worker=64"], "64 GPUs"),
    "64 workers with a GPU": (["--workers", "64", "--set", "runtime.gpus_per_worker=1"], "1 GPU"),
    "more cores than there are": (["--set", "runtime.cpus_per_worker=4096"], "4096 cores"),
    "too many blocks": (["--set", "model.depth=8"], "model.depth: 8 blocks"),
    "tiles finer than pixels": (["--set", "synthetic.factor=9"], "synthetic.factor"),
    "a class too small": (["--set", "synthetic.ipc=400"], "class '0': has"),
    "tiles under trajectories": (
        ["--set", "matcher.name=mtt", "--set", "synthetic.factor=2", "--set", "trajectory.starts=[[0,1,1]]"],
        "synthetic.factor: mtt",
    ),
    "starts past the experts": (
        ["--set", "matcher.name=datm", "--set", "trajectory.starts=[[0, 2, 900]]"],
        "trajectory.starts: a student that starts at epoch 899",
    ),
    "starts the wrong way round": (
        ["--set", "matcher.name=datm", "--set", "trajectory.starts=[[2, 1, 3]]"],
        "trajectory.starts: [2, 1, 3] must be first < open <= last",
    ),
    "starts that are no rows": (
        ["--set", "matcher.name=mtt", "--set", "trajectory.starts=[[0, 1, x]]"],
        "trajectory.starts.0.2",
    ),
    "a metric for trajectories": (
        ["--set", "matcher.name=mtt", "--set", "matcher.metric=l1", "--set", "trajectory.starts=[[0,1,1]]"],
        "matcher.metric: has no meaning for mtt",
    ),
    "probes for trajectories": (
        ["--set", "matcher.name=mtt", "--set", "matcher.probe_share=0.5", "--set", "trajectory.starts=[[0,1,1]]"],
        "matcher.probe_share: has no meaning for mtt; trajectory.by_probe is meant",
    ),
}


@pytest.mark.parametrize(("options", "part"), OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.usefixtures("ray_session")
def test_options_that_cannot_be_met(recipe: Path, tmp_path: Path, options: list[str], part: str) -> None:
    refused_with_notes(call("distill", recipe, "--run", tmp_path / "run", *options), part)
    assert not (tmp_path / "run").exists()


def refused_with_notes(result: Result, *parts: str, code: int = 2) -> None:
    """Like ``refused``, where progress may have been told on stderr before."""
    assert result.exit_code == code, result.output
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("dasm-ray: ")]
    for part in parts:
        assert part in said, said
    assert "Traceback" not in result.output


def test_a_missing_recipe(tmp_path: Path) -> None:
    refused(call("distill", tmp_path / "none.yaml"), "none.yaml: there is no such file")


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://10.0.0.1:8265", "job server; send the command there by `dasm-ray submit --address http"),
        ("head..svc:6379", "is not host:port"),
        ("head:0", "is not host:port"),
        ("fd00::1:6379", "write it in brackets"),
        ("[zz]:6379", "is not host:port"),
        (" head:6379", "space"),
        ("", "an empty address"),
    ],
)
@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_a_misspelt_address(recipe: Path, artifact: Path, address: str, part: str, command: str) -> None:
    refused(call(command, recipe if command == "distill" else artifact, "--address", address), part)


def test_the_address_of_a_job_server_in_the_environment(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    refused(call("experts", recipe), "http://10.0.0.1:8265: is the address of a job server")


EARLY = """
import importlib, json, os, sys, traceback
from dasm_ray import cli
refused, loaded, tries = json.loads(sys.argv[1])
class Loading:
    def find_spec(self, name, path=None, target=None):
        if name in refused:
            raise SystemExit(7)
sys.meta_path.insert(0, Loading())
for name in loaded:
    importlib.import_module(name)
for folder, words in tries:
    if os.fork() == 0:
        code = 1
        try:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
            cli.main(words)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Each command in a fork of one process, which has loaded what the command line alone needs; 7: it loads what is not
to be loaded."""


def ended_early(
    refused: list[str], loaded: list[str], tries: dict[str, tuple[Path, list[str]]]
) -> dict[str, tuple[int, str]]:
    """Of commands by name, each in its folder: the exit code, and stderr.

    None may load what is ``refused``; what is ``loaded`` all have from the beginning, to save time.
    """
    given = json.dumps([refused, loaded, [[str(folder), words] for folder, words in tries.values()]])
    command = [sys.executable, "-c", EARLY, given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    codes = map(int, done.stdout.split())
    return {
        name: (code, (folder / "stderr").read_text())
        for (name, (folder, _)), code in zip(tries.items(), codes, strict=True)
    }


COMPUTING = ["distill", "experts", "estimate", "score", "select", "compare"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How commands end at the first library that takes long to load."""
    tries = {}
    for command in COMPUTING:
        folder = tmp_path_factory.mktemp(command)
        (folder / "good.yaml").write_text(GOOD)
        tries[command] = (folder, [command, str(folder / "good.yaml")])
    return ended_early(["torch", "ray", "sklearn", "pyarrow"], [], tries)


@pytest.mark.parametrize("command", COMPUTING)
def test_what_is_done_is_said_before_anything_is_loaded(begun: dict[str, tuple[int, str]], command: str) -> None:
    """PyTorch and Ray take seconds, in which a command must not look dead."""
    code, stderr = begun[command]
    assert code == 7, stderr
    (said,) = stderr.splitlines()
    assert said.endswith(", loading PyTorch and Ray")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_cluster_that_does_not_answer(recipe: Path, tmp_path: Path, host: str) -> None:
    """In a process of its own: one that is connected already stays with its cluster. Brackets are no list of YAML."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{host}:{closed.getsockname()[1]}"
    command = [sys.executable, "-m", "dasm_ray", "distill", str(recipe), "--run", str(tmp_path / "run")]
    done = subprocess.run([*command, "--address", address], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert address in done.stderr
    assert "Traceback" not in done.stderr


# --- data --------------------------------------------------------------------------------------------------------


def jpeg(size: int = 16, value: int = 100) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(data, "JPEG")
    return data.getvalue()


def parquet_of(folder: Path, images: list[bytes], labels: list[int | None]) -> Path:
    folder.mkdir()
    rows = pa.array([{"bytes": data, "path": None} for data in images])
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), folder / "train-00000-of-00001.parquet")
    return folder


def good_images(count: int = 60) -> tuple[list[bytes], list[int | None]]:
    return [jpeg(value=10 + 2 * i) for i in range(count)], [i % 2 for i in range(count)]


def truncated(images: list[bytes], labels: list[int | None]) -> None:
    images[7] = images[7][: len(images[7]) // 2]


def wrong_label(images: list[bytes], labels: list[int | None]) -> None:
    labels[7] = 2


def no_label(images: list[bytes], labels: list[int | None]) -> None:
    labels[7] = None


def mixed_sizes(images: list[bytes], labels: list[int | None]) -> None:
    images[7] = jpeg(size=24)


def not_an_image(images: list[bytes], labels: list[int | None]) -> None:
    images[7] = b"hello"


@pytest.mark.parametrize("spoil", [truncated, wrong_label, no_label, mixed_sizes, not_an_image])
@pytest.mark.usefixtures("ray_session")
def test_images_that_cannot_be_used(
    recipe: Path, tmp_path: Path, spoil: Callable[[list[bytes], list[int | None]], None]
) -> None:
    images, labels = good_images()
    spoil(images, labels)
    folder = parquet_of(tmp_path / "images", images, labels)
    options = ["--set", "data.name=parquet", "--set", f"data.path={folder}"]
    result = call("distill", recipe, "--run", tmp_path / "run", *options)
    refused_with_notes(result, "train-00000-of-00001.parquet", "row 7")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_class_without_images(recipe: Path, tmp_path: Path) -> None:
    images, _ = good_images()
    folder = parquet_of(tmp_path / "images", images, [0] * len(images))
    options = ["--set", "data.name=parquet", "--set", f"data.path={folder}"]
    refused_with_notes(call("distill", recipe, "--run", tmp_path / "run", *options), "dog")


@pytest.mark.parametrize(
    ("name", "part"), [("cifar11", "cifar10"), ("parquet", "data.path"), ("folder", "data.path"), ("svhn", "svhn")]
)
@pytest.mark.usefixtures("ray_session")
def test_sets_that_are_not_there(
    recipe: Path, tmp_path: Path, name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = call("distill", recipe, "--run", tmp_path / "run", "--set", f"data.name={name}")
    refused_with_notes(result, part)


# --- run directories and artifacts -------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written(recipe: Path) -> None:
    refused_with_notes(call("distill", recipe, "--run", "/proc/nowhere/run"), "/proc/nowhere")


def test_a_run_below_a_file(recipe: Path) -> None:
    refused_with_notes(call("distill", recipe, "--run", recipe / "run"), "good.yaml")


def test_a_folder_of_somebody_else(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("mine")
    refused_with_notes(call("distill", recipe, "--run", tmp_path / "photos"), "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.txt"]


def test_the_run_of_another_configuration(recipe: Path, tmp_path: Path) -> None:
    from dasm_ray.config.parsing import load_config
    from dasm_ray.store.rundir import RunDir

    RunDir.open(str(tmp_path / "run"), load_config(recipe)).close()
    result = call("distill", recipe, "--run", tmp_path / "run", "--set", "probe.members=5")
    refused_with_notes(result, "probe.members", "--run")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return artifact_in(tmp_path)


def artifact_in(folder: Path) -> Path:
    config = {"data": {"name": "digits"}, "model": {"width": 8, "depth": 1}, "synthetic": {"ipc": 1, "segments": 1}}
    made = Artifact(
        pixels=np.full((10, 1, 8, 8), 0.5, np.float32),
        labels=np.arange(10, dtype=np.int64),
        segments=np.zeros(10, np.int32),
        soft_labels=None,
        class_names=tuple("0123456789"),
        mean=(0.3,),
        std=(0.4,),
        factor=1,
        step_size=None,
        recipe={"model": {"arch": "convnet", "width": 8}, "image_size": [8, 8], "training": {"epochs": 1, "lr": 0.01}},
        provenance={"config": config},
    )
    write_artifact(Place(str(folder / "set")), made)
    return folder / "set"


REFUSED_EARLY = {
    "images that are nowhere": ("distill RECIPE --set data.name=folder --set data.path=nowhere", "nothing at"),
    "images that do not suit": ("estimate RECIPE --set data.zca=0.1 --set data.image_size=1024", "data.zca"),
    "another's folder": ("distill RECIPE --run FULL", "FULL"),
    "another's folder for experts": ("experts RECIPE --run FULL", "FULL"),
    "a comparison in it": ("compare RECIPE --run FULL", "FULL"),
    "another set of that name": ("compare RECIPE --run COMPARED", "another configuration (seed differ)"),
    "a comparison without random": ("compare RECIPE --select herding", "--select"),
    "a sweep in it": ("sweep SWEEP --run FULL", "FULL"),
    "a study in it": ("study STUDY --run FULL", "FULL"),
    "a study without its opponent": ("study OTHER", "against: there is no arm 'b'"),
    "no set": ("evaluate FULL", "holds no dataset.json"),
    "nothing to evaluate": ("evaluate nosuch", "there is nothing at "),
    "nothing to relabel": ("relabel nosuch --to new", "there is nothing at "),
    "no set to relabel": ("relabel FULL --to new", "experts.cache"),
    "a key that made the set": ("rank SET --set matcher.name=dc", "matcher.name=dc"),
    "images that a set does not name": (
        "incremental SET --set data.path=nowhere --set evaluate.seeds=0",
        "evaluate.seeds",
    ),
}


def names_in(folder: Path) -> dict[str, Path]:
    """What the words in capitals mean, made in a folder."""
    recipe = folder / "good.yaml"
    recipe.write_text(GOOD)
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "sweep.yaml").write_text(f"name: s\nrecipe: {recipe}\nspace: {{seed: {{grid: [1, 2]}}}}\n")
    (folder / "study.yaml").write_text(f"name: s\nrecipe: {recipe}\narms: {{a: {{}}}}\n")
    (folder / "other.yaml").write_text(f"name: s\nrecipe: {recipe}\narms: {{a: {{}}}}\nagainst: b\n")
    names = {"RECIPE": recipe, "SET": artifact_in(folder), "FULL": folder / "full", "SWEEP": folder / "sweep.yaml"}
    (folder / "compared").mkdir()
    (folder / "compared" / "comparison.json").write_text("{}")
    set_there = load_config(recipe, ["seed=1", "evaluate.seeds=9"])
    RunDir.open(folder / "compared" / "sets" / "good_ipc2", set_there).close()
    return names | {
        "STUDY": folder / "study.yaml",
        "OTHER": folder / "other.yaml",
        "COMPARED": folder / "compared",
    }


@pytest.fixture(scope="module")
def refused_early(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Path], int, str]]:
    """Of each command: what its words mean, how it ended, and what it said."""
    meant = {name: names_in(tmp_path_factory.mktemp("early")) for name in REFUSED_EARLY}
    tries = {
        name: (meant[name]["RECIPE"].parent, [str(meant[name].get(word, word)) for word in words.split()])
        for name, (words, _) in REFUSED_EARLY.items()
    }
    ends = ended_early(["torch", "ray", "sklearn"], ["pyarrow.parquet", "dasm_ray.config.parsing"], tries)
    return {name: (meant[name], *end) for name, end in ends.items()}


@pytest.mark.parametrize("name", REFUSED_EARLY)
def test_what_needs_neither_torch_nor_ray_is_refused_without_them(
    refused_early: dict[str, tuple[dict[str, Path], int, str]], name: str
) -> None:
    names, code, stderr = refused_early[name]
    part = REFUSED_EARLY[name][1]
    assert code == 2, stderr
    assert str(names.get(part, part)) in stderr
    assert "Traceback" not in stderr
    assert not (names["RECIPE"].parent / "runs").exists()


def test_an_artifact_of_the_future(artifact: Path) -> None:
    described = json.loads((artifact / "dataset.json").read_text())
    (artifact / "dataset.json").write_text(json.dumps({**described, "schema_version": 99}))
    refused(call("inspect", artifact), "99")


def test_a_damaged_artifact(artifact: Path, tmp_path: Path) -> None:
    (file,) = (artifact / "data").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))
    refused(call("export", artifact, "--to", tmp_path / "out"), "set")
    assert not (tmp_path / "out").exists()


def test_an_artifact_with_a_file_missing(artifact: Path) -> None:
    shutil.rmtree(artifact / "data")
    refused(call("inspect", artifact), "set")


def test_no_artifact(tmp_path: Path) -> None:
    refused(call("inspect", tmp_path), str(tmp_path))


def test_two_sweeps_of_one_name_are_refused_at_once() -> None:
    refused(call("sweep", "digits", "digits"), "name: two of these sweeps are called digits, and have one folder")


def test_export_into_a_folder_in_use(artifact: Path) -> None:
    refused(call("export", artifact, "--to", artifact), "is not empty")


def test_credentials_in_a_place_are_refused_and_not_shown(recipe: Path, artifact: Path, tmp_path: Path) -> None:
    uri = "s3://KEY:S3CR3T@bucket/x"
    for arguments in (
        ["distill", recipe, "--run", uri],
        ["experts", recipe, "--run", uri],
        ["select", recipe, "--run", uri],
        ["compare", recipe, "--run", uri],
        ["evaluate", uri],
        ["inspect", uri],
        ["inspect", artifact, "--png", uri],
        ["export", artifact, "--to", uri],
        ["relabel", artifact, "--to", uri],
    ):
        done = call(*arguments)
        assert done.exit_code == 2
        assert "holds credentials before the '@'" in done.stderr
        assert "S3CR3T" not in done.output


def test_an_export_that_cannot_be_meant(artifact: Path, tmp_path: Path) -> None:
    for options, part in (
        (["--normalise", "own"], "--normalise: png is not normalised"),
        (["--format", "pt", "--stored"], "--stored: pt holds training images"),
        (["--format", "pt", "--labels", "logits"], "are hard"),
        (["--format", "pt", "--normalise", "cifar10"], "say own, none, or means and stds"),
    ):
        refused(call("export", artifact, "--to", tmp_path / "out", *options), part)
    assert not (tmp_path / "out").exists()


def test_evaluating_with_another_matcher(artifact: Path) -> None:
    refused(call("evaluate", artifact, "--set", "matcher.name=dc"), "matcher.name=dc")


def test_relabelling_an_artifact_away_from_its_experts(artifact: Path, tmp_path: Path) -> None:
    refused(call("relabel", artifact, "--to", tmp_path / "out"), "experts.cache", "stands alone", "--set")
    refused(call("relabel", artifact, "--to", artifact), "is not empty")
    stopped = Place(tmp_path / "stopped")
    write_unfinished(stopped)  # as one that was stopped leaves it: it goes on
    refused(call("relabel", artifact, "--to", tmp_path / "stopped"), "experts.cache")
    (stopped / "README.md").write_text("mine")
    refused(call("relabel", artifact, "--to", tmp_path / "stopped"), "is not empty")
    refused(call("relabel", artifact, "--to", tmp_path / "out", "--set", "model.width=3"), "model.width=3")
    assert not (tmp_path / "out").exists()


COMPARISONS = {
    "the same name twice": ([], "name: 'good' names more than one row"),
    "an unknown selection": (["--select", "random,herdin"], "--select herdin: there is no such choice"),
    "no random row": (["--select", "herding"], "--select: must hold random"),
    "unknown labels": (["--labels", "hard,sift"], "--labels sift: there is no such choice"),
    "an unknown network": (["--network", "convnet:spectral"], "convnet:spectral: there is no such network"),
    "text for a size": (["--ipc", "1,ten"], "--ipc: 'ten' is no number"),
    "a size of very many digits": (["--ipc", "9" * 5000], "is no number that can be meant"),
    "a size twice": (["--ipc", "1,1"], "--ipc: holds 1 twice; leave one"),
    "no images": (["--ipc", "0"], "--ipc: must be 1 or more"),
}


@pytest.mark.parametrize(("options", "part"), COMPARISONS.values(), ids=COMPARISONS.keys())
def test_comparisons_that_cannot_be_meant(recipe: Path, tmp_path: Path, options: list[str], part: str) -> None:
    configs = [recipe] if options else [recipe, recipe]
    refused(call("compare", *configs, *options, "--run", tmp_path / "run"), part)
    assert not (tmp_path / "run").exists()


def test_recipes_that_are_evaluated_differently_are_not_compared(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(GOOD.replace("good", "other") + "evaluate: {lr: 0.5}\n")
    refused(call("compare", recipe, other, "--run", tmp_path / "run"), "evaluate: differs between good and other")


def test_a_comparison_in_a_folder_of_somebody_else(recipe: Path, tmp_path: Path) -> None:
    refused(call("compare", recipe, "--run", tmp_path), "holds good.yaml and no comparison.json")


STUDIES = {
    "a list": ("- 1\n", [], "must be a mapping"),
    "no arm": ("name: s\nrecipe: good.yaml\n", [], "arms: there is none"),
    "no recipe": ("name: s\nrecipe: none.yaml\narms: {a: {}}\n", [], "none.yaml: there is no such file"),
    "an unknown key": ("name: s\nrecipe: good.yaml\narms: {a: {select: rnd}}\n", [], "arms.a.select: 'rnd' must be"),
    "a key that an arm sets": (
        "name: s\nrecipe: good.yaml\narms: {a: {set: {matcher.rounds: 2}}}\n",
        ["--set", "matcher.rounds=3"],
        "arms.a.set.matcher.rounds: is set by --set",
    ),
    "no workers": ("name: s\nrecipe: good.yaml\narms: {a: {}}\n", ["--workers", "0"], "runtime.workers"),
    "a class too small": ("name: s\nrecipe: good.yaml\narms: {a: {}}\nipc: [400]\n", [], "class '0': has"),
}


@pytest.mark.parametrize(("text", "options", "part"), STUDIES.values(), ids=STUDIES.keys())
def test_studies_that_cannot_be_meant(
    recipe: Path, tmp_path: Path, ray_session: object, text: str, options: list[str], part: str
) -> None:
    (tmp_path / "study.yaml").write_text(text)
    refused(call("study", tmp_path / "study.yaml", *options, "--run", tmp_path / "run"), part)
    assert not (tmp_path / "run").exists()


def test_a_study_in_the_folder_of_another(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: mine\nrecipe: good.yaml\narms: {a: {}}\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.json").write_text('{"name": "theirs"}')
    refused(call("study", tmp_path / "study.yaml", "--run", run), "holds the study theirs, not mine")
    refused(call("study", tmp_path / "study.yaml", tmp_path / "study.yaml", "--run", run), "is the folder of one study")
    refused(call("study", tmp_path / "study.yaml", "--run", tmp_path), "and no study.json, so it is no study")


def test_grids_of_networks_that_cannot_be_meant(artifact: Path) -> None:
    refused(call("rank", artifact, "--width", "8,wide"), "--width: 'wide' is no number")
    refused(call("rank", artifact, "--width", "8,4,8"), "--width: holds 8 twice; leave one")
    refused(call("rank", artifact, "--width", ","), "--width: is empty")
    refused(call("rank", artifact, "--norm", "instance,nrm"), "model.norm", "'nrm'")
    refused(call("rank", artifact, "--set", "matcher.name=dc"), "matcher.name=dc")
    refused(call("incremental", artifact, "--set", "synthetic.ipc=2"), "synthetic.ipc=2")
    refused(call("audit", artifact, "--set", "synthetic.ipc=2"), "synthetic.ipc=2")


@pytest.mark.usefixtures("ray_session")
def test_uses_that_do_not_fit_the_data(artifact: Path) -> None:
    refused_with_notes(call("incremental", artifact, "--steps", "11"), "--steps 11: there are 10 classes")
    refused(call("audit", artifact, "--networks", "1"), "--networks 1: each is held against the others")
    refused_with_notes(call("rank", artifact, "--depth", "7"), "model.depth: 7 blocks")


def test_inspect_and_export_of_a_good_one(artifact: Path, tmp_path: Path) -> None:
    result = call("inspect", artifact, "--png", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    assert "10 stored of 1x8x8" in result.stdout
    assert Image.open(tmp_path / "sheet.png").size == (64 + MARGIN, 10 * (64 + MARGIN))
    for kind, name in (("png", "3"), ("npz", "synthetic.npz"), ("pt", "images.pt")):
        done = call("export", artifact, "--to", tmp_path / kind, "--format", kind)
        assert done.exit_code == 0
        assert done.stdout.startswith(f"written to {tmp_path / kind}\n")
        assert "\nleft out: " in done.stdout
        assert (tmp_path / kind / name).exists()


# --- streams and signals: what only a process of its own can show ---------------------------------------------------


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "dasm_ray.cli", *map(str, arguments)]
    return subprocess.run(words, text=True, timeout=60, check=False, **options)


def told_alone(stderr: str, *parts: str) -> None:
    """One sentence and nothing else."""
    (said,) = stderr.splitlines()
    assert said.startswith("dasm-ray: ")
    for part in parts:
        assert part in said


NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@NEEDS_FULL
@pytest.mark.parametrize(
    ("words", "buffering"), [(["inspect"], ""), (["--help"], ""), (["--help"], "1"), (["distill", "--help"], "")]
)
def test_a_full_disk_behind_stdout(artifact: Path, words: list[str], buffering: str) -> None:
    given = [*words, artifact] if words == ["inspect"] else words
    environment = {**os.environ, "PYTHONUNBUFFERED": buffering}
    with open("/dev/full", "w") as full:
        done = command(*given, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 1, done.stderr
    told_alone(done.stderr, "standard output cannot be written (No space left on device)")


def test_a_reader_of_stdout_that_is_gone(artifact: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = command("inspect", artifact, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1
    told_alone(done.stderr, "standard output cannot be written (Broken pipe)")


@pytest.mark.parametrize("where", ["gone", pytest.param("full", marks=NEEDS_FULL)])
def test_a_reader_of_stderr_that_is_gone_ends_nothing(tmp_path: Path, where: str) -> None:
    """Progress, notes and errors have nobody to go to; the command goes on and its exit code is its own."""
    code = (
        "import sys\n"
        "from dasm_ray import cli\n"
        "from dasm_ray.errors import RunFailure\n"
        "from dasm_ray.runtime.progress import Progress\n"
        "@cli.main.command()\n"
        "@cli.click.option('--fail', is_flag=True)\n"
        "def stub(fail):\n"
        "    with cli._reporting_errors():\n"
        "        with Progress(live=True) as progress:\n"
        "            progress.stage('work', 2)\n"
        "            progress.note('a note')\n"
        "            print('to stderr', file=sys.stderr, flush=True)\n"
        "            progress.advance()\n"
        "        if fail:\n"
        "            raise RunFailure('it did not finish')\n"
        "        cli.click.echo('the result')\n"
        "cli.main()\n"
    )
    for words, expected in (([], (0, "the result\n")), (["--fail"], (1, ""))):
        read, write = os.pipe()
        os.close(read)
        stderr = write if where == "gone" else os.open("/dev/full", os.O_WRONLY)
        done = subprocess.run(
            [sys.executable, "-c", code, "stub", *words], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )
        os.close(write)
        assert (done.returncode, done.stdout) == expected


WAITS = (
    "import sys, time\n"
    "from dasm_ray import cli\n"
    "@cli.main.command()\n"
    "def stub():\n"
    "    with cli._reporting_errors():\n"
    "        try:\n"
    "            print('ready', flush=True)\n"
    "            for _ in range(600):\n"
    "                time.sleep(0.1)\n"
    "        except BaseException:\n"
    "            time.sleep(0.3)\n"
    "            open(sys.argv.pop(), 'w').write('checkpoint')\n"
    "            raise\n"
    "cli.main(['stub'])\n"
)
"""A command that writes a checkpoint when it is stopped.

It waits in short pieces, as the commands do: a signal just before a wait begins is heard when that wait ends.
"""


@contextlib.contextmanager
def inherited(hangup: signal.Handlers) -> Iterator[None]:
    """A command that begins here has the usual signals, however these tests were begun, and ``hangup``."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: hangup, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(signals: list[int], kept: Path, *, code: str = WAITS, ignored: bool = False) -> tuple[int, str]:
    """The exit code and stderr of a command at work that gets these signals."""
    with inherited(signal.SIG_IGN if ignored else signal.SIG_DFL):
        driver = subprocess.Popen(
            [sys.executable, "-c", code, str(kept)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    for number in signals:
        driver.send_signal(number)
        time.sleep(0.1)
    _, stderr = driver.communicate(timeout=60)
    return driver.returncode, stderr


NEEDS_SIGHUP = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs terminals that can be closed")


@NEEDS_SIGHUP
@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["SIGHUP"], 129),
        (["SIGHUP", "SIGHUP"], 129),
        (["SIGTERM"], 130),
        (["SIGTERM", "SIGTERM"], 130),
        (["SIGINT"], 130),
    ],
)
def test_a_command_that_is_stopped_keeps_its_checkpoint(tmp_path: Path, names: list[str], code: int) -> None:
    """A closed terminal is told by the shell and by the kernel, and `timeout` ends a command and its group.

    The second time must not cut the checkpoint short.
    """
    found, stderr = stopped_by([getattr(signal, name) for name in names], tmp_path / "kept")
    assert found == code
    told_alone(stderr, "stopped; the same command goes on from the last checkpoint")
    assert (tmp_path / "kept").read_text() == "checkpoint"


@NEEDS_SIGHUP
@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGTERM", 130), ("SIGINT", 130)])
def test_a_stop_that_python_forgets_is_heard_all_the_same(tmp_path: Path, name: str, code: int) -> None:
    """What a handler raises in a finaliser, or in a hook of a fork, Python prints and goes on."""
    waits = "class Deaf:\n    def __del__(self):\n        print('ready', flush=True)\n        for _ in range(100): "
    forgets = WAITS.replace("@cli", f"{waits}time.sleep(0.1)\n@cli", 1)
    forgets = forgets.replace("print('ready', flush=True)\n            for", "Deaf()\n            for")
    found, stderr = stopped_by([getattr(signal, name)], tmp_path / "kept", code=forgets)
    assert found == code
    told_alone(stderr, "stopped; the same command goes on from the last checkpoint")
    assert (tmp_path / "kept").read_text() == "checkpoint"


def test_a_stop_that_is_asked_for_again_later_is_an_order_to_leave(tmp_path: Path) -> None:
    slow = WAITS.replace("time.sleep(0.3)", "time.sleep(50)").replace("@cli", "cli.SAME_STOP_SECONDS = 0.01\n@cli", 1)
    code, _ = stopped_by([signal.SIGTERM, signal.SIGTERM], tmp_path / "kept", code=slow)
    assert code == 130
    assert not (tmp_path / "kept").exists()


@NEEDS_SIGHUP
def test_under_nohup_a_closed_terminal_is_nothing(tmp_path: Path) -> None:
    code, _ = stopped_by([signal.SIGHUP, signal.SIGTERM], tmp_path / "kept", ignored=True)
    assert code == 130


@NEEDS_SIGHUP
def test_a_terminal_that_is_closed_takes_nothing_with_it(tmp_path: Path) -> None:
    """With the terminal go the streams: the kernel signals, and every write fails."""
    ours, theirs = pty.openpty()
    code = WAITS.replace("time.sleep(0.1)", "print('x', file=sys.stderr, flush=True); time.sleep(0.1)")
    own = f"import os; os.setsid(); os.close(os.open({os.ttyname(theirs)!r}, os.O_RDWR))"  # its terminal
    command = [sys.executable, "-c", f"{own}\n{code}", str(tmp_path / "kept")]
    with inherited(signal.SIG_DFL):
        driver = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while b"ready" not in os.read(ours, 1000):
        pass
    os.close(ours)
    assert driver.wait(timeout=60) == 129
    assert (tmp_path / "kept").read_text() == "checkpoint"


def test_a_home_that_cannot_be_written(artifact: Path) -> None:
    environment = {**os.environ, "HOME": "/proc/nobody"}
    done = command("inspect", artifact, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 0, done.stderr
    assert "10 stored of 1x8x8" in done.stdout
    done = command("inspect", "~/set", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 2
    told_alone(done.stderr, "/proc/nobody/set")


# --- what was found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "said"),
    [("file:///a b", "%20"), ("file://relative", "file:///relative"), ("s3://[bad", "s3://NAME/PATH")],
)
def test_a_place_that_is_none_is_refused_by_a_command(recipe: Path, place: str, said: str) -> None:
    refused(call("distill", recipe, "--run", place), place.partition("//")[2], said)
    refused(call("data", recipe, "--set", "data.name=folder", "--set", f"data.path='{place}'"), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init", "d\udce9"), r"d\xe9: the name is not UTF-8; rename it"),
        (("distill", "digits", "--run", "d\udce9"), r"d\xe9: the name is not UTF-8; rename it"),
        (("data", "digits", "--png", "d\udce9"), r"d\xe9: the name is not UTF-8; rename it"),
        (("data", "digits", "--set", "seed\udce9=1"), r"seed\xe9=1: the name is not UTF-8; write it so"),
        (("evaluate", "runs", "--network", "\ud800"), r"\ud800: the name is not UTF-8; rename it"),
    ],
)
def test_words_that_are_not_utf8_are_a_sentence(words: tuple[str, ...], said: str) -> None:
    refused(call(*words), said)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file system may refuse such a name")
def test_a_command_in_a_folder_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "d\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for words in (("distill", "digits"), ("inspect", "run"), ("init", "photos")):
        refused_with_notes(call(*words), r"d\xe9/", "the name is not UTF-8; rename it")
    assert not list(folder.iterdir())


def test_data_says_what_a_set_is(recipe: Path, tmp_path: Path) -> None:
    images, labels = good_images()
    folder = parquet_of(tmp_path / "images", images, labels)
    options = ["--set", "data.name=parquet", "--set", f"data.path={folder}", "--png", tmp_path / "sheet.png"]
    result = call("data", recipe, *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.endswith(": looking for its images\n"), "silent until a large folder has been looked through"
    assert result.stdout.splitlines() == [
        "data parquet: 1 file in Parquet, column image and label",
        "  images     60 of 16 x 16 pixels (rows x columns), RGB",
        "  train      60 images (train-00000-of-00001.parquet)",
        "  validation held out from the training images by their content, 8 % of them",
        "  test       held out from the training images by their content, 20 % of them",
        "  classes    2 of 30 training images each: cat, dog",
        f"drawn to {tmp_path / 'sheet.png'}",
    ]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (64 + MARGIN), 10 * (64 + MARGIN), 3)
    assert abs(int(sheet[0, 0, 0]) - 10) < 3  # the first cat, and below it the first dog, which is lighter
    assert abs(int(sheet[64 + MARGIN, 0, 0]) - 12) < 3


AT_ONCE = {
    "experts": {"count": 1, "epochs": 1},
    "score": {"early": 1},
    "matcher": {"rounds": 2, "networks": 1, "snapshots": [[0, 1]]},
    "probe": {"epochs": 1},
    "evaluate": {"epochs": 1, "seeds": 1, "rows": ["distilled", "random"]},
    "runtime": {"compile": False, "page": False},
}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_was_found_is_told_in_the_same_words_by_every_command(recipe: Path, tmp_path: Path) -> None:
    images, _ = good_images()
    for number, image in enumerate(images):
        name = "cat" if number % 2 else "dog"
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name / f"{number}.png").write_bytes(image)
    (tmp_path / "images" / "cat" / "notes.txt").write_text("left out")
    data = {"data": {"name": "folder", "path": str(tmp_path / "images")}}
    recipe.write_text(GOOD.replace("data: {name: digits}\n", "") + yaml.safe_dump(AT_ONCE | data))
    told = call("data", recipe).stdout
    assert told.startswith("data folder: ")
    assert "notes.txt" in told
    for name in ("distill", "score", "select"):
        done = command(name, recipe, "--run", tmp_path / name, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        assert told in done.stderr, name


@pytest.mark.parametrize("spoil", [truncated, wrong_label, no_label, mixed_sizes, not_an_image])
def test_data_refuses_what_cannot_be_used(
    recipe: Path, tmp_path: Path, spoil: Callable[[list[bytes], list[int | None]], None]
) -> None:
    images, labels = good_images()
    spoil(images, labels)
    folder = parquet_of(tmp_path / "images", images, labels)
    options = ["--set", "data.name=parquet", "--set", f"data.path={folder}"]
    refused(call("data", recipe, *options), "train-00000-of-00001.parquet", "row 7")


@pytest.mark.parametrize("ground", ["red", "#12", "#12345g", "ffffff"])
def test_a_ground_that_is_no_colour(recipe: Path, ground: str) -> None:
    refused(call("data", recipe, "--set", f"data.ground='{ground}'"), "data.ground")


def test_a_whitening_that_does_not_fit_is_refused_at_once(recipe: Path) -> None:
    options = ["--set", "data.zca=0.1", "--set", "data.image_size=1024"]
    refused(call("data", recipe, *options), "data.zca: whitening 1048576 values", "GiB")


def test_data_waits_for_neither_ray_nor_torch(recipe: Path, tmp_path: Path) -> None:
    images, labels = good_images()
    folder = parquet_of(tmp_path / "images", images, labels)
    options = ["--set", "data.name=parquet", "--set", f"data.path={folder}", "--png", str(tmp_path / "sheet.png")]
    script = (
        "import sys\nfrom dasm_ray.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'ray', 'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "data", str(recipe), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
