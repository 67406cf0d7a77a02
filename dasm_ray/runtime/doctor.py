"""What every node has: versions, devices, room. The driver and each node look at themselves; the report compares.

What must stay true: a node that does not answer in time is part of the answer, and looking changes nothing.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dasm_ray.runtime.machine import installed, read_machine

SECONDS = 60.0
"""A node that says nothing for so long is reported as silent."""

GIB = 2**30

Facts = Mapping[str, str | float]


@dataclass(frozen=True)
class Looked:
    """One machine: its name, what it found (nothing if it was silent), and what is wrong with it alone."""

    name: str
    facts: Facts
    complaints: tuple[str, ...]


def look() -> dict[str, str | float]:
    """This machine, in plain values: versions as text, room in GiB."""
    machine = read_machine()
    facts: dict[str, str | float] = {"python": platform.python_version()}
    facts |= {package: installed(package) for package in ("ray", "torch", "torchvision", "dasm-ray")}
    facts["cuda"] = _cuda()
    facts |= {"cores": machine.cores, "GPUs": machine.gpus, "memory": round(machine.memory / GIB, 1)}
    facts |= {"/dev/shm": round(machine.shm / GIB, 1), "disk": round(shutil.disk_usage(_temporary()).free / GIB, 1)}
    return facts


def _cuda() -> str:
    """The CUDA that torch was built for; asked from its package, so that none is initialised."""
    try:
        import torch.version
    except ImportError:
        return "none"
    return str(torch.version.cuda or "none")


def _temporary() -> str:
    import tempfile

    return tempfile.gettempdir()


def look_everywhere() -> list[Looked]:
    """The driver first, then every node of the cluster that the session is connected to."""
    driver = look()
    reports = [Looked("driver", driver, complaints_about(driver))]
    asked: dict[Any, tuple[str, float]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            asked[task.remote()] = (
                f"node {node['NodeManagerAddress']}",
                node["Resources"].get("object_store_memory", 0),
            )
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS) if asked else ([], [])
    for reference, (name, store) in asked.items():
        if reference in silent:
            ray.cancel(reference, force=True)
            reports.append(Looked(name, {}, (f"said nothing for {SECONDS:.0f} s",)))
            continue
        try:
            facts = {**ray.get(reference), "object store": round(store / GIB, 1)}
        except RayError as error:
            reports.append(Looked(name, {}, (f"cannot look ({' '.join(str(error).split())[:200]})",)))
            continue
        reports.append(Looked(name, facts, complaints_about(facts)))
    return reports


def complaints_about(facts: Facts) -> tuple[str, ...]:
    """What is wrong with one machine whatever the others have, one sentence each."""
    wrong = []
    if tuple(int(part) for part in str(facts["python"]).split(".")[:2]) < (3, 11):
        wrong.append(f"Python {facts['python']} is older than 3.11")
    wrong += [f"{package} is not installed" for package in ("ray", "torch", "dasm-ray") if facts[package] == "missing"]
    if float(facts["disk"]) < 2:
        wrong.append(f"only {facts['disk']} GiB are free for temporary files and spilled objects")
    if sys.platform == "linux" and float(facts["/dev/shm"]) < 0.3:
        wrong.append(f"/dev/shm has only {facts['/dev/shm']} GiB, so the object store lives on disk")
    if float(facts["GPUs"]) and facts["cuda"] == "none":
        wrong.append("there are GPUs, but torch was built without CUDA")
    return tuple(wrong)


MUST_AGREE = ("python", "ray", "torch", "torchvision", "dasm-ray")
"""Versions that have to be the same everywhere: tasks and numbers travel between machines."""


def differences(reports: list[Looked]) -> list[tuple[str, str]]:
    """(machine, fact) wherever a version is not the driver's; of Python the first two numbers count."""

    def seen(facts: Facts, name: str) -> str:
        text = str(facts[name])
        return ".".join(text.split(".")[:2]) if name == "python" else text

    driver = reports[0].facts
    return [
        (report.name, name)
        for report in reports[1:]
        for name in MUST_AGREE
        if report.facts and seen(report.facts, name) != seen(driver, name)
    ]
