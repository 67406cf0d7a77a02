"""Small tables: what is read is what was written, and reading begins no thread that could outlive the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from dasm_ray.store import parquetfile
from dasm_ray.store.findings import read_trainings, write_trainings
from dasm_ray.store.place import Place

FEW = {name: np.arange(5) for name in "abc"}


def test_what_is_read_is_what_was_written(tmp_path) -> None:
    file = Place(tmp_path / "table.parquet")
    parquetfile.write(file, pa.table({"other": [1.0]}))
    parquetfile.write(file, pa.table(FEW))
    assert parquetfile.read(file.read_bytes()).equals(pa.table(FEW))


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises((OSError, pa.ArrowException)):
        parquetfile.read(b"PAR1, and nothing more")


def test_a_column_that_an_older_file_lacks_is_null(tmp_path) -> None:
    file = Place(tmp_path / "trainings.parquet")
    older = pa.schema({"set": pa.string(), "ipc": pa.int64()})
    write_trainings(file, [{"set": "random", "ipc": 1}], older)
    newer = older.append(pa.field("seed", pa.int64()))
    assert read_trainings(file, newer) == [{"set": "random", "ipc": 1, "seed": None}]


READERS = {
    "a set": (
        "from dasm_ray.store.artifact import Artifact, write_artifact\n"
        "made = Artifact(np.zeros((2, 1, 8, 8), np.float32), np.arange(2), np.zeros(2, np.int32), None, ('a', 'b'),\n"
        "    (0.3,), (0.4,), 1, None, {'model': {}, 'training': {'epochs': 1, 'lr': 0.01}}, {})\n"
        "write_artifact(place, made)\n",
        "dasm_ray.load(sys.argv[1])\n",
    ),
    "trainings": (
        "from dasm_ray.store.findings import read_trainings, write_trainings\n"
        "write_trainings(place, [{'ipc': 1}] * 9)\n",
        "read_trainings(place)\n",
    ),
    "scores": (
        "from dasm_ray.store.checkpoints import Scores, read_scores, write_scores\n"
        "write_scores(place, 0, Scores(*[np.zeros(9)] * 7), 'key')\n",
        "read_scores(place, 0, 'key')\n",
    ),
}


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by Linux's /proc")
@pytest.mark.parametrize("reader", READERS)
def test_reading_begins_no_thread(tmp_path, reader) -> None:
    begin, read = READERS[reader]
    code = (
        "import os, sys\nimport numpy as np\nimport dasm_ray, dasm_ray.synthetic\n"
        "from dasm_ray.store.place import Place\nplace = Place(sys.argv[1])\n"
        f"{begin}before = set(os.listdir('/proc/self/task'))\n{read}"
        "print(len(set(os.listdir('/proc/self/task')) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "it")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


GROWN = """
import sys
import numpy as np
from dasm_ray.store.artifact import Artifact, read_artifact, write_artifact
from dasm_ray.store.place import Place

def anonymous():
    rollup = open("/proc/self/smaps_rollup").read().split()
    return int(rollup[rollup.index("Anonymous:") + 1]) >> 10

def passed_through(count, place):
    pixels = np.random.default_rng(0).random((count, 3, 32, 32), np.float32)
    labels, segments, used = np.arange(count) % 2, np.zeros(count, np.int32), {"epochs": 1, "lr": 0.01}
    moments = (0.3,) * 3, (0.4,) * 3
    what = {"model": {}, "training": used}
    write_artifact(place, Artifact(pixels, labels, segments, None, ("a", "b"), *moments, 1, None, what, {}))
    read_artifact(place)

passed_through(2, Place(sys.argv[1]) / "first")  # what is imported then is no growth
before = anonymous()
passed_through(2000, Place(sys.argv[1]) / "second")
print(anonymous() - before)
"""


@pytest.mark.skipif(not os.path.isfile("/proc/self/smaps_rollup"), reason="memory is told by Linux's /proc")
def test_what_a_set_took_to_be_written_and_read_is_given_back(tmp_path) -> None:
    """23 MiB of pixels: 10 MiB stay, where 91 did before Arrow was told that its memory is not used."""
    done = subprocess.run([sys.executable, "-c", GROWN, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 45
