"""The log of a run: lines in order, parts that are written once, and no run that it could stop."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from dasm_ray.errors import StorageError
from dasm_ray.store import events as events_module
from dasm_ray.store.events import MOST_HELD, EventLog, read_events
from dasm_ray.store.place import Place


def kinds(run: Place) -> list[str]:
    return [event["kind"] for event in read_events(run)]


def test_where_files_can_be_appended_to_a_line_is_there_at_once(tmp_path: Path) -> None:
    log = EventLog(Place(tmp_path))
    log.add({"kind": "one"})
    assert kinds(Place(tmp_path)) == ["one"]
    EventLog(Place(tmp_path)).add({"kind": "two"})
    assert kinds(Place(tmp_path)) == ["one", "two"]
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_elsewhere_each_part_is_written_once(bucket, s3_proxy, monkeypatch) -> None:
    monkeypatch.setattr(events_module, "PART_SECONDS", 0.0)
    monkeypatch.setattr(events_module, "LONGEST_PART_SECONDS", 0.0)
    first = len(s3_proxy.requests)
    log = EventLog(bucket)
    for number in range(3):
        log.add({"kind": f"a{number}"})
    again = EventLog(bucket)  # the next driver goes on behind them
    again.add({"kind": "b"})
    assert (bucket / "events").names() == [f"{number:05d}.jsonl" for number in range(4)]
    assert kinds(bucket) == ["a0", "a1", "a2", "b"]
    written = [path for verb, path in s3_proxy.requests[first:] if verb == "PUT" and path.endswith(".jsonl")]
    assert len(written) == len(set(written)) == 4


def test_parts_come_now_and_then(tmp_path: Path) -> None:
    run = Place(f"mock://{tmp_path.name}/run")
    log = EventLog(run)
    for number in range(50):
        log.add({"kind": f"{number}"})
    assert (run / "events").names() == ["00000.jsonl"]
    log.send()
    assert (run / "events").names() == ["00000.jsonl", "00001.jsonl"]
    assert kinds(run) == [f"{number}" for number in range(50)]


def fail_with(monkeypatch, number: int) -> None:
    def fails(self: Place, data: bytes) -> None:
        self._do("be written", lambda: (_ for _ in ()).throw(OSError(number, os.strerror(number))))

    monkeypatch.setattr(Place, "append", fails)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_log_that_cannot_be_written_is_said_once_and_written_later(
    tmp_path: Path, monkeypatch, caplog, number: int
) -> None:
    run = Place(tmp_path)
    log = EventLog(run)
    log.add({"kind": "before"})
    with monkeypatch.context() as patch:
        fail_with(patch, number)
        for kind in ("one", "two"):
            log.add({"kind": kind})
    (notice,) = [record.message for record in caplog.records]
    assert "the run goes on without its log" in notice
    log.add({"kind": "after"})
    assert kinds(run) == ["before", "one", "two", "after"]


def test_an_outage_stops_no_run_and_is_not_waited_for(bucket, s3_proxy, monkeypatch) -> None:
    monkeypatch.setattr(events_module, "PART_SECONDS", 0.0)
    monkeypatch.setattr(events_module, "LONGEST_PART_SECONDS", 0.0)
    log = EventLog(bucket)
    with s3_proxy.failing("busy"):
        log.add({"kind": "meanwhile"})
    log.add({"kind": "after"})
    assert kinds(bucket) == ["meanwhile", "after"]


def test_what_is_held_is_bounded_and_what_is_lost_is_said(tmp_path: Path, monkeypatch) -> None:
    run = Place(tmp_path)
    log = EventLog(run)
    monkeypatch.setattr(events_module, "MOST_HELD", 10)
    with monkeypatch.context() as patch:
        fail_with(patch, errno.ENOSPC)
        for number in range(15):
            log.add({"kind": f"{number}"})
    log.send()
    found = list(read_events(run))
    assert (found[0]["kind"], found[0]["events"]) == ("lost", 5)
    assert [event["kind"] for event in found[1:]] == [f"{number}" for number in range(5, 15)]
    assert MOST_HELD == 10_000


@pytest.mark.parametrize("torn", [b'{"kind": "whole"}\n{"kind": "to', b'{"kind": "whole"}\n{"kind": "to\n', b""])
def test_a_line_that_was_torn_takes_no_other_with_it(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(torn)
    log = EventLog(Place(tmp_path))
    log.add({"kind": "next"})
    log.add({"kind": "last"})
    assert kinds(Place(tmp_path)) == [*(["whole"] if torn else []), "next", "last"]


def test_a_log_that_cannot_be_read_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    log = EventLog(Place(tmp_path))
    log.add({"kind": "held"})
    (tmp_path / "events.jsonl").rmdir()
    log.send()
    assert kinds(Place(tmp_path)) == ["held"]


def test_a_line_that_is_nested_without_end_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"kind": "one"}\n' + "[" * 100_000 + '\n{"kind": "two"}\n')
    assert kinds(Place(tmp_path)) == ["one", "two"]


def test_a_run_directory_that_is_gone_is_more_than_a_log(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("")
    log = EventLog(Place(tmp_path / "run").within("mark"))
    log.add({"kind": "one"})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StorageError, match="is not there any more"):
        log.add({"kind": "two"})
    log.send()  # at the end of a run that fails for this very reason
    assert not (tmp_path / "run").exists()


def test_no_log_is_no_events(tmp_path: Path) -> None:
    assert list(read_events(Place(tmp_path / "none"))) == []
