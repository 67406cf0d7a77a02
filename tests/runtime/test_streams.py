"""Standard streams that cannot be written: an error that is the package's own, or silence."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from dasm_ray.errors import StorageError
from dasm_ray.runtime.streams import awaited, onlooking

FULL = Path("/dev/full")


class Broken(io.StringIO):
    """Nobody reads it, or there is no room for it."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error, self.tries = error, 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise self.error


FAULTS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "Input/output error")]


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_results_that_cannot_be_written_are_a_sentence_every_time(error: OSError) -> None:
    stream = Broken(error)
    guarded = awaited(stream)
    for _ in range(2):  # whoever printed first may have swallowed it
        with pytest.raises(StorageError, match=rf"standard output cannot be written \({error.strerror}\)"):
            guarded.write("x")
    with pytest.raises(StorageError):
        guarded.flush()
    assert stream.tries == 1


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_where_nobody_looks_nothing_is_said(error: OSError) -> None:
    stream = Broken(error)
    guarded = onlooking(stream)
    assert guarded.write("abc") == 3
    guarded.write("more")
    guarded.flush()
    assert stream.tries == 1


def test_a_sound_stream_is_written_and_looks_like_itself() -> None:
    stream = io.StringIO()
    for guarded in (awaited(stream), onlooking(stream)):
        assert guarded.write("é") == 1
        guarded.flush()
        assert not guarded.isatty()
    assert stream.getvalue() == "éé"


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_what_is_still_held_does_not_fail_again_at_the_end() -> None:
    stream = open(os.open(FULL, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
    guarded = onlooking(stream)
    guarded.write("held")
    guarded.flush()
    stream.close()  # as the interpreter does
