"""One matching step, compiled against eager, in pairs: prints seconds, their ratio and how far the results differ.

    python tests/benchmarks/matching_step.py [width] [threads] [pairs]

ConvNet-3 on 32x32 colour images, 64 real images and 16 stored ones at factor 2 (64 decoded), color_crop_cutout, idc.
The eager form is the plain one: the library's own kernels, differentiated twice.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings

import torch

from dasm_ray.config.keys import Model
from dasm_ray.core.augment import draw
from dasm_ray.core.matching.gradient import GradientMatching
from dasm_ray.core.matching.step import StepInputs
from dasm_ray.core.networks.network import Network
from dasm_ray.core.seed import torch_generator


def problem(network: Network) -> StepInputs:
    """Inputs of one step."""
    generator = torch_generator("benchmark")
    flat = network.initial(generator)
    pixels = torch.rand(16, 3, 32, 32, generator=generator)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    settings = torch.tensor([0.1, 1.0])
    return StepInputs(
        flat,
        pixels,
        torch.zeros_like(pixels),
        images,
        torch.tensor(3),
        draw(1, generator),
        torch.zeros_like(flat),
        settings,
    )


def main(width: int = 128, threads: int = 2, pairs: int = 9) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    network = Network(Model(width=width), (3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    matching = GradientMatching(network, "convolutions", "mse", "color_crop_cutout", 2, 0.5)
    inputs = problem(network)
    began = time.perf_counter()
    fast = matching.step(inputs)
    print(f"compiling: {time.perf_counter() - began:.1f} s", flush=True)
    plain = matching.reference_step(inputs)
    gap = (plain.velocity - fast.velocity).norm() / plain.velocity.norm()
    eager, compiled = [], []
    for _ in range(pairs):
        for form, seconds in ((matching.reference_step, eager), (matching.step, compiled)):
            began = time.perf_counter()
            form(inputs)
            seconds.append(time.perf_counter() - began)
    ratio = statistics.median(a / b for a, b in zip(eager, compiled, strict=True))
    print(f"width {width}, {threads} threads: eager {statistics.median(eager):.3f} s, ", end="")
    print(f"compiled {statistics.median(compiled):.3f} s, ratio {ratio:.2f}, relative difference {gap:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
