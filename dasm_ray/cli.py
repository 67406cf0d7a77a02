"""The command line: each command reads its options, calls one function and prints.

What must stay true: help imports nothing heavy, and an error is a sentence with an exit code.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from dasm_ray.config.selections import SELECTIONS
from dasm_ray.errors import ConfigError, DasmError, RunFailure
from dasm_ray.runtime.streams import awaited, onlooking

if TYPE_CHECKING:
    from dasm_ray.config.keys import RunConfig
    from dasm_ray.config.recipes import Kind
    from dasm_ray.pipeline import Result

RUN = click.option("--run", metavar="DIR", help="Run directory: a folder or a URI. [default: runs/NAME of the config]")
SET = click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change one key of the config.")
STOPPED_BY: dict[int, int] = {signal.SIGTERM: 130}
"""The signals that a command stops at, besides Ctrl-C, and its exit code then."""
if hasattr(signal, "SIGHUP"):
    STOPPED_BY[signal.SIGHUP] = 129  # the terminal was closed

SAME_STOP_SECONDS = 2.0
"""A signal that comes again within these seconds is the same stop: `timeout` sends it to a command and to its group."""

AGAIN_SECONDS = 0.05
"""A stop that was lost comes again after so long."""

WORKERS = click.option("--workers", metavar="N", type=int, help="Most workers. The result does not depend on it.")
ADDRESS = click.option("--address", metavar="HOST:PORT", help="A running Ray cluster. [default: RAY_ADDRESS or local]")


def named(kind: Kind) -> Callable[..., list[CompletionItem]]:
    """What a shell completes: names of shipped files, else paths."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dasm_ray.config.recipes import shipped

        names = [CompletionItem(name) for name in shipped(kind) if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]

    return complete


def recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that takes a config."""
    for option in (ADDRESS, WORKERS, SET, RUN, click.argument("config", shell_complete=named("recipe"))):
        command = option(command)
    return command


def example(line: str) -> str:
    """What the help of a command ends with."""
    return f"\b\nExample: dasm-ray {line}"


class Commands(click.Group):
    """The commands, on standard streams that may fail: a sentence for stdout, nothing for stderr."""

    def main(self, *args: Any, **extra: Any) -> Any:
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stdout and awaited(sys.stdout)
        sys.stderr = sys.stderr and onlooking(sys.stderr)
        try:
            _check_utf8(sys.argv[1:] if extra.get("args") is None else extra["args"])
            return self._printed(super().main, *args, **extra)
        except DasmError as error:  # what no command has told: words of no text, or help that could not be printed
            click.echo(f"dasm-ray: {error}", err=True)
            sys.exit(error.exit_code)
        finally:
            sys.stdout, sys.stderr = before

    @staticmethod
    def _printed(main: Callable[..., Any], *args: Any, **extra: Any) -> Any:
        """What ``main`` returns; its last chance to hear that what was printed is lost."""
        try:
            return main(*args, **extra)
        except SystemExit as end:
            if not end.code and sys.stdout:
                sys.stdout.flush()
            raise


def _check_utf8(words: Sequence[str]) -> None:
    """ConfigError for a word that is not UTF-8: neither files nor Ray take it, and it cannot be shown as it is."""
    from dasm_ray.config.shown import escaped, not_utf8

    for word, shown in ((word, not_utf8(word)) for word in words):
        if shown is not None:
            how = "write it so" if "=" in word else "rename it"
            raise ConfigError(f"{escaped(shown)}: the name is not UTF-8; {how}")


@click.group(
    cls=Commands,
    epilog=example("distill digits"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@click.version_option(package_name="dasm-ray")
def main() -> None:
    """Compress a labelled image set into a small synthetic one that trains a network about as well."""


@main.command(epilog=example("recipes digits > mine.yaml"))
@click.argument("name", required=False)
@click.option(
    "--kind",
    type=click.Choice(["recipe", "sweep", "study"]),
    help="What NAME is the name of, or what to list. [default: recipe; all are listed]",
)
def recipes(name: str | None, kind: Kind | None) -> None:
    """List the recipes that come by name, or print one.

    What each recipe, sweep and study is for, minutes, test accuracy, data. Commands take a name in place of a file.
    """
    with _reporting_errors():
        from dasm_ray.config.recipes import listing, text_of

        click.echo("\n".join(listing(kind)) if name is None else text_of(name, kind or "recipe"), nl=name is None)


@main.command("config", epilog=example("config matcher.lr_img"))
@click.argument("key", required=False)
@click.option("--markdown", is_flag=True, help="Print the page docs/config.md.")
@click.option(
    "--schema",
    type=click.Choice(["recipe", "sweep", "study"]),
    is_flag=False,
    flag_value="recipe",
    help="Print a JSON schema for editors, of a recipe unless another kind of file is named.",
)
def keys_of(key: str | None, markdown: bool, schema: Kind | None) -> None:
    """Say what the keys of a recipe mean.

    KEY: one key or one section; all of them without it. Meaning, default, values, and which matchers read it.
    """
    with _reporting_errors():
        from dasm_ray.config import reference

        if (key is not None) + markdown + (schema is not None) > 1:
            raise ConfigError("config: give one of KEY, --markdown and --schema")
        if schema:
            click.echo(json.dumps(reference.schema(schema), indent=2, ensure_ascii=False))
        elif markdown:
            click.echo(reference.markdown(), nl=False)
        else:
            click.echo("\n".join(reference.lines(key)).lstrip("\n"))


@main.command(epilog=example("init photos --to photos.yaml"))
@click.argument("path")
@click.option("--to", "target", metavar="FILE", help="The new recipe. [default: NAME.yaml, after the folder's name]")
def init(path: str, target: str | None) -> None:
    """Write a first recipe for a set of one's own.

    PATH: a folder in which each class of images has a folder, or Parquet files. The recipe says why each value was
    chosen; read it and change it. Nothing is overwritten.
    """
    with _reporting_errors():
        from dasm_ray.config.fitting import next_steps, recipe_for, write_new
        from dasm_ray.store.datasets.survey import survey

        facts = survey(path)
        file = target or f"{facts.name}.yaml"
        write_new(file, recipe_for(facts))
        click.echo("\n".join([*facts.found, f"written to {file}; next:", *next_steps(file)]))


@main.command(epilog=example("data digits --png sheet.png"))
@click.argument("config", shell_complete=named("recipe"))
@SET
@click.option("--png", metavar="FILE", help="Also draw the first images of each class, a row per class.")
def data(config: str, overrides: tuple[str, ...], png: str | None) -> None:
    """Say what the real images of a config are.

    Splits and what each serves as, classes, counts, shape, and what is left out. Nothing is started, and hardly an
    image is decoded. `docs/data.md` says how sets are read.
    """
    with _reporting_errors():
        settings = _config(config, overrides, None, None)
        _say(f"{settings.name}: looking for its images")
        from dasm_ray.report.page import draw_first
        from dasm_ray.runtime.opening import open_checked
        from dasm_ray.store.place import Place

        source = open_checked(settings)
        click.echo("\n".join(source.found.lines()))
        if png:
            drawn, says = draw_first(source, settings.data)
            Place(png).write_bytes(drawn)
            click.echo(f"drawn to {png}" + f": {says}" * bool(says))


@main.command(epilog=example("distill digits --set synthetic.ipc=4 --workers 2"))
@recipe
def distill(config: str, run: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Distil a real set and evaluate the result.

    CONFIG is a recipe: a file, or a name that `dasm-ray recipes` lists. The synthetic set is written to RUN/synthetic,
    the table to RUN/report. Stopped or killed, the same command goes on from the last checkpoint.
    """
    with _reporting_errors():
        settings = _of_run(config, run, overrides, workers, address, "distilling")
        from dasm_ray import pipeline

        result = pipeline.distill(settings, run)
        _print_table(result)


@main.command(epilog=example("reproduce digits"))
@recipe
def reproduce(
    config: str, run: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None
) -> None:
    """Run a recipe and hold it against its own figure.

    CONFIG is a recipe whose first lines name its test accuracy, as those that `dasm-ray recipes` lists. The first
    experts and the first rounds are held against what they should be as soon as they are there. Exit code 1: outside.
    --set may change keys marked ° in docs/config.md: places and workers.
    """
    with _reporting_errors():
        from dasm_ray.config.digests import keys_that_differ
        from dasm_ray.config.recipes import located
        from dasm_ray.report.reproduced import Expected, verdict, watched

        settings, plain = _config(config, overrides, workers, address), _config(config, (), None, None)
        expected = Expected.of(located(config, "recipe"))
        changed = keys_that_differ(plain, settings)
        if changed:
            raise ConfigError(
                f"--set {changed[0]}: is another recipe, and what that comes to is not known; leave it out"
            )
        _starting(settings, "reproducing")
        settings = _checking().check_run(settings, run)
        from dasm_ray import pipeline

        result = pipeline.distill(settings, run, watched(expected, lambda sign: click.echo(sign, err=True)))
        _print_table(result)
        own = next(row for row in result.rows if row.name == "distilled")
        is_within, sentence = verdict(expected, own, result.digest)
        click.echo(sentence)
        if not is_within:
            raise RunFailure(f"{settings.name}: the run is outside of what its recipe says; {result.place} has it all")


