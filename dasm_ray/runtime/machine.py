"""What this machine lets the process use: cores, memory, shared memory, GPUs.

What must stay true: control groups and the affinity mask count, not the host (a container on a big host is small), and
nothing here touches CUDA.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dasm_ray.errors import ResourceError

SMALLEST_STORE = 80 * 2**20
"""Bytes: Ray refuses an object store below 75 MiB."""
SLOW_STORE = 2 * 2**30
"""Bytes: the most that a store which has to live on disk may hold."""

WHITENING_MATRICES = 17
"""Matrices of D x D float64 that are in memory at once while a whitening of D values is fitted: the sums of eight parts
in the object store, and a copy of these and one sum more in the worker that adds them up."""

CGROUPS = Path("/sys/fs/cgroup")
CPU = Path("/proc/cpuinfo")
OWN_CGROUPS = Path("/proc/self/cgroup")


def installed(package: str) -> str:
    """The version of a package that is installed here; "missing" for none, and for a checkout on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


@dataclass(frozen=True)
class Machine:
    """What this process may use: cores, bytes of memory, bytes of /dev/shm, GPUs."""

    cores: int
    memory: int
    shm: int
    gpus: int


def read_machine() -> Machine:
    """This machine as its affinity mask and control groups allow; touches no CUDA."""
    files = read_cgroup_files()
    return Machine(
        cores=usable_cores(_affinity(), files),
        memory=_memory_under(files),
        shm=_shm_bytes(),
        gpus=_gpu_count(),
    )


def read_memory() -> int:
    """Bytes of memory that this process may use."""
    return _memory_under(read_cgroup_files())


def _memory_under(files: Sequence[Mapping[str, str]]) -> int:
    return usable_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), files)


def usable_cores(affinity: int, groups: Sequence[Mapping[str, str]]) -> int:
    """Whole cores, at least one: the affinity mask cut by the CPU quota of every control group above the process.

    ``groups`` holds the texts of ``cpu.max`` (v2), or ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (v1), a mapping a
    group.
    """
    quotas = [quota for files in groups if (quota := _quota(files)) is not None]
    return max(1, math.floor(min([affinity, *quotas])))


def _quota(files: Mapping[str, str]) -> float | None:
    """Cores that one group allows, None for no limit."""
    if "cpu.max" in files:
        quota, period = files["cpu.max"].split()
    else:
        quota, period = files.get("cpu.cfs_quota_us", "-1").strip(), files.get("cpu.cfs_period_us", "100000")
    return None if quota in ("max", "-1") else int(quota) / int(period)


def usable_memory(total: int, groups: Sequence[Mapping[str, str]]) -> int:
    """Bytes: the machine's memory cut by ``memory.max`` (v2) or ``memory.limit_in_bytes`` (v1) of every group."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [files[name].strip() for files in groups for name in names if name in files]
    return min([total, *(int(limit) for limit in limits if limit != "max")])


def read_cgroup_files(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> list[dict[str, str]]:
    """The limits of the groups that hold this process, as texts by file name; empty where there are no groups."""
    names = ("cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes")
    groups = []
    for folder in _cgroup_folders(root, own):
        texts = {name: text for name in names if (text := _text_of(folder / name)) is not None}
        if texts:
            groups.append(texts)
    return groups


def _cgroup_folders(root: Path, own: Path) -> Iterator[Path]:
    """Each group's folder and those above it; inside a container the root of the mount is the container's group."""
    for line in (_text_of(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path(path.strip("/"))
        for mount in (root / name for name in {controllers, *controllers.split(",")}):
            yield from (mount / part for part in {Path(), group, *group.parents})


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shm_bytes() -> int:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def _gpu_count() -> int:
    """As Ray itself will count: by NVML, without a CUDA context, cut by CUDA_VISIBLE_DEVICES."""
    import ray._private.accelerators  # here, so that who asks for memory alone does not wait for Ray

    manager = ray._private.accelerators.NvidiaGPUAcceleratorManager
    visible = _visible()
    found = int(manager.get_current_node_num_accelerators())
    return found if visible is None else min(found, len(visible))


def _visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, as CUDA reads it: up to the first that there cannot be. None: all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    ids = [each.strip() for each in named.split(",")]
    return list(itertools.takewhile(lambda each: each not in ("", "-1", "NoDevFiles"), ids))


def computes_bf16(by_gpu: bool) -> bool:
    """Whether workers here multiply bfloat16: every GPU, if they have any (``by_gpu``) and there are some, else the
    processor. Waits for no library."""
    capabilities = _capabilities() if by_gpu else []
    if capabilities:
        return all(capability >= 8.0 for capability in capabilities)
    flags = set((_text_of(CPU) or "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def has_gpus() -> bool:
    """Whether there are GPUs here that work may be done on. Waits for no library."""
    return bool(_capabilities())


def processor() -> str:
    """The name of the processor and what it can do, as the system tells them: what compiled code depends on."""
    lines = (_text_of(CPU) or platform.machine()).splitlines()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.machine()


def _capabilities() -> list[float]:
    """The compute capability of every GPU, by the driver's own tool; none where there is no driver, or none is left."""
    if _visible() == []:
        return []
    call = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(call, capture_output=True, text=True, timeout=30, check=True).stdout
        return [float(line) for line in said.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def shm_is_small(shm: int) -> bool:
    """Whether /dev/shm is too small to be of use, as the 64 MB of a plain Docker container are."""
    return shm < 4 * SMALLEST_STORE


def object_store_bytes(memory: int, shm: int) -> int:
    """Bytes of the object store: 30 % of the memory, and no more than /dev/shm holds.

    Where /dev/shm is small, Ray keeps the store on disk, and it is bounded to 2 GiB.
    """
    bound = SLOW_STORE if shm_is_small(shm) else int(0.9 * shm)
    return max(SMALLEST_STORE, min(int(0.3 * memory), bound))


def check_whitening(shape: tuple[int, int, int], memory: int) -> None:
    """ResourceError where the whitening of images (C, H, W) cannot be fitted in so many bytes of memory."""
    values = math.prod(shape)
    matrix = 8 * values**2
    if WHITENING_MATRICES * matrix > memory:
        raise ResourceError(
            f"data.zca: whitening {values} values an image ({' x '.join(map(str, shape))}) takes about "
            f"{WHITENING_MATRICES} matrices of {values} x {values}, {WHITENING_MATRICES * matrix / 2**30:.1f} GiB, and "
            f"there are {memory / 2**30:.1f} GiB; leave data.zca out or lower data.image_size"
        )
