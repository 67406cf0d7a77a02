"""The connection to Ray: joins a running cluster or starts one here, and plans how many workers of which shape.

What must stay true: what can never be met is refused within seconds, here before Ray is started; and only what was
started here is shut down here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get

from dasm_ray.config import Runtime
from dasm_ray.errors import ResourceError, SessionError
from dasm_ray.runtime.machine import Machine, object_store_bytes, read_machine, shm_is_small

Log = Callable[[str], None]

GIB = 2**30
PROBE_SECONDS = 5.0
"""Longest wait for a sign of life from a cluster's port."""
ANSWER_SECONDS = 8.0
"""Longest wait for an autoscaler's opinion; it looks every five seconds."""

logger = logging.getLogger(__name__)


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
    room = Room(machine.cores, machine.gpus, _memory_for_workers(machine) / GIB)
    there = f"this machine has {room.beside(shape)}"
    for key, wanted, most, unit in (
        ("gpus_per_worker", shape.num_gpus, room.gpus, "GPU"),
        ("cpus_per_worker", shape.num_cpus, room.cpus, "core"),
        ("memory_per_worker", shape.memory, room.memory, "GiB"),
    ):
        if wanted > most:
            raise ResourceError(f"runtime.{key}: a worker needs {_several(wanted, unit)}, but {there}; lower it")
    # Cores may be shared: where something scarcer counts the workers, or the user does, they are no limit.
    shares_cores = shape.num_gpus > 0 or runtime.workers is not None
    most = replace(room, cpus=machine.cores * 1000 if shares_cores else machine.cores).slots(shape)
    workers = min(runtime.workers or most, most)
    notices = []
    if runtime.workers is not None and workers < runtime.workers:
        notices.append(f"{there}: {_several(most, 'worker')} instead of runtime.workers={runtime.workers}")
    if workers * shape.num_cpus > machine.cores:
        notices.append(f"{there}, which {_several(workers, 'worker')} of {_several(shape.num_cpus, 'core')} will share")
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
    room = f"the cluster has room for {now} of {_several(workers, 'worker')} now"
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


def _memory_for_workers(machine: Machine) -> int:
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
    many = _several(len(nodes), "node")
    return (
        f"{key}: a worker needs {shape}, but the largest of {many} has {largest.beside(shape)}, "
        f"and the cluster does not grow; lower it or add a node"
    )


def _listed(cpus: float, gpus: float, memory: float) -> str:
    parts = [_several(cpus, "core"), _several(gpus, "GPU"), *([_several(round(memory, 1), "GiB")] if memory else [])]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _several(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 or noun == 'GiB' else 's'}"


# --- the session -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A connection to Ray, in which ``workers`` of a ``shape`` may be started, which compute on ``device``."""

    workers: int
    shape: Shape
    device: Literal["cpu", "cuda"]
    started_here: bool
    connected_here: bool

    @classmethod
    def open(cls, runtime: Runtime, log: Log) -> Session:
        """Connects to ``runtime.address`` or RAY_ADDRESS, else starts Ray here; an open connection is used as it is.

        Notices go to ``log``, one line each. Raises ResourceError for workers that can never be had, SessionError when
        the cluster does not answer.
        """
        open_already = ray.is_initialized()
        address = runtime.address or os.environ.get("RAY_ADDRESS") or "local"
        here = address == "local" and not open_already
        plan = _start(runtime, log) if here else _join(runtime, None if open_already else address)
        for notice in plan.notices:
            log(notice)
        device = runtime.device or ("cuda" if plan.shape.num_gpus else "cpu")
        return cls(plan.workers, plan.shape, device, here, not open_already)

    def close(self) -> None:
        """Ends what was begun here: the connection, and the cluster if it was started here."""
        if self.connected_here:
            ray.shutdown()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        where = "this machine" if self.started_here else "a Ray cluster"
        return f"{_several(self.workers, 'worker')} of {self.shape} on {where}"


def _start(runtime: Runtime, log: Log) -> Plan:
    """Starts Ray here, with as many logical cores as the planned workers ask for."""
    machine = read_machine()
    plan = plan_here(runtime, machine)
    if shm_is_small(machine.shm):
        size = machine.shm / 2**20
        log(f"/dev/shm holds only {size:.0f} MiB: objects go through the disk, slowly; enlarge it (docker --shm-size)")
    _init(
        address="local",
        num_cpus=max(machine.cores, plan.workers * plan.shape.num_cpus),
        num_gpus=machine.gpus,
        include_dashboard=False,
        object_store_memory=object_store_bytes(machine.memory, machine.shm),
        _memory=_memory_for_workers(machine),
    )
    return plan


