"""The benchmarks: each row pairs the package's own call with a plain twin, and prints one line of one table.

    python tests/benchmarks/bench.py [--rows match,dm] [--width 32,128] [--precision float32,bf16] [--pairs 5] [--quick]
                                     [--json FILE] [--resume]

`docs/benchmarks.md` says how to read it. What must stay true: forms are timed one after another on one thread, and
never two at a time; what a row has given is in the file before the next one begins; no figure makes this command fail.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import shown
from demo import DemoFailed, demo
from measuring import Failed, Measured, Problem

LEAST_SECONDS = 0.2
"""CPU time of one sample: short calls are made several times."""

MOST_REPEATS = 100

PRECISIONS = ("float32", "bf16")

PLAIN = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The environment of a twin as its users start it, but for its one thread."""


@dataclass(frozen=True)
class Settings:
    """What is measured. ``rows`` are names in the order of the table."""

    rows: tuple[str, ...]
    widths: tuple[int, ...]
    precisions: tuple[str, ...]
    pairs: int
    quick: bool
    json: Path
    resume: bool


def main(arguments: list[str]) -> int:
    """Measures and prints; 1 where a row could not be measured."""
    from rows import ROWS
    from rows_runtime import RUNTIME

    settings = read(arguments, (*ROWS, *RUNTIME, "demo"))
    record = begun(settings)
    print(heading(record), flush=True)
    print(shown.head(), flush=True)
    for key, measure in todo(settings):
        if key not in record["rows"] or "failed" in record["rows"][key]:
            print(f"measuring {key} ...", file=sys.stderr, flush=True)
            record["rows"][key] = measure()
            keep(settings.json, record)
        outcome = record["rows"][key]
        print(shown.line(outcome) if outcome["row"] in ROWS else shown.told(outcome), flush=True)
    print(shown.where_time_goes(record["rows"].values()))
    print(f"All samples are in {settings.json}.")
    return int(any("failed" in outcome for outcome in record["rows"].values()))


def read(arguments: list[str], names: tuple[str, ...]) -> Settings:
    """The command line; exits with 2 and a sentence for what it cannot mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", default=",".join(names), help=f"which of {', '.join(names)}")
    parser.add_argument("--width", default="32", help="of the ConvNet; several, with commas, give a row each")
    parser.add_argument(
        "--precision", default="float32", help=f"of ours: {', '.join(PRECISIONS)}; several give a row each"
    )
    parser.add_argument("--pairs", type=int, default=5, help="samples of each form")
    parser.add_argument("--quick", action="store_true", help="small problems: to see that it works, not how fast")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where all samples are written")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file has, and go on")
    given = parser.parse_args(arguments)
    rows, widths, precisions = (each.split(",") for each in (given.rows, given.width, given.precision))
    unknown = [name for name in rows if name not in names]
    if unknown:
        parser.error(f"--rows: there is no row {unknown[0]!r}; there are {', '.join(names)}")
    if not all(width.isdecimal() and int(width) for width in widths):
        parser.error(f"--width: {given.width!r} is no list of widths such as 32,128")
    if not set(precisions) <= set(PRECISIONS):
        parser.error(f"--precision: {given.precision!r} is no list of {' and '.join(PRECISIONS)}")
    if given.pairs < 1:
        parser.error(f"--pairs: {given.pairs} pairs say nothing; give 5 or more")
    if not given.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {given.json.absolute().parent}; make it, or name another file")
    ordered = tuple(name for name in names if name in rows)
    sizes = tuple(map(int, widths)), tuple(dict.fromkeys(precisions))
    return Settings(ordered, *sizes, given.pairs, given.quick, given.json, given.resume)


def begun(settings: Settings) -> dict[str, Any]:
    """What the file is to hold: the rows that it has, if it is gone on with, and what they were measured on."""
    import limits
    import torch

    about = {
        "machine": {**limits.processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "settings": {"pairs": settings.pairs, "quick": settings.quick, "threads": 1},
    }
    if settings.resume and settings.json.exists():
        kept: dict[str, Any] = json.loads(settings.json.read_text(encoding="utf-8"))
        differs = [name for name, value in about.items() if kept.get(name) != value]
        if differs:
            sys.exit(f"{settings.json} has figures of another {differs[0]}: name another file by --json to go on")
        return kept
    with ProcessPoolExecutor(1, get_context("spawn"), _one_thread) as alone:  # as rows are: in a process of its own
        found = alone.submit(limits.limits).result()
    return {**about, "limits": found, "rows": {}}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def heading(record: dict[str, Any]) -> str:
    """What was measured on, and its limits."""
    machine, limits = record["machine"], record["limits"]
    told = {name: f"{value / 1e9:.0f}" for name, value in limits.items()}
    lines = [
        f"{machine['name']}, {' '.join(machine['flags'])}; torch {record['versions']['torch']}, 1 thread, "
        f"{record['settings']['pairs']} pairs{', quick: sizes of no meaning' * record['settings']['quick']}",
        f"Limits of one core: convolution {told['convolution_fp32']} and product {told['product_fp32']} GFLOP/s in "
        f"float32, copy {told['copying']} GB/s; "
        + (
            f"in bfloat16 {told['convolution_bf16']} and {told['product_bf16']} GFLOP/s"
            if machine["bf16"]
            else "this processor has no bfloat16 arithmetic"
        ),
    ]
    return "\n".join(lines)


def todo(settings: Settings) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every row by the key under which it is kept, and what measures it. Rows without a network have no width."""
    from rows import ROWS
    from rows_runtime import RUNTIME

    for name in settings.rows:
        if name in RUNTIME:
            yield name, partial(at_runtime, name, settings)
            continue
        if name == "demo":
            yield name, partial(demonstrated, settings)
            continue
        if not ROWS[name].has_network:
            yield name, partial(measured, name, 0, "float32", settings)
            continue
        for width in settings.widths:
            for precision in settings.precisions:
                key = f"{name}/{width}" + f"/{precision}" * (precision != "float32")
                yield key, partial(measured, name, width, precision, settings)


