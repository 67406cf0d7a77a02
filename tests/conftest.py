"""One Ray for the whole test session: starting it takes seconds, so no test starts its own without a reason.

What Hypothesis tries is another every day, by a seed that is printed: FUZZ_SEED=N has a day's again.
SLOW_PART=N leaves one part of the slow tests, SLOW_PART=next the one whose turn it is, which is printed too.
"""

import atexit
import datetime
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SMALL, TRAJECTORIES, digest_in, finished, started
from hypothesis import settings
from rotation import PARTS, USUAL_SECONDS, Part, asked_for, parts_of

settings.register_profile("seeded", print_blob=True, deadline=None, database=None)
settings.load_profile("seeded")
os.environ.setdefault("FUZZ_SEED", str(datetime.datetime.now(datetime.UTC).toordinal()))  # workers have the same

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers of one run share a cache, and nobody's home is written to
    os.environ["DASM_RAY_CACHE"] = tempfile.mkdtemp(prefix="dasm_ray_tests_")
    atexit.register(shutil.rmtree, os.environ["DASM_RAY_CACHE"], ignore_errors=True)
# What is compiled is kept from one test run to the next, where torch itself would: cold it takes minutes.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}")
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)


WHOLE = {"reference", "walked", "swept"}
"""Fixtures that take tens of seconds to make: whole runs and a sweep."""


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads it
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = os.environ["FUZZ_SEED"]


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"fuzz seed: {config.getoption('--hypothesis-seed')}", *(str(part) for part in chosen_part())]


@pytest.hookimpl(tryfirst=True)  # before the marks are chosen by
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if WHOLE & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("slow") is None:
            item.add_marker("long")
    for part in chosen_part():
        slow = [item for item in items if item.get_closest_marker("slow")]
        numbers = parts_of([seconds_of(item) for item in slow], PARTS)
        others = {item for item, number in zip(slow, numbers, strict=True) if number != part.number}
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]


def chosen_part() -> list[Part]:
    """The part of the slow tests that is asked for, if one is."""
    given = os.environ.get("SLOW_PART")
    try:
        return [asked_for(given, Path(__file__).parent)] if given else []
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def seconds_of(item: pytest.Item) -> float:
    """How long a slow test takes, as its mark says."""
    mark = item.get_closest_marker("slow")
    return float(mark.args[0]) if mark and mark.args else USUAL_SECONDS


@pytest.fixture(scope="session")
def ray_session() -> Iterator[object]:
    """A session of two small CPU workers, open until the last test."""
    from dasm_ray.config.keys import Runtime
    from dasm_ray.runtime.session import Session

    with Session.open(Runtime(workers=2, cpus_per_worker=1, gpus_per_worker=0), log=lambda text: None) as session:
        yield session


@pytest.fixture(scope="session")
def digits() -> object:
    """The real images of digits, decoded in this process."""
    from local_pool import local_real, small

    return local_real(small())


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the real sets for tests lie, as Parquet."""
    return Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[object]:
    """An S3 on this machine behind a proxy that can be made to fail; credentials come from the environment."""
    from outages import s3

    given = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        with s3() as proxy:
            yield proxy
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def reference(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with two workers, and its page."""
    run = tmp_path_factory.mktemp("reference") / "run"
    out = finished(started(recipe, run, "--workers", "2", "--set", "runtime.page=true"))
    assert f"digest {digest_in(run)}" in out
    return run


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("walks") / "walks.yaml"
    path.write_text(TRAJECTORIES)
    return path
