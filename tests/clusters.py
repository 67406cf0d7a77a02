"""Ray clusters on this machine for tests: a head whose autoscaler starts and ends nodes, each a Ray of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

HEAD = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"
"""The id and the type that Ray's provider of local nodes gives to the head."""


@dataclass
class Autoscaling:
    """A running head: its address, its process, and how many nodes beside the head were alive when."""

    address: str
    process: psutil.Process
    counts: list[int] = field(default_factory=list)
    """The number of nodes, each time that it changed."""

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, beside the head."""
        found = ray._raylet.GcsClient(self.address).get_all_node_info(timeout=10).values()
        alive = [node for node in found if node.state == ray.core.generated.gcs_pb2.GcsNodeInfo.ALIVE]
        return [
            {"id": node.node_id.hex(), "resources": dict(node.resources_total)}
            for node in alive
            if not node.is_head_node
        ]

    def raylets(self) -> list[psutil.Process]:
        """The raylets of the nodes beside the head, oldest first: what keeps a node alive."""
        found = [each for each in self.process.children(recursive=True) if each.name() == "raylet"]
        return sorted(found, key=lambda each: each.create_time())[1:]

    def workers(self) -> list[psutil.Process]:
        """The processes of the package's workers, on all nodes."""
        found = []
        for each in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                if each.cmdline()[0].startswith("ray::Worker"):
                    found.append(each)
        return found

    def wait_for(self, nodes: int, seconds: float) -> None:
        """Until so many nodes are there."""
        end = time.monotonic() + seconds
        while len(self.nodes()) != nodes:
            assert time.monotonic() < end, f"{len(self.nodes())} nodes, not {nodes}; so far {self.counts}"
            time.sleep(0.2)


@contextlib.contextmanager
def autoscaling(resources: dict[str, float], most: int, idle_seconds: float = 4) -> Iterator[Autoscaling]:
    """A head without a core for workers, and up to ``most`` nodes of these ``resources`` that come when asked for.

    The provider is the one that Ray itself is tested with; the autoscaler is the real one, of its second version.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets lie in it, whose paths must be short
    address = f"{ray._private.services.get_node_ip_address()}:{_free_port()}"
    described = folder / "cluster.json"
    described.write_text(json.dumps(_description(address, resources, most, idle_seconds)))
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_TMPDIR": str(folder),
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={address.rpartition(':')[2]}"]
    command += [f"--autoscaling-config={described}", "--num-cpus=0", "--object-store-memory=150000000"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--block"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    watched = Autoscaling(address, psutil.Process(process.pid))
    ended = threading.Event()
    watcher = threading.Thread(target=_count, args=(watched, ended), daemon=True)
    try:
        _wait_for_head(watched, folder)
        watcher.start()
        yield watched
    finally:
        ended.set()
        _end(watched.process)
        shutil.rmtree(folder, ignore_errors=True)


def _description(address: str, resources: dict[str, float], most: int, idle_seconds: float) -> dict[str, Any]:
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "gcs_address": address,
        "launch_multiple": True,
        "head_node_id": HEAD,
    }
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    more = ("head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "local",
        "max_workers": most,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": provider,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": HEAD_TYPE,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in (*lists, *more, "cluster_synced_files")},
        "file_mounts_sync_continuously": False,
    }


def _wait_for_head(watched: Autoscaling, folder: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            watched.nodes()
            return
        except Exception:  # whatever Ray raises while nobody listens
            assert watched.process.is_running(), (folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)


def _count(watched: Autoscaling, ended: threading.Event) -> None:
    while not ended.wait(0.2):
        with contextlib.suppress(Exception):  # the head may be busy, or gone by now
            count = len(watched.nodes())
            if watched.counts[-1:] != [count]:
                watched.counts.append(count)


def _end(process: psutil.Process) -> None:
    """Ends a process and all that it started."""
    everyone = [*process.children(recursive=True), process]
    for each in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=10)
    for each in alive:
        each.kill()
    psutil.wait_procs(alive, timeout=5)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
