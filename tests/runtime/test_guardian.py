"""The process beside the driver, run as such."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from dasm_ray.runtime import guardian


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def run_guardian(*lines: object, end: bytes = b"") -> tuple[str, float]:
    """What it says when its driver is gone after these lines, and how long that takes."""
    command = [sys.executable, "-P", guardian.__file__, "gone"]
    start = time.monotonic()
    said = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + end
    ran = subprocess.run(command, input=said, capture_output=True, timeout=30, check=True)
    return ran.stderr.decode(), time.monotonic() - start


def test_a_driver_that_says_goodbye_is_not_spoken_for(sleeper: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(sleeper.pid)
    assert run_guardian({"processes": [[process.pid, process.create_time()]]}, {"bye": True})[0] == ""
    assert sleeper.poll() is None


def test_a_driver_gone_without_a_word_is_spoken_for_and_what_it_started_is_ended(
    sleeper: subprocess.Popen[bytes],
) -> None:
    process = psutil.Process(sleeper.pid)
    said, _ = run_guardian({"processes": [[process.pid, process.create_time()]]})
    assert said == "gone\n"
    assert sleeper.wait(5) < 0


def test_the_last_sentence_is_the_one_that_is_said_and_a_line_cut_off_is_let_alone() -> None:
    assert run_guardian({"sentence": "first"}, {"sentence": "second"}, end=b'{"sentence": "thi')[0] == "second\n"


def test_a_number_that_another_process_has_by_now_is_let_alone(sleeper: subprocess.Popen[bytes]) -> None:
    run_guardian({"processes": [[sleeper.pid, psutil.Process(sleeper.pid).create_time() - 1]]})
    assert sleeper.poll() is None
