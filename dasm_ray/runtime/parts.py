"""Files of a sorted set from the node that has them all, for workers on nodes that do not share its disk.

What must stay true: a file goes through the object store in pieces, so that its size does not matter there, and what
is asked for lies in the folder of the set that both know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dasm_ray.errors import DasmError, StorageError
from dasm_ray.runtime.machine import read_machine
from dasm_ray.store.datasets.blockcache import Bring, Kept, SortedSet, bring_from
from dasm_ray.store.place import Place

PIECE_BYTES = 1 << 24
"""Of a file, through the object store at once."""


def this_node() -> str:
    """The id of the node of Ray that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def on_node(task: Any, place: Place) -> tuple[Any, int]:
    """The remote function for work on files of ``place``, and how many calls of it may be under way.

    Work is done here, where that is a folder of this machine, else anywhere. A node that lends no cores to Ray, as the
    head of many clusters, does it on those that it has.
    """
    nodes = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
    if place.local is None:
        return task.options(scheduling_strategy="SPREAD"), max(8, int(2 * sum(nodes.values())))
    here = this_node()
    lent = int(nodes.get(here, 0))
    if len(nodes) == 1 and lent:
        return task, max(8, 2 * lent)
    there = NodeAffinitySchedulingStrategy(here, soft=False)
    return task.options(num_cpus=min(1, lent), scheduling_strategy=there), 2 * lent or read_machine().cores


def opened_here(kept: Kept, digest: str) -> SortedSet:
    """A sorted set on the node of this process."""
    place = kept.place
    if place.local is None:
        return SortedSet(kept.copy, digest, bring_from(place), kept.most)
    if not kept.node or kept.node == this_node():
        return SortedSet(place.local, digest)
    return SortedSet(kept.copy, digest, bring_from_node(kept), kept.most)


def bring_from_node(kept: Kept) -> Bring:
    """Copies files out of the folder of the node that has all of the set."""
    there = NodeAffinitySchedulingStrategy(kept.node, soft=False)
    read = _piece.options(num_cpus=0, scheduling_strategy=there)

    def bring(name: str, to: Path) -> None:
        at = 0
        with to.open("wb") as sink:
            while True:
                try:
                    piece = ray.get(read.remote(kept, name, at))
                except RayError as error:
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, DasmError):
                        raise cause from None
                    raise StorageError(
                        f"{kept.key}/{name} cannot be had from the node that keeps the sorted images "
                        f"({str(error).partition(chr(10))[0][:200]}); name a folder or URI that all nodes reach as "
                        f"data.cache, and the same command goes on"
                    ) from None
                sink.write(piece)
                at += len(piece)
                if len(piece) < PIECE_BYTES:
                    return

    return bring


@ray.remote
def _piece(kept: Kept, name: str, at: int) -> bytes:
    """A piece of a file of a set, read where all of it is."""
    file = Path(str(kept.place)) / name
    try:
        with file.open("rb") as source:
            source.seek(at)
            return source.read(PIECE_BYTES)
    except OSError as error:
        raise StorageError(
            f"{file} cannot be read ({error.strerror}): the sorted images were removed while they were used; run the "
            f"same command again: it decodes them anew"
        ) from None
