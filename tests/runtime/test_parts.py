"""Parts of a sorted set on nodes that lack them: over the object store in pieces, and no more than is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from local_pool import Remote, blocks_of, local_real, small
from ray.exceptions import RayActorError

from dasm_ray.errors import StorageError
from dasm_ray.runtime import parts
from dasm_ray.runtime.machine import read_machine
from dasm_ray.runtime.parts import bring_from_node, on_node, opened_here
from dasm_ray.store.datasets.blockcache import INDEX, Kept, part_name
from dasm_ray.store.place import Place

SCALE = Path(__file__).parents[1] / "benchmarks" / "scale.py"


@pytest.fixture
def kept() -> Kept:
    return local_real(small()).kept


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, kept: Kept) -> None:
    """Another node, whose pieces are read in this process."""
    read = parts._piece._function
    monkeypatch.setattr(parts, "PIECE_BYTES", 1000)
    monkeypatch.setattr(parts, "_piece", Remote())
    monkeypatch.setattr(parts.ray, "get", lambda args: read(*args))


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("name", [INDEX, part_name("train", 3, 0)])
def test_a_file_comes_piece_by_piece_as_it_is(kept: Kept, tmp_path: Path, name: str) -> None:
    bring_from_node(replace(kept, node="ab" * 28))(name, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (kept.place.local / name).read_bytes()
    assert (tmp_path / "copy").stat().st_size > 2000


@pytest.mark.usefixtures("node")
def test_a_file_that_is_gone_is_said_to_be(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"cannot be read \(No such file or directory\): the sorted images were removed"
    ):
        bring_from_node(replace(kept, node="ab" * 28))("blocks/x.arrow", tmp_path / "copy")


def test_a_node_that_is_gone_is_said_with_what_to_do(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr(parts, "_piece", Remote())
    monkeypatch.setattr(parts.ray, "get", lost)
    with pytest.raises(StorageError, match=r"cannot be had from the node .* name a folder or URI that all nodes reach"):
        bring_from_node(replace(kept, node="ab" * 28))(INDEX, tmp_path / "copy")


def test_work_on_files_of_a_folder_is_done_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = [{"NodeID": name, "Alive": True, "Resources": {"CPU": cores}} for name, cores in (("a" * 56, 0), ("b", 4))]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    monkeypatch.setattr(parts, "this_node", lambda: "a" * 56)
    task, most = on_node(Remote(), Place("/tmp/x"))
    assert (task.given["num_cpus"], task.given["scheduling_strategy"].node_id) == (0, "a" * 56)
    assert most == read_machine().cores, "it lends none to Ray, and does the work itself"
    task, most = on_node(Remote(), Place("memory://bucket/x"))
    assert (task.given, most) == ({"scheduling_strategy": "SPREAD"}, 8)
    alive[0]["Resources"] = {"CPU": 3}
    task, most = on_node(Remote(), Place("/tmp/x"))
    assert (task.given["num_cpus"], most) == (1, 6)
    monkeypatch.setattr(ray, "nodes", lambda: alive[:1])
    task, most = on_node(Remote(), Place("/tmp/x"))
    assert (task.given, most) == ({}, 8), "one node needs no choice"


def test_a_set_of_this_node_is_read_in_place(kept: Kept) -> None:
    assert opened_here(kept, local_real(small()).digest)._bring is None
    np.testing.assert_array_equal(
        blocks_of(local_real(small()))[3], opened_here(kept, local_real(small()).digest).split("train")[3]
    )


@pytest.mark.long
def test_a_set_in_an_object_store_is_read_from_a_copy(
    s3_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASM_RAY_CACHE", str(tmp_path / "own"))
    cache = f"s3://bucket/{tmp_path.name}?endpoint_override=127.0.0.1:{s3_proxy.server_port}&scheme=http"
    real = local_real(small(data={"cache": cache}))
    assert real.digest == local_real(small()).digest
    _, files = (Place(cache) / real.kept.key).walk()
    assert [name for name in files if not name.startswith("blocks/")] == [INDEX]
    assert len(files) == 31
    assert (Place(cache) / "chunks").walk()[1] == [], "what is needed on the way is gone"
    plain, copies = {split: blocks_of(local_real(small()), split) for split in real.splits}, real.kept.copy
    shutil.rmtree(copies)  # the plain set has the same key, and was made in the folder for copies
    for split in real.splits:
        for mine, theirs in zip(blocks_of(real, split), plain[split], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert len(list(copies.rglob("*.arrow"))) == 30
    puts = [path for verb, path in s3_proxy.requests if verb == "PUT" and path.endswith(".arrow")]
    local_real(small(data={"cache": cache}))
    assert [path for verb, path in s3_proxy.requests if verb == "PUT" and path.endswith(".arrow")] == puts


@pytest.mark.long
def test_nodes_with_folders_of_their_own_fetch_what_they_read(tmp_path: Path) -> None:
    """A real cluster of four nodes; each of three reads a third of the classes, in every split."""
    done = subprocess.run(
        [sys.executable, str(SCALE), "nodes", "6", "900", "32"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same images"]
    assert found["largest / third"] <= 1.1
    assert found["kept on the head MiB"] >= found["decoded MiB"]
