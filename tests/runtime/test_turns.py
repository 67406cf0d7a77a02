"""One compilation a machine: who waits, who does not, and what the driver hears."""

from __future__ import annotations

import threading
from pathlib import Path

import filelock
import pytest

from dasm_ray.config.gains import COLD
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks.compiled import First
from dasm_ray.runtime import turns
from dasm_ray.runtime.turns import VARIABLE, Hearing, Turns, tell

STEP = First("train crop", "((64, 3, 32, 32), float32)")


def test_of_several_at_once_one_compiles(tmp_path: Path) -> None:
    told: list[First | None] = []
    began, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def call(name: str) -> None:
        with Turns(tmp_path, told.append)(STEP):
            if name == "first":
                began.set()
                go_on.wait(60)
            order.append(name)

    threads = [threading.Thread(target=call, args=(name,)) for name in ("first", "second", "third")]
    threads[0].start()
    assert began.wait(60)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order[0] == "first"
    assert sorted(order) == ["first", "second", "third"]
    assert told == [STEP, None], "who finds it done tells nobody"
    (done,) = (file for file in tmp_path.iterdir() if file.suffix != ".lock")
    assert done.read_text().startswith("train crop: ")


def test_steps_of_other_shapes_or_kinds_wait_for_nobody(tmp_path: Path) -> None:
    told: list[First | None] = []
    turn = Turns(tmp_path, told.append)
    others = [STEP._replace(kind="read"), STEP._replace(shape="another")]
    with turn(STEP), turn(others[0]), turn(others[1]):
        pass
    assert told[:3] == [STEP, *others]


def test_a_step_that_could_not_be_compiled_is_tried_by_the_next(tmp_path: Path) -> None:
    told: list[First | None] = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Turns(tmp_path, told.append)(STEP):
            raise ZeroDivisionError
    assert told == [STEP, None, STEP, None]


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.05)
    with Turns(tmp_path, lambda _: None)(STEP):
        (lock,) = tmp_path.glob("*.lock")
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(lock).acquire(timeout=0)
        entered = []
        with Turns(tmp_path, entered.append)(STEP):
            assert entered == [STEP]


def test_where_nothing_can_be_written_each_compiles_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[First | None] = []
    for _ in range(2):
        with Turns(tmp_path / "file" / "done", told.append)(STEP):
            pass
    assert told == [STEP, None, STEP, None]


def test_what_is_compiled_is_kept_by_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "turn", compiled.turn)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("DASM_RAY_CACHE", str(tmp_path))
    folders = set()
    for release in ("1.0", "1.0", "1.1"):
        monkeypatch.setattr(turns, "installed", {"dasm-ray": release}.get)
        turns.begin()
        folders.add(Path(turns.os.environ.pop(VARIABLE)))
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "compiled"}
    assert isinstance(compiled.turn, Turns)


def test_a_folder_that_the_user_names_for_torch_is_kept_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "turn", compiled.turn)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    turns.begin()
    assert turns.os.environ[VARIABLE] == str(tmp_path)
    with compiled.turn(STEP):
        pass
    assert list(tmp_path.glob("dasm_ray/*/done/*.lock"))


def test_a_step_takes_its_turn_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    taken: list[First] = []

    def turn(first: First) -> threading.Lock:
        taken.append(first)
        return threading.Lock()

    monkeypatch.setattr(compiled, "turn", turn)
    step = compiled.Compiled(lambda x, more: x + more["a"][0], kind="train")
    for size in (2, 3, 2, 3, 3):
        assert step(torch.ones(size), {"a": (torch.ones(size),)}).tolist() == [2] * size
    assert [first.kind for first in taken] == ["train"] * 2
    assert len({first.shape for first in taken}) == 2
    torch._dynamo.reset()


def test_the_driver_hears_how_long_it_will_take() -> None:
    said: list[float | None] = []
    now = [100.0]
    hearing = Hearing(said.append, lambda: now[0])
    hearing.hear([])
    hearing.hear([b"dasm_ray/compiling/job/one/train"])
    now[0] += 5
    hearing.hear([b"dasm_ray/compiling/job/one/train", b"dasm_ray/compiling/job/two/match"])
    now[0] += 1000
    hearing.hear([b"dasm_ray/compiling/job/two/match"])  # of a worker that died
    assert said == [None, COLD["train"], COLD["match"], None]


def test_what_a_worker_tells_is_heard(ray_session: object) -> None:
    said: list[float | None] = []
    hearing = Hearing(said.append)
    tell(STEP)
    hearing()
    tell(None)
    hearing()
    assert said == [pytest.approx(COLD["train"], abs=1), None]
