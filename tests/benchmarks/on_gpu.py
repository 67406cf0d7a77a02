"""What the loops of core take on a GPU, by the clock: each loop eager, compiled and captured, in float32 and bf16.

    python tests/benchmarks/on_gpu.py [--width 128] [--rows lane,reading] [--forms eager/bf16,captured/bf16]
                                      [--json gpu.json] [--minutes 8] [--device cuda] [--quick]

Needs no Ray. What must stay true: a clock is read when the device has done its work; what a row has given is in the
file before the next begins, and a file of another device or torch is not gone on with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dasm_ray.config.keys import Model, RunConfig, TrainRecipe
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.blocks import Blocks
from dasm_ray.core.device import multiply_as
from dasm_ray.core.matching.lane import walk_lane
from dasm_ray.core.matching.round import Assignment, RoundInputs, distil_round, matching_of
from dasm_ray.core.matching.setstate import SetState, whole
from dasm_ray.core.matching.trajectory import Student
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.reading import accuracy
from dasm_ray.core.networks.samples import RealSamples
from dasm_ray.core.networks.training import train
from dasm_ray.core.seed import torch_generator

CLASSES, MEAN, STD = 10, (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)
DSA = "color_crop_cutout_flip_scale_rotate"
FORMS = tuple(
    f"{steps}/{precision}" for steps in ("eager", "compiled", "captured") for precision in ("float32", "bf16")
)

Loop = Callable[[], int]
"""Does its work once; how many images it worked on."""


class Problem:
    """Images, and a network of one form."""

    def __init__(self, width: int, quick: bool, device: str, steps: str, precision: str) -> None:
        size, self.each = (8, 40) if quick else (32, 1000)
        self.quick = quick
        self.shape = (3, size, size)
        levels = np.random.default_rng(0).integers(0, 256, (CLASSES, self.each, *self.shape), dtype=np.uint8)
        self.blocks = Blocks(list(levels))
        multiply_as(precision, device)
        compiled.capture(steps == "captured")
        model = Model(width=width, depth=1 if quick else 3)
        self.network = Network(
            model, self.shape, CLASSES, MEAN, STD, device=device, compile=steps != "eager", precision=precision
        )
        self.flat = self.network.initial(torch_generator("gpu"))

    def pick(self, usual: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else usual

    def pixels(self, classes: int, images: int) -> np.ndarray:
        """Random ones in [0, 1]."""
        return np.random.default_rng(1).random((classes, images, *self.shape), dtype=np.float32)


def training(problem: Problem) -> Loop:
    """Steps of an expert's training, batches of 256, all of DSA's augmentations."""
    recipe = TrainRecipe(epochs=1, batch=problem.pick(256, 16), augment=DSA, cutmix=0.0)
    samples, steps = RealSamples(problem.network, problem.blocks), problem.pick(50, 3)

    def loop() -> int:
        states = train(
            problem.network, samples, recipe, steps=steps, generator=torch_generator("gpu"), flat=problem.flat
        )
        for state in states:
            last = state.loss
        float(last)
        return steps * recipe.batch

    return loop


def _round(problem: Problem, name: str) -> Loop:
    matcher: dict[str, Any] = {"name": name, "networks": problem.pick(5, 1), "batch_real": problem.pick(128, 8)}
    if name == "idc":
        matcher |= {"snapshots": [[0, 2]]}
    config: RunConfig = parse_config(
        {"synthetic": {"ipc": 10, "segments": 1}, "experts": {"epochs": 4}, "matcher": {**matcher, "augment": DSA}}
    )
    pixels = problem.pixels(CLASSES, 10)
    states = np.stack([problem.flat.cpu().numpy()] * 5)
    inputs = RoundInputs(problem.blocks, [[np.arange(problem.each)] * CLASSES], pixels[:, :0], pixels, [states], [])
    matching = matching_of(problem.network, config)
    where = Assignment(0, 0, 0, tuple(range(CLASSES)))
    images = config.matcher.networks * CLASSES * (config.matcher.batch_real + 10)

    def loop() -> int:
        distil_round(matching, config, where, inputs, pixels, np.zeros_like(pixels))
        return images

    return loop


def gradients(problem: Problem) -> Loop:
    """A round of gradient matching: ten classes at each network state."""
    return _round(problem, "idc")


def distributions(problem: Problem) -> Loop:
    """A round of distribution matching: all ten classes in one step at each network state."""
    return _round(problem, "dm")


def lane(problem: Problem) -> Loop:
    """A lane of trajectory matching: a walk of student steps, and its gradient."""
    steps, batch = problem.pick(20, 2), problem.pick(100, 10)
    config = parse_config(
        {
            "synthetic": {"ipc": 10, "segments": 1},
            "experts": {"epochs": 8},
            "matcher": {"name": "datm", "augment": DSA, "rounds": 3},
            "trajectory": {"steps": steps, "epochs": 2, "batch": batch, "starts": [[0, 2, 5]], "expansion": 10},
        }
    )
    state = SetState.at_rest(problem.pixels(CLASSES, 10), np.zeros((CLASSES, 10, CLASSES), np.float32), -4.0)
    nothing, student = (state.pixels[:, :0], state.labels[:, :0]), Student(problem.network, soft=True)
    start = problem.flat.cpu().numpy()

    def loop() -> int:
        walk_lane(student, config, (0, 0, 0), *whole(state, nothing), start, start + np.float32(0.01))
        return steps * batch

    return loop


def reading(problem: Problem) -> Loop:
    """The accuracy on all real images, batches of 500."""
    samples = RealSamples(problem.network, problem.blocks)

    def loop() -> int:
        accuracy(problem.network, problem.flat, {}, samples)
        return len(samples)

    return loop


LOOPS: dict[str, Callable[[Problem], Loop]] = {
    "training": training,
    "gradients": gradients,
    "distributions": distributions,
    "lane": lane,
    "reading": reading,
}


def measured(loop: Loop, device: str) -> dict[str, Any]:
    """Seconds of the first call, then the median of five, images a second, and the most memory of the device."""
    began = time.perf_counter()
    images = loop()
    first, took = time.perf_counter() - began, []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        began = time.perf_counter()
        loop()  # each ends with a number or a copy, which waits for the device
        took.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() if device != "cpu" else 0
    seconds = statistics.median(took)
    return {"first": first, "seconds": seconds, "samples": took, "images_s": images / seconds, "memory": memory}


def about(device: str, quick: bool) -> dict[str, Any]:
    """What figures are of."""
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "quick": quick}


def named(among: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads some of these names, which commas part."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in among:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(among)}")
        return names

    return read


def main(arguments: list[str]) -> int:
    """Measures until all is done or the minutes are over: then 3, and the same command goes on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", default="32,128", help="of the ConvNet; several, with commas")
    parser.add_argument("--rows", type=named(LOOPS), default=list(LOOPS), help=f"some of {','.join(LOOPS)}")
    parser.add_argument("--forms", type=named(FORMS), default=list(FORMS), help=f"some of {','.join(FORMS)}")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where figures are, and are gone on with")
    parser.add_argument("--minutes", type=float, default=8, help="after which no further row is begun")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small problems: whether it works, not how fast")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here that it can compute on; nothing is measured")
        return 0
    end, record = time.monotonic() + 60 * given.minutes, {**about(given.device, given.quick), "rows": {}}
    if given.json.exists():
        kept = json.loads(given.json.read_text(encoding="utf-8"))
        if {**kept, "rows": {}} != record:
            sys.exit(f"{given.json} has figures of another device, torch or size: name another file by --json")
        record = kept
    for width in map(int, given.width.split(",")):
        for name in given.rows:
            for form in given.forms:
                key = f"{name}/{width}/{form}"
                if key not in record["rows"]:
                    if time.monotonic() > end:
                        print(f"The minutes are over; the same command goes on with {key}.")
                        return 3
                    problem = Problem(width, given.quick, given.device, *form.split("/"))
                    record["rows"][key] = measured(LOOPS[name](problem), given.device)
                    aside = given.json.with_name(f".{given.json.name}.tmp")
                    aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
                    aside.replace(given.json)
                row = record["rows"][key]
                memory = row["memory"] / 2**20
                print(f"{key:40} {row['images_s']:12,.0f} images/s {memory:10,.0f} MiB  first {row['first']:.1f} s")
    print(f"All samples are in {given.json}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
