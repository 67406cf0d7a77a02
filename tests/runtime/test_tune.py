"""Sweeps by the real Tune: trials that outnumber the machine, early stops, and a driver that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from click.testing import CliRunner, Result

from dasm_ray import pipeline
from dasm_ray.cli import main
from dasm_ray.config.parsing import load_config
from dasm_ray.config.space import load_sweep
from dasm_ray.errors import SessionError
from dasm_ray.runtime import tune as tune_module
from dasm_ray.runtime.decoding import load_real
from dasm_ray.runtime.plan import Shape
from dasm_ray.runtime.pool import Pool, Task
from dasm_ray.runtime.session import Session
from dasm_ray.runtime.tune import Callbacks, Report, Stopping, bundles, run_trials
from dasm_ray.store import findings as store
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.place import Place
from dasm_ray.studies.trials import Sweeping, _data_key, run_trial

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file

pytestmark = pytest.mark.timeout(600)

LIMIT = 240
"""Seconds after which a command counts as hanging."""


class Heard:
    """What a sweep was told, for the driver's side of a test."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self.failures: dict[int, str] = {}
        self.waits: list[float] = []
        self.callbacks = Callbacks(
            lambda number, segments, accuracy: self.reports.append((number, segments)),
            self.ended.append,
            self.waits.append,
            lambda number, why: self.failures.update({number: why}),
        )


def tried(
    run: Callable[[int, Any, Report], None],
    given: Any,
    numbers: list[int],
    scratch: Path,
    *,
    workers: int = 1,
    stopping: Stopping | None = None,
    known: dict[int, list[float]] | None = None,
    retries: int = 0,
) -> Heard:
    heard = Heard()
    session = Session(workers, Shape(1, 0.0), "cpu", started_here=False, connected_here=False)
    run_trials(
        run,
        given,
        numbers,
        session=session,
        stopping=stopping,
        known=known or {},
        retries=retries,
        scratch=Place(scratch),
        callbacks=heard.callbacks,
    )
    return heard


# --- trials of a few lines ---------------------------------------------------------------------------------------


class Squarer:
    def square(self, number: int) -> int:
        time.sleep(0.1)
        return number * number


@ray.remote(num_cpus=1)
def cube(number: int) -> int:
    return number**3


def nested(number: int, folder: Path, report: Report) -> None:
    """A pool of two actors that are replaced once, and plain tasks before, all within the trial's own bundles."""
    assert ray.get([cube.remote(n) for n in range(4)]) == [0, 1, 8, 27]
    for _ in range(2):
        with Pool(
            Squarer,
            (),
            count=2,
            num_cpus=1,
            num_gpus=0,
            max_lost=0,
            task_seconds=60,
            idle_seconds=60,
            notice=lambda text: None,
        ) as pool:
            squares = [done.value for done in pool.run(Task(f"{n}", "square", (n,)) for n in range(6))]
            assert sorted(squares) == [0, 1, 4, 9, 16, 25]
    (folder / f"{number}_{os.getpid()}").touch()
    report(1, number / 10)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_trials_that_outnumber_the_machine_wait_for_whole_bundles_and_never_for_one_another(tmp_path: Path) -> None:
    """Each takes all of the session's two cores, or one of them; actors and tasks of a trial stay within it."""
    for workers, numbers in ((2, [0, 1]), (1, [2, 3, 4])):
        heard = tried(nested, tmp_path, numbers, tmp_path / f"tune{workers}", workers=workers)
        assert sorted(heard.ended) == numbers
        assert sorted(heard.reports) == [(number, 1) for number in numbers]
        assert not heard.failures
    assert sorted(path.name.partition("_")[0] for path in tmp_path.glob("?_*")) == list("01234")