@main.command(epilog=example("experts cifar10_ipc10_cpu --set data.path=/data/cifar10"))
@recipe
def experts(config: str, run: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Train the experts of a config, or find them trained.

    Says first how long it will take and how large they will be. Prints per expert and epoch the validation accuracy in
    % and the loss on training images, from the initialisation on.
    """
    with _reporting_errors():
        settings = _of_run(config, run, overrides, workers, address, "training experts")
        from dasm_ray import pipeline

        for line in pipeline.experts(settings, run):
            click.echo(line)


@main.command(epilog=example("estimate digits --set synthetic.ipc=10"))
@click.argument("config", shell_complete=named("recipe"))
@SET
@WORKERS
@ADDRESS
def estimate(config: str, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Say what a config will take before it runs.

    Measures a few steps on a worker, then counts: time by stage, memory, disk, bytes moved, useful number of workers.
    """
    with _reporting_errors():
        settings = _config(config, overrides, workers, address)
        _starting(settings, "estimating")
        _checking().open_checked(settings)
        from dasm_ray import pipeline

        for line in pipeline.estimate(settings):
            click.echo(line)


@main.command(epilog=example("score digits --run runs/digits"))
@recipe
def score(config: str, run: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Score how hard every real image is before the first segment.

    Writes RUN/scores and prints a line per class.
    """
    with _reporting_errors():
        settings = _of_run(config, run, overrides, workers, address, "scoring")
        from dasm_ray import pipeline

        for line in pipeline.score_summary(settings, run):
            click.echo(line)


@main.command(epilog=example("select digits --method herding"))
@recipe
@click.option(
    "--method",
    type=click.Choice(["random", *SELECTIONS]),
    default="herding",
    show_default=True,
    metavar="METHOD",
)
def select(
    config: str,
    run: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
    method: str,
) -> None:
    """Choose real images instead of distilling.

    They are an artifact in RUN/METHOD. METHOD: random; herding, k_center, k_means by an expert's features; forgetting,
    el2n, grand (the hardest), ccs (spread over difficulties) and window (the best neighbours in difficulty) by the
    experts' scores; patches (random crops that an expert knows best, packed as synthetic.factor says).
    """
    with _reporting_errors():
        settings = _of_run(config, run, overrides, workers, address, f"selecting by {method}")
        from dasm_ray import pipeline

        place, digest = pipeline.select(settings, method, run)
        click.echo(f"{place}\ndigest {digest}")


@main.command(epilog=example("compare mnist_dm mnist_dsa --ipc 1,10 --run runs/mnist"))
@click.argument("configs", shell_complete=named("recipe"), metavar="CONFIG...", nargs=-1, required=True)
@click.option("--ipc", "ipcs", metavar="N,N", help="Images per class. [default: the first config's]")
@click.option("--select", "selections", metavar="A,B", default="random,herding,k_center", show_default=True)
@click.option("--labels", metavar="A,B", default="hard", show_default=True, help="hard, soft: those of the experts.")
@click.option(
    "--network",
    "networks",
    metavar="A,B",
    help="ARCH, ARCH:NORM, MODULE:FUNCTION, timm:NAME. [default: the configs' own]",
)
@click.option("--run", metavar="DIR", help="Folder of the comparison. [default: runs/comparison]")
@SET
@WORKERS
@ADDRESS
def compare(
    configs: tuple[str, ...],
    ipcs: str | None,
    selections: str,
    labels: str,
    networks: str | None,
    run: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
) -> None:
    """Compare recipes and selections in one fair table.

    Every CONFIG is distilled at every --ipc; each set is then trained on with every kind of labels, network and seed.
    IOR, HLR and the compression ratio stand beside. Stopped, the same command goes on: sets and cells that are there
    are not computed again. --set changes all configs.
    """
    with _reporting_errors():
        settings = [_config(config, overrides, workers, address) for config in configs]
        from dasm_ray.config.compared import Plan
        from dasm_ray.config.shown import several

        _starting(settings[0], f"comparing {several(len(settings), 'recipes')}")

        plan = Plan(_numbers("--ipc", ipcs), _names(selections), _names(labels), _names(networks))
        _checking().check_comparison(settings, plan, run)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.table import render

        table = pipeline.compare(
            settings,
            ipcs=plan.ipcs,
            selections=plan.selections,
            labels=plan.labels,
            networks=plan.networks,
            run=run,
        )
        Console().print(render(table.rows, table.title, table.tested))
        click.echo(f"comparison: {table.place}")


@main.command(epilog=example("sweep digits --set seed=1"))
@click.argument("sweeps", shell_complete=named("sweep"), metavar="SWEEP...", nargs=-1, required=True)
@click.option("--run", metavar="DIR", help="Folder of the sweep. [default: runs/NAME of the file]")
@SET
@click.option("--workers", metavar="N", type=int, help="Workers of one trial. [default: the file's]")
@ADDRESS
@click.option("--resume", is_flag=True, help="Go on with a sweep that was stopped; begin those that are not there.")
def sweep(
    sweeps: tuple[str, ...],
    run: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
    resume: bool,
) -> None:
    """Try values of config keys, by Ray Tune.

    SWEEP is a file, or a name that `dasm-ray recipes` lists. Every trial is a run of its own; validation chooses, and
    only the best is evaluated on the test set. Killed, the same command with --resume runs what is left. Several files
    are done one after another. --set changes all trials.
    """
    with _reporting_errors("the same command with --resume goes on where it was stopped"):
        from dasm_ray.config.parsing import repeated
        from dasm_ray.config.shown import several
        from dasm_ray.config.space import load_sweep

        if run and len(sweeps) > 1:
            raise ConfigError(f"--run {run}: is the folder of one sweep, and there are {len(sweeps)}; leave it out")
        plans = [load_sweep(path, _with_options(overrides, None, address), workers) for path in sweeps]
        for name in repeated([plan.name for plan in plans]):
            raise ConfigError(f"name: two of these sweeps are called {name}, and have one folder; rename one")
        _starting(plans[0].trials[0].config, f"sweeping {several(len(plans[0].trials), 'trials')}")
        for plan in plans:
            _checking().check_sweep(plan, run, resume=resume)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.standings import render

        for plan in plans:
            done = pipeline.sweep(plan, run, resume=resume)
            Console().print(render(done.lines, done.title))
            _print_table(done.best)


@main.command(epilog=example("study digits --workers 2"))
@click.argument("studies", shell_complete=named("study"), metavar="STUDY...", nargs=-1, required=True)
@click.option("--run", metavar="DIR", help="Folder of the study. [default: runs/NAME of the file]")
@SET
@WORKERS
@ADDRESS
def study(
    studies: tuple[str, ...],
    run: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
) -> None:
    """Set arms of one recipe against one another, pair by pair.

    STUDY is a file, or a name that `dasm-ray recipes` lists: arms, sizes, distillation seeds, a screen of factors.
    Prints paired differences and main effects with their standard errors; RUN has them in study.md and results.json, a
    row for every training in trainings.parquet. Stopped or killed, the same command goes on. Several files are done
    one after another. --set changes all arms. `docs/studies.md` says how to read one.
    """
    with _reporting_errors():
        from dasm_ray.config.shown import several
        from dasm_ray.config.study import load_study

        if run and len(studies) > 1:
            raise ConfigError(f"--run {run}: is the folder of one study, and there are {len(studies)}; leave it out")
        plans = [load_study(path, _with_options(overrides, workers, address)) for path in studies]
        _check_address(plans[0].config.runtime.address)
        _say_starting(f"{plans[0].name}: studying {several(len(plans[0].arms), 'arms')}")
        for plan in plans:
            _checking().check_study(plan, run)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.differences import render

        for plan in plans:
            done = pipeline.study(plan, run)
            Console().print(render(done.summary))
            click.echo(f"study: {done.place}")


@main.command(epilog=example("relabel runs/digits --to soft"))
@click.argument("path")
@click.option("--to", "target", metavar="DIR", required=True, help="A new folder.")
@SET
@WORKERS
@ADDRESS
def relabel(path: str, target: str, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Give a synthetic set the soft labels of its run's experts.

    PATH: a run directory or an artifact, such as what `select` wrote. --set takes keys of experts, evaluate and
    runtime, data.path, data.download and data.cache.
    """
    with _reporting_errors():
        _check_address(address)
        _say_starting(f"relabelling {path}")
        changes = _with_options(overrides, workers, address)
        _checking().check_relabelling(path, target, changes)
        from dasm_ray import pipeline

        place, digest = pipeline.relabel(path, target, changes)
        click.echo(f"{place}\ndigest {digest}")


@main.command(epilog=example("evaluate runs/digits --set evaluate.seeds=5"))
@click.argument("path")
@click.option("--network", metavar="NAME", help="ARCH, ARCH:NORM, or your own: MODULE:FUNCTION or timm:NAME.")
@SET
@WORKERS
@ADDRESS
def evaluate(
    path: str, network: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None
) -> None:
    """Evaluate a run directory anew, or a synthetic set alone.

    --set takes keys of evaluate and runtime, data.path, data.download and data.cache. FUNCTION takes (shape, classes)
    and gives a torch.nn.Module. Example: dasm-ray evaluate runs/digits --network resnet18:batch
    """
    with _reporting_errors():
        changes = _of_set(path, f"evaluating {path}", overrides, workers, address)
        from dasm_ray import pipeline

        _print_table(pipeline.evaluate(path, changes, network))


@main.command(epilog=example("incremental runs/digits --steps 5"))
@click.argument("path")
@click.option("--steps", type=int, default=5, show_default=True, metavar="N", help="Parts that the classes come in.")
@SET
@WORKERS
@ADDRESS
def incremental(path: str, steps: int, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Learn class by class, with a synthetic set as memory.

    PATH: a run directory or an artifact. Classes come in parts; after each a fresh network is trained on the memory
    alone, which holds the set's images of the classes so far, and tested on these classes. Random images stand beside.
    """
    with _reporting_errors():
        changes = _of_set(path, f"learning from {path} class by class", overrides, workers, address)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.table import grid

        found = pipeline.learn_incrementally(path, steps, changes)
        columns = list(dict.fromkeys(column for _, column in found))
        rows = {name: [found[name, column] for column in columns] for name in ("distilled", "random")}
        caption = "Test accuracy in % on the classes so far, mean ± std over seeds."
        Console().print(grid("class-incremental learning", columns, rows, caption))


@main.command(epilog=example("rank runs/digits --width 8,16 --depth 1,2"))
@click.argument("path")
@click.option("--width", "widths", metavar="N,N", default="8,16,32", show_default=True)
@click.option("--depth", "depths", metavar="N,N", default="1,2", show_default=True)
@click.option("--norm", "norms", metavar="A,B", default="instance,none", show_default=True)
@SET
@WORKERS
@ADDRESS
def rank(
    path: str,
    widths: str,
    depths: str,
    norms: str,
    overrides: tuple[str, ...],
    workers: int | None,
    address: str | None,
) -> None:
    """Rank a grid of ConvNets by a synthetic set.

    PATH: a run directory or an artifact. Every network is trained on the set, on as many random images and on the full
    data; Spearman's correlation says how well either small set foretells the ranking by the full data.
    """
    with _reporting_errors():
        changes = _of_set(path, f"ranking networks by {path}", overrides, workers, address)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.table import grid

        models = pipeline.convnets(_numbers("--width", widths), _numbers("--depth", depths), _names(norms))
        found, agreement = pipeline.rank(path, models, changes)
        sets = ("distilled", "random", "full")
        rows = {name: [found[column, name] for column in sets] for name in dict.fromkeys(name for _, name in found)}
        Console().print(grid("networks", sets, rows, "Test accuracy in %, mean ± std over seeds."))
        for name, value in agreement.items():
            said = f"{value:.2f}" if math.isfinite(value) else "unknown, since all networks are alike on one of the two"
            click.echo(f"Spearman's correlation of {name} with full: {said}")


@main.command(epilog=example("audit runs/digits"))
@click.argument("path")
@click.option("--networks", type=int, default=8, show_default=True, metavar="N", help="Networks on random images.")
@SET
@WORKERS
@ADDRESS
def audit(path: str, networks: int, overrides: tuple[str, ...], workers: int | None, address: str | None) -> None:
    """Say how much a synthetic set tells of its real images.

    PATH: a run directory or an artifact. Distances of its images to the nearest real ones, and attacks that ask who
    took part, beside as many random images and all of them. RUN/report keeps it, and `report` shows it.
    `docs/audit.md` says what it proves and what not.
    """
    with _reporting_errors():
        changes = _of_set(path, f"auditing {path}", overrides, workers, address)
        from rich.console import Console

        from dasm_ray import pipeline
        from dasm_ray.report.audited import terminal, words

        found = pipeline.audit(path, networks, changes)
        for table in terminal(found):
            Console().print(table)
        for sentence in words(found):
            click.echo(sentence)


@main.command(epilog=example("report runs/digits"))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--to", "target", metavar="FILE", help="The page. [default: RUN/report/index.html of a single RUN]")
def report(runs: tuple[str, ...], target: str | None) -> None:
    """Draw a run, or several side by side, as one HTML page.

    RUN: a run directory, a comparison, a study or a sweep, finished or not. The page holds all it shows: what was found
    in the data, the table, the images, how the method went on, time, bytes, and how to get it again. Several runs
    stand against size and time.
    """
    with _reporting_errors("the same command draws the page again"):
        from dasm_ray.report.webpage import report as written

        click.echo(f"page {written(runs, target)}")


@main.command(epilog=example("watch runs/digits --until-done"))
@click.argument("run")
@click.option("--port", metavar="N", type=int, default=8000, show_default=True, help="0: any that is free.")
@click.option("--until-done", is_flag=True, help="End once the run has its table.")
def watch(run: str, port: int, until_done: bool) -> None:
    """Serve the page of a run while it goes on.

    RUN: a run directory, a comparison, a study or a sweep, perhaps one that another command works on. Only this machine
    is answered. The nearest real images are left to `report`, since looking for them takes time.
    """
    with _reporting_errors("the run itself goes on"):
        from dasm_ray.report.watching import watch as serve

        serve(run, port=port, until_done=until_done, say=lambda text: click.echo(text, err=True))


@main.command(epilog=example("inspect runs/digits --png sheet.png"))
@click.argument("path")
@click.option("--png", metavar="FILE", help="Also draw the stored images, a row per class.")
def inspect(path: str, png: str | None) -> None:
    """Show what a synthetic set is."""
    with _reporting_errors():
        from dasm_ray.report.page import describe, draw_sheet
        from dasm_ray.store.artifact import read_artifact
        from dasm_ray.store.description import artifact_place
        from dasm_ray.store.place import Place

        artifact = read_artifact(artifact_place(Place(path)))
        click.echo(describe(artifact))
        if png:
            drawn, says = draw_sheet(artifact)
            Place(png).write_bytes(drawn)
            click.echo(f"drawn to {png}" + f": {says}" * bool(says))


@main.command(epilog=example("export runs/digits --to out --format pt"))
@click.argument("path")
@click.option("--to", "target", metavar="DIR", required=True, help="A new folder.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "npz", "pt", "ddranking"]),
    default="png",
    show_default=True,
    help="png: training images, a folder per class; npz: arrays as stored; pt: tensors for other evaluators; "
    "ddranking: those as it takes them, and the call.",
)
@click.option(
    "--labels",
    type=click.Choice(["logits", "probabilities", "hard"]),
    help="Soft labels in png and pt. [default: logits, which evaluators put a softmax over]",
)
@click.option(
    "--normalise",
    metavar="HOW",
    help="Images in pt: none (in [0, 1]), own (and whitened), or M,M,M:S,S,S. [default: as the set is kept]",
)
@click.option("--stored", is_flag=True, help="png: stored images, grids where the factor is above 1.")
def export(path: str, target: str, kind: str, labels: str | None, normalise: str | None, stored: bool) -> None:
    """Write a synthetic set in another form.

    Says what was left out. PATH: a run directory or an artifact. pt: images.pt, labels.pt, lr.pt, mean.pt, std.pt, and
    the whitening where images are whitened.
    """
    with _reporting_errors():
        from dasm_ray import synthetic

        for line in synthetic.export(path, target, kind, labels=labels, normalise=normalise, stored=stored):
            click.echo(line)


@main.command(epilog=example("push runs/digits me/digits-20"))
@click.argument("path")
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--license", "licence", metavar="NAME", help="As the hub spells it, such as cc-by-4.0. [default: unknown]"
)
@click.option("--private", is_flag=True, help="Make the repository private, if it is made.")
def push(path: str, repository: str, licence: str | None, private: bool) -> None:
    """Publish a synthetic set on the Hugging Face hub.

    PATH: a run directory or an artifact. Its files go into one commit; the card names what it was made of and its
    figures. The token is that of `hf auth login` or HF_TOKEN.
    """
    with _reporting_errors("nothing was changed on the hub unless an address was printed"):
        from dasm_ray.store.hub import push as published

        click.echo(published(path, repository, licence=licence, private=private))


@main.command(
    epilog=example("submit distill digits --run /shared/runs/digits"),
    context_settings={"allow_interspersed_args": False},
)  # what follows COMMAND is its own
@click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    help="The job server. [default: RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265]",
)
@click.option("--id", "name", metavar="NAME", help="Name of the job. [default: one is made up]")
@click.option("--install", is_flag=True, help="Install this folder's package, where the cluster's image lacks it.")
@click.option("--no-wait", is_flag=True, help="Print the name of the job and return.")
@click.argument("words", metavar="COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str, name: str | None, install: bool, no_wait: bool, words: tuple[str, ...]) -> None:
    """Run a command as a job of a Ray cluster, and show its log.

    This folder is sent along, without runs, data and what .gitignore names. --run must be a URI or an absolute path
    that every node reaches. The exit code is the command's own. Ctrl-C ends the showing, not the job.
    """
    with _reporting_errors():
        from pathlib import Path

        from dasm_ray.config.space import load_sweep
        from dasm_ray.config.study import load_study
        from dasm_ray.runtime import submit as jobs

        given = _given(words)
        jobs.check(words[0], given)
        jobs.check_address(address)
        configs: list[RunConfig] = []  # of a sweep or a study one, since all agree in where files lie
        for kind, config in jobs.known_configs(given):
            if kind == "sweep":
                configs.append(load_sweep(config, given["overrides"], given["workers"]).trials[0].config)
            elif kind == "study":
                configs.append(load_study(config, _with_options(given["overrides"], given["workers"], None)).config)
            else:
                configs.append(_config(config, given["overrides"], given["workers"], None))
        files = jobs.files_sent(Path.cwd())
        jobs.check_keys(given, configs, files)
        jobs.check_package(files, jobs.sent_configs(given), install=install)
        job = jobs.send(words, address, Path.cwd(), name=name, install=install)
        click.echo(f"job {job.name}: {job.hint}", err=True)
        if no_wait:
            click.echo(job.name)
            return
        try:
            code = jobs.follow(job, lambda text: click.echo(text, nl=False), lambda text: click.echo(text, err=True))
        except KeyboardInterrupt as stop:
            click.echo(f"dasm-ray: job {job.name} goes on: {job.hint}", err=True)
            code = _code_of(stop)
        sys.exit(code)


@main.command(epilog=example("doctor --address 10.0.0.5:6379"))
@ADDRESS
def doctor(address: str | None) -> None:
    """Compare versions and room of this machine and every node.

    What differs is marked. Exits with 1 where something must be mended.
    """
    with _reporting_errors():
        _check_address(address)
        from rich.console import Console

        from dasm_ray.config.parsing import parse_config
        from dasm_ray.report.health import health
        from dasm_ray.runtime.doctor import differences, look_everywhere
        from dasm_ray.runtime.session import Session

        runtime = parse_config({"runtime": {"address": address, "gpus_per_worker": 0}}).runtime
        with Session.open(runtime, lambda text: None):
            machines = look_everywhere()
        differing = differences(machines)
        Console().print(health([(machine.name, machine.facts) for machine in machines], differing))
        found = [f"{name}: {fact} is not the driver's; install the same version there" for name, fact in differing]
        found += [f"{machine.name}: {complaint}" for machine in machines for complaint in machine.complaints]
        for sentence in found:
            click.echo(sentence)
        click.echo("something must be mended" if found else "all is well")
        sys.exit(1 if found else 0)


# --- what the commands share -------------------------------------------------------------------------------------


def _config(path: str, overrides: tuple[str, ...], workers: int | None, address: str | None) -> RunConfig:
    from dasm_ray.config.parsing import load_config

    return load_config(path, _with_options(overrides, workers, address))


def _of_run(
    path: str, run: str | None, overrides: tuple[str, ...], workers: int | None, address: str | None, doing: str
) -> RunConfig:
    """The configuration of a command that works in a run directory, said and settled before PyTorch is loaded."""
    config = _config(path, overrides, workers, address)
    _starting(config, doing)
    settled: RunConfig = _checking().check_run(config, run)
    return settled


def _of_set(path: str, doing: str, overrides: tuple[str, ...], workers: int | None, address: str | None) -> list[str]:
    """The changes of a command on a finished set, said and checked before PyTorch is loaded."""
    _check_address(address)
    _say_starting(doing)
    changes = _with_options(overrides, workers, address)
    _checking().check_set(path, changes)
    return changes


def _starting(config: RunConfig, doing: str) -> None:
    """Says at once what is going on, since PyTorch and Ray take seconds to load; refuses a misspelt address first."""
    _check_address(config.runtime.address)
    _say_starting(f"{config.name}: {doing}")


def _checking() -> ModuleType:
    """What is refused before PyTorch is loaded: it is looked at between the first line and the loading."""
    from dasm_ray.runtime import opening

    return opening


def _check_address(address: str | None) -> None:
    """The address that counts: the one that is given, or RAY_ADDRESS where there is none."""
    from dasm_ray.config.parsing import parse_config
    from dasm_ray.runtime.address import checked_address

    address = os.environ.get("RAY_ADDRESS") or None if address is None else address
    if address is not None:
        parse_config({"runtime": {"address": address}})  # first, since what is no text to show must not be shown
        checked_address(address)


def _say_starting(doing: str) -> None:
    _say(doing, ", loading PyTorch and Ray")


def _say(doing: str, why_it_takes_long: str = "") -> None:
    """What a command is at, on stderr: stdout is for results."""
    from dasm_ray.config.shown import escaped

    click.echo(escaped(doing) + why_it_takes_long, err=True)


def _with_options(overrides: tuple[str, ...], workers: int | None, address: str | None) -> list[str]:
    """Options as overrides, so that they are checked like any other key; an address is text whatever it looks like."""
    options = {"runtime.workers": workers, "runtime.address": address}
    given = {key: value for key, value in options.items() if value is not None}
    return [*overrides, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items())]


def _given(words: tuple[str, ...]) -> dict[str, Any]:
    """The options of a whole command line by their names; nothing for a command that there is not."""
    command = main.commands.get(words[0])
    return {} if command is None else command.make_context(f"dasm-ray {words[0]}", list(words[1:])).params


def _names(listed: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in (listed or "").split(",") if part.strip())


def _numbers(option: str, listed: str | None) -> tuple[int, ...]:
    from dasm_ray.config.plain_yaml import MOST_DIGITS
    from dasm_ray.config.shown import escaped

    names = _names(listed)
    for name in names:
        if not name.isdecimal() or len(name) > MOST_DIGITS:
            raise ConfigError(f"{option}: {escaped(name, 60)!r} is no number that can be meant; write it as 1,10")
    return tuple(map(int, names))


@contextlib.contextmanager
def _reporting_errors(how: str = "the same command goes on from the last checkpoint") -> Iterator[None]:
    """Errors as sentences with their exit code; being stopped as a word on ``how`` to go on."""
    before = {number: signal.getsignal(number) for number in STOPPED_BY}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    usual, sys.unraisablehook = sys.unraisablehook, partial(_raised_nowhere, sys.unraisablehook)
    try:
        yield
    except DasmError as error:
        for sentence in str(error).splitlines():
            click.echo(f"dasm-ray: {sentence}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        click.echo(f"dasm-ray: stopped; {how}", err=True)
        sys.exit(_code_of(stop))
    finally:
        sys.unraisablehook = usual
        for number, handler in before.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def _stop(number: int, _: object) -> NoReturn:
    """Stops as Ctrl-C does, so that checkpoints are written. A closed terminal says so more than once."""
    signal.signal(number, partial(_stop_again, time.monotonic()) if number == signal.SIGTERM else signal.SIG_IGN)
    raise KeyboardInterrupt(STOPPED_BY[number])


def _stop_again(since: float, number: int, _: object) -> None:
    """The same stop, where it comes at once. Later, an order to leave whatever is being written."""
    if time.monotonic() - since > SAME_STOP_SECONDS:
        raise KeyboardInterrupt(STOPPED_BY[number])


def _raised_nowhere(usual: Callable[[sys.UnraisableHookArgs], object], found: sys.UnraisableHookArgs) -> None:
    """Stops again where a stop was raised in a hook of a fork or a finaliser, in which Python prints and forgets it.

    Here it would be lost once more, so that it comes from a thread in a moment.
    """
    if not isinstance(found.exc_value, KeyboardInterrupt):
        usual(found)
        return
    number = next((number for number, code in STOPPED_BY.items() if code in found.exc_value.args), signal.SIGINT)
    if number in STOPPED_BY:
        signal.signal(number, _stop)
    threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()


def _code_of(stop: KeyboardInterrupt) -> int:
    return next((code for code in stop.args if isinstance(code, int)), 130)


def _print_table(result: Result) -> None:
    from rich.console import Console

    from dasm_ray.report.table import render

    Console().print(render(result.rows, result.title, result.tested))
    click.echo(f"synthetic set: {result.place}\ndigest {result.digest}")


if __name__ == "__main__":
    main()
