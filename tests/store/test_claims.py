"""One driver at a time in a folder: by a lock, by claims where there is none, and nobody's files but one's own."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dasm_ray.errors import RunDirError, StorageError
from dasm_ray.store import claims
from dasm_ray.store.claims import take
from dasm_ray.store.place import Place


@pytest.fixture(params=["locked", "claimed"])
def folder(request, tmp_path: Path, monkeypatch) -> Place:
    """A new folder where files can be locked, and one where they cannot."""
    if request.param == "claimed":
        monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    return Place(tmp_path / "folder")


def test_a_folder_is_taken_once_and_free_again_afterwards(folder: Place) -> None:
    claim = take(folder)
    (claim.place / "f").write_text("x")
    with pytest.raises(RunDirError, match="in use by another run"):
        take(folder)
    claim.release()
    claim.release()
    assert [name for name in folder.names() if name != ".lock"] == ["f"]
    take(folder).release()


def test_who_has_it_is_said(folder: Place) -> None:
    claim = take(folder)
    with pytest.raises(
        RunDirError,
        match=rf"folder is in use by another run \(process {os.getpid()} on .*, at work since 2\d\d\d-.*, "
        rf"which last said so at 2\d\d\d-.*\); wait for it, or choose another --run",
    ):
        take(folder)
    (folder / claim.name).write_text("")  # damaged: it is held all the same
    with pytest.raises(RunDirError, match="in use by another run"):
        take(folder)
    claim.release()


def test_a_driver_whose_claim_was_taken_writes_no_more(folder: Place) -> None:
    claim = take(folder)
    (folder / claim.name).delete()
    with pytest.raises(StorageError, match="another driver has taken it"):
        (claim.place / "f").write_text("x")
    claim.release()
    assert [name for name in folder.names() if name != ".lock"] == []


def test_it_is_waited_for(folder: Place) -> None:
    first = take(folder)
    threading.Timer(0.3, first.release).start()
    began = time.monotonic()
    take(folder, patience=30).release()
    assert 0.2 < time.monotonic() - began < 10


def test_only_own_files_are_taken_away(folder: Place) -> None:
    claim = take(folder)
    (folder / "mine").write_text("x")
    claim.discard(["mine", "never"])
    assert not folder.exists()
    claim = take(folder)
    (folder / "mine").write_text("x")
    (folder / "somebody's").write_text("x")
    claim.discard(["mine"])
    assert folder.names() == ["somebody's"]
    claim = take(folder)
    claim.discard([])
    assert folder.names() == ["somebody's"], "a folder that was there stays as it was"


def test_a_folder_that_another_has_taken_over_is_left_alone(folder: Place) -> None:
    claim = take(folder)
    (folder / "f").write_text("now theirs")
    (folder / claim.name).delete()
    claim.discard(["f"])
    assert (folder / "f").exists()


def test_a_claim_that_a_killed_driver_left_keeps_nobody_out_where_there_are_locks(tmp_path: Path) -> None:
    left = tmp_path / f".claim-{'0' * 32}.json"
    left.write_text("{}")
    claim = take(Place(tmp_path))
    assert not left.exists()
    claim.release()


# --- where there are no locks ------------------------------------------------------------------------------------


def test_two_drivers_in_an_s3(bucket) -> None:
    claim = take(bucket)
    with pytest.raises(RunDirError, match=rf"process {os.getpid()} on "):
        take(bucket)
    (claim.place / "f").write_text("x")
    claim.release()
    again = take(bucket)
    again.discard(["f"])
    assert bucket.walk()[1] == []


def test_a_claim_that_is_not_renewed_is_taken_over_with_a_notice(bucket, monkeypatch, caplog) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 3600)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)
    dead = take(bucket)
    time.sleep(2.1)  # the storage counts in whole seconds
    claim = take(bucket)
    (notice,) = [record.message for record in caplog.records]
    assert f"takes over from process {os.getpid()} on " in notice
    (claim.place / "f").write_text("mine")
    with pytest.raises(StorageError, match="another driver has taken it"):
        (dead.place / "f").write_text("theirs")
    dead.release()
    claim.release()
    assert bucket.names() == ["f"]


def test_a_claim_is_judged_by_what_it_says_where_the_storage_tells_no_times(timeless, caplog) -> None:
    dead = {"entered": True, "begun": "2026-01-01T00:00:00+00:00", "renewed": "2026-01-01T00:10:00+00:00"}
    (timeless / f".claim-{'0' * 32}.json").write_json(dead)
    claim = take(timeless)
    (notice,) = [record.message for record in caplog.records]
    assert "last said so at 2026-01-01T00:10:00+00:00" in notice
    with pytest.raises(RunDirError, match=rf"in use by another run \(process {os.getpid()} on "):
        take(timeless)
    claim.release()
    (timeless / f".claim-{'1' * 32}.json").write_json({"entered": True})
    with pytest.raises(RunDirError, match="in use by another run"):
        take(timeless)


def test_a_claim_in_a_storage_of_fsspec_goes_stale(monkeypatch, caplog) -> None:
    monkeypatch.setattr(claims, "RENEW_SECONDS", 3600)
    place = Place("memory://claims-of-a-test/folder")
    dead = take(place)
    with pytest.raises(RunDirError, match="in use by another run"):
        take(place)
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.1)
    time.sleep(0.2)
    take(place).release()
    assert "takes over from" in caplog.text
    dead.release()


def test_a_claim_is_renewed_while_its_driver_lives(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)
    claim = take(Place(tmp_path))
    before = (tmp_path / claim.name).stat().st_mtime_ns
    time.sleep(1.5)
    assert (tmp_path / claim.name).stat().st_mtime_ns > before
    with pytest.raises(RunDirError, match="in use"):
        take(Place(tmp_path))
    claim.release()


def test_a_claim_that_is_gone_is_not_written_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    claim = take(Place(tmp_path / "folder"))
    shutil.rmtree(tmp_path / "folder")
    time.sleep(0.3)
    assert not (tmp_path / "folder").exists()
    claim.release()
    assert not (tmp_path / "folder").exists()


def test_a_driver_that_wakes_up_after_it_was_taken_for_dead_gives_way(tmp_path: Path, monkeypatch) -> None:
    """It renews its claim at the very moment when the other one removes it."""
    monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    old = take(Place(tmp_path))
    later = tmp_path / f".claim-{'f' * 32}.json"
    later.write_text(json.dumps({"entered": True, "begun": "2999-01-01T00:00:00+00:00"}))
    deadline = time.monotonic() + 10
    while (tmp_path / old.name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(StorageError, match="another driver has taken it"):
        (old.place / "f").write_text("x")
    old.release()
    assert os.listdir(tmp_path) == [later.name]


def test_of_two_that_see_each_other_the_smaller_name_goes_first(tmp_path: Path, monkeypatch) -> None:
    """Neither has entered yet. The smaller waits until the other has given way; the larger gives way."""
    monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    small, large = (tmp_path / f".claim-{digit * 32}.json" for digit in "0f")
    large.write_text(json.dumps({"entered": False}))
    threading.Timer(0.3, large.unlink).start()
    claim = take(Place(tmp_path))
    assert not large.exists()
    claim.release()
    small.write_text(json.dumps({"entered": False}))
    with pytest.raises(RunDirError, match="in use"):
        take(Place(tmp_path))
    assert os.listdir(tmp_path) == [small.name]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSYS, "no"), OSError(errno.ENOLCK, "no"), NotImplementedError()])
def test_a_file_system_that_cannot_lock_has_claims(tmp_path: Path, monkeypatch, fault: Exception) -> None:
    def fails(self: Any, **_: Any) -> None:
        raise fault

    monkeypatch.setattr(claims.filelock.FileLock, "acquire", fails)
    claim = take(Place(tmp_path))
    assert claim._renewing is not None
    with pytest.raises(RunDirError, match="in use"):
        take(Place(tmp_path))
    claim.release()


def test_a_lock_that_may_not_be_made(tmp_path: Path, monkeypatch) -> None:
    def fails(self: Any, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(claims.filelock.FileLock, "acquire", fails)
    with pytest.raises(RunDirError, match=r"\.lock cannot be locked \(Permission denied\)"):
        take(Place(tmp_path))


# --- at once -----------------------------------------------------------------------------------------------------

TIMES = 100


def drive(root: Path, with_lock: bool, barrier: Any, answers: Any) -> None:
    """One of two drivers: enters each folder in turn at the same moment as the other, and says how it went."""
    if not with_lock:
        claims._locked = lambda place, until: None
    for number in range(TIMES if with_lock else TIMES // 4):
        barrier.wait()
        try:
            claim = take(Place(root / f"{number}"))
            (claim.place / f"by {os.getpid()}").write_text("mine")
        except RunDirError as error:
            answers.put((number, "" if "in use by another run" in str(error) else str(error)))
            claim = None
        barrier.wait()  # whoever has it holds it until the other was refused
        if claim is not None:
            answers.put((number, f"by {os.getpid()}"))
            claim.release()


@pytest.mark.parametrize("with_lock", [True, False])
def test_of_two_that_start_at_once_exactly_one_enters(tmp_path: Path, with_lock: bool) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, answers = context.Barrier(2, timeout=60), context.Queue()
    drivers = [context.Process(target=drive, args=(tmp_path, with_lock, barrier, answers)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    found: dict[int, list[str]] = {}
    for _ in range(2 * (TIMES if with_lock else TIMES // 4)):
        number, said = answers.get(timeout=60)
        found.setdefault(number, []).append(said)
    for driver in drivers:
        driver.join(60)
    for number, said in found.items():
        refused, entered = sorted(said)
        assert refused == ""
        assert entered.startswith("by ")
        left = [path.name for path in (tmp_path / f"{number}").iterdir() if path.name != ".lock"]
        assert left == [entered], "the loser has changed what the winner made"


def test_a_driver_that_waits_for_a_folder_that_is_discarded_gets_a_new_one(tmp_path: Path) -> None:
    folder = Place(tmp_path / "folder")
    first = take(folder)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(take(folder, patience=30)))
    waiting.start()
    time.sleep(0.5)
    first.discard([])
    waiting.join(30)
    (got[0].place / "f").write_text("x")
    with pytest.raises(RunDirError, match="in use"):
        take(folder)
    got[0].release()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from dasm_ray.store import claims, place\n"
        "claim = claims.take(place.Place(sys.argv[1]))\n"
        "print('taken', flush=True)\n"
        "time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"taken\n"
        with pytest.raises(RunDirError, match=rf"in use by another run \(process {driver.pid} on "):
            take(Place(tmp_path))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    take(Place(tmp_path)).release()


def test_a_driver_that_waits_takes_nothing_from_one_at_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claims, "_locked", lambda place, until: None)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    own = take(Place(tmp_path))
    waiting = tmp_path / f".claim-{'f' * 32}.json"
    waiting.write_text(json.dumps({"entered": False, "begun": "2999-01-01T00:00:00+00:00"}))
    time.sleep(0.5)
    (own.place / "f").write_text("x")
    own.release()