def rising(number: int, folder: Path, report: Report) -> None:
    """A trial of four segments, as good as its number; leaves a mark for every segment."""
    for segment in range(1, 5):
        (folder / f"{number}_{segment}").touch()
        report(segment, number / 10 + segment / 1000)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_is_worse_than_what_earlier_sessions_found_is_stopped_early(tmp_path: Path) -> None:
    """Tune alone would let the first two go on: its own memory of a scheduler ends with the session."""
    stopping = Stopping(grace=1, reduction=2, segments=4)
    known = {n: [0.4 + n / 1000] * 4 for n in range(10, 14)}
    heard = tried(rising, tmp_path, [1, 9], tmp_path / "tune", stopping=stopping, known=known)
    assert sorted(heard.ended) == [1, 9]
    assert not (tmp_path / "1_2").exists(), "the worse one went on"
    assert (tmp_path / "9_4").exists(), "the better one was stopped"
    assert (1, 1) in heard.reports


def faulty(number: int, folder: Path, report: Report) -> None:
    """The first is killed once; the second always raises; the third is well."""
    mark = folder / f"{number}"
    if number == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        with mark.open("a") as file:
            file.write("x")
        raise ValueError("no good\nsecond line")
    report(1, 0.5)


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_lost_trial_is_begun_again_and_a_broken_one_ends_without_the_others(tmp_path: Path) -> None:
    heard = tried(faulty, tmp_path, [0, 1, 2], tmp_path / "tune", retries=1)
    assert sorted(heard.reports) == [(0, 1), (2, 1)]
    assert sorted(heard.ended) == [0, 2]
    assert list(heard.failures) == [1]
    assert "no good" in heard.failures[1]
    assert "second line" not in heard.failures[1]
    assert (tmp_path / "1").read_text() == "xx", "tried again as often as allowed"


@pytest.mark.usefixtures("ray_session")
def test_a_trial_too_large_for_the_cluster_is_told_of_and_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "WAIT_NOTICE_SECONDS", 0.5)
    heard = Heard()

    def waiting(seconds: float) -> None:
        heard.waits.append(seconds)
        if len(heard.waits) == 3:
            raise SessionError("no trial has run")

    with pytest.raises(SessionError, match="no trial has run"):
        run_trials(
            rising,
            tmp_path,
            [0],
            session=Session(64, Shape(1, 0.0), "cpu", started_here=False, connected_here=False),
            stopping=None,
            known={},
            retries=0,
            scratch=Place(tmp_path / "tune"),
            callbacks=replace(heard.callbacks, on_wait=waiting),
        )
    assert heard.waits == sorted(heard.waits)


def test_the_trial_itself_takes_no_core_and_every_worker_a_bundle() -> None:
    request = bundles(Session(3, Shape(2, 0.5, 4.0), "cuda", started_here=False, connected_here=False))
    assert request.head_bundle_is_empty
    assert request.bundles == [{"CPU": 2.0, "GPU": 0.5, "memory": 4.0 * 2**30}] * 3
    assert request.strategy == "PACK"


