"""How many workers of which shape, on this machine or on a cluster.

What must stay true: what can never be met is refused within seconds, here before Ray is started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dasm_ray.config.keys import Runtime
from dasm_ray.errors import ResourceError
from dasm_ray.runtime.machine import Machine, object_store_bytes

GIB = 2**30


# --- the plan ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What one worker takes; ``memory`` in GiB, 0: what it needs, and nothing is set aside."""

    num_cpus: int
    num_gpus: float
    memory: float = 0.0

    def __str__(self) -> str:
        return _listed(self.num_cpus, self.num_gpus, self.memory)


@dataclass(frozen=True)
class Room:
    """What one node has; ``memory`` in GiB, for workers."""

    cpus: float
    gpus: float
    memory: float = 0.0

    def slots(self, shape: Shape) -> int:
        """Workers of this shape that fit."""
        slots = [math.floor(self.cpus / shape.num_cpus)]
        if shape.num_gpus:
            slots.append(_by_gpu(self.gpus, shape.num_gpus))
        if shape.memory:
            slots.append(math.floor(self.memory / shape.memory))
        return min(slots)

    def beside(self, shape: Shape) -> str:
        """What it has of what the shape asks for."""
        return _listed(self.cpus, self.gpus, self.memory if shape.memory else 0.0)


@dataclass(frozen=True)
class Plan:
    """How many workers of which shape, and what should be said about it."""

    workers: int
    shape: Shape
    notices: tuple[str, ...] = ()


def plan_here(runtime: Runtime, machine: Machine) -> Plan:
    """Workers on this machine alone. Workers may outnumber the cores, which they then share; GPUs are not shared so.

    Raises ResourceError when one worker does not fit.
    """
    shape = _shape(runtime, has_gpus=machine.gpus > 0)
    room = Room(machine.cores, machine.gpus, memory_for_workers(machine) / GIB)
    there = f"this machine has {room.beside(shape)}"
    for key, wanted, most, unit in (
        ("gpus_per_worker", shape.num_gpus, room.gpus, "GPU"),
        ("cpus_per_worker", shape.num_cpus, room.cpus, "core"),
        ("memory_per_worker", shape.memory, room.memory, "GiB"),
    ):
        if wanted > most:
            raise ResourceError(f"runtime.{key}: a worker needs {several(wanted, unit)}, but {there}; lower it")
    # Cores may be shared: where something scarcer counts the workers, or the user does, they are no limit.
    shares_cores = shape.num_gpus > 0 or runtime.workers is not None
    most = replace(room, cpus=machine.cores * 1000 if shares_cores else machine.cores).slots(shape)
    workers = min(runtime.workers or most, most)
    notices = []
    if runtime.workers is not None and workers < runtime.workers:
        notices.append(f"{there}: {several(most, 'worker')} instead of runtime.workers={runtime.workers}")
    if workers * shape.num_cpus > machine.cores:
        notices.append(f"{there}, which {several(workers, 'worker')} of {several(shape.num_cpus, 'core')} will share")
    return Plan(workers, shape, tuple(notices))


def plan_there(runtime: Runtime, nodes: Sequence[Room], *, grows: bool) -> Plan:
    """Workers on a cluster of these nodes; where it ``grows``, also workers for nodes that are yet to come.

    Raises ResourceError when a worker fits on no node and none can come.
    """
    has_gpus = any(node.gpus for node in nodes)
    if runtime.gpus_per_worker is None and grows and not has_gpus:
        raise ResourceError(
            "runtime.gpus_per_worker: unset, and the autoscaling cluster has no GPU yet; "
            "say how many GPUs a worker takes (0 for none)"
        )
    shape = _shape(runtime, has_gpus=has_gpus)
    now = sum(node.slots(shape) for node in nodes)
    if not now and not grows:
        raise ResourceError(_too_large(shape, nodes))
    workers = runtime.workers or max(1, now)
    if workers <= now:
        return Plan(workers, shape)
    if runtime.workers is None:
        return Plan(1, shape, ("the cluster has no room yet and runtime.workers is unset: one worker is asked for",))
    room = f"the cluster has room for {now} of {several(workers, 'worker')} now"
    return Plan(workers, shape, (f"{room}; the others start when nodes join",))


def _shape(runtime: Runtime, *, has_gpus: bool) -> Shape:
    asked = runtime.gpus_per_worker
    if asked is None:
        asked = float(has_gpus and runtime.device != "cpu")
    if runtime.device == "cuda" and not asked:
        raise ResourceError(
            "runtime.device: cuda, but workers have no GPU; set runtime.gpus_per_worker or leave it unset"
        )
    return Shape(runtime.cpus_per_worker, asked, runtime.memory_per_worker or 0.0)


def memory_for_workers(machine: Machine) -> int:
    """Bytes that are left beside the object store."""
    return max(0, machine.memory - object_store_bytes(machine.memory, machine.shm))


def _by_gpu(gpus: float, each: float) -> int:
    """Workers of ``each`` GPUs on ``gpus``: a share stays on one GPU (the small number keeps 1/0.1 at ten)."""
    return math.floor(gpus) * math.floor(1 / each + 1e-9) if each < 1 else math.floor(gpus / each)


def _too_large(shape: Shape, nodes: Sequence[Room]) -> str:
    largest = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Room(0, 0))
    key = "runtime.cpus_per_worker" if shape.num_cpus > largest.cpus else "runtime.memory_per_worker"
    if shape.num_gpus > largest.gpus:
        key = "runtime.gpus_per_worker"
    many = several(len(nodes), "node")
    return (
        f"{key}: a worker needs {shape}, but the largest of {many} has {largest.beside(shape)}, "
        f"and the cluster does not grow; lower it or add a node"
    )


def _listed(cpus: float, gpus: float, memory: float) -> str:
    parts = [several(cpus, "core"), several(gpus, "GPU"), *([several(round(memory, 1), "GiB")] if memory else [])]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def several(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 or noun == 'GiB' else 's'}"