def _join(runtime: Runtime, address: str | None) -> Plan:
    """Joins the cluster (None: joined already) and plans on it; leaves it again if it cannot meet the request."""
    if address is not None:
        address = _resolved(address)
        _probe(address)
        _init(address=address)
    try:
        totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [Room(each.get("CPU", 0), each.get("GPU", 0), each.get("memory", 0) / GIB) for each in totals]
        plan = plan_there(runtime, nodes, grows=grows())
        if not any(node.slots(plan.shape) for node in nodes):
            _ask_autoscaler(plan.shape)
        return plan
    except ResourceError:
        if address is not None:
            ray.shutdown()
        raise


def _init(**options: Any) -> None:
    # Ray's coming default; while it is unset, each worker without a GPU warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, **options)
    except Exception as error:  # of many types; whichever it is, there is no cluster to work with
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise SessionError(f"{options['address']}: Ray did not start or did not answer ({reason})") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own there, which prints a stack and says nothing else
    _keep_stdout_clean()


def _keep_stdout_clean() -> None:
    """Ray prints a paragraph on *stdout* for each dead worker, whatever log_to_driver says; it belongs in a log."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix: logger.debug("%s", "\n".join(data["lines"]))


def _resolved(address: str) -> str:
    """``host:port`` for an address as users write it; ``auto`` is the cluster of this machine."""
    if address.startswith("ray://"):
        raise SessionError(
            f"{address}: a Ray client address is not supported; give host:port of the head, or a Ray job"
        )
    if address != "auto":
        return address
    try:
        return str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError:
        unset = "start one or leave runtime.address unset"
        raise SessionError(f"auto: not one Ray cluster, or several, run on this machine; {unset}") from None


def _probe(address: str) -> None:
    """Asks the port for a sign of gRPC; against a dead one ``ray.init`` itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SessionError(f"{address}: is not host:port of a Ray head (6379 by default); check runtime.address")
    if host in ("localhost", "127.0.0.1"):
        host = ray._private.services.get_node_ip_address()  # Ray replaces it so, too
    try:
        answered = _speaks_grpc(host.strip("[]"), int(port))
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or error
        hint = "check runtime.address or RAY_ADDRESS"
        raise SessionError(f"{address}: no Ray cluster answers there ({reason}); {hint}") from None
    if not answered:
        raise SessionError(f"{address}: something else listens there; give the port of the Ray head (6379 by default)")


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether the port answers the greeting of HTTP/2 with a SETTINGS frame (RFC 9113, section 3.4)."""
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    with socket.create_connection((host, port), timeout=PROBE_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS"):
            return True  # only Ray itself can speak first here
        connection.sendall(greeting)
        return connection.recv(9)[3:4] == b"\x04"


def grows() -> bool:
    """Whether an autoscaler of either generation stands behind the cluster; a plain head reports its nodes by id."""
    if _internal_kv_get(b"__autoscaler_v2_enabled", namespace=b"__autoscaler") == b"1":
        return True
    report = _internal_kv_get(b"__autoscaling_status")
    kinds = json.loads(report).get("autoscaler_report", {}).get("active_nodes") if report else None
    return any(not kind.startswith("node_") for kind in kinds or ())


def _ask_autoscaler(shape: Shape) -> None:
    """Asks for one worker, and waits until the autoscaler has seen that; ResourceError if it knows no node for it.

    Only the autoscaler's second version, the default of Ray's launcher, says so; others are given the benefit.
    """
    needs = {"CPU": shape.num_cpus, "GPU": shape.num_gpus, "memory": shape.memory * GIB}
    scout = (
        ray.remote(_Scout).options(num_cpus=shape.num_cpus, num_gpus=shape.num_gpus, memory=needs["memory"]).remote()
    )
    end, asked = time.monotonic() + ANSWER_SECONDS, None
    try:
        while time.monotonic() < end:
            cluster, autoscaler = _autoscaling()
            waiting = [each.request.resources_bundle for each in cluster.pending_resource_requests]
            if asked is None and any(_is(each, needs) for each in waiting):
                asked = cluster.cluster_resource_state_version
            elif asked is not None and autoscaler.last_seen_cluster_resource_state_version > asked:
                if any(_is(each.resources_bundle, needs) for each in autoscaler.infeasible_resource_requests):
                    raise ResourceError(
                        f"runtime: a worker needs {shape}, but the autoscaling cluster starts no node that has that; "
                        f"lower cpus_per_worker, gpus_per_worker or memory_per_worker"
                    )
                return
            time.sleep(0.1)
    finally:
        ray.kill(scout)


class _Scout:
    """An actor that does nothing; that it waits for a node is what the autoscaler sees."""


def _is(bundle: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(math.isclose(bundle.get(name, 0.0), amount, rel_tol=1e-3) for name, amount in needs.items())


def _autoscaling() -> tuple[Any, Any]:
    """What the cluster has and lacks, and what its autoscaler makes of that, as Ray's messages."""
    reply = GetClusterStatusReply()
    client = ray._raylet.GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=PROBE_SECONDS))
    return reply.cluster_resource_state, reply.autoscaling_state
