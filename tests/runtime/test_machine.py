"""Cores and memory from texts as kernels write them."""

from pathlib import Path

import pytest

from dasm_ray.errors import ResourceError
from dasm_ray.runtime import machine
from dasm_ray.runtime.machine import (
    SLOW_STORE,
    SMALLEST_STORE,
    check_whitening,
    computes_bf16,
    has_gpus,
    object_store_bytes,
    read_cgroup_files,
    read_machine,
    read_memory,
    shm_is_small,
    usable_cores,
    usable_memory,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "cores"),
    [
        ([], 8),
        ([{"cpu.max": "max 100000\n"}], 8),
        ([{"cpu.max": "350000 100000\n"}], 3),
        ([{"cpu.max": "50000 100000\n"}], 1),
        ([{"cpu.max": "max 100000\n"}, {"cpu.max": "200000 100000\n"}], 2),
        ([{"cpu.max": "3200000 100000\n"}], 8),
        ([{"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}], 8),
        ([{"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "50000\n"}], 2),
        ([{"memory.max": "max\n"}], 8),
    ],
)
def test_cores_are_the_affinity_cut_by_each_quota(groups: list[dict[str, str]], cores: int) -> None:
    assert usable_cores(8, groups) == cores


@pytest.mark.parametrize(
    ("groups", "memory"),
    [
        ([], 16 * GIB),
        ([{"memory.max": "max\n"}], 16 * GIB),
        ([{"memory.max": f"{4 * GIB}\n"}, {"memory.max": f"{2 * GIB}\n"}], 2 * GIB),
        ([{"memory.limit_in_bytes": "9223372036854771712\n"}], 16 * GIB),
        ([{"memory.limit_in_bytes": f"{3 * GIB}\n"}], 3 * GIB),
    ],
)
def test_memory_is_the_machines_cut_by_each_limit(groups: list[dict[str, str]], memory: int) -> None:
    assert usable_memory(16 * GIB, groups) == memory


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_v2_groups_are_found_up_to_the_root(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/user.slice/job\n")
    write(tmp_path / "fs/user.slice/cpu.max", "400000 100000")
    write(tmp_path / "fs/user.slice/job/memory.max", "1000")
    write(tmp_path / "fs/other.slice/cpu.max", "100000 100000")
    groups = read_cgroup_files(tmp_path / "fs", tmp_path / "own")
    assert (usable_cores(64, groups), usable_memory(5000, groups)) == (4, 1000)


def test_inside_a_container_the_root_of_the_mount_counts(tmp_path: Path) -> None:
    write(tmp_path / "own", "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n")
    write(tmp_path / "fs/cpu,cpuacct/cpu.cfs_quota_us", "200000")
    write(tmp_path / "fs/cpu,cpuacct/cpu.cfs_period_us", "100000")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "1000")
    groups = read_cgroup_files(tmp_path / "fs", tmp_path / "own")
    assert (usable_cores(64, groups), usable_memory(5000, groups)) == (2, 1000)


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert read_cgroup_files(tmp_path / "fs", tmp_path / "own") == []


@pytest.mark.parametrize(
    ("memory", "shm", "store"),
    [
        (100 * GIB, 200 * GIB, 30 * GIB),
        (100 * GIB, 10 * GIB, 9 * GIB),
        (100 * GIB, 64 * 2**20, SLOW_STORE),
        (GIB, 64 * 2**20, int(0.3 * GIB)),
        (GIB // 8, GIB, SMALLEST_STORE),
    ],
)
def test_the_object_store_is_bounded_by_memory_and_shm(memory: int, shm: int, store: int) -> None:
    assert object_store_bytes(memory, shm) == pytest.approx(store, abs=1)
    assert shm_is_small(shm) == (shm == 64 * 2**20)


def test_this_machine_has_something() -> None:
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.memory > 2**28
    assert machine.gpus >= 0


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = "ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators"
    monkeypatch.setattr(manager, lambda: 4)
    for visible, count in (("", 0), ("-1", 0), ("NoDevFiles", 0), ("0,2", 2), ("3,-1,1", 1), ("0,1,2,3,4", 4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert read_machine().gpus == count, visible
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert read_machine().gpus == 4


def test_a_whitening_needs_room_for_its_matrices() -> None:
    check_whitening((3, 32, 32), 2 * GIB)
    with pytest.raises(ResourceError, match=r"12288 values an image \(3 x 64 x 64\) .* 19\.1 GiB, and .* 16\.0 GiB"):
        check_whitening((3, 64, 64), 16 * GIB)
    check_whitening((3, 64, 64), 20 * GIB)


def test_the_memory_is_that_of_the_machine() -> None:
    assert read_memory() == read_machine().memory


@pytest.mark.parametrize(
    ("capabilities", "flags", "by_gpu", "expected"),
    [
        ("9.0\n8.0\n", "fpu avx2", True, True),
        ("9.0\n7.5\n", "fpu avx512_bf16", True, False),
        ("9.0\n", "fpu avx2", False, False),
        (None, "fpu avx2", True, False),
        (None, "fpu avx512_bf16 amx_bf16", True, True),
        (None, "fpu amx_bf16", False, True),
        ("[N/A]\n", "fpu avx2", True, False),
    ],
)
def test_bf16_is_computed_by_every_gpu_or_else_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capabilities: str | None, flags: str, by_gpu: bool, expected: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    if capabilities is not None:
        tool.write_text(f"#!/bin/sh\nprintf '{capabilities}'\n")
        tool.chmod(0o755)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(machine, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if capabilities is not None else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert computes_bf16(by_gpu) == expected


def test_hidden_gpus_compute_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '9.0\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(machine, "CPU", tmp_path / "nothing")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for visible, are_there in (("", False), ("0", True), ("-1", False), ("NoDevFiles", False), ("0,-1", True)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert (computes_bf16(by_gpu=True), has_gpus()) == (are_there, are_there)
