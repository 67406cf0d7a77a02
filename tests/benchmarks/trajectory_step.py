"""One iteration of trajectory matching, the compiled adjoint against the plain unrolled form, each in its own process.

    python tests/benchmarks/trajectory_step.py [width] [steps] [batch] [threads]

ConvNet-3 on 32x32 colour images, 10 classes, a whole batch a student step. Prints seconds, peak memory, their ratios,
and how far the gradients differ. Memory is the peak resident set of the process, less
what it held before the first step.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from dasm_ray.config.keys import Model
from dasm_ray.core.matching.trajectory import Gradients, Student, adjoint, planned, unrolled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.seed import torch_generator

RUNS = {"unrolled": 1, "adjoint": 2}
"""Timed iterations of each form; the median counts."""


def measure(form: str, width: int, steps: int, batch: int, threads: int, send: Connection) -> None:
    """Sends (seconds, peak bytes, gradients by image) of one form."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    network = Network(Model(width=width), (3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3, compile=form == "adjoint")
    generator = torch_generator("benchmark")
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randn(batch, 10, generator=generator)
    start = network.initial(generator)
    target = start + 0.01 * torch.randn(start.shape, generator=generator)
    plan = planned(batch, batch, steps, "color_crop_cutout_flip_scale_rotate", True, generator)
    student = Student(network, soft=True)
    call = {"unrolled": unrolled, "adjoint": adjoint}[form]
    arguments = (images, labels, torch.tensor(0.01).log(), start, target)
    before = resident()
    if form == "adjoint":  # compile, on two steps
        call(student, planned(batch, batch, 2, "color", True, generator), *arguments)
    seconds = []
    for _ in range(RUNS[form]):
        began = time.perf_counter()
        found: Gradients = call(student, plan, *arguments)
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    send.send((statistics.median(seconds), peak, found.images.numpy()))


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def in_a_process(*arguments: object) -> tuple[float, int, torch.Tensor]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*arguments, send))
    process.start()
    seconds, peak, gradient = receive.recv()
    process.join()
    return seconds, peak, torch.from_numpy(gradient)


def main(width: int = 128, steps: int = 30, batch: int = 100, threads: int = 2) -> None:
    found = {form: in_a_process(form, width, steps, batch, threads) for form in RUNS}
    for form, (seconds, peak, _) in found.items():
        print(f"{form}: {seconds:.1f} s an iteration, peak memory {peak / 2**30:.2f} GiB", flush=True)
    (slow, large, plain), (fast, small, ours) = found["unrolled"], found["adjoint"]
    gap = (plain - ours).norm() / plain.norm()
    print(
        f"width {width}, {steps} steps of {batch} images, {threads} threads: {slow / fast:.2f} times as fast, "
        f"{small / large:.3f} of the memory, relative difference {gap:.1e}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