def test_without_tune_the_command_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    hidden = "import sys; sys.modules['ray.tune'] = None; from dasm_ray.cli import main; main()"
    call = [sys.executable, "-c", hidden, "sweep", str(tmp_path / "sweep.yaml"), "--run", str(tmp_path / "run")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2, done.stderr
    starting, said = done.stderr.splitlines()
    assert starting.endswith("loading PyTorch and Ray")
    assert "pip install 'dasm-ray[sweep]'" in said
    assert not (tmp_path / "run").exists()


# --- the whole command -------------------------------------------------------------------------------------------

RECIPE = """
name: small
seed: 7
data: {name: digits}
model: {width: 8, depth: 1}
synthetic: {ipc: 2, segments: 2}
experts: {count: 1, epochs: 2, batch: 64}
matcher: {rounds: 3, networks: 3, lr_img: 0.01, scale_lr: false, snapshots: [[0, 3]]}
score: {early: 1, batch: 100}
probe: {epochs: 5, batch: 20, members: 1}
evaluate: {epochs: 60, full_epochs: 1, batch: 20, seeds: 2, checkpoints: 2, rows: [distilled, random]}
runtime: {compile: false, checkpoint_seconds: 0, page: false}
"""

SWEEP = """
name: tiny
recipe: recipe.yaml
space:
  matcher.lr_img: {grid: [0.003, 0.03]}
  window.policy: {grid: [all, frontier]}
"""

TRIALS = 4


def started(sweep: Path, run: Path, *options: str) -> subprocess.Popen[str]:
    call = [sys.executable, "-m", "dasm_ray.cli", "sweep", str(sweep), "--run", str(run), *options]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def call(sweep: Path, run: Path, *options: str) -> Result:
    """The command in this process, for what starts no Ray."""
    return CliRunner().invoke(main, ["sweep", str(sweep), "--run", str(run), *options])


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    return out, err


def wait_for(found: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not found():
        assert time.monotonic() < deadline, f"never saw {what}"
        time.sleep(0.05)


def over(run: Path) -> list[int]:
    return [number for number in range(TRIALS) if store.find(Place(run), number).is_over]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[Path, int], str, str]]:
    """Four trials; the driver is killed when one is over, and resumed. What was there of them, and what was said."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "sweep.yaml").write_text(SWEEP)
    run = folder / "run"
    process = started(folder / "sweep.yaml", run)
    wait_for(lambda: len(over(run)) >= 1 or process.poll() is not None, "a trial over")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    kept = {
        file: file.stat().st_mtime_ns
        for number in over(run)
        for file in (run / "found" / f"{number:03d}.json", run / "trials" / f"{number:03d}" / "run.json")
    }
    assert 1 <= len(over(run)) < TRIALS
    out, err = finished(started(folder / "sweep.yaml", run, "--resume"))
    yield run, kept, out, err
    for child in children:  # Ray's own, which end by themselves within a minute
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_sweep_killed_and_resumed_runs_each_once(
    swept: tuple[Path, dict[Path, int], str, str],
) -> None:
    run, kept, _, _ = swept
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items()), "a trial that was over began again"
    found = [store.find(Place(run), number) for number in range(TRIALS)]
    assert all(each.done and len(each.accuracies) == 2 for each in found)
    assert sum(each.begun for each in found) <= TRIALS + 2, "only the two that were interrupted were begun twice"
    assert all(found[number].begun == 1 for number in {int(file.stem) for file in kept if file.parent.name == "found"})
    for number in range(TRIALS):  # each segment was distilled from its first round once
        lines = (run / "trials" / f"{number:03d}" / "events.jsonl").read_text().splitlines()
        stages = [
            event for event in map(json.loads, lines) if event.get("stage") == "distil" and event["kind"] == "stage"
        ]
        fresh = [event["detail"] for event in stages if event["done"] == 0]
        assert sorted(set(fresh)) == ["segment 1 of 2", "segment 2 of 2"]
        assert len(fresh) == 2 or found[number].begun == 2


def test_the_summary_has_a_row_for_every_trial_and_stdout_is_results_alone(
    swept: tuple[Path, dict[Path, int], str, str],
) -> None:
    run, _, out, err = swept
    rows = store.read_trials(Place(run) / "table.parquet")
    assert [row["trial"] for row in rows] == list(range(TRIALS))
    assert {(row["matcher.lr_img"], row["window.policy"]) for row in rows} == {
        (rate, policy) for rate in (0.003, 0.03) for policy in ("all", "frontier")
    }
    assert all(len(row["validation"]) == 2 and row["segments"] == 2 and not row["stopped"] for row in rows)
    assert (run / "table.md").read_text().count("2/2") == TRIALS
    assert out.count("2/2") == TRIALS
    assert max(map(len, out.splitlines())) <= 80 or str(run) in out
    assert "tune" not in out.lower()
    assert "Traceback" not in out + err
    assert err.count("to train for") == 0, "the experts were there"


def test_the_test_set_is_read_for_the_best_alone(swept: tuple[Path, dict[Path, int], str, str]) -> None:
    run, _, out, _ = swept
    rows = store.read_trials(Place(run) / "table.parquet")
    best = max(rows, key=lambda row: (row["mean"], -row["trial"]))["trial"]
    assert [table.parent.parent.name for table in run.glob("trials/*/report/table.json")] == [f"{best:03d}"]
    for cell in run.glob("trials/*/validation/*.json"):
        assert json.loads(cell.read_text())["test"] is None
    table = json.loads((run / "trials" / f"{best:03d}" / "report" / "table.json").read_text())
    (distilled,) = [row for row in table["rows"] if row["name"] == "distilled"]
    assert distilled["validation"] == rows[best]["validation"], "the trial's own trainings are those of the table"
    assert f"digest {table['digest']}" in out


@pytest.mark.long
def test_the_best_trial_has_the_bytes_of_the_same_configuration_alone(
    swept: tuple[Path, dict[Path, int], str, str], tmp_path: Path, ray_session: object
) -> None:
    run, _, out, _ = swept
    (table,) = run.glob("trials/*/report/table.json")
    number = int(table.parent.parent.name)
    alone = pipeline.distill(load_sweep(run.parent / "sweep.yaml").trials[number].config, str(tmp_path / "run"))
    assert alone.digest == json.loads(table.read_text())["digest"]
    assert f"digest {alone.digest}" in out


def test_a_sweep_that_is_over_is_told_again_and_is_not_begun_without_resume(
    swept: tuple[Path, dict[Path, int], str, str],
) -> None:
    run, _, out, _ = swept
    began = time.time()
    again = call(run.parent / "sweep.yaml", run, "--resume")
    assert again.exit_code == 0, again.output
    assert re.findall(r"digest \w+", again.stdout) == re.findall(r"digest \w+", out)
    assert again.stderr == "small: sweeping 4 trials, loading PyTorch and Ray\n", "nothing was started"
    assert max(path.stat().st_mtime for path in run.glob("found/*")) < began
    changed = run.parent / "changed.yaml"
    changed.write_text(SWEEP.replace("0.003", "0.004"))
    for refused, part in (
        (call(run.parent / "sweep.yaml", run), "holds a sweep already; go on with it by --resume"),
        (call(changed, run, "--resume"), "belongs to another sweep (its space, recipe differ)"),
    ):
        assert refused.exit_code == 2, refused.output
        assert part in refused.stderr
        assert refused.stderr.count("dasm-ray: ") == 1


def test_trials_share_experts_and_scores_and_keep_none_of_their_own(
    swept: tuple[Path, dict[Path, int], str, str],
) -> None:
    run, *_ = swept
    (key,) = (run / "experts").iterdir()
    assert sorted(file.name.partition("_")[0] for file in key.iterdir()) == ["expert", "static"]
    assert not list(run.glob("trials/*/experts"))
    stages = {
        event.get("stage")
        for events in run.glob("trials/*/events.jsonl")
        for event in map(json.loads, events.read_text().splitlines())
    }
    assert "distil" in stages
    assert "static scores" not in stages, "a trial scored again what was scored for all"


def test_a_trial_that_can_never_be_done_says_why_and_reports_nothing(tmp_path: Path, ray_session: Session) -> None:
    """Experts that run away give distances that are no numbers: no second try would help."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    config = load_config(tmp_path / "recipe.yaml", ["experts.lr=1.0e+30"])
    session = replace(ray_session, connected_here=False, started_here=False)
    real = {_data_key(config): load_real(open_source(config.data), config.data, lambda text: None)}
    run_trial(0, Sweeping(Place(tmp_path), {0: config}, session, real), lambda *told: pytest.fail(f"reported {told}"))
    found = store.find(Place(tmp_path), 0)
    assert "lower experts.lr (now 1e+30)" in found.failed
    assert found.is_over
    assert (found.begun, found.accuracies, found.done) == (1, (), False)
