"""The real images found and checked against this machine, before Ray is started.

What must stay true: nothing here waits for Ray or PyTorch, and what can be refused without them is.
"""

from __future__ import annotations

import os

from dasm_ray.config.keys import RunConfig
from dasm_ray.runtime.machine import check_whitening, read_memory
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.shards import Source


def open_checked(config: RunConfig) -> Source:
    """The set of a configuration, found but not decoded; what it holds stands in ``found``.

    Raises DataError for a set that cannot be used, ResourceError for a whitening that does not fit this machine. Where
    the work is done on a cluster elsewhere, its own memory is looked at once it has answered.
    """
    source = open_source(config.data)
    if config.data.zca is not None and not (config.runtime.address or os.environ.get("RAY_ADDRESS")):
        check_whitening(source.shape, read_memory())
    return source
