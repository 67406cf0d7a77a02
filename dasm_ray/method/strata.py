"""Strata of each class, by which real batches are balanced: k-means clusters of an expert's features.

What must stay true: strata are computed once, and lie beside the experts under all that affects them.
"""

from __future__ import annotations

import numpy as np

from dasm_ray.config.digests import digest_of
from dasm_ray.method.experts import Experts
from dasm_ray.method.run import Run, run_all
from dasm_ray.runtime.pool import task
from dasm_ray.runtime.sharing import ObjectRef
from dasm_ray.runtime.worker import Worker
from dasm_ray.store import tensors


def strata_of(run: Run, experts: Experts) -> tuple[ObjectRef, ...]:
    """References to the stratum of each image (n_c,), a class each; read where they are on disk."""
    counts = run.real.counts["train"]
    key = digest_of(run.expert_key, run.config.matcher.batch_real, run.config.score.batch)
    file = run.shared_place / f"strata_{key}.safetensors"
    if file.exists():
        arrays, note = tensors.read(file)
        tensors.check_key(file, note, key)
        return tuple(run.pool.put(of_class) for of_class in np.split(arrays["stratum"], np.cumsum(counts)[:-1]))
    run.progress.stage("strata", run.classes)
    first = experts.snapshots[:1]
    tasks = [task(f"strata of class {c}", Worker.strata, run.job, c, first) for c in range(run.classes)]
    found = tuple(done.refs[0] for done in run_all(run, tasks, lambda _: run.progress.advance()))
    tensors.write(file, {"stratum": np.concatenate(run.pool.fetch(list(found)))}, {"key": key})
    return found