def at_runtime(name: str, settings: Settings) -> dict[str, Any]:
    """A row of the runtime, in a process of its own, that is of as many threads as a driver's."""
    import rows_runtime

    try:
        with ProcessPoolExecutor(1, get_context("spawn"), _one_thread) as alone:
            return {"row": name, **alone.submit(rows_runtime.main, name, settings.pairs, settings.quick).result()}
    except Exception as error:  # of many types; told, and the next row is measured
        return {"row": name, "failed": f"{type(error).__name__}: {error}"}


def demonstrated(settings: Settings) -> dict[str, Any]:
    """The demo by stage."""
    try:
        return {"row": "demo", **demo(settings.quick)}
    except DemoFailed as error:
        return {"row": "demo", "failed": str(error)}


def measured(name: str, width: int, precision: str, settings: Settings) -> dict[str, Any]:
    """All that is measured of one row: its times, then the memory of each form in a process of its own."""
    from rows import ROWS

    from dasm_ray.runtime.worker import environment

    began, worker, about = time.perf_counter(), environment(1), {"row": name, "width": width, "precision": precision}
    problem = (width or 32, settings.quick, precision)
    try:
        with tempfile.TemporaryDirectory(prefix="dasm-ray-bench-") as empty:
            if ROWS[name].is_cold:
                worker["TORCHINDUCTOR_CACHE_DIR"] = empty
            times = timed(name, problem, settings, worker)
            outcome = {**about, **times, "memory": memory(name, problem, worker)}
    except Failed as error:
        return {**about, "failed": str(error)}
    return {**outcome, "took": time.perf_counter() - began}


def timed(name: str, problem: Problem, settings: Settings, worker: dict[str, str]) -> dict[str, Any]:
    """Samples of ours and of the twin in one process that is started as workers are, and of the twin in a plain one."""
    with ExitStack() as processes:
        both = processes.enter_context(Measured(name, problem, False, worker))
        plain = processes.enter_context(Measured(name, problem, False, PLAIN))
        first = {"ours": both.ask("warm", "ours"), "twin": both.ask("warm", "twin")}
        plain.ask("warm", "twin")
        differ, limit = both.ask("apart"), both.ask("limit")
        repeat = repeats(both.ask("time", "ours", 1)["cpu"])
        samples = []
        for number in range(settings.pairs):
            asked = {"ours": (both, "ours"), "twin": (both, "twin"), "plain": (plain, "twin")}
            order = list(asked) if number % 2 else list(asked)[::-1]
            samples.append({form: asked[form][0].ask("time", asked[form][1], repeat) for form in order})
        limit = max(limit, both.ask("limit"))
        return {
            **both.ask("facts"),
            "differ": differ,
            "repeat": repeat,
            "first_call": first,
            "limit": limit,
            "work": plain.ask("work"),
            "spent": both.ask("spent"),
            "samples": samples,
            **shown.figures(samples),
        }


def repeats(seconds: float) -> int:
    """How many calls make a sample, of a call that takes so many seconds."""
    return max(1, min(MOST_REPEATS, math.ceil(LEAST_SECONDS / max(seconds, 1e-9))))


def memory(name: str, problem: Problem, worker: dict[str, str]) -> dict[str, Any]:
    """Peak memory: of ours in a process as workers are, of the twin in a plain one."""
    found = {}
    for form, variables in (("ours", worker), ("twin", PLAIN)):
        with Measured(name, problem, True, variables) as process:
            found[form] = process.ask("memory", form)
    return found


def keep(file: Path, record: dict[str, Any]) -> None:
    """Writes the record, whole or not at all."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    aside.replace(file)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Stopped; the rows that are done are kept, and --resume goes on.")
