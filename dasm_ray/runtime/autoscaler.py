"""What the cluster's autoscaler would do: whether there is one, and whether it knows a node for a worker.

What must stay true: asking leaves nothing behind, and every wait has an end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get

from dasm_ray.errors import ResourceError
from dasm_ray.runtime.plan import GIB, Shape

ANSWER_SECONDS = 8.0
"""Longest wait for an autoscaler's opinion; it looks every five seconds."""
REPLY_SECONDS = 5.0
"""Longest wait for one reply of the cluster."""


def grows() -> bool:
    """Whether an autoscaler of either generation stands behind the cluster; a plain head reports its nodes by id."""
    if _internal_kv_get(b"__autoscaler_v2_enabled", namespace=b"__autoscaler") == b"1":
        return True
    report = _internal_kv_get(b"__autoscaling_status")
    kinds = json.loads(report).get("autoscaler_report", {}).get("active_nodes") if report else None
    return any(not kind.startswith("node_") for kind in kinds or ())


def ask_autoscaler(shape: Shape) -> None:
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
    reply.ParseFromString(client.get_cluster_status(timeout_s=REPLY_SECONDS))
    return reply.cluster_resource_state, reply.autoscaling_state
