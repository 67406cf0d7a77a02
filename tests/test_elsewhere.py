"""A set on other systems and in other programs: read without what only POSIX has, and by whoever reads such files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dasm_ray
from dasm_ray.store.artifact import Artifact, write_artifact
from dasm_ray.store.place import Place
from dasm_ray.synthetic import export

DRAW = np.random.default_rng(0)
NAMES = ("zebra", "ant", "bee")

WITHOUT_POSIX = """
import importlib.abc, json, os, signal, sys
import filelock, numpy, PIL.Image, pyarrow.fs, pyarrow.parquet, pydantic, safetensors.numpy, torch, yaml

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
SIGNALS = ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGSTOP", "SIGPIPE")
CALLS = ("fork", "getuid", "geteuid", "sched_getaffinity", "statvfs", "sysconf", "killpg", "setsid", "uname", "fchmod")

class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}")

for name in MODULES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Gone())
for module, names in ((signal, SIGNALS), (os, CALLS)):
    for name in names:
        delattr(module, name)

import dasm_ray

train = dasm_ray.load(sys.argv[1])
test = train.transform(numpy.zeros(tuple(train.images.shape[1:]), numpy.uint8))
own = sorted(name for name in sys.modules if name.startswith("dasm_ray."))
print(json.dumps([len(train), list(test.shape), own]))
"""
"""Libraries know themselves what a system has, so they are imported first; then all that is ours goes without."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in colour, whose class names are not in the order of the alphabet."""
    place = tmp_path_factory.mktemp("set") / "set"
    write_artifact(
        Place(place),
        Artifact(
            pixels=DRAW.integers(0, 256, (6, 3, 8, 8)).astype(np.float32) / np.float32(255),
            labels=np.repeat(np.arange(3), 2),
            segments=np.tile(np.arange(2, dtype=np.int32), 3),
            soft_labels=None,
            class_names=NAMES,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            factor=1,
            step_size=None,
            recipe={"model": {}, "training": {}},
            provenance={},
        ),
    )
    return place


def test_a_set_is_loaded_where_there_is_no_posix(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    count, shape, own = json.loads(done.stdout)
    assert (count, shape) == (6, [3, 8, 8])
    assert not [name for name in own if name.startswith(("dasm_ray.runtime", "dasm_ray.method"))]


# --- other readers -----------------------------------------------------------------------------------------------


def levels_of(folder: Path) -> np.ndarray:
    """All images (n, H, W, C) as levels."""
    train = dasm_ray.load(folder)
    return np.rint((train.images * 0.25 + 0.5).numpy() * 255).transpose(0, 2, 3, 1)


def test_datasets_reads_images_names_and_exact_values(folder: Path, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))["train"]
    assert rows.features["label"].names == list(NAMES)
    assert [row["label"] for row in rows] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(np.stack([np.asarray(row["image"]) for row in rows]), levels_of(folder))
    exact = np.float32([row["pixels"] for row in rows]).reshape(6, 3, 8, 8)
    np.testing.assert_allclose(exact.transpose(0, 2, 3, 1) * 255, levels_of(folder), atol=1e-4)


def test_pandas_reads_the_same_file(folder: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.read_parquet(folder / "data")
    assert table["label"].tolist() == [0, 0, 1, 1, 2, 2]
    picture = np.asarray(Image.open(io.BytesIO(table["image"][3]["bytes"])))
    np.testing.assert_array_equal(picture, levels_of(folder)[3])


def test_duckdb_reads_the_same_file(folder: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    query = f"select label, count(*), min(segment) from '{folder}/data/*.parquet' group by label order by label"
    assert duckdb.sql(query).fetchall() == [(0, 2, 0), (1, 2, 0), (2, 2, 0)]


def test_imagefolder_reads_the_exported_pictures_through_the_transform_of_the_set(folder: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    said = export(str(folder), str(tmp_path / "png"), "png")
    assert any("folders are numbered by name elsewhere" in line for line in said)
    train = dasm_ray.load(folder)
    pictures = ImageFolder(str(tmp_path / "png"), transform=train.transform)
    assert pictures.classes == sorted(NAMES)
    for image, label in pictures:
        assert any(
            np.allclose(image, own, atol=1e-4) and NAMES[int(of)] == pictures.classes[label] for own, of in train
        )
